//! In a large grid that comes up, peers are met before peers turn clear.
//!
//! A peer that turns clear is work: path_probes of the largest size, the packet filter, tables
//! of the kernel. EncryptedPath it carries the same frames. So while peers are met for the first
//! time, one soon after the other, those that could turn clear wait, and then they do so
//! together. In a grid of less than 64 peers nothing waits.

use std::time::{Duration, Instant};

use crate::model::pace::extra_intervals;

/// How long nobody may have been met, the same while some are missing, and how long all
/// wait at most; so many times as [`extra_intervals`] says.
const QUIET: Duration = Duration::from_secs(1);
const QUIET_MISSING: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(20);

/// Whether peers are met, and since when.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HoldDown {
    /// When the first one was met, and the last one.
    met: Option<(Instant, Instant)>,
    /// Whether somebody was never met.
    missing: bool,
}

impl HoldDown {
    /// A peer was met, in a grid with so many.
    pub(crate) fn met(&mut self, peers: usize, now: Instant) {
        // Meetings at some distance are one all the same: it is over sometime.
        let one = |last| now.saturating_duration_since(last) < MOST * extra_intervals(peers);
        let since = match self.met {
            Some((since, last)) if one(last) => since,
            _ => now,
        };
        self.met = Some((since, now));
    }

    /// Whether somebody was never met.
    pub(crate) fn set_missing(&mut self, missing: bool) {
        self.missing = missing;
    }

    /// Whether those that could turn clear wait.
    pub(crate) fn goes_on(&self, peers: usize, now: Instant) -> bool {
        self.met.is_some_and(|(since, last)| {
            self.is_soon(last, peers, now)
                && now.saturating_duration_since(since) < MOST * extra_intervals(peers)
        })
    }

    /// Whether now is soon after the last one.
    fn is_soon(&self, last: Instant, peers: usize, now: Instant) -> bool {
        let quiet = if self.missing { QUIET_MISSING } else { QUIET };
        now.saturating_duration_since(last) < quiet * extra_intervals(peers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: usize = 253;

    /// How many milliseconds after the first of these peers may turn clear, if one peer is
    /// never met.
    fn clear_at(peers: usize, met_ms: &[u64]) -> u64 {
        let begun = Instant::now();
        let mut hold_down = HoldDown::default();
        hold_down.set_missing(true);
        assert!(!hold_down.goes_on(peers, begun), "nobody was met");
        (0..100_000)
            .find(|ms| {
                let now = begun + Duration::from_millis(*ms);
                if met_ms.contains(ms) {
                    hold_down.met(peers, now);
                }
                !hold_down.goes_on(peers, now)
            })
            .unwrap()
    }

    #[test]
    fn pairs_of_a_large_grid_wait_until_nobody_is_met_any_more() {
        assert_eq!(clear_at(FULL, &[0]), 15_000);
        assert_eq!(clear_at(FULL, &[0, 2_000, 14_900]), 29_900);
        assert_eq!(clear_at(64, &[0]), 5_000);
    }

    #[test]
    fn where_all_were_met_they_wait_for_a_moment_only() {
        let now = Instant::now();
        let mut hold_down = HoldDown::default();
        hold_down.met(FULL, now);
        assert!(hold_down.goes_on(FULL, now + Duration::from_millis(2_999)));
        assert!(!hold_down.goes_on(FULL, now + Duration::from_millis(3_000)));
    }

    #[test]
    fn in_a_small_grid_nothing_waits() {
        assert_eq!(clear_at(63, &[0]), 0);
    }

    #[test]
    fn who_is_met_again_and_again_holds_up_nobody_for_ever() {
        let often: Vec<_> = (0..100_000).step_by(500).collect();
        assert_eq!(clear_at(FULL, &often), 60_000);
        // Neither does who waits just until the others would begin.
        let begun = Instant::now();
        let mut hold_down = HoldDown::default();
        hold_down.set_missing(true);
        let held = (0..600_000).step_by(50).filter(|ms| {
            let now = begun + Duration::from_millis(*ms);
            if ms % 15_050 == 0 {
                hold_down.met(FULL, now);
            }
            hold_down.goes_on(FULL, now)
        });
        // Of the first minute: 15 s three times, and what was left of it.
        assert_eq!(held.count(), (3 * 15_000 + 14_850) / 50);
    }

    #[test]
    fn after_a_pause_it_begins_anew() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(600);
        let mut hold_down = HoldDown::default();
        hold_down.set_missing(true);
        hold_down.met(FULL, begun);
        hold_down.met(FULL, later);
        assert!(hold_down.goes_on(FULL, later + Duration::from_secs(2)));
    }
}
