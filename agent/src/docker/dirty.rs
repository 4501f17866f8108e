//! Which containers have to be inspected again.
//!
//! Whoever learns that a container may have changed marks it, and the next look
//! takes the marks. A mark carries no state: marking one twice, or one that is
//! gone, costs at most a look.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// The marks, and a notification for whoever looks.
#[derive(Default)]
pub struct DirtySet {
    dirty: Mutex<Dirty>,
    notify: Notify,
}

/// What is marked.
#[derive(Default)]
pub(super) struct Dirty {
    /// Every container.
    pub(super) all: bool,
    /// These containers, by Docker's id.
    pub(super) some: BTreeSet<String>,
}

impl DirtySet {
    /// Marks one container and asks for a look.
    pub fn add(&self, id: String) {
        self.note(id);
        self.notify.notify_one();
    }

    /// Marks one container, for a look that is about to come anyway.
    pub fn note(&self, id: String) {
        self.with(|dirty| dirty.some.insert(id));
    }

    /// Marks every container and asks for a look.
    pub fn add_all(&self) {
        self.with(|dirty| dirty.all = true);
        self.notify.notify_one();
    }

    /// Waits until a look is asked for.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }

    /// Takes all marks.
    pub(super) fn take(&self) -> Dirty {
        self.with(std::mem::take)
    }

    /// Puts marks back that a look could not deal with.
    pub(super) fn put_back(&self, dirty: Dirty) {
        self.with(|kept| {
            kept.all |= dirty.all;
            kept.some.extend(dirty.some);
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut Dirty) -> T) -> T {
        work(&mut self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
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
}
