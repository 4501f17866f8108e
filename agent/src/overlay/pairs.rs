//! All pairs of this node, and the ways to them.
//!
//! The caller holds a lock for as long as a call takes: no await, no disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use kontena_schema::ids::NodeId;
use kontena_sleeve::PeerStatus;

use super::knock::Answers;
use super::meeting::Meeting;
use super::pair::{Clear, Pair, PairState, Wanted};
use super::sealed::Sealed;
use super::waits_longer;
use super::ways::Ways;

/// How often tunnels are looked at in a small grid; in a large one as much less often as
/// probes are sent, so that a look at all of them costs no more.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// How often a peer gets a probe in a small grid.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How many probes a second a node sends at most when nothing changes: with 253 peers each
/// gets one in 8 s, less than the 10 s after which WireGuard answers with an empty packet.
const PROBES_PER_S: u32 = 32;

/// What is known of each pair and matters to the plan.
pub type PairStates = BTreeMap<NodeId, PairState>;

/// All pairs of this node.
pub(crate) struct Pairs {
    pub(crate) ways: Ways,
    pairs: BTreeMap<NodeId, Pair>,
    meeting: Meeting,
    /// When all were looked at last.
    settled: Option<Instant>,
}

/// What is told of a peer to people.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// How its tunnel is.
    pub tunnel: PeerStatus,
    /// How long a probe takes there and back.
    pub round_trip: Option<Duration>,
    /// The share of its last probes that did not come.
    pub loss: Option<f32>,
}

impl Pairs {
    /// None yet.
    pub(crate) fn new(sealed: Option<Sealed>) -> Self {
        Self {
            ways: Ways {
                sealed,
                trials: None,
                run: fastrand::u32(..),
            },
            pairs: BTreeMap::new(),
            meeting: Meeting::default(),
            settled: None,
        }
    }

    /// Takes what the directory says. Pairs that are not known yet are as `adopted` says.
    pub(crate) fn want(
        &mut self,
        wanted: BTreeMap<NodeId, Wanted>,
        adopted: &BTreeMap<NodeId, Clear>,
        now: Instant,
    ) {
        self.pairs.retain(|node, _| wanted.contains_key(node));
        for (node, wanted) in wanted {
            if let Some(pair) = self.pairs.get_mut(&node) {
                pair.want(wanted, now);
                continue;
            }
            let mut pair = Pair::new(wanted, now);
            if let Some(&clear) = adopted.get(&node) {
                pair.adopt(clear, now);
            }
            self.pairs.insert(node, pair);
        }
        self.settle(now);
    }

    /// Of which peers the kernel takes clear packets now; whether any pair changed.
    pub(crate) fn set_accepted(&mut self, accepted: &BTreeSet<NodeId>, now: Instant) -> bool {
        for (node, pair) in &mut self.pairs {
            pair.set_accepted(accepted.contains(node));
        }
        self.settle(now)
    }

    /// What matters to the plan.
    pub(crate) fn states(&self) -> PairStates {
        self.pairs.iter().map(|(&n, p)| (n, p.state())).collect()
    }

    /// How the way to each peer is.
    pub(crate) fn health(&self) -> BTreeMap<NodeId, Health> {
        let tunnels = self.tunnels();
        let health = |(&node, pair): (&NodeId, &Pair)| {
            let health = Health {
                tunnel: tunnels.get(&pair.inner())?.clone(),
                round_trip: pair.round_trip(),
                loss: pair.loss(),
            };
            Some((node, health))
        };
        self.pairs.iter().filter_map(health).collect()
    }

    /// The peer to knock for now, if it is anybody's turn: who has waited longest; and
    /// where.
    pub(crate) fn next_knock(&mut self, now: Instant) -> Option<(NodeId, Vec<Ipv4Addr>)> {
        let times = waits_longer(self.pairs.len()).saturating_add(1);
        let due = |(&node, pair): (&NodeId, &Pair)| Some((pair.knock_due(times)?, node));
        let (due, node) = self.pairs.iter().filter_map(due).min()?;
        let pair = self.pairs.get_mut(&node).filter(|_| due <= now)?;
        Some((node, pair.knock(now, times, fastrand::f32())))
    }

    /// That was found; whether there still is such a pair.
    pub(crate) fn knocked(&mut self, node: NodeId, answers: Answers) -> bool {
        let pair = self.pairs.get_mut(&node);
        pair.map(|pair| pair.knocked(answers)).is_some()
    }

    fn tunnels(&self) -> BTreeMap<Ipv4Addr, PeerStatus> {
        let all = self.ways.sealed.iter().flat_map(Sealed::status);
        all.map(|status| (status.inner, status)).collect()
    }

    /// How many times less often things are done than in a small grid.
    fn stretch(&self) -> u32 {
        let many = u32::try_from(self.pairs.len()).unwrap_or(u32::MAX);
        many.div_ceil(PROBES_PER_S).max(1)
    }

    fn round(&self, now: Instant) -> Round {
        Round {
            now,
            peers: self.pairs.len(),
            every: PROBE_EVERY * self.stretch(),
        }
    }

    /// Looks at all pairs if it is time.
    pub(crate) fn settle_due(&mut self, now: Instant) -> bool {
        self.is_due(now) && self.settle(now)
    }

    /// Whether it is time to look at all pairs.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        // The tick before would be as near.
        let pause = TICK * self.stretch() - TICK / 2;
        let due = |last: Instant| now.saturating_duration_since(last) >= pause;
        self.settled.is_none_or(due)
    }

    /// Looks at all pairs, and sends the probes that are due; whether any changed.
    fn settle(&mut self, now: Instant) -> bool {
        self.settled = Some(now);
        let mut tunnels = self.tunnels();
        let missing = self.pairs.values().any(|pair| !pair.met());
        self.meeting.set_missing(missing);
        let round = self.round(now);
        let mut changed = false;
        for pair in self.pairs.values_mut() {
            let status = tunnels.remove(&pair.inner());
            changed |= round.settle((&self.ways, &mut self.meeting), pair, status);
        }
        changed
    }

    /// The pair that changed, if one did, and how it is now.
    pub(crate) fn hear(
        &mut self,
        of: impl Fn(&Pair) -> bool,
        hear: impl FnOnce(&mut Pair) -> bool,
        now: Instant,
    ) -> Option<(NodeId, PairState)> {
        let round = self.round(now);
        let (&node, pair) = self.pairs.iter_mut().find(|(_, pair)| of(pair))?;
        if !hear(pair) {
            return None;
        }
        let sealed = self.ways.sealed.as_ref();
        let status = sealed.and_then(|sealed| sealed.status_of(pair.inner()));
        let changed = round.settle((&self.ways, &mut self.meeting), pair, status);
        changed.then(|| (node, pair.state()))
    }
}

/// Looks at pairs: when, how many there are, and how often each gets a probe.
struct Round {
    now: Instant,
    peers: usize,
    every: Duration,
}

impl Round {
    /// Looks at one, and sends the probe that is due; whether the pair changed.
    fn settle(
        &self,
        (ways, meeting): (&Ways, &mut Meeting),
        pair: &mut Pair,
        status: Option<PeerStatus>,
    ) -> bool {
        pair.set_waits(meeting.goes_on(self.peers, self.now));
        let before = pair.state();
        ways.settle(pair, status, self.every, self.now);
        let after = pair.state();
        if after.met && !before.met {
            meeting.met(self.peers, self.now);
        }
        after != before
    }
}

#[cfg(test)]
mod tests {
    use kontena_schema::key::PublicKey;
    use kontena_schema::limits::WIREGUARD_PORT;

    use super::super::pair::tests::{PEER, probe, wanted};
    use super::*;

    /// The peer is there.
    fn status() -> PeerStatus {
        PeerStatus {
            inner: wanted().inner,
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

    /// How clear a pair is whose peer agrees, so long after another one was met.
    fn clear_after(peers: usize, pause: Duration) -> Clear {
        let ways = Ways {
            sealed: None,
            trials: None,
            run: 1,
        };
        let begun = Instant::now();
        let mut meeting = Meeting::default();
        let mut settle = |pair: &mut Pair, now| {
            let every = PROBE_EVERY;
            let round = Round { now, peers, every };
            assert!(round.settle((&ways, &mut meeting), pair, Some(status())));
        };
        settle(&mut Pair::new(wanted(), begun), begun);
        let now = begun + pause;
        let mut pair = Pair::new(wanted(), begun);
        pair.hear(probe(1, false), now);
        settle(&mut pair, now);
        pair.state().clear
    }

    #[test]
    fn in_a_large_grid_a_pair_waits_for_others_that_are_met() {
        assert_eq!(clear_after(64, Duration::from_millis(999)), Clear::No);
        assert_eq!(clear_after(64, Duration::from_secs(1)), Clear::Accept);
        assert_eq!(clear_after(63, Duration::ZERO), Clear::Accept);
    }
}
