//! From the underlay to the bridge.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use kontena_schema::key::PublicKey;

use crate::coalesce::Coalescer;
use crate::counters::count;
use crate::headers::{ethertype, is_arp, source};
use crate::message::{self, Message};
use crate::outbound;
use crate::peer::Tunnel;
use crate::sleeve::{Shared, retry_later};
use crate::snapshot::{Keys, Snapshot};
use crate::vxlan::Encapsulation;

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
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;
/// Room for the longest answer of WireGuard to one packet.
const ANSWER: usize = 2048;
/// The most that a cookie's reply has (WireGuard whitepaper section 5.4.7).
const COOKIE_REPLY: usize = 64;

/// Carries packets until the sleeve stops.
pub(crate) fn run(shared: &Shared) {
    let mut work = Work::new(shared);
    while shared.wait_readable(&shared.socket) {
        work.turn(&shared.snapshot());
    }
}

/// The way of packets from the underlay, and what it keeps between two of them.
pub(crate) struct Work<'a> {
    shared: &'a Shared,
    received: Vec<u8>,
    /// What was opened, one packet after the other, up to `end`.
    opened: Vec<u8>,
    end: usize,
    /// What a tunnel kept until it had a session.
    answer: Vec<u8>,
    coalescer: Coalescer,
}

impl<'a> Work<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            received: vec![0; BURST],
            opened: vec![0; OPENED + BURST + ANSWER],
            end: 0,
            answer: vec![0; BURST + ANSWER],
            coalescer: Coalescer::default(),
        }
    }

    /// Gives the bridge what arrived. A frame that came alone may be a question whose answer
    /// is there at once.
    pub(crate) fn turn(&mut self, snapshot: &Snapshot) {
        let packets = self.receive(snapshot);
        let alone = packets == 1 && !self.coalescer.is_empty();
        self.flush();
        if alone {
            outbound::carry_answer(self.shared, snapshot);
        }
    }

    /// Receives what there is, up to a bound; how many packets there were.
    pub(crate) fn receive(&mut self, snapshot: &Snapshot) -> usize {
        let mut received = std::mem::take(&mut self.received);
        let mut count = 0;
        for _ in 0..BURSTS {
            if self.end >= OPENED {
                break;
            }
            match self.shared.socket.receive(&mut received) {
                Ok((length, size, from)) => {
                    let packets = received[..length].chunks(size);
                    count += packets.len();
                    self.open(snapshot, packets, from);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What an earlier packet met is told here; it was counted there.
                Err(_) => {
                    retry_later();
                    break;
                }
            }
        }
        self.received = received;
        count
    }
}

impl Work<'_> {
    /// Opens a burst.
    pub(crate) fn open<'p>(
        &mut self,
        snapshot: &Snapshot,
        packets: impl Iterator<Item = &'p [u8]>,
        from: SocketAddr,
    ) {
        // Opening makes a packet shorter, so all of a burst fit behind `OPENED`.
        for packet in packets {
            let Some(tunnel) = self.tunnel(snapshot, packet, from) else {
                count(&self.shared.counters.not_authenticated);
                continue;
            };
            let at = self.end;
            if let Some(end) = self.open_one(&tunnel, packet, from, at) {
                self.end = end;
                self.take(snapshot, &tunnel, at, end);
            }
        }
    }

    /// Nothing waits for what may never come.
    pub(crate) fn flush(&mut self) {
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
    fn tunnel(&self, snapshot: &Snapshot, packet: &[u8], from: SocketAddr) -> Option<Arc<Tunnel>> {
        let receiver = match Tunn::parse_incoming_packet(packet).ok()? {
            Packet::PacketData(_) if outlived(packet) => return None,
            Packet::PacketData(data) => data.receiver_idx,
            Packet::HandshakeResponse(response) => response.receiver_idx,
            Packet::PacketCookieReply(reply) => reply.receiver_idx,
            Packet::HandshakeInit(_) => return self.initiator(snapshot, packet, from),
        };
        snapshot.by_index(receiver >> 8).cloned()
    }

    /// Who begins a handshake. It says so under a encrypt that costs a little to open,
    /// so under load it first has to prove its address.
    fn initiator(
        &self,
        snapshot: &Snapshot,
        packet: &[u8],
        from: SocketAddr,
    ) -> Option<Arc<Tunnel>> {
        for identity in &snapshot.identities {
            let mut cookie = [0; COOKIE_REPLY];
            let limiter = &identity.limiter;
            match limiter.verify_packet(Some(from.ip()), packet, &mut cookie) {
                Ok(Packet::HandshakeInit(init)) => {
                    if !self.shared.greets(from.ip()) {
                        return None;
                    }
                    let (private, public) = (&identity.private.0, &identity.public);
                    let half = parse_handshake_anon(private, public, &init).ok()?;
                    let own = PublicKey(public.to_bytes());
                    let peer = PublicKey(half.peer_static_public);
                    return snapshot.by_keys(Keys { own, peer }).cloned();
                }
                Err(TunnResult::WriteToNetwork(reply)) => {
                    self.shared.send(reply, from);
                    return None;
                }
                // It is for another key of this host, or for nobody here.
                _ => {}
            }
        }
        None
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
        // A tunnel that waits was told no time, and its new session would be taken for one
        // as old as that.
        if kind == Some(INITIATION) && !tunnel.is_alive() {
            let _ = state.tunn.update_timers(&mut self.answer);
        }
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
                // Who answered a initiation has no session to send in yet.
                (None, kind == Some(RESPONSE))
            }
            // A sign of life without contents.
            TunnResult::Done if kind == Some(DATA) => (None, true),
            // A cookie, which whoever saw our initiation can make.
            TunnResult::Done => return None,
            TunnResult::WriteToTunnelV6(..) => {
                count(&self.shared.counters.wrong_encapsulation);
                return None;
            }
            TunnResult::Err(_) => {
                count(&self.shared.counters.not_authenticated);
                return None;
            }
        };
        // It was encrypted by the peer: there it is. Who begins a handshake may only
        // repeat what the peer advertised once.
        state.endpoint = Some(from);
        if matches!(kind, Some(RESPONSE | DATA)) {
            tunnel.hear();
            state.hear(from, kind == Some(RESPONSE));
        }
        while queued
            && let TunnResult::WriteToNetwork(packet) =
                state.tunn.decapsulate(None, &[], &mut self.answer)
        {
            self.shared.send(packet, from);
        }
        end
    }

    /// Lets a frame in if the table says that it comes from there.
    fn take(&mut self, snapshot: &Snapshot, tunnel: &Tunnel, at: usize, end: usize) {
        let Self {
            shared,
            opened,
            coalescer,
            ..
        } = self;
        let settings = &shared.settings;
        let wanted = Encapsulation {
            from: tunnel.tunnel_address,
            to: settings.tunnel_address,
            vni: settings.vni,
        };
        let packet = &opened[at..end];
        let frame = match Encapsulation::parse(packet) {
            Some((encapsulation, head)) if encapsulation == wanted => at + head,
            Some(_) => return count(&shared.counters.wrong_encapsulation),
            None => {
                let Some(contents) =
                    message::contents(packet, tunnel.tunnel_address, settings.tunnel_address)
                else {
                    return count(&shared.counters.wrong_encapsulation);
                };
                let (from, contents) = (tunnel.tunnel_address, contents.to_vec());
                return (shared.inbox)(Message { from, contents });
            }
        };
        let contents = &opened[frame..end];
        let (Some(sender), Some(kind)) = (source(contents), ethertype(contents)) else {
            return count(&shared.counters.wrong_encapsulation);
        };
        if snapshot.owner(sender) != Some(tunnel.tunnel_address) {
            return count(&shared.counters.wrong_sender);
        }
        if is_arp(kind) {
            return count(&shared.counters.arp_in);
        }
        coalescer.push(opened, (frame, end), |pieces| shared.deliver(pieces));
    }
}

/// Whether a message of WireGuard begins a handshake.
pub(crate) fn is_initiation(packet: &[u8]) -> bool {
    packet.first() == Some(&INITIATION)
}

/// Whether a packet of data has a counter that no session reaches.
fn outlived(packet: &[u8]) -> bool {
    let counter = packet.get(8..16).and_then(|octets| octets.try_into().ok());
    counter.is_none_or(|octets| u64::from_le_bytes(octets) >= LAST_COUNTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::ends::{ENCAPSULATION, End, Ends, short, short_answer, with_ends};

    /// What the bridge of one gets of what the other sent it.
    fn carried(to: &End) -> Vec<Vec<u8>> {
        assert!(to.receives(1000), "nothing arrived");
        Work::new(&to.shared).turn(&to.snapshot);
        to.delivered()
    }

    /// The answer that waits at the second arrives at the first.
    fn answer_is_carried(ends: &Ends) {
        let (asking, asked) = (ends.first(), ends.second());
        outbound::carry_answer(&asked.shared, &asked.snapshot);
        assert_eq!(carried(asking), [short_answer()]);
    }

    #[test]
    fn an_answer_that_is_there_leaves_with_the_question_unless_more_arrived() {
        let frame = short();
        let head = ENCAPSULATION.head(&frame, frame.len()).unwrap();
        let question = [&head[..], &frame].concat();
        for questions in [1, 2] {
            with_ends(|ends| {
                let (asking, asked) = (ends.first(), ends.second());
                (0..2).for_each(|_| asked.offer(&short_answer()));
                for _ in 0..questions {
                    let encrypted = ends.encrypted(&question);
                    asking.shared.send(&encrypted, asked.address());
                }
                assert_eq!(carried(asked), vec![frame.clone(); questions]);
                // It looks for one, not for all that waits.
                let answers = usize::from(questions == 1);
                for _ in 0..answers {
                    assert_eq!(carried(asking), [short_answer()]);
                }
                for _ in answers..2 {
                    assert!(!asking.receives(0), "it is not this thread's business");
                    answer_is_carried(ends);
                }
            });
        }
    }

    #[test]
    fn what_is_no_frame_is_no_question() {
        with_ends(|ends| {
            let (asking, asked) = (ends.first(), ends.second());
            asked.offer(&short_answer());
            asking.shared.send(&ends.encrypted(&[]), asked.address());
            assert!(carried(asked).is_empty());
            assert!(!asking.receives(0));
            answer_is_carried(ends);
        });
    }

    #[test]
    fn a_thread_that_carries_frames_is_left_alone() {
        with_ends(|ends| {
            let (asking, asked) = (ends.first(), ends.second());
            let turn = asked.shared.outgoing.lock();
            asked.offer(&short_answer());
            outbound::carry_answer(&asked.shared, &asked.snapshot);
            assert!(!asking.receives(0));
            drop(turn);
            answer_is_carried(ends);
        });
    }

    #[test]
    fn counters_that_no_session_reaches_are_refused() {
        let packet =
            |counter: u64| [&[4, 0, 0, 0, 0, 0, 0, 0][..], &counter.to_le_bytes()].concat();
        assert!(!outlived(&packet(0)) && !outlived(&packet(1 << 60)));
        assert!(outlived(&packet(u64::MAX)) && outlived(&packet(u64::MAX - 1024)));
        assert!(outlived(&[4; 15]));
    }
}
