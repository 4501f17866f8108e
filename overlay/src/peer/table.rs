//! All peers of this node, and the transports to them.
//!
//! The caller holds a lock for as long as a call takes: no await, no disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use kontena_schema::ids::NodeId;
use kontena_sleeve::PeerStatus;

use crate::model::pace::extra_intervals;
use crate::model::peer::{Clear, PeerConfig, PeerState};
use crate::model::reachability::CheckOutcomes;
use crate::peer::encryption::EncryptedPath;
use crate::peer::hold_down::HoldDown;
use crate::peer::machine::Peer;
use crate::peer::transports::Transports;

/// How often tunnels are looked at in a small grid; in a large one as much less often as
/// heartbeats are sent, so that a look at all of them costs no more.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// How often a peer gets a heartbeat in a small grid.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How many heartbeats a second a node sends at most when nothing changes: with 253 peers each
/// gets one in 8 s, less than the 10 s after which WireGuard answers with an empty packet.
const HEARTBEATS_PER_S: u32 = 32;

/// What is known of each peer and matters to the plan.
pub type PeerStates = BTreeMap<NodeId, PeerState>;

/// All peers of this node.
pub(crate) struct PeerTable {
    pub(crate) transports: Transports,
    peers: BTreeMap<NodeId, Peer>,
    hold_down: HoldDown,
    /// When all were looked at last.
    settled: Option<Instant>,
}

/// What is told of a peer to people.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// How its tunnel is.
    pub tunnel: PeerStatus,
    /// How long a heartbeat takes there and back.
    pub round_trip: Option<Duration>,
    /// The share of its last heartbeats that did not come.
    pub loss: Option<f32>,
}

impl PeerTable {
    /// None yet.
    pub(crate) fn new(encrypted: Option<EncryptedPath>) -> Self {
        Self {
            transports: Transports {
                encrypted,
                path_probes: None,
                run: fastrand::u32(..),
            },
            peers: BTreeMap::new(),
            hold_down: HoldDown::default(),
            settled: None,
        }
    }

    /// Takes what the directory says. PeerTable that are not known yet are as `adopted` says.
    pub(crate) fn want(
        &mut self,
        wanted: BTreeMap<NodeId, PeerConfig>,
        adopted: &BTreeMap<NodeId, Clear>,
        now: Instant,
    ) {
        self.peers.retain(|node, _| wanted.contains_key(node));
        for (node, wanted) in wanted {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.want(wanted, now);
                continue;
            }
            let mut peer = Peer::new(wanted, now);
            if let Some(&clear) = adopted.get(&node) {
                peer.adopt(clear, now);
            }
            self.peers.insert(node, peer);
        }
        self.settle(now);
    }

    /// Of which peers the kernel takes clear packets now; whether any peer changed.
    pub(crate) fn set_accepted(&mut self, accepted: &BTreeSet<NodeId>, now: Instant) -> bool {
        for (node, peer) in &mut self.peers {
            peer.set_accepted(accepted.contains(node));
        }
        self.settle(now)
    }

    /// What matters to the plan.
    pub(crate) fn states(&self) -> PeerStates {
        self.peers.iter().map(|(&n, p)| (n, p.state())).collect()
    }

    /// How the way to each peer is.
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

    /// The peer to check for now, if it is anybody's turn: who has waited longest; and
    /// where.
    pub(crate) fn next_check(&mut self, now: Instant) -> Option<(NodeId, Vec<Ipv4Addr>)> {
        let times = extra_intervals(self.peers.len()).saturating_add(1);
        let due = |(&node, peer): (&NodeId, &Peer)| Some((peer.check_due(times)?, node));
        let (due, node) = self.peers.iter().filter_map(due).min()?;
        let peer = self.peers.get_mut(&node).filter(|_| due <= now)?;
        Some((node, peer.check(now, times, fastrand::f32())))
    }

    /// That was found; whether there still is such a peer.
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

    /// How many times less often things are done than in a small grid.
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

    /// Looks at all peers if it is time.
    pub(crate) fn settle_due(&mut self, now: Instant) -> bool {
        self.is_due(now) && self.settle(now)
    }

    /// Whether it is time to look at all peers.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        // The tick before would be as near.
        let pause = TICK * self.stretch() - TICK / 2;
        let due = |last: Instant| now.saturating_duration_since(last) >= pause;
        self.settled.is_none_or(due)
    }

    /// Looks at all peers, and sends the heartbeats that are due; whether any changed.
    fn settle(&mut self, now: Instant) -> bool {
        self.settled = Some(now);
        let mut tunnels = self.tunnels();
        let missing = self.peers.values().any(|peer| !peer.met());
        self.hold_down.set_missing(missing);
        let round = self.round(now);
        let mut changed = false;
        for peer in self.peers.values_mut() {
            let status = tunnels.remove(&peer.tunnel_address());
            changed |= round.settle((&self.transports, &mut self.hold_down), peer, status);
        }
        changed
    }

    /// The peer that changed, if one did, and how it is now.
    pub(crate) fn hear(
        &mut self,
        of: impl Fn(&Peer) -> bool,
        hear: impl FnOnce(&mut Peer) -> bool,
        now: Instant,
    ) -> Option<(NodeId, PeerState)> {
        let round = self.round(now);
        let (&node, peer) = self.peers.iter_mut().find(|(_, peer)| of(peer))?;
        if !hear(peer) {
            return None;
        }
        let encrypted = self.transports.encrypted.as_ref();
        let status = encrypted.and_then(|encrypted| encrypted.status_of(peer.tunnel_address()));
        let changed = round.settle((&self.transports, &mut self.hold_down), peer, status);
        changed.then(|| (node, peer.state()))
    }
}

/// Looks at peers: when, how many there are, and how often each gets a heartbeat.
struct Round {
    now: Instant,
    peers: usize,
    every: Duration,
}

impl Round {
    /// Looks at one, and sends the heartbeat that is due; whether the peer changed.
    fn settle(
        &self,
        (transports, hold_down): (&Transports, &mut HoldDown),
        peer: &mut Peer,
        status: Option<PeerStatus>,
    ) -> bool {
        peer.set_waits(hold_down.goes_on(self.peers, self.now));
        let before = peer.state();
        transports.settle(peer, status, self.every, self.now);
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

    /// The peer is there.
    fn status() -> PeerStatus {
        PeerStatus {
            tunnel_address: wanted().tunnel_address,
            key: PublicKey([2; 32]),
            own: PublicKey([1; 32]),
            endpoint: None,
            proven: Some((PEER, WIREGUARD_PORT).into()),
            last_handshake: None,
            heard: Some(Duration::ZERO),
            loss: 0.0,
            sent_bytes: 0,
            received_bytes: 0,
        }
    }

    /// How clear a peer is whose peer agrees, so long after another one was met.
    fn clear_after(peers: usize, pause: Duration) -> Clear {
        let transports = Transports {
            encrypted: None,
            path_probes: None,
            run: 1,
        };
        let begun = Instant::now();
        let mut hold_down = HoldDown::default();
        let mut settle = |peer: &mut Peer, now| {
            let every = HEARTBEAT_INTERVAL;
            let round = Round { now, peers, every };
            assert!(round.settle((&transports, &mut hold_down), peer, Some(status())));
        };
        settle(&mut Peer::new(wanted(), begun), begun);
        let now = begun + pause;
        let mut peer = Peer::new(wanted(), begun);
        peer.hear(heartbeat(1, false), now);
        settle(&mut peer, now);
        peer.state().clear
    }

    #[test]
    fn in_a_large_grid_a_peer_waits_for_others_that_are_met() {
        assert_eq!(clear_after(64, Duration::from_millis(999)), Clear::No);
        assert_eq!(clear_after(64, Duration::from_secs(1)), Clear::Accept);
        assert_eq!(clear_after(63, Duration::ZERO), Clear::Accept);
    }
}
