//! What is held back after a failure, and until when. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kontena_schema::agent::{Desired, Placement};
use kontena_schema::ids::{LeaseNumber, ServiceRevision};

use crate::apply::ApplyError;
use crate::plan::Subject;

/// The first retry; most failures that pass at all (a name or a port that is
/// just being freed) pass within it.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// A failure that may pass by itself, such as a registry that is down, is retried once
/// a minute.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A mistake in the request according to the engine (no such image, a setting that it
/// refuses) passes when the request changes, which resets the pause, or when the image is
/// pushed.
const MISTAKE_RETRY_MAX: Duration = Duration::from_secs(300);

/// How a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Why, in words for the user.
    pub reason: String,
    /// The request itself is wrong.
    pub mistake: bool,
}

impl Failed {
    /// The job itself died.
    pub fn died() -> Self {
        Self {
            reason: "the agent failed; see its log".to_owned(),
            mistake: false,
        }
    }
}

impl From<ApplyError> for Failed {
    fn from(error: ApplyError) -> Self {
        Self {
            mistake: error.is_mistake(),
            reason: error.to_string(),
        }
    }
}

/// What was wanted of a placement; a change is tried at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted(Desired, ServiceRevision, Option<LeaseNumber>);

#[derive(Debug)]
struct Failure {
    wanted: Option<Wanted>,
    times: u32,
    until: Instant,
    reason: String,
}

/// The failures that still count.
#[derive(Debug, Default)]
pub struct Backoff(BTreeMap<Subject, Failure>);

impl Backoff {
    /// A step failed.
    pub fn failed(
        &mut self,
        now: Instant,
        subject: Subject,
        placement: Option<&Placement>,
        failed: Failed,
    ) {
        let times = self.0.get(&subject).map_or(0, |failure| failure.times);
        let longest = if failed.mistake {
            MISTAKE_RETRY_MAX
        } else {
            RETRY_MAX
        };
        let pause = (RETRY_MIN * 2_u32.pow(times.min(10))).min(longest);
        let failure = Failure {
            wanted: placement.map(wanted),
            times: times.saturating_add(1),
            until: now + pause,
            reason: failed.reason,
        };
        self.0.insert(subject, failure);
    }

    /// A step succeeded.
    pub fn succeeded(&mut self, subject: &Subject) {
        self.0.remove(subject);
    }

    /// Drops failures that no longer count: `placement` says what is wanted of a
    /// subject now, and `exists` whether it still exists.
    pub fn forget<'a>(
        &mut self,
        placement: impl Fn(&Subject) -> Option<&'a Placement>,
        exists: impl Fn(&Subject) -> bool,
    ) {
        self.0.retain(|subject, failure| {
            exists(subject) && failure.wanted == placement(subject).map(wanted)
        });
    }

    /// The subjects that are held back now.
    pub fn held(&self, now: Instant) -> BTreeSet<Subject> {
        let held = self.0.iter().filter(|(_, failure)| now < failure.until);
        held.map(|(subject, _)| subject.clone()).collect()
    }

    /// Why the last step about a subject failed.
    pub fn reason(&self, subject: &Subject) -> Option<&str> {
        self.0.get(subject).map(|failure| failure.reason.as_str())
    }

    /// When the next subject is free again.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.0
            .values()
            .map(|failure| failure.until)
            .filter(|until| *until > now)
            .min()
    }
}

fn wanted(placement: &Placement) -> Wanted {
    Wanted(
        placement.desired,
        placement.service_revision,
        placement.lease,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::placement;

    #[test]
    fn failures_hold_back_longer_and_longer_until_something_else_is_wanted() {
        let now = Instant::now();
        let mut wanted = placement(11, 1);
        let subject = Subject::Placement(wanted.id);
        for (mistake, longest) in [(false, RETRY_MAX), (true, MISTAKE_RETRY_MAX)] {
            let mut backoff = Backoff::default();
            let mut pauses = Vec::new();
            for _ in 0..12 {
                let reason = "no image".to_owned();
                let failed = Failed { reason, mistake };
                backoff.failed(now, subject.clone(), Some(&wanted), failed);
                pauses.push(backoff.next(now).unwrap() - now);
            }
            assert!(pauses.is_sorted());
            assert_eq!((pauses[0], pauses[11]), (RETRY_MIN, longest));
            assert!(backoff.held(now).contains(&subject));
            assert!(!backoff.held(now + longest).contains(&subject));
            assert_eq!(backoff.reason(&subject), Some("no image"));

            backoff.forget(|_| Some(&wanted), |_| true);
            assert!(backoff.held(now).contains(&subject));
            wanted.service_revision.0 += 1;
            backoff.forget(|_| Some(&wanted), |_| true);
            assert!(backoff.held(now).is_empty());
        }
    }
}
