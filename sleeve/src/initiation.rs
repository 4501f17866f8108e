//! Handshakes initiated by this host: when, and how many at once.
//!
//! WireGuard repeats an initiation every 5 s (whitepaper section 6.4). In a grid that comes up
//! all at once that is fatal: each costs the responder four Curve25519 multiplications, and
//! while thousands wait to be read, they are sent again. So only a few may be unanswered at any
//! time, the next ones follow as responses arrive, and a peer that does not respond is retried
//! less often. Peers that were never tried go first and have slots reserved, so that dead peers
//! hold up none of them; all others are served in the order in which they became due, however
//! often they were tried.

use std::time::{Duration, Instant};

/// How many initiations may be unanswered.
const UNANSWERED_MAX: usize = 16;
/// How many of them may be retries.
const AGAIN_MAX: usize = UNANSWERED_MAX / 2;
/// When an initiation is first repeated; from then on it no longer counts as unanswered.
const REPEATED_AFTER: Duration = Duration::from_secs(5);
/// The longest time until an initiation is repeated, if there is a slot.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// After every so many tries, about 90 s, the next one goes to the endpoint from the table again:
/// the one that was used may have been wrong.
const TRIES_PER_ENDPOINT: u32 = 6;
/// How long the side that does not initiate leaves it to the other: two handshakes at once are
/// one too many. In a large grid the other side takes longer to be ready.
const LEFT_TO_OTHER: Duration = Duration::from_millis(500);
const PEERS_EACH: u32 = 32;

/// The state of this side's initiations to one peer.
#[derive(Debug, Default)]
pub(crate) struct Initiation {
    /// When the next one is due; none while the peer responds.
    due: Option<Instant>,
    sent: Option<Instant>,
    /// How many were not answered.
    tries: u32,
}

/// The order in which due initiations are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Priority {
    again: bool,
    due: Instant,
}

impl Initiation {
    /// Schedules an initiation. Failed tries still count, and so does the time that one has
    /// been due already: a peer that is tried at alternating endpoints gets no advantage.
    pub(crate) fn schedule(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// The peer responded.
    pub(crate) fn answered(&mut self) {
        *self = Self::default();
    }

    /// The priority of the next initiation, if it is due. A peer that is not alive is due now.
    pub(crate) fn priority(&mut self, alive: bool, now: Instant) -> Option<Priority> {
        self.due = self.due.or_else(|| (!alive).then_some(now));
        let (due, again) = (self.due?, self.tried());
        (due <= now).then_some(Priority { again, due })
    }

    /// An initiation was sent; whether it is time to go back to the endpoint from the table.
    pub(crate) fn sent(&mut self, now: Instant) -> bool {
        self.tries = self.tries.saturating_add(1);
        self.sent = Some(now);
        self.due = Some(now + (REPEATED_AFTER * self.tries).min(PAUSE_MAX));
        self.tries.is_multiple_of(TRIES_PER_ENDPOINT)
    }

    /// Whether one was sent; frames then wait in the tunnel for the handshake.
    pub(crate) fn tried(&self) -> bool {
        self.tries > 0
    }

    /// Whether a frame may trigger an initiation while so many are unanswered; if so, it counts
    /// as sent.
    pub(crate) fn admits(&mut self, waiting: usize, now: Instant) -> bool {
        let admitted = waiting < UNANSWERED_MAX;
        if admitted {
            self.sent(now);
        }
        admitted
    }

    /// Whether a response may still arrive.
    pub(crate) fn awaits_response(&self, now: Instant) -> bool {
        self.sent
            .is_some_and(|at| now.saturating_duration_since(at) < REPEATED_AFTER)
    }
}

/// Selects which of the due initiations may be sent while so many are unanswered.
pub(crate) fn select<T>(mut due: Vec<(Priority, T)>, waiting: usize) -> Vec<T> {
    due.sort_by_key(|(priority, _)| *priority);
    let mut waiting = waiting;
    due.into_iter()
        .take_while(|(priority, _)| {
            let most = if priority.again {
                AGAIN_MAX
            } else {
                UNANSWERED_MAX
            };
            waiting += 1;
            waiting <= most
        })
        .map(|(_, of)| of)
        .collect()
}

/// How long one side leaves it to the other to initiate, in a grid with so many peers. Every node
/// initiates to half of its peers, whatever their numbers.
pub(crate) fn initiation_delay(own: u32, other: u32, peers: usize) -> Duration {
    let lower_initiates = (own ^ other) & 1 == 1;
    if (own < other) == lower_initiates {
        return Duration::ZERO;
    }
    let peers = u32::try_from(peers).unwrap_or(u32::MAX);
    LEFT_TO_OTHER * (1 + peers / PEERS_EACH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_s(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_peer_that_does_not_respond_is_retried_less_often() {
        let start = Instant::now();
        let mut initiation = Initiation::default();
        initiation.schedule(start);
        let mut sent = Vec::new();
        for seconds in 0..120 {
            let now = in_s(start, seconds);
            if initiation.priority(false, now).is_some() {
                let resets_endpoint = initiation.sent(now);
                sent.push((seconds, resets_endpoint));
            }
        }
        let at: Vec<_> = sent.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, [0, 5, 15, 30, 45, 60, 75, 90, 105]);
        let resets: Vec<_> = sent.iter().filter(|(_, resets)| *resets).collect();
        assert_eq!(resets, [&(60, true)]);
        initiation.answered();
        assert!(!initiation.awaits_response(in_s(start, 105)));
    }

    #[test]
    fn a_response_is_awaited_until_the_first_repeat() {
        let start = Instant::now();
        let mut initiation = Initiation::default();
        assert!(!initiation.awaits_response(start));
        assert!(initiation.priority(true, start).is_none());
        assert!(
            initiation.priority(false, start).is_some(),
            "a silent peer is due"
        );
        initiation.sent(start);
        assert!(
            initiation.awaits_response(in_s(start, 4))
                && !initiation.awaits_response(in_s(start, 5))
        );
        initiation.schedule(in_s(start, 2));
        assert!(initiation.priority(false, in_s(start, 1)).is_none());
        let found = initiation.priority(true, in_s(start, 2));
        assert!(
            found.is_some(),
            "the table asks for one, though the peer is alive"
        );
    }

    #[test]
    fn traffic_triggers_an_initiation_while_few_are_unanswered() {
        let now = Instant::now();
        let mut initiation = Initiation::default();
        assert!(!initiation.admits(UNANSWERED_MAX, now) && !initiation.awaits_response(now));
        assert!(initiation.admits(UNANSWERED_MAX - 1, now) && initiation.awaits_response(now));
        assert!(initiation.tried());
    }

    #[test]
    fn few_are_unanswered_and_dead_peers_hold_up_no_other() {
        let now = Instant::now();
        let due = |again, of: u32| (Priority { again, due: now }, of);
        let fresh: Vec<_> = (0..100).map(|of| due(false, of)).collect();
        let dead: Vec<_> = (100..200).map(|of| due(true, of)).collect();
        let all = [dead.clone(), fresh.clone()].concat();
        assert_eq!(select(all.clone(), 0), (0..16).collect::<Vec<_>>());
        assert_eq!(select(dead.clone(), 0).len(), AGAIN_MAX);
        assert_eq!(select(all, AGAIN_MAX), (0..8).collect::<Vec<_>>());
        assert_eq!(select(fresh, UNANSWERED_MAX), [0; 0]);
        assert_eq!(select(dead, AGAIN_MAX), [0; 0]);
    }

    #[test]
    fn every_dead_peer_is_retried() {
        let start = Instant::now();
        let mut all: Vec<_> = (0..100).map(|_| Initiation::default()).collect();
        // One was dead long before the others.
        all[0].tries = 120;
        let mut tried = [0; 100];
        for seconds in 0..600 {
            let now = in_s(start, seconds);
            let waiting = all.iter().filter(|one| one.awaits_response(now)).count();
            // Half of them keep changing their endpoint.
            let moved = all.iter_mut().skip(50);
            moved
                .filter(|_| seconds % 15 == 0)
                .for_each(|one| one.schedule(now));
            let due = all.iter_mut().enumerate();
            let due = due.filter_map(|(of, one)| Some((one.priority(false, now)?, of)));
            for of in select(due.collect(), waiting) {
                all[of].sent(now);
                tried[of] += 1;
            }
            assert!(all.iter().filter(|one| one.awaits_response(now)).count() <= UNANSWERED_MAX);
        }
        // 8 every 5 s are 9 or 10 for each.
        assert!(
            tried.iter().all(|count| (6..=14).contains(count)),
            "{tried:?}"
        );
    }

    #[test]
    fn one_of_two_initiates_and_every_node_to_half_of_its_peers() {
        for own in 1..=254 {
            let first = (1..=254).filter(|other| *other != own);
            let first = first.filter(|&other| {
                let (here, there) = (
                    initiation_delay(own, other, 253),
                    initiation_delay(other, own, 253),
                );
                assert_eq!(here.max(there), LEFT_TO_OTHER * 8);
                here < there
            });
            assert!((126..=127).contains(&first.count()));
        }
        assert_eq!(
            initiation_delay(2, 1, 1).max(initiation_delay(1, 2, 1)),
            LEFT_TO_OTHER
        );
    }
}
