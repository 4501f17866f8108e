//! How peers that turn clear and fall back again and again are held back (RFC 2439 does so
//! with routes).

use std::time::{Duration, Instant};

/// How often a peer may fall back before it has to wait, and how long it does then; twice
/// as long after every further time.
const FLAPS_FREE: u32 = 2;
const HELD_MIN: Duration = Duration::from_secs(1);
pub(crate) const HELD_MAX: Duration = Duration::from_secs(60);
/// A peer that did not fall back for so long is as good as one that never did.
pub(crate) const FLAPS_FORGOTTEN: Duration = Duration::from_secs(120);

/// How often a peer fell back from clear packets while the directory advertised the same.
#[derive(Debug, Default)]
pub(crate) struct FlapDamping {
    count: u32,
    last: Option<Instant>,
}

impl FlapDamping {
    /// It fell back.
    pub(crate) fn add(&mut self, now: Instant) {
        let long_ago = |last| now.saturating_duration_since(last) >= FLAPS_FORGOTTEN;
        if self.last.is_some_and(long_ago) {
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.last = Some(now);
    }

    /// Whether the peer must stay as it is.
    pub(crate) fn hold(&self, now: Instant) -> bool {
        let Some(doublings) = self.count.checked_sub(FLAPS_FREE + 1) else {
            return false;
        };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let held = HELD_MIN.saturating_mul(factor).min(HELD_MAX);
        let since = self.last.map(|last| now.saturating_duration_since(last));
        since.is_some_and(|since| since < held)
    }
}
