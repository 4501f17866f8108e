//! The table of all peers of this node, and the transports to them.
//!
//! The caller holds a lock for as long as a call takes: no await, no disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use kontena_schema::ids::NodeId;
use kontena_schema::mac::Mac;
use kontena_sleeve::PeerStatus;

use crate::model::pace::extra_intervals;
use crate::model::peer::{Clear, PeerConfig, PeerState};
use crate::model::reachability::CheckOutcomes;
use crate::peer::encryption::EncryptedPath;
use crate::peer::hold_down::HoldDown;
use crate::peer::machine::Peer;
use crate::peer::transports::Transports;

/// How often all peers are updated in a small grid; in a large one as much less often as heartbeats
/// are sent, so that the total cost stays the same.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// How often a peer gets a heartbeat in a small grid.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How many heartbeats a second a node sends at most while nothing changes: with 253 peers each
/// gets one every 8 s, less than the 10 s after which WireGuard answers with an empty packet.
const HEARTBEATS_PER_S: u32 = 32;

/// The state of each peer, as far as the plan depends on it.
pub type PeerStates = BTreeMap<NodeId, PeerState>;

/// All peers of this node.
pub(crate) struct PeerTable {
    pub(crate) transports: Transports,
    peers: BTreeMap<NodeId, Peer>,
    /// Whose tunnel address and whose MAC it is: a node in a full grid gets dozens of messages
    /// a second.
    by_tunnel_address: HashMap<Ipv4Addr, NodeId>,
    by_mac: HashMap<Mac, NodeId>,
    hold_down: HoldDown,
    /// When all peers were last updated.
    updated: Option<Instant>,
}

/// The measured state of a peer, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// The state of its tunnel.
    pub tunnel: PeerStatus,
    /// The round-trip time of heartbeats.
    pub round_trip: Option<Duration>,
    /// The share of its last heartbeats that were lost.
    pub loss: Option<f32>,
}

impl PeerTable {
    /// An empty table.
    pub(crate) fn new(encrypted: Option<EncryptedPath>) -> Self {
        Self {
            transports: Transports {
                encrypted,
                path_probes: None,
                run: fastrand::u32(..),
            },
            peers: BTreeMap::new(),
            by_tunnel_address: HashMap::new(),
            by_mac: HashMap::new(),
            hold_down: HoldDown::default(),
            updated: None,
        }
    }

    /// Applies the directory. A new peer starts in the state of `adopted`.
    pub(crate) fn configure(
        &mut self,
        configs: BTreeMap<NodeId, PeerConfig>,
        adopted: &BTreeMap<NodeId, Clear>,
        now: Instant,
    ) {
        self.peers.retain(|node, _| configs.contains_key(node));
        for (node, config) in configs {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.configure(config, now);
                continue;
            }
            let mut peer = Peer::new(config, now);
            if let Some(&clear) = adopted.get(&node) {
                peer.adopt(clear, now);
            }
            self.peers.insert(node, peer);
        }
        let nodes = || self.peers.iter();
        self.by_tunnel_address = nodes().map(|(&n, p)| (p.tunnel_address(), n)).collect();
        self.by_mac = nodes().map(|(&n, p)| (p.mac(), n)).collect();
        self.update(now);
    }

    /// Sets the peers whose clear packets the kernel accepts now; whether any peer changed.
    pub(crate) fn set_accepted(&mut self, accepted: &BTreeSet<NodeId>, now: Instant) -> bool {
        for (node, peer) in &mut self.peers {
            peer.set_accepted(accepted.contains(node));
        }
        self.update(now)
    }

    /// The states, for the plan.
    pub(crate) fn states(&self) -> PeerStates {
        self.peers.iter().map(|(&n, p)| (n, p.state())).collect()
    }

    /// The measured state of each peer.
    pub(crate) fn health(&self) -> BTreeMap<NodeId, Health> {
        let tunnels = self.tunnels();
        let health = |(&node, peer): (&NodeId, &Peer)| {
            let health = Health {
                tunnel: tunnels.get(&peer.tunnel_address())?.clone(),
                round_trip: peer.round_trip(),
                loss: peer.loss(),
            };
            Some((node, health))
        };
        self.peers.iter().filter_map(health).collect()
    }

    /// The peer whose reachability is to be checked now, if one is due: the one that has waited
    /// longest, and its addresses.
    pub(crate) fn next_check(&mut self, now: Instant) -> Option<(NodeId, Vec<Ipv4Addr>)> {
        let times = extra_intervals(self.peers.len()).saturating_add(1);
        let due = |(&node, peer): (&NodeId, &Peer)| Some((peer.check_due(times)?, node));
        let (due, node) = self.peers.iter().filter_map(due).min()?;
        let peer = self.peers.get_mut(&node).filter(|_| due <= now)?;
        Some((node, peer.check(now, times, fastrand::f32())))
    }

    /// The outcomes of a check; whether the peer still exists.
    pub(crate) fn checked(&mut self, node: NodeId, answers: CheckOutcomes) -> bool {
        let peer = self.peers.get_mut(&node);
        peer.map(|peer| peer.checked(answers)).is_some()
    }

    fn tunnels(&self) -> BTreeMap<Ipv4Addr, PeerStatus> {
        let all = self
            .transports
            .encrypted
            .iter()
            .flat_map(EncryptedPath::status);
        all.map(|status| (status.tunnel_address, status)).collect()
    }

    /// How many times longer intervals are than in a small grid.
    fn stretch(&self) -> u32 {
        let many = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        many.div_ceil(HEARTBEATS_PER_S).max(1)
    }

    fn round(&self, now: Instant) -> Round {
        Round {
            now,
            peers: self.peers.len(),
            every: HEARTBEAT_INTERVAL * self.stretch(),
        }
    }

    /// Updates all peers if that is due.
    pub(crate) fn update_due(&mut self, now: Instant) -> bool {
        self.is_due(now) && self.update(now)
    }

    /// Whether an update of all peers is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        // Half a tick early, since ticks are not exact.
        let pause = TICK * self.stretch() - TICK / 2;
        let due = |last: Instant| now.saturating_duration_since(last) >= pause;
        self.updated.is_none_or(due)
    }

    /// Updates all peers, and sends the heartbeats that are due; whether any peer changed.
    fn update(&mut self, now: Instant) -> bool {
        self.updated = Some(now);
        let mut tunnels = self.tunnels();
        let missing = self.peers.values().any(|peer| !peer.met());
        self.hold_down.set_missing(missing);
        let round = self.round(now);
        let mut changed = false;
        for peer in self.peers.values_mut() {
            let status = tunnels.remove(&peer.tunnel_address());
            changed |= round.update((&self.transports, &mut self.hold_down), peer, status);
        }
        changed
    }

    /// The peer that has this tunnel address.
    pub(crate) fn at_tunnel_address(&self, address: Ipv4Addr) -> Option<NodeId> {
        self.by_tunnel_address.get(&address).copied()
    }

    /// The peer that has this MAC.
    pub(crate) fn at_mac(&self, mac: Mac) -> Option<NodeId> {
        self.by_mac.get(&mac).copied()
    }

    /// Passes a message to a peer; returns the peer's state if it changed.
    pub(crate) fn receive(
        &mut self,
        node: NodeId,
        receive: impl FnOnce(&mut Peer) -> bool,
        now: Instant,
    ) -> Option<PeerState> {
        let round = self.round(now);
        let peer = self.peers.get_mut(&node)?;
        if !receive(peer) {
            return None;
        }
        let encrypted = self.transports.encrypted.as_ref();
        let status = encrypted.and_then(|encrypted| encrypted.status_of(peer.tunnel_address()));
        let changed = round.update((&self.transports, &mut self.hold_down), peer, status);
        changed.then(|| peer.state())
    }
}

/// An update of peers: its time, the number of peers, and the interval of heartbeats.
struct Round {
    now: Instant,
    peers: usize,
    every: Duration,
}

impl Round {
    /// Updates one peer, and sends the heartbeat that is due; whether the peer changed.
    fn update(
        &self,
        (transports, hold_down): (&Transports, &mut HoldDown),
        peer: &mut Peer,
        status: Option<PeerStatus>,
    ) -> bool {
        peer.set_held_down(hold_down.is_active(self.peers, self.now));
        let before = peer.state();
        transports.update(peer, status, self.every, self.now);
        let after = peer.state();
        if after.met && !before.met {
            hold_down.met(self.peers, self.now);
        }
        after != before
    }
}

#[cfg(test)]
mod tests {
    use kontena_schema::key::PublicKey;
    use kontena_schema::limits::WIREGUARD_PORT;

    use super::*;
    use crate::peer::machine::tests::{PEER, heartbeat, wanted};

    /// The status of a live tunnel.
    fn status() -> PeerStatus {
        PeerStatus {
            tunnel_address: wanted().tunnel_address,
            key: PublicKey([2; 32]),
            own: PublicKey([1; 32]),
            endpoint: None,
            proven: Some((PEER, WIREGUARD_PORT).into()),
            last_handshake: None,
            received: Some(Duration::ZERO),
            loss: 0.0,
            sent_bytes: 0,
            received_bytes: 0,
        }
    }

    /// How clear a peer that agrees is, so long after another one was met.
    fn clear_after(peers: usize, pause: Duration) -> Clear {
        let transports = Transports {
            encrypted: None,
            path_probes: None,
            run: 1,
        };
        let start = Instant::now();
        let mut hold_down = HoldDown::default();
        let mut update = |peer: &mut Peer, now| {
            let every = HEARTBEAT_INTERVAL;
            let round = Round { now, peers, every };
            assert!(round.update((&transports, &mut hold_down), peer, Some(status())));
        };
        update(&mut Peer::new(wanted(), start), start);
        let now = start + pause;
        let mut peer = Peer::new(wanted(), start);
        peer.receive_heartbeat(heartbeat(1, false), now);
        update(&mut peer, now);
        peer.state().clear
    }

    #[test]
    fn in_a_large_grid_a_peer_waits_while_others_are_met() {
        assert_eq!(clear_after(64, Duration::from_millis(999)), Clear::No);
        assert_eq!(clear_after(64, Duration::from_secs(1)), Clear::Accept);
        assert_eq!(clear_after(63, Duration::ZERO), Clear::Accept);
    }
}
