//! When a silent peer is checked; pure, time is passed in.

use std::time::{Duration, Instant};

use crate::model::reachability::CheckOutcomes;

/// How long a peer must have been silent before the first check: several handshakes were
/// tried by then, at each of its addresses.
const AFTER: Duration = Duration::from_secs(20);
/// The mean interval between two checks of one peer.
const EVERY: Duration = Duration::from_secs(30);

/// The schedule of one peer and what its last check found.
#[derive(Debug)]
pub(crate) struct CheckSchedule {
    silent_since: Instant,
    not_before: Option<Instant>,
    answers: CheckOutcomes,
}

impl CheckSchedule {
    /// The peer is tried from now on.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            silent_since: now,
            not_before: None,
            answers: CheckOutcomes::default(),
        }
    }

    /// When the next one is due if the peer stays silent. Where there are many peers,
    /// everything takes so many times longer.
    pub(crate) fn due(&self, times: u32) -> Instant {
        let first = self.silent_since + AFTER * times;
        self.not_before.map_or(first, |at| at.max(first))
    }

    /// One begins. `jitter` is from 0 to 1: whom many peers have lost, they do not check
    /// for at once.
    pub(crate) fn begin(&mut self, now: Instant, times: u32, jitter: f32) {
        let pause = EVERY * times;
        self.not_before = Some(now + pause.mul_f32(0.75 + jitter.clamp(0.0, 1.0) / 2.0));
    }

    /// One ended.
    pub(crate) fn end(&mut self, answers: CheckOutcomes) {
        self.answers = answers;
    }

    pub(crate) fn answers(&self) -> CheckOutcomes {
        self.answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_check_waits_for_handshakes_and_the_next_for_a_while() {
        let now = Instant::now();
        for times in [1, 4] {
            let mut schedule = CheckSchedule::new(now);
            assert_eq!(schedule.due(times), now + 20 * SECOND * times);
            let begun = schedule.due(times) + SECOND;
            for (jitter, pause) in [(0.0, 22_500), (0.5, 30_000), (1.0, 37_500), (9.0, 37_500)] {
                schedule.begin(begun, times, jitter);
                let pause = Duration::from_millis(pause) * times;
                assert_eq!(schedule.due(times), begun + pause);
            }
        }
    }
}
