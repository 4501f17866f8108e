//! Packets from the underlay to the bridge.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use kontena_schema::key::PublicKey;

use crate::coalesce::Coalescer;
use crate::counters::count;
use crate::headers::{ethertype, is_arp, source};
use crate::message::{self, INITIATION, Message};
use crate::outbound;
use crate::peer::{Keys, Tunnel};
use crate::shared::{Shared, retry_later};
use crate::snapshot::Snapshot;
use crate::vxlan::Encapsulation;

/// The most bytes that one call receives.
const BURST: usize = 65_536;
/// How many bytes are decrypted before the coalesced frames are delivered.
const DECRYPTED: usize = 4 * BURST;
/// How many bursts are received, whatever their size, before the table is read again.
const BURSTS: usize = 64;
/// Data packets from this counter on are dropped. No session gets that far (WireGuard
/// whitepaper section 6.1 ends it sooner), and beyond it boringtun's arithmetic overflows.
const COUNTER_MAX: u64 = u64::MAX - (1 << 13);
/// WireGuard's message types (whitepaper section 5.4).
const RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;
/// Buffer space for the longest answer of WireGuard to one packet.
const ANSWER: usize = 2048;
/// The length of a cookie reply (WireGuard whitepaper section 5.4.7).
const COOKIE_REPLY: usize = 64;

/// Receives packets until the sleeve stops.
pub(crate) fn run(shared: &Shared) {
    let mut work = Work::new(shared);
    while shared.wait_readable(&shared.socket) {
        work.receive_and_deliver(&shared.snapshot());
    }
}

/// The inbound path, and its buffers.
pub(crate) struct Work<'a> {
    shared: &'a Shared,
    received: Vec<u8>,
    /// Decrypted packets, one after the other, up to `end`.
    decrypted: Vec<u8>,
    end: usize,
    /// For packets that a tunnel queued until it had a session.
    answer: Vec<u8>,
    coalescer: Coalescer,
}

impl<'a> Work<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            received: vec![0; BURST],
            decrypted: vec![0; DECRYPTED + BURST + ANSWER],
            end: 0,
            answer: vec![0; BURST + ANSWER],
            coalescer: Coalescer::default(),
        }
    }

    /// Delivers what arrived to the bridge. A frame that came alone may be a request whose
    /// answer is there at once.
    pub(crate) fn receive_and_deliver(&mut self, snapshot: &Snapshot) {
        let packets = self.receive(snapshot);
        let alone = packets == 1 && !self.coalescer.is_empty();
        self.flush();
        if alone {
            outbound::carry_answer(self.shared, snapshot);
        }
    }

    /// Receives what is there, up to a limit; returns the number of packets.
    pub(crate) fn receive(&mut self, snapshot: &Snapshot) -> usize {
        let mut received = std::mem::take(&mut self.received);
        let mut count = 0;
        for _ in 0..BURSTS {
            if self.end >= DECRYPTED {
                break;
            }
            match self.shared.socket.receive(&mut received) {
                Ok((length, size, from)) => {
                    let packets = received[..length].chunks(size);
                    count += packets.len();
                    self.decrypt(snapshot, packets, from);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An error of an earlier send is reported here; it was counted there.
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
    /// Decrypts a burst.
    pub(crate) fn decrypt<'p>(
        &mut self,
        snapshot: &Snapshot,
        packets: impl Iterator<Item = &'p [u8]>,
        from: SocketAddr,
    ) {
        // Decryption makes a packet shorter, so a whole burst fits behind `DECRYPTED`.
        for packet in packets {
            let Some(tunnel) = self.tunnel(snapshot, packet, from) else {
                count(&self.shared.counters.not_authenticated);
                continue;
            };
            let at = self.end;
            if let Some(end) = self.decrypt_one(&tunnel, packet, from, at) {
                self.end = end;
                self.accept(snapshot, &tunnel, at, end);
            }
        }
    }

    /// Delivers what is held back: the rest of its stream may never come.
    pub(crate) fn flush(&mut self) {
        self.end = 0;
        let Self {
            shared,
            decrypted,
            coalescer,
            ..
        } = self;
        coalescer.flush(decrypted, |pieces| shared.deliver(pieces));
    }

    /// The tunnel that a packet belongs to.
    fn tunnel(&self, snapshot: &Snapshot, packet: &[u8], from: SocketAddr) -> Option<Arc<Tunnel>> {
        let receiver = match Tunn::parse_incoming_packet(packet).ok()? {
            Packet::PacketData(_) if is_counter_exhausted(packet) => return None,
            Packet::PacketData(data) => data.receiver_idx,
            Packet::HandshakeResponse(response) => response.receiver_idx,
            Packet::PacketCookieReply(reply) => reply.receiver_idx,
            Packet::HandshakeInit(_) => return self.initiator(snapshot, packet, from),
        };
        snapshot.by_index(receiver >> 8).cloned()
    }

    /// The tunnel of a handshake initiation. The initiator's key is encrypted and costs
    /// something to decrypt, so under load the sender first has to prove its address.
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
                    if !self.shared.accepts_initiation(from.ip()) {
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
                // It is for another key of this host, or for none.
                _ => {}
            }
        }
        None
    }

    /// Decrypts a packet into the buffer at `at`; returns its end if it has contents.
    fn decrypt_one(
        &mut self,
        tunnel: &Tunnel,
        packet: &[u8],
        from: SocketAddr,
        at: usize,
    ) -> Option<usize> {
        let kind = packet.first().copied();
        let mut state = tunnel.lock();
        // The timers of a tunnel that is not alive are not updated; boringtun would take the
        // new session to be as old as their last update.
        if kind == Some(INITIATION) && !tunnel.is_alive() {
            let _ = state.tunn.update_timers(&mut self.answer);
        }
        let result = state
            .tunn
            .decapsulate(Some(from.ip()), packet, &mut self.decrypted[at..]);
        let (end, queued) = match result {
            TunnResult::WriteToTunnelV4(plain, _) => (Some(at + plain.len()), true),
            TunnResult::WriteToNetwork(answer) => {
                self.shared.send(answer, from);
                // A cookie reply goes to anyone and says nothing about the sender.
                if answer.first() == Some(&COOKIE) {
                    return None;
                }
                // The responder has no session to send in yet.
                (None, kind == Some(RESPONSE))
            }
            // A keepalive.
            TunnResult::Done if kind == Some(DATA) => (None, true),
            // A cookie reply, which anyone that saw our initiation can forge.
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
        // The peer encrypted it, so this is its endpoint. An initiation may be a replay, though.
        state.endpoint = Some(from);
        if matches!(kind, Some(RESPONSE | DATA)) {
            tunnel.record_received();
            state.record_endpoint(from, kind == Some(RESPONSE));
        }
        while queued
            && let TunnResult::WriteToNetwork(packet) =
                state.tunn.decapsulate(None, &[], &mut self.answer)
        {
            self.shared.send(packet, from);
        }
        end
    }

    /// Accepts a frame if the table has its source MAC on this peer.
    fn accept(&mut self, snapshot: &Snapshot, tunnel: &Tunnel, at: usize, end: usize) {
        let Self {
            shared,
            decrypted,
            coalescer,
            ..
        } = self;
        let settings = &shared.settings;
        let wanted = Encapsulation {
            from: tunnel.tunnel_address,
            to: settings.tunnel_address,
            vni: settings.vni,
        };
        let packet = &decrypted[at..end];
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
        let contents = &decrypted[frame..end];
        let (Some(sender), Some(kind)) = (source(contents), ethertype(contents)) else {
            return count(&shared.counters.wrong_encapsulation);
        };
        if snapshot.owner(sender) != Some(tunnel.tunnel_address) {
            return count(&shared.counters.wrong_sender);
        }
        if is_arp(kind) {
            return count(&shared.counters.arp_in);
        }
        coalescer.push(decrypted, (frame, end), |pieces| shared.deliver(pieces));
    }
}

/// Whether a data packet has a counter that no session reaches.
fn is_counter_exhausted(packet: &[u8]) -> bool {
    let counter = packet.get(8..16).and_then(|octets| octets.try_into().ok());
    counter.is_none_or(|octets| u64::from_le_bytes(octets) >= COUNTER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::ends::{ENCAPSULATION, End, Ends, short, short_answer, with_ends};

    /// What arrives at a host's bridge.
    fn carried(to: &End) -> Vec<Vec<u8>> {
        assert!(to.receives(1000), "nothing arrived");
        Work::new(&to.shared).receive_and_deliver(&to.snapshot);
        to.delivered()
    }

    /// Carries the answer that waits on the second host to the first.
    fn answer_is_carried(ends: &Ends) {
        let (client, server) = (ends.first(), ends.second());
        outbound::carry_answer(&server.shared, &server.snapshot);
        assert_eq!(carried(client), [short_answer()]);
    }

    #[test]
    fn a_waiting_answer_is_sent_at_once_only_after_a_lone_request() {
        let frame = short();
        let head = ENCAPSULATION.head(&frame, frame.len()).unwrap();
        let request = [&head[..], &frame].concat();
        for requests in [1, 2] {
            with_ends(|ends| {
                let (client, server) = (ends.first(), ends.second());
                (0..2).for_each(|_| server.offer(&short_answer()));
                for _ in 0..requests {
                    let encrypted = ends.encrypted(&request);
                    client.shared.send(&encrypted, server.address());
                }
                assert_eq!(carried(server), vec![frame.clone(); requests]);
                // One answer is sent, not all that wait.
                let answers = usize::from(requests == 1);
                for _ in 0..answers {
                    assert_eq!(carried(client), [short_answer()]);
                }
                for _ in answers..2 {
                    assert!(!client.receives(0), "the inbound thread sent more");
                    answer_is_carried(ends);
                }
            });
        }
    }

    #[test]
    fn a_keepalive_is_not_a_request() {
        with_ends(|ends| {
            let (client, server) = (ends.first(), ends.second());
            server.offer(&short_answer());
            client.shared.send(&ends.encrypted(&[]), server.address());
            assert!(carried(server).is_empty());
            assert!(!client.receives(0));
            answer_is_carried(ends);
        });
    }

    #[test]
    fn an_answer_waits_while_the_outbound_thread_is_at_work() {
        with_ends(|ends| {
            let (client, server) = (ends.first(), ends.second());
            let busy = server.shared.outgoing.lock();
            server.offer(&short_answer());
            outbound::carry_answer(&server.shared, &server.snapshot);
            assert!(!client.receives(0));
            drop(busy);
            answer_is_carried(ends);
        });
    }

    #[test]
    fn data_packets_with_counters_beyond_any_session_are_dropped() {
        let packet =
            |counter: u64| [&[4, 0, 0, 0, 0, 0, 0, 0][..], &counter.to_le_bytes()].concat();
        assert!(!is_counter_exhausted(&packet(0)) && !is_counter_exhausted(&packet(1 << 60)));
        assert!(
            is_counter_exhausted(&packet(u64::MAX))
                && is_counter_exhausted(&packet(u64::MAX - 1024))
        );
        assert!(is_counter_exhausted(&[4; 15]));
    }
}
