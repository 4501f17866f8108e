//! How often things may happen: periodic work slows down with the size of the grid, and
//! what others cause is limited.

use std::time::Duration;

use tokio::time::Instant;

/// How many extra intervals periodic work waits whose cost grows with the number of peers: one
/// for every 64.
pub fn extra_intervals(peers: usize) -> u32 {
    u32::try_from(peers / 64).unwrap_or(u32::MAX)
}

/// A rate: a bucket of tokens that fills up again.
pub(crate) struct Budget {
    tokens: u32,
    /// How long until another token is there.
    refill: Duration,
    /// When the bucket is full again.
    full_at: Instant,
}

impl Budget {
    /// A full bucket of so many tokens, each of which takes so long to come back.
    pub(crate) fn full((tokens, refill): (u32, Duration), now: Instant) -> Self {
        Self {
            tokens,
            refill,
            full_at: now,
        }
    }

    /// Takes a token; returns when it is available.
    pub(crate) fn next(&mut self, now: Instant) -> Instant {
        self.full_at = self.full_at.max(now) + self.refill;
        now.max(self.full_at - self.refill * self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_there_are_tokens_come_at_once_and_then_one_each_interval() {
        let refill = Duration::from_secs(10);
        let now = Instant::now();
        let mut budget = Budget::full((4, refill), now);
        for _ in 0..4 {
            assert_eq!(budget.next(now), now);
        }
        assert_eq!(budget.next(now), now + refill);
        assert_eq!(budget.next(now), now + refill * 2);
        let later = now + refill * 20;
        assert_eq!(budget.next(later), later, "it fills up again");
    }
}
