//! Which containers are to be inspected next. Pure.
//!
//! An inspection that Docker does not answer must cost the others nothing: it is
//! given up after a while, its container counts as unknown, and the next try
//! comes after a pause that doubles. Tries of such containers have slots of their
//! own, so that any number of them leaves the others theirs.
//!
//! Invariants: at most one inspection of a container is under way; what is asked
//! for while it is, is answered by another one after it; [`Inspections::seen`]
//! never counts a look whose inspections are not over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::dirty::Look;

/// Inspections under way at once: enough to hide their latency, too few to
/// starve others who use the engine.
const INSPECTIONS_MAX: usize = 8;
/// How many of containers that could not be inspected last time, besides.
const RETRIES_MAX: usize = 2;
/// The first retry: most that pass at all (an engine that is busy with the
/// container) pass within it.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// A container that is stuck is asked for once a minute.
const RETRY_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Failure {
    times: u32,
    until: Instant,
}

/// What is asked for, under way and failed, by Docker's id.
#[derive(Debug, Default)]
pub struct Inspections {
    due: BTreeMap<String, Look>,
    running: BTreeMap<String, Look>,
    failed: BTreeMap<String, Failure>,
}

impl Inspections {
    /// Asks for an inspection on behalf of a look.
    pub fn ask(&mut self, id: &str, look: Look) {
        self.due.entry(id.to_owned()).or_insert(look);
    }

    /// The next inspection to begin; none while there is no slot for it.
    pub fn begin(&mut self, now: Instant) -> Option<String> {
        let retries = self.running.keys().filter(|id| self.has_failed(id)).count();
        let others = self.running.len() - retries;
        let (others, retries) = (others < INSPECTIONS_MAX, retries < RETRIES_MAX);
        let free = |id: &&String| match self.failed.get(*id) {
            None => others,
            Some(failure) => retries && failure.until <= now,
        };
        let mut waiting = self.due.keys().filter(|id| !self.running.contains_key(*id));
        let id = waiting.find(free)?.clone();
        let look = self.due.remove(&id)?;
        self.running.insert(id.clone(), look);
        Some(id)
    }

    /// The inspection of a container was answered.
    pub fn answered(&mut self, id: &str) {
        self.running.remove(id);
        self.failed.remove(id);
    }

    /// The inspection of a container was not answered, and is asked for again.
    pub fn failed(&mut self, id: &str, now: Instant) {
        let Some(look) = self.running.remove(id) else {
            return;
        };
        self.due.entry(id.to_owned()).or_insert(look);
        let times = self.failed.get(id).map_or(0, |failure| failure.times);
        let pause = (RETRY_MIN * 2_u32.pow(times.min(10))).min(RETRY_MAX);
        let failure = Failure {
            times: times.saturating_add(1),
            until: now + pause,
        };
        self.failed.insert(id.to_owned(), failure);
    }

    /// Whether the last inspection of a container was not answered.
    pub fn has_failed(&self, id: &str) -> bool {
        self.failed.contains_key(id)
    }

    /// Those whose last inspection was not answered.
    pub fn all_failed(&self) -> Vec<String> {
        self.failed.keys().cloned().collect()
    }

    /// Drops what is asked for of containers that are gone.
    pub fn retain(&mut self, exists: impl Fn(&String) -> bool) {
        self.due.retain(|id, _| exists(id));
        self.failed.retain(|id, _| exists(id));
    }

    /// The last look all of whose inspections are over, if `listed` is the last whose
    /// list is known. Containers that cannot be inspected hold nothing up.
    pub fn seen(&self, listed: Look) -> Look {
        let open = self.due.iter().chain(&self.running);
        let oldest = open.filter(|(id, _)| !self.has_failed(id)).map(|(_, l)| *l);
        oldest
            .min()
            .map_or(listed, |open| listed.min(open.before()))
    }

    /// When the next retry is due.
    pub fn next(&self) -> Option<Instant> {
        let idle: BTreeSet<_> = self.due.keys().collect();
        let failed = self.failed.iter().filter(|(id, _)| idle.contains(id));
        failed.map(|(_, failure)| failure.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin_all(inspections: &mut Inspections, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| inspections.begin(now)).collect()
    }

    fn ids(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|n| format!("{n:02}")).collect()
    }

    #[test]
    fn any_number_that_hang_leaves_the_others_their_slots() {
        let now = Instant::now();
        let mut inspections = Inspections::default();
        let stuck = ids(0..20);
        for id in &stuck {
            inspections.ask(id, Look::FIRST);
        }
        let mut given_up = Vec::new();
        while let [first, ..] = &begin_all(&mut inspections, now)[..] {
            given_up.push(first.clone());
            let running: Vec<_> = inspections.running.keys().cloned().collect();
            assert!(running.len() <= INSPECTIONS_MAX);
            running.iter().for_each(|id| inspections.failed(id, now));
        }
        assert_eq!(inspections.all_failed(), stuck);
        // All are due again, and a new one comes.
        let later = now + RETRY_MAX;
        inspections.ask("new", Look::FIRST);
        let begun = begin_all(&mut inspections, later);
        assert_eq!(begun.len(), RETRIES_MAX + 1);
        assert!(begun.contains(&"new".to_owned()));
    }

    #[test]
    fn the_pause_doubles_up_to_a_minute_and_ends_with_an_answer() {
        let now = Instant::now();
        let mut inspections = Inspections::default();
        inspections.ask("a", Look::FIRST);
        let mut pauses = Vec::new();
        let mut at = now;
        for _ in 0..10 {
            assert_eq!(inspections.begin(at).as_deref(), Some("a"));
            inspections.failed("a", at);
            assert_eq!(inspections.begin(at), None);
            let next = inspections.next().unwrap();
            pauses.push(next - at);
            at = next;
        }
        assert!(pauses.is_sorted());
        assert_eq!((pauses[0], pauses[9]), (RETRY_MIN, RETRY_MAX));
        inspections.begin(at);
        inspections.answered("a");
        assert!(!inspections.has_failed("a") && inspections.next().is_none());
    }

    #[test]
    fn a_look_is_over_with_its_inspections_and_waits_for_none_that_hangs() {
        let now = Instant::now();
        let mut inspections = Inspections::default();
        let (first, second) = (Look::FIRST, Look::FIRST.after());
        inspections.ask("good", first);
        inspections.ask("stuck", first);
        assert_eq!(inspections.seen(first), first.before());
        begin_all(&mut inspections, now);
        inspections.answered("good");
        assert_eq!(inspections.seen(first), first.before());
        inspections.failed("stuck", now);
        assert_eq!(inspections.seen(first), first);
        // What is asked for again meanwhile is answered by another inspection.
        inspections.ask("good", first);
        begin_all(&mut inspections, now);
        inspections.ask("good", second);
        inspections.answered("good");
        assert_eq!(inspections.seen(second), first);
        assert_eq!(begin_all(&mut inspections, now), ["good"]);
        inspections.answered("good");
        assert_eq!(inspections.seen(second), second);
    }

    #[test]
    fn what_is_gone_is_not_asked_for() {
        let mut inspections = Inspections::default();
        inspections.ask("a", Look::FIRST);
        inspections.retain(|_| false);
        assert_eq!(inspections.begin(Instant::now()), None);
        assert_eq!(inspections.seen(Look::FIRST), Look::FIRST);
    }
}
