//! From the underlay to the bridge.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use kontena_schema::mac::Mac;

use crate::coalesce::Coalescer;
use crate::counters::count;
use crate::headers::ETHERNET;
use crate::peer::Tunnel;
use crate::sleeve::{Shared, View, retry_later};
use crate::vxlan::Envelope;

/// The most that one call receives.
const BURST: usize = 65_536;
/// How many bytes are opened before the bridge gets what waits for its successor.
const OPENED: usize = 4 * BURST;
/// How many bursts are received before the table is looked at again, whatever they
/// hold.
const BURSTS: usize = 64;
/// Packets of a session are counted up to here; none gets that far (WireGuard
/// whitepaper section 6.1 ends one sooner), and beyond it boringtun's sums overflow.
const LAST_COUNTER: u64 = u64::MAX - (1 << 13);
/// The types of WireGuard's messages (whitepaper section 5.4).
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;
/// Room for the longest answer of WireGuard to one packet.
const ANSWER: usize = 2048;
const SOURCE: std::ops::Range<usize> = 6..12;
/// The most that a cookie's reply has (WireGuard whitepaper section 5.4.7).
const COOKIE_REPLY: usize = 64;

/// Carries packets until the sleeve stops.
pub(crate) fn run(shared: &Shared) {
    let mut received = vec![0; BURST];
    let mut work = Work {
        shared,
        opened: vec![0; OPENED + BURST + ANSWER],
        end: 0,
        answer: vec![0; BURST + ANSWER],
        coalescer: Coalescer::default(),
    };
    while shared.wait_readable(&shared.socket) {
        let view = shared.view();
        for _ in 0..BURSTS {
            if work.end >= OPENED {
                break;
            }
            match shared.socket.receive(&mut received) {
                Ok((length, size, from)) => work.open(&view, received[..length].chunks(size), from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What an earlier packet met is told here; it was counted there.
                Err(_) => {
                    retry_later();
                    break;
                }
            }
        }
        work.flush();
    }
}

struct Work<'a> {
    shared: &'a Shared,
    /// What was opened, one packet after the other, up to `end`.
    opened: Vec<u8>,
    end: usize,
    /// What a tunnel kept until it had a session.
    answer: Vec<u8>,
    coalescer: Coalescer,
}

impl Work<'_> {
    fn open<'p>(&mut self, view: &View, packets: impl Iterator<Item = &'p [u8]>, from: SocketAddr) {
        // Opening makes a packet shorter, so all of a burst fit behind `OPENED`.
        for packet in packets {
            let Some(tunnel) = self.tunnel(view, packet, from) else {
                count(&self.shared.counters.not_sealed);
                continue;
            };
            let at = self.end;
            if let Some(end) = self.open_one(&tunnel, packet, from, at) {
                self.end = end;
                self.take(view, &tunnel, at, end);
            }
        }
    }

    /// Nothing waits for what may never come.
    fn flush(&mut self) {
        self.end = 0;
        let Self {
            shared,
            opened,
            coalescer,
            ..
        } = self;
        coalescer.flush(opened, |pieces| shared.deliver(pieces));
    }

    /// Whose packet it is.
    fn tunnel(&self, view: &View, packet: &[u8], from: SocketAddr) -> Option<Arc<Tunnel>> {
        let receiver = match Tunn::parse_incoming_packet(packet).ok()? {
            Packet::PacketData(_) if outlived(packet) => return None,
            Packet::PacketData(data) => data.receiver_idx,
            Packet::HandshakeResponse(response) => response.receiver_idx,
            Packet::PacketCookieReply(reply) => reply.receiver_idx,
            Packet::HandshakeInit(_) => return self.initiator(view, packet, from),
        };
        view.by_index(receiver >> 8).cloned()
    }

    /// Who begins a handshake. It says so under a seal that costs a little to open,
    /// so under load it first has to prove its address.
    fn initiator(&self, view: &View, packet: &[u8], from: SocketAddr) -> Option<Arc<Tunnel>> {
        let mut cookie = [0; COOKIE_REPLY];
        let limiter = &view.identity.limiter;
        let verified = match limiter.verify_packet(Some(from.ip()), packet, &mut cookie) {
            Ok(verified) => verified,
            Err(TunnResult::WriteToNetwork(reply)) => {
                self.shared.send(reply, from);
                return None;
            }
            Err(_) => return None,
        };
        let Packet::HandshakeInit(init) = verified else {
            return None;
        };
        if !self.shared.greets(from.ip()) {
            return None;
        }
        let identity = &view.identity;
        let half = parse_handshake_anon(&identity.private, &identity.public, &init).ok()?;
        view.by_key(&half.peer_static_public.into()).cloned()
    }

    /// Opens a packet into the buffer at `at`; where it ends, if it holds one for
    /// the bridge.
    fn open_one(
        &mut self,
        tunnel: &Tunnel,
        packet: &[u8],
        from: SocketAddr,
        at: usize,
    ) -> Option<usize> {
        let kind = packet.first().copied();
        let mut state = tunnel.lock();
        let opened = state
            .tunn
            .decapsulate(Some(from.ip()), packet, &mut self.opened[at..]);
        let (end, queued) = match opened {
            TunnResult::WriteToTunnelV4(plain, _) => (Some(at + plain.len()), true),
            TunnResult::WriteToNetwork(answer) => {
                self.shared.send(answer, from);
                // A cookie is asked of anybody; it says nothing of who it was.
                if answer.first() == Some(&COOKIE) {
                    return None;
                }
                // Who answered a greeting has no session to send in yet.
                (None, kind == Some(RESPONSE))
            }
            // A sign of life without contents.
            TunnResult::Done if kind == Some(DATA) => (None, true),
            // A cookie, which whoever saw our greeting can make.
            TunnResult::Done => return None,
            TunnResult::WriteToTunnelV6(..) => {
                count(&self.shared.counters.wrong_envelope);
                return None;
            }
            TunnResult::Err(_) => {
                count(&self.shared.counters.not_sealed);
                return None;
            }
        };
        // It was sealed by the peer: there it is.
        state.endpoint = from;
        while queued
            && let TunnResult::WriteToNetwork(packet) =
                state.tunn.decapsulate(None, &[], &mut self.answer)
        {
            self.shared.send(packet, from);
        }
        end
    }

    /// Lets a frame in if the table says that it comes from there.
    fn take(&mut self, view: &View, tunnel: &Tunnel, at: usize, end: usize) {
        let Self {
            shared,
            opened,
            coalescer,
            ..
        } = self;
        let settings = &shared.settings;
        let wanted = Envelope {
            from: tunnel.inner,
            to: settings.inner,
            vni: settings.vni,
        };
        let frame = match Envelope::parse(&opened[at..end]) {
            Some((envelope, head)) if envelope == wanted => at + head,
            _ => return count(&shared.counters.wrong_envelope),
        };
        if end - frame < ETHERNET {
            return count(&shared.counters.wrong_envelope);
        }
        let mut source = [0; 6];
        source.copy_from_slice(&opened[frame..end][SOURCE]);
        if view.holder(Mac(source)) != Some(tunnel.inner) {
            return count(&shared.counters.wrong_sender);
        }
        coalescer.push(opened, (frame, end), |pieces| shared.deliver(pieces));
    }
}

/// Whether a packet of data has a counter that no session reaches.
fn outlived(packet: &[u8]) -> bool {
    let counter = packet.get(8..16).and_then(|octets| octets.try_into().ok());
    counter.is_none_or(|octets| u64::from_le_bytes(octets) >= LAST_COUNTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_no_session_reaches_are_refused() {
        let packet =
            |counter: u64| [&[4, 0, 0, 0, 0, 0, 0, 0][..], &counter.to_le_bytes()].concat();
        assert!(!outlived(&packet(0)) && !outlived(&packet(1 << 60)));
        assert!(outlived(&packet(u64::MAX)) && outlived(&packet(u64::MAX - 1024)));
        assert!(outlived(&[4; 15]));
    }
}
