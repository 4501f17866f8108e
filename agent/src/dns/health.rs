//! Whether a resolver is worth waiting for. Pure.
//!
//! A name whose own servers are slow makes any resolver silent, and a container can own
//! such names. So a resolver is dead only if it left two queries in a row unanswered and
//! sent no answer at all meanwhile; any answer makes it alive again.

use std::time::{Duration, Instant};

/// One packet may be lost.
const DEAD_AFTER: u32 = 2;
/// How long a dead resolver is skipped; doubled each time it is found dead again.
const SKIPPED: Duration = Duration::from_secs(1);
/// A resolver that comes back is noticed this late at the most.
const SKIPPED_MAX: Duration = Duration::from_secs(30);

/// What is known about a resolver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    answered: Option<Instant>,
    failed: Option<Instant>,
    /// Failures since its last answer.
    failures: u32,
    /// When it is asked again; none while it is alive.
    again: Option<Instant>,
}

/// Whether to ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It answers, as far as known.
    Alive,
    /// It was dead and is due for a retry.
    Due,
    /// It was found dead recently.
    Skipped,
}

impl Health {
    /// Whether to ask it.
    pub fn standing(&self, now: Instant) -> Standing {
        match self.again {
            None => Standing::Alive,
            Some(again) if again <= now => Standing::Due,
            Some(_) => Standing::Skipped,
        }
    }

    /// One query is sent to see if it is still dead; no other is until that has a result.
    pub fn retried(&mut self, now: Instant) {
        self.again = Some(now + SKIPPED_MAX);
    }

    /// It answered, whatever it said; true if it was dead until now.
    pub fn answered(&mut self, now: Instant) -> bool {
        let was_dead = self.again.is_some();
        *self = Self {
            answered: Some(now),
            ..Self::default()
        };
        was_dead
    }

    /// A query got no answer; true if that makes a live resolver dead. Of concurrent queries
    /// one counts.
    pub fn failed(&mut self, asked: Instant, now: Instant) -> bool {
        let since = |event: Option<Instant>| event.is_some_and(|event| event > asked);
        if since(self.answered) || since(self.failed) {
            return false;
        }
        let was_alive = self.again.is_none();
        self.failed = Some(now);
        self.failures = self.failures.saturating_add(1);
        if self.failures < DEAD_AFTER {
            return false;
        }
        self.again = Some(now + self.pause());
        was_alive
    }

    fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(DEAD_AFTER).min(16);
        (SKIPPED * (1 << doublings)).min(SKIPPED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_dead_one_is_skipped_longer_each_time_until_it_answers() {
        let mut now = Instant::now();
        let mut health = Health::default();
        assert!(!health.failed(now, now + s(1)), "a packet may be lost");
        assert_eq!(health.standing(now + s(1)), Standing::Alive);
        now += s(1);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert_ne!(health.standing(now), Standing::Skipped);
            let asked = now;
            now += s(1);
            assert_eq!(health.failed(asked, now), pauses.is_empty());
            let mut pause = 0;
            while health.standing(now) == Standing::Skipped {
                now += s(1);
                pause += 1;
            }
            pauses.push(pause);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert!(health.answered(now));
        assert_eq!(health.standing(now), Standing::Alive);
        health.failed(now, now + s(1));
        assert_eq!(
            health.standing(now + s(1)),
            Standing::Alive,
            "it counts anew"
        );
    }

    #[test]
    fn one_query_at_a_time_asks_a_dead_one() {
        let now = Instant::now();
        let mut health = Health::default();
        health.failed(now, now);
        health.failed(now, now);
        assert_eq!(health.standing(now + s(1)), Standing::Due);
        health.retried(now + s(1));
        assert_eq!(health.standing(now + s(3)), Standing::Skipped);
        assert!(
            !health.failed(now + s(1), now + s(3)),
            "that is nothing new"
        );
        assert_eq!(health.standing(now + s(4)), Standing::Skipped);
        assert_eq!(health.standing(now + s(5)), Standing::Due);
    }

    #[test]
    fn slow_names_do_not_make_a_resolver_dead_that_answers_others() {
        let now = Instant::now();
        let mut health = Health::default();
        assert!(!health.answered(now + s(1)));
        assert!(!health.failed(now, now + s(2)));
        assert_eq!(health.standing(now + s(2)), Standing::Alive);
        // A hundred at once are one failure.
        for _ in 0..100 {
            health.failed(now + s(2), now + s(3));
        }
        assert_eq!(health.standing(now + s(3)), Standing::Alive);
        assert!(health.failed(now + s(3), now + s(4)));
    }
}
