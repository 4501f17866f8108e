//! Derives the state of each tunnel from repeated observations of the device.
//!
//! A device reports a peer's endpoint, the time of the last handshake and how many bytes were
//! received. It reports neither when something was last received, nor whether the endpoint was
//! proven by a session: an initiation may be a replay. Two consecutive observations show both: bytes
//! received in between, and an endpoint that was there when a handshake completed.
//!
//! It is pure: observations are passed in, with their time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant, SystemTime};

use kontena_schema::key::PublicKey;
use kontena_sleeve::{PeerStatus, SILENT_AFTER};

use super::device::{Message, Observed, ObservedPeer};

/// A session expires so long after its handshake (WireGuard whitepaper section 6.1,
/// Reject-After-Time); a live peer has completed another one before.
const SESSION_ENDS: Duration = Duration::from_secs(180);

/// The owner of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// The peer's tunnel address.
    pub(crate) tunnel_address: Ipv4Addr,
    /// The endpoint that was sent to the device.
    pub(crate) endpoint: Option<SocketAddrV4>,
    /// Whether it is the peer's next key.
    pub(crate) next: bool,
}

/// The peers' keys, and the messages that configure the device with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WireGuardUpdate {
    pub(crate) messages: Vec<Message>,
    pub(crate) named: BTreeMap<PublicKey, Named>,
}

/// The observed device, and what it was configured with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Looked {
    pub(crate) device: Observed,
    pub(crate) named: BTreeMap<PublicKey, Named>,
    /// The keys of peers whose sessions expired in silence: their endpoints may be wrong.
    pub(crate) lost: BTreeSet<PublicKey>,
}

/// A point in time, on the monotonic clock and on the one that handshakes are reported in.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) at: Instant,
    pub(crate) wall: SystemTime,
}

/// What all observations so far have shown.
#[derive(Default)]
pub(crate) struct Watch {
    own: Option<PublicKey>,
    named: BTreeMap<PublicKey, Named>,
    seen: BTreeMap<PublicKey, Seen>,
    observed: bool,
    sent_at: Option<Instant>,
}

/// What is known of a key.
#[derive(Default)]
struct Seen {
    peer: ObservedPeer,
    /// When its endpoint was last sent to the device; none if that was in a former run.
    endpoint_sent: Option<SystemTime>,
    /// Its endpoint, if a handshake completed there.
    proven: Option<SocketAddr>,
    received: Option<Instant>,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self {
            at: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn since(self, wall: SystemTime) -> Duration {
        // If the clock was set back, the event counts as just now.
        self.wall.duration_since(wall).unwrap_or_default()
    }
}

impl Watch {
    /// Adds an observation. The device was read after `asked`.
    pub(crate) fn observe(&mut self, device: &Observed, asked: Moment) {
        // It may be older than the last update.
        if self.sent_at.is_some_and(|sent| asked.at < sent) {
            return;
        }
        self.own = device.public_key;
        let mut before = std::mem::take(&mut self.seen);
        for (&key, peer) in &device.peers {
            let mut seen = before.remove(&key).unwrap_or_default();
            seen.observe(peer, asked, self.observed);
            self.seen.insert(key, seen);
        }
        self.observed = true;
    }

    /// The device was updated between these two moments: a handshake in between may have been
    /// caused by the update.
    pub(crate) fn updated(&mut self, update: &WireGuardUpdate, [started, done]: [Moment; 2]) {
        self.sent_at = Some(done.at);
        self.named.clone_from(&update.named);
        let changes = update.messages.iter().flat_map(|message| &message.peers);
        for change in changes {
            if let Some(endpoint) = change.endpoint {
                let seen = self.seen.entry(change.key).or_default();
                seen.endpoint_sent = Some(started.wall);
                seen.proven = None;
                seen.peer.endpoint = Some(endpoint.into());
            }
        }
    }

    /// The observed device, with what it was configured with.
    pub(crate) fn looked(&self, device: Observed, now: Moment) -> Looked {
        let lost = self.seen.iter().filter(|(_, seen)| seen.is_lost(now));
        Looked {
            lost: lost.map(|(&key, _)| key).collect(),
            named: self.named.clone(),
            device,
        }
    }

    /// The next keys of peers that the device is configured with.
    pub(crate) fn next_keys(&self) -> BTreeSet<PublicKey> {
        let next = self.named.iter().filter(|(_, named)| named.next);
        next.map(|(&key, _)| key).collect()
    }

    /// The state of each tunnel, by tunnel address.
    pub(crate) fn status(&self, now: Moment) -> BTreeMap<Ipv4Addr, PeerStatus> {
        let mut all = BTreeMap::new();
        for (&key, seen) in &self.seen {
            let alone = seen.network();
            if let Some((tunnel_address, own)) = alone.zip(self.own) {
                all.insert(tunnel_address, seen.status((key, own, tunnel_address), now));
            }
        }
        for (&key, named) in self.named.iter().filter(|(_, named)| named.next) {
            let used = self.seen.get(&key).filter(|seen| seen.is_used());
            if let Some((seen, status)) = used.zip(all.get_mut(&named.tunnel_address)) {
                status.key = key;
                status.received = status.received.into_iter().chain(seen.silence(now)).min();
            }
        }
        all
    }

    /// The state of one tunnel.
    pub(crate) fn status_of(&self, tunnel_address: Ipv4Addr, now: Moment) -> Option<PeerStatus> {
        self.status(now).remove(&tunnel_address)
    }
}

impl Seen {
    fn observe(&mut self, peer: &ObservedPeer, asked: Moment, known: bool) {
        let shook = peer
            .last_handshake
            .filter(|_| peer.last_handshake != self.peer.last_handshake);
        if known && peer.received_bytes > self.peer.received_bytes {
            self.received = Some(asked.at);
        } else if let Some(shook) = shook {
            // There was no observation before that.
            self.received = asked.at.checked_sub(asked.since(shook));
        }
        // If the clock was set back since, the order of the two is unknown.
        let sent = self.endpoint_sent.filter(|sent| *sent <= asked.wall);
        if shook.is_some_and(|shook| sent.is_none_or(|sent| shook >= sent)) {
            self.proven = peer.endpoint;
        } else if self.peer.endpoint != peer.endpoint {
            self.proven = None;
        }
        self.peer = peer.clone();
    }

    fn silence(&self, now: Moment) -> Option<Duration> {
        let received = self.received?;
        Some(now.at.saturating_duration_since(received))
    }

    fn is_used(&self) -> bool {
        self.peer.last_handshake.is_some()
    }

    fn is_lost(&self, now: Moment) -> bool {
        let over = |shook| now.since(shook) >= SESSION_ENDS;
        let silent = self
            .silence(now)
            .is_none_or(|silence| silence >= SILENT_AFTER);
        silent && self.peer.last_handshake.is_some_and(over)
    }

    /// The tunnel address that is routed to this key.
    fn network(&self) -> Option<Ipv4Addr> {
        self.peer.allowed.iter().find_map(|network| match network {
            ipnetwork::IpNetwork::V4(network) if network.prefix() == 32 => Some(network.ip()),
            _ => None,
        })
    }

    fn status(
        &self,
        (key, own, tunnel_address): (PublicKey, PublicKey, Ipv4Addr),
        now: Moment,
    ) -> PeerStatus {
        PeerStatus {
            tunnel_address,
            key,
            own,
            endpoint: self.peer.endpoint,
            proven: self.proven,
            last_handshake: self.peer.last_handshake.map(|shook| now.since(shook)),
            received: self.silence(now),
            // Heartbeats measure it.
            loss: 0.0,
            sent_bytes: self.peer.sent_bytes,
            received_bytes: self.peer.received_bytes,
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
