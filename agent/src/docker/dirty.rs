//! Which containers have to be inspected again, and which look will have seen them.
//!
//! Whoever learns that a container may have changed marks it, and the next look
//! takes the marks. A mark carries no state: marking one twice, or one that is
//! gone, costs at most a look. Looks are counted, so that whoever marks can wait
//! for what is seen after that moment.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// The number of a look; a later one has a higher number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Look(u64);

impl Look {
    /// The first look of an agent.
    pub const FIRST: Self = Self(1);

    /// The one after it.
    pub fn after(self) -> Self {
        Self(self.0 + 1)
    }

    /// The one before it.
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// The marks, and a notification for whoever looks.
#[derive(Default)]
pub struct DirtySet {
    marks: Mutex<Marks>,
    notify: Notify,
    notify_soon: Notify,
}

/// What is marked.
#[derive(Default)]
pub(super) struct Marks {
    /// Every container.
    pub(super) all: bool,
    /// These containers, by Docker's id.
    pub(super) some: BTreeSet<String>,
    /// The look that took them.
    pub(super) look: Look,
}

impl DirtySet {
    /// Marks one container and asks for a look; answers which look will have seen it.
    pub fn add(&self, id: String) -> Look {
        let look = self.with(|marks| {
            marks.some.insert(id);
            marks.look.after()
        });
        self.notify.notify_one();
        look
    }

    /// Marks one container for a look that may come a little later, together with others.
    pub fn add_soon(&self, id: String) {
        self.with(|marks| marks.some.insert(id));
        self.notify_soon.notify_one();
    }

    /// Asks for a look at what is new and what is gone; answers which look that is.
    pub fn look(&self) -> Look {
        let look = self.with(|marks| marks.look.after());
        self.notify.notify_one();
        look
    }

    /// Marks every container and asks for a look.
    pub fn add_all(&self) {
        self.with(|marks| marks.all = true);
        self.notify.notify_one();
    }

    /// Waits until a look is asked for.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }

    /// Waits until a look is asked for that may come a little later.
    pub async fn changed_soon(&self) {
        self.notify_soon.notified().await;
    }

    /// Takes all marks, for a look that begins.
    pub(super) fn take(&self) -> Marks {
        self.with(|marks| {
            let look = marks.look.after();
            let taken = std::mem::take(marks);
            marks.look = look;
            Marks { look, ..taken }
        })
    }

    /// Puts marks back that a look could not deal with.
    pub(super) fn put_back(&self, taken: Marks) {
        self.with(|marks| {
            marks.all |= taken.all;
            marks.some.extend(taken.some);
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut Marks) -> T) -> T {
        work(&mut self.marks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mark_notifies_even_before_anybody_waits() {
        let dirty = DirtySet::default();
        dirty.add("a".to_owned());
        dirty.changed().await;
        assert!(dirty.take().some.contains("a"));
        assert!(dirty.take().some.is_empty());
    }

    #[test]
    fn whoever_marks_learns_which_look_will_have_seen_it() {
        let dirty = DirtySet::default();
        assert_eq!(dirty.take().look, Look::FIRST);
        let look = dirty.add("a".to_owned());
        assert!(look > Look::FIRST);
        let taken = dirty.take();
        assert_eq!(taken.look, look);
        // A look that failed saw nothing, and the next one is another.
        dirty.put_back(taken);
        let taken = dirty.take();
        assert!(taken.look > look && taken.some.contains("a"));
    }
}
