//! Publishes the names whenever they change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use kontena_schema::ids::PlacementId;
use tokio::sync::watch;

use super::eligible::{all_decided, locals};
use crate::directory::Directory;
use crate::dns::startup::Startup;
use crate::dns::zone::{Local, Zone};
use crate::docker::container::Container;

/// The names, as last published.
pub struct Names {
    startup: Startup,
    last: Option<Made>,
}

/// What a zone was made of.
type Made = (Arc<Directory>, BTreeSet<Local>, bool);

impl Names {
    /// None yet; `stored` is the directory from disk.
    pub fn new(stored: &Directory) -> Self {
        Self {
            startup: Startup::new(stored, Instant::now()),
            last: None,
        }
    }

    /// Publishes the current names.
    pub fn publish(
        &mut self,
        zone: &watch::Sender<Arc<Zone>>,
        directory: &Arc<Directory>,
        containers: &[Container],
        attached: &BTreeMap<PlacementId, Result<(), String>>,
    ) {
        let local = locals(directory, containers, attached);
        let own_known = all_decided(directory, containers, attached);
        let complete = self.startup.is_over(directory, own_known, Instant::now());
        let same = |(of, named, was_complete): &Made| {
            Arc::ptr_eq(of, directory) && *named == local && *was_complete == complete
        };
        if self.last.as_ref().is_some_and(same) {
            return;
        }
        let made = Zone::build(directory, &local);
        let made = if complete { made } else { made.incomplete() };
        zone.send_replace(Arc::new(made));
        self.last = Some((directory.clone(), local, complete));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::{directory, snapshot};
    use crate::plan::tests::{container_of, running};

    const NAME: &str = "testapp-web-1.demo.kontena.local";

    #[test]
    fn nothing_is_denied_until_the_own_containers_are_on_the_overlay() {
        let stored = directory();
        let mut names = Names::new(&stored);
        let (zone, slot) = watch::channel(Arc::default());
        let mut heard = stored.clone();
        heard.merge(snapshot(8)).unwrap();
        let heard = Arc::new(heard);
        let placement = &heard.placements[&PlacementId(11)];
        let containers = [container_of(placement, running(7))];

        // An agent that starts finds the container, and looks at the overlay after that.
        names.publish(&zone, &heard, &containers, &BTreeMap::new());
        let first = slot.borrow().clone();
        assert!(first.addresses(NAME).is_none() && !first.is_complete());

        let attached = BTreeMap::from([(PlacementId(11), Ok(()))]);
        names.publish(&zone, &heard, &containers, &attached);
        let second = slot.borrow().clone();
        assert!(second.addresses(NAME).is_some() && second.is_complete());

        names.publish(&zone, &heard, &containers, &attached);
        assert!(Arc::ptr_eq(&second, &slot.borrow()), "nothing changed");
    }
}
