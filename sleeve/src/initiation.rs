//! Handshakes that begin here: when, and how many at once.
//!
//! WireGuard repeats an initiation every 5 s (whitepaper section 6.4). In a grid that
//! comes up at once that is ruin: each costs the other end four multiplications on a
//! curve, and while thousands wait to be read, they are sent again. So only a few are
//! unanswered at any time, the next follow as answers come, and who does not answer is
//! asked less often. Those that were never asked go first, and places are kept for them,
//! so that dead peers hold up nobody; the others follow each other by how long they have
//! waited, however often they were asked.

use std::time::{Duration, Instant};

/// How many may be unanswered.
const UNANSWERED_MAX: usize = 16;
/// How many of them may be to peers that did not answer before.
const AGAIN_MAX: usize = UNANSWERED_MAX / 2;
/// After that one is repeated for the first time; then it counts as unanswered no more.
const REPEATED_AFTER: Duration = Duration::from_secs(5);
/// After how long one is repeated at most, if there is a place.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// With each so many, about once in 90 s, the next one goes where the table says: where
/// they went to may have been wrong.
const TRIES_THERE: u32 = 6;
/// How long the side that does not begin leaves it to the other one: two handshakes at
/// once are one too many. In a large grid the other one is not soon ready.
const LEFT_TO_OTHER: Duration = Duration::from_millis(500);
const PEERS_EACH: u32 = 32;

/// How far this side is with beginning a handshake.
#[derive(Debug, Default)]
pub(crate) struct Initiation {
    /// When the next one is to be sent; none while the peer is there.
    due: Option<Instant>,
    sent: Option<Instant>,
    /// How many were not answered.
    tries: u32,
}

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    again: bool,
    due: Instant,
}

impl Initiation {
    /// One is to be sent. Those that were in vain still count, and so does how long it
    /// waited for its turn: a peer that is tried here and there is no other one.
    pub(crate) fn begin(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// The peer was heard.
    pub(crate) fn answered(&mut self) {
        *self = Self::default();
    }

    /// Its turn, if it is time. A peer that is not alive is asked from now on.
    pub(crate) fn turn(&mut self, alive: bool, now: Instant) -> Option<Turn> {
        self.due = self.due.or_else(|| (!alive).then_some(now));
        let (due, again) = (self.due?, self.tried());
        (due <= now).then_some(Turn { again, due })
    }

    /// One was sent; whether so many were in vain that it may have gone astray.
    pub(crate) fn sent(&mut self, now: Instant) -> bool {
        self.tries = self.tries.saturating_add(1);
        self.sent = Some(now);
        self.due = Some(now + (REPEATED_AFTER * self.tries).min(PAUSE_MAX));
        self.tries.is_multiple_of(TRIES_THERE)
    }

    /// Whether one was sent; traffic waits for its end.
    pub(crate) fn tried(&self) -> bool {
        self.tries > 0
    }

    /// Whether traffic may begin one, if so many wait for an answer; if so, it does.
    pub(crate) fn admits(&mut self, waiting: usize, now: Instant) -> bool {
        let room = waiting < UNANSWERED_MAX;
        if room {
            self.sent(now);
        }
        room
    }

    /// Whether an answer may come.
    pub(crate) fn waits(&self, now: Instant) -> bool {
        self.sent
            .is_some_and(|at| now.saturating_duration_since(at) < REPEATED_AFTER)
    }
}

/// Which of those whose turn it is may send, if so many wait for an answer.
pub(crate) fn chosen<T>(mut due: Vec<(Turn, T)>, waiting: usize) -> Vec<T> {
    due.sort_by_key(|(turn, _)| *turn);
    let mut waiting = waiting;
    due.into_iter()
        .take_while(|(turn, _)| {
            let most = if turn.again {
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

/// How long one end leaves it to the other to begin, in a grid with so many peers. Either
/// begins with half of its peers, whatever numbers they have.
pub(crate) fn initiation_delay(own: u32, other: u32, peers: usize) -> Duration {
    let lower_begins = (own ^ other) & 1 == 1;
    if (own < other) == lower_begins {
        return Duration::ZERO;
    }
    let peers = u32::try_from(peers).unwrap_or(u32::MAX);
    LEFT_TO_OTHER * (1 + peers / PEERS_EACH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_s(begun: Instant, seconds: u64) -> Instant {
        begun + Duration::from_secs(seconds)
    }

    #[test]
    fn who_does_not_answer_is_asked_less_often() {
        let begun = Instant::now();
        let mut initiation = Initiation::default();
        initiation.begin(begun);
        let mut sent = Vec::new();
        for seconds in 0..120 {
            let now = in_s(begun, seconds);
            if initiation.turn(false, now).is_some() {
                let astray = initiation.sent(now);
                sent.push((seconds, astray));
            }
        }
        let at: Vec<_> = sent.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, [0, 5, 15, 30, 45, 60, 75, 90, 105]);
        let astray: Vec<_> = sent.iter().filter(|(_, astray)| *astray).collect();
        assert_eq!(astray, [&(60, true)]);
        initiation.answered();
        assert!(!initiation.waits(in_s(begun, 105)));
    }

    #[test]
    fn an_answer_is_waited_for_until_it_would_be_asked_again() {
        let begun = Instant::now();
        let mut initiation = Initiation::default();
        assert!(!initiation.waits(begun));
        assert!(initiation.turn(true, begun).is_none());
        assert!(
            initiation.turn(false, begun).is_some(),
            "who is silent is asked"
        );
        initiation.sent(begun);
        assert!(initiation.waits(in_s(begun, 4)) && !initiation.waits(in_s(begun, 5)));
        initiation.begin(in_s(begun, 2));
        assert!(initiation.turn(false, in_s(begun, 1)).is_none());
        let found = initiation.turn(true, in_s(begun, 2));
        assert!(
            found.is_some(),
            "the table says so, even of one that is alive"
        );
    }

    #[test]
    fn traffic_begins_one_where_there_is_room() {
        let now = Instant::now();
        let mut initiation = Initiation::default();
        assert!(!initiation.admits(UNANSWERED_MAX, now) && !initiation.waits(now));
        assert!(initiation.admits(UNANSWERED_MAX - 1, now) && initiation.waits(now));
        assert!(initiation.tried());
    }

    #[test]
    fn a_few_are_under_way_and_the_dead_hold_up_nobody() {
        let now = Instant::now();
        let turn = |again, of: u32| (Turn { again, due: now }, of);
        let fresh: Vec<_> = (0..100).map(|of| turn(false, of)).collect();
        let dead: Vec<_> = (100..200).map(|of| turn(true, of)).collect();
        let all = [dead.clone(), fresh.clone()].concat();
        assert_eq!(chosen(all.clone(), 0), (0..16).collect::<Vec<_>>());
        assert_eq!(chosen(dead.clone(), 0).len(), AGAIN_MAX);
        assert_eq!(chosen(all, AGAIN_MAX), (0..8).collect::<Vec<_>>());
        assert_eq!(chosen(fresh, UNANSWERED_MAX), [0; 0]);
        assert_eq!(chosen(dead, AGAIN_MAX), [0; 0]);
    }

    #[test]
    fn among_the_dead_nobody_is_forgotten() {
        let begun = Instant::now();
        let mut all: Vec<_> = (0..100).map(|_| Initiation::default()).collect();
        // One was asked in vain for long before the others fell silent.
        all[0].tries = 120;
        let mut asked = [0; 100];
        for seconds in 0..600 {
            let now = in_s(begun, seconds);
            let waiting = all.iter().filter(|one| one.waits(now)).count();
            // Half of them are tried at another place all the time.
            let moved = all.iter_mut().skip(50);
            moved
                .filter(|_| seconds % 15 == 0)
                .for_each(|one| one.begin(now));
            let due = all.iter_mut().enumerate();
            let due = due.filter_map(|(of, one)| Some((one.turn(false, now)?, of)));
            for of in chosen(due.collect(), waiting) {
                all[of].sent(now);
                asked[of] += 1;
            }
            assert!(all.iter().filter(|one| one.waits(now)).count() <= UNANSWERED_MAX);
        }
        // 8 in 5 s are 9 or 10 for each.
        assert!(
            asked.iter().all(|count| (6..=14).contains(count)),
            "{asked:?}"
        );
    }

    #[test]
    fn one_of_two_begins_and_everybody_with_half() {
        for own in 1..=254 {
            let begun = (1..=254).filter(|other| *other != own);
            let begun = begun.filter(|&other| {
                let (here, there) = (
                    initiation_delay(own, other, 253),
                    initiation_delay(other, own, 253),
                );
                assert_eq!(here.max(there), LEFT_TO_OTHER * 8);
                here < there
            });
            assert!((126..=127).contains(&begun.count()));
        }
        assert_eq!(
            initiation_delay(2, 1, 1).max(initiation_delay(1, 2, 1)),
            LEFT_TO_OTHER
        );
    }
}
