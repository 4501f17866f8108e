//! What the device says of the transports to peers, looked at again and again.
//!
//! It tells where a peer was last heard, when the last handshake was and how much came;
//! it tells neither when something came last nor whether it came in a session from that
//! candidate: who begins a handshake may only repeat what the peer advertised once. A look that is
//! compared with the one before gives both: bytes that came since, and a place that was
//! there when a handshake was completed.
//!
//! It is pure: looks are passed in, with their moments.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant, SystemTime};

use kontena_schema::key::PublicKey;
use kontena_sleeve::{PeerStatus, SILENT_AFTER};

use super::device::{Message, Observed, ObservedPeer};

/// A session ends that long after its handshake (WireGuard whitepaper section 6.1,
/// Reject-After-Time); a peer that lives has made another one before.
const SESSION_ENDS: Duration = Duration::from_secs(180);

/// Who has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// The peer's tunnel address.
    pub(crate) tunnel_address: Ipv4Addr,
    /// Where the device was told that it is.
    pub(crate) endpoint: Option<SocketAddrV4>,
    /// Whether it is the key that the peer will use next.
    pub(crate) next: bool,
}

/// The peers' keys, and what the device is to be told so that it knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WireGuardUpdate {
    pub(crate) messages: Vec<Message>,
    pub(crate) named: BTreeMap<PublicKey, Named>,
}

/// The device, and what was told before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Looked {
    pub(crate) device: Observed,
    pub(crate) named: BTreeMap<PublicKey, Named>,
    /// The keys of peers whose sessions ended in silence: where they are now may be wrong.
    pub(crate) lost: BTreeSet<PublicKey>,
}

/// A moment, on the clock that only goes on and on the one that handshakes are told in.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) at: Instant,
    pub(crate) wall: SystemTime,
}

/// All looks until now.
#[derive(Default)]
pub(crate) struct Watch {
    own: Option<PublicKey>,
    named: BTreeMap<PublicKey, Named>,
    seen: BTreeMap<PublicKey, Seen>,
    looked: bool,
    told_at: Option<Instant>,
}

/// What is known of a key.
#[derive(Default)]
struct Seen {
    peer: ObservedPeer,
    /// When the device was told last where it is; none if that was in a former run.
    told: Option<SystemTime>,
    /// Its candidate, if a handshake was completed there.
    proven: Option<SocketAddr>,
    heard: Option<Instant>,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self {
            at: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn since(self, wall: SystemTime) -> Duration {
        // A clock that was set back has seen it just now.
        self.wall.duration_since(wall).unwrap_or_default()
    }
}

impl Watch {
    /// Takes what the device advertised. The question was asked at `asked`.
    pub(crate) fn look(&mut self, device: &Observed, asked: Moment) {
        // It may not know yet what it was told since.
        if self.told_at.is_some_and(|told| asked.at < told) {
            return;
        }
        self.own = device.public_key;
        let mut before = std::mem::take(&mut self.seen);
        for (&key, peer) in &device.peers {
            let mut seen = before.remove(&key).unwrap_or_default();
            seen.look(peer, asked, self.looked);
            self.seen.insert(key, seen);
        }
        self.looked = true;
    }

    /// The device was told this, between two moments: what it says of a moment in between
    /// may be of a handshake that it began because of this.
    pub(crate) fn told(&mut self, update: &WireGuardUpdate, [began, done]: [Moment; 2]) {
        self.told_at = Some(done.at);
        self.named.clone_from(&update.named);
        let changes = update.messages.iter().flat_map(|message| &message.peers);
        for change in changes {
            if let Some(endpoint) = change.endpoint {
                let seen = self.seen.entry(change.key).or_default();
                seen.told = Some(began.wall);
                seen.proven = None;
                seen.peer.endpoint = Some(endpoint.into());
            }
        }
    }

    /// The device with what it was told.
    pub(crate) fn looked(&self, device: Observed, now: Moment) -> Looked {
        let lost = self.seen.iter().filter(|(_, seen)| seen.is_lost(now));
        Looked {
            lost: lost.map(|(&key, _)| key).collect(),
            named: self.named.clone(),
            device,
        }
    }

    /// The keys that peers will use next and that the device knows.
    pub(crate) fn next_keys(&self) -> BTreeSet<PublicKey> {
        let next = self.named.iter().filter(|(_, named)| named.next);
        next.map(|(&key, _)| key).collect()
    }

    /// How the way to each peer is, by tunnel addresses.
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
                status.heard = status.heard.into_iter().chain(seen.silence(now)).min();
            }
        }
        all
    }

    /// How the way to one peer is.
    pub(crate) fn status_of(&self, tunnel_address: Ipv4Addr, now: Moment) -> Option<PeerStatus> {
        self.status(now).remove(&tunnel_address)
    }
}

impl Seen {
    fn look(&mut self, peer: &ObservedPeer, asked: Moment, known: bool) {
        let shook = peer
            .last_handshake
            .filter(|_| peer.last_handshake != self.peer.last_handshake);
        if known && peer.received_bytes > self.peer.received_bytes {
            self.heard = Some(asked.at);
        } else if let Some(shook) = shook {
            // Before, others looked.
            self.heard = asked.at.checked_sub(asked.since(shook));
        }
        // A clock that was set back since says nothing of what came first.
        let told = self.told.filter(|told| *told <= asked.wall);
        if shook.is_some_and(|shook| told.is_none_or(|told| shook >= told)) {
            self.proven = peer.endpoint;
        } else if self.peer.endpoint != peer.endpoint {
            self.proven = None;
        }
        self.peer = peer.clone();
    }

    fn silence(&self, now: Moment) -> Option<Duration> {
        let heard = self.heard?;
        Some(now.at.saturating_duration_since(heard))
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

    /// The tunnel address that is reached with this key.
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
            heard: self.silence(now),
            // It is measured with heartbeats.
            loss: 0.0,
            sent_bytes: self.peer.sent_bytes,
            received_bytes: self.peer.received_bytes,
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
