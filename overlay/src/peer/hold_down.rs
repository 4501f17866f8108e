//! Start-up hold-down: in a large grid that comes up, no peer turns clear until all have been met.
//!
//! Turning clear costs path probes of the largest size, and changes of the packet filter and of
//! kernel tables, while the encrypted path carries the same frames. So while peers are being met
//! for the first time, one soon after the other, those that could turn clear wait, and then do so
//! together. In a grid of less than 64 peers nothing waits.

use std::time::{Duration, Instant};

use crate::model::pace::extra_intervals;

/// It ends when no peer was met for so long, or for longer while some are missing, and at the
/// latest after so long; each times [`extra_intervals`].
const QUIET: Duration = Duration::from_secs(1);
const QUIET_MISSING: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(20);

/// When peers were first met.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HoldDown {
    /// When the first and the last of them were met.
    met: Option<(Instant, Instant)>,
    /// Whether a peer was never met.
    missing: bool,
}

impl HoldDown {
    /// A peer was met, in a grid of so many.
    pub(crate) fn met(&mut self, peers: usize, now: Instant) {
        // The hold-down continues only if the last one was met not too long ago.
        let one = |last| now.saturating_duration_since(last) < MOST * extra_intervals(peers);
        let since = match self.met {
            Some((since, last)) if one(last) => since,
            _ => now,
        };
        self.met = Some((since, now));
    }

    /// Whether a peer was never met.
    pub(crate) fn set_missing(&mut self, missing: bool) {
        self.missing = missing;
    }

    /// Whether peers that could turn clear have to wait.
    pub(crate) fn is_active(&self, peers: usize, now: Instant) -> bool {
        self.met.is_some_and(|(since, last)| {
            self.is_soon(last, peers, now)
                && now.saturating_duration_since(since) < MOST * extra_intervals(peers)
        })
    }

    /// Whether the last peer was met a short while ago.
    fn is_soon(&self, last: Instant, peers: usize, now: Instant) -> bool {
        let quiet = if self.missing { QUIET_MISSING } else { QUIET };
        now.saturating_duration_since(last) < quiet * extra_intervals(peers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: usize = 253;

    /// How many milliseconds after the first of these meetings peers may turn clear, if one peer
    /// is never met.
    fn clear_at(peers: usize, met_ms: &[u64]) -> u64 {
        let start = Instant::now();
        let mut hold_down = HoldDown::default();
        hold_down.set_missing(true);
        assert!(!hold_down.is_active(peers, start), "no peer was met");
        (0..100_000)
            .find(|ms| {
                let now = start + Duration::from_millis(*ms);
                if met_ms.contains(ms) {
                    hold_down.met(peers, now);
                }
                !hold_down.is_active(peers, now)
            })
            .unwrap()
    }

    #[test]
    fn in_a_large_grid_peers_wait_until_no_more_are_met() {
        assert_eq!(clear_at(FULL, &[0]), 15_000);
        assert_eq!(clear_at(FULL, &[0, 2_000, 14_900]), 29_900);
        assert_eq!(clear_at(64, &[0]), 5_000);
    }

    #[test]
    fn when_all_are_met_the_wait_is_short() {
        let now = Instant::now();
        let mut hold_down = HoldDown::default();
        hold_down.met(FULL, now);
        assert!(hold_down.is_active(FULL, now + Duration::from_millis(2_999)));
        assert!(!hold_down.is_active(FULL, now + Duration::from_millis(3_000)));
    }

    #[test]
    fn in_a_small_grid_nothing_waits() {
        assert_eq!(clear_at(63, &[0]), 0);
    }

    #[test]
    fn peers_that_are_met_again_and_again_hold_up_the_others_for_a_limited_time() {
        let often: Vec<_> = (0..100_000).step_by(500).collect();
        assert_eq!(clear_at(FULL, &often), 60_000);
        // Nor does a peer that is met again just before the wait would end.
        let start = Instant::now();
        let mut hold_down = HoldDown::default();
        hold_down.set_missing(true);
        let held = (0..600_000).step_by(50).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            if ms % 15_050 == 0 {
                hold_down.met(FULL, now);
            }
            hold_down.is_active(FULL, now)
        });
        // In the first minute: three times 15 s, and the rest.
        assert_eq!(held.count(), (3 * 15_000 + 14_850) / 50);
    }

    #[test]
    fn a_later_start_up_is_held_down_again() {
        let start = Instant::now();
        let later = start + Duration::from_secs(600);
        let mut hold_down = HoldDown::default();
        hold_down.set_missing(true);
        hold_down.met(FULL, start);
        hold_down.met(FULL, later);
        assert!(hold_down.is_active(FULL, later + Duration::from_secs(2)));
    }
}
