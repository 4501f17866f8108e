//! The data of placements that have ended. Pure.
//!
//! Usually the Master says that a placement is to be removed, and its data is removed
//! after its container. If that was missed (the agent died in between, the node was lost
//! when the placement ended), data is left whose placement the Master does not know. It
//! is removed a day later, so that a mistake with the Master's database can be noticed;
//! if the Master removed the whole node, at once.
//!
//! Invariant: a directory from disk alone makes no data unknown: the Master must have
//! spoken to this run of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kontena_schema::agent::{Desired, Placement};

use crate::directory::{Directory, Identity};
use crate::docker::volumes::{Owner, Volume};

/// How long a placement must have been unknown to the Master.
const UNKNOWN_FOR: Duration = Duration::from_secs(24 * 3600);

/// How long a placement that was to be removed is remembered after the Master forgot it.
/// Data that was labelled only then is found within seconds.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);

/// What is left of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing: it is wanted.
    Wanted,
    /// The Master wants it removed.
    Removed,
    /// The Master does not know it.
    Unknown,
}

/// What has ended, and since when.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// When data may go, by the volume's name.
    due: BTreeMap<String, Instant>,
    /// Placements that were to be removed, and when that was last seen.
    removed: BTreeMap<Owner, Instant>,
}

impl Leftovers {
    /// The volumes no longer wanted. A placement that was to be removed stays so when the
    /// Master has forgotten it.
    pub fn ended(
        &mut self,
        now: Instant,
        directory: &Directory,
        volumes: &[Volume],
    ) -> BTreeSet<String> {
        if let Some(me) = &directory.me {
            let placements = directory.placements.values();
            let removed = placements.filter(|placement| placement.desired == Desired::Removed);
            let owner = |placement| Owner::of(placement, me.node, &me.grid_name);
            self.removed
                .extend(removed.map(|placement| (owner(placement), now)));
        }
        self.removed.retain(|_, at| now - *at < REMEMBERED_FOR);
        let mut due = BTreeMap::new();
        for volume in volumes {
            let removed = self.removed.contains_key(&volume.owner);
            let from = match left(&volume.owner, directory) {
                Left::Wanted => continue,
                Left::Unknown if !removed => now + UNKNOWN_FOR,
                Left::Unknown | Left::Removed => now,
            };
            let known = self.due.get(&volume.name);
            let from = known.map_or(from, |known| from.min(*known));
            due.insert(volume.name.clone(), from);
        }
        self.due = due;
        let ended = self.due.iter().filter(|(_, from)| **from <= now);
        ended.map(|(name, _)| name.clone()).collect()
    }
}

/// Whether data may be removed, as far as the directory says.
pub fn has_ended(owner: &Owner, directory: &Directory) -> bool {
    left(owner, directory) != Left::Wanted
}

fn left(owner: &Owner, directory: &Directory) -> Left {
    if directory.removed {
        return Left::Removed;
    }
    let placement = directory.placements.get(&owner.placement);
    let is_its = |(placement, me): &(&Placement, &Identity)| {
        *owner == Owner::of(placement, me.node, &me.grid_name)
    };
    match placement.zip(directory.me.as_ref()).filter(is_its) {
        Some((placement, _)) if placement.desired == Desired::Removed => Left::Removed,
        Some(_) => Left::Wanted,
        _ if directory.confirmed => Left::Unknown,
        _ => Left::Wanted,
    }
}

#[cfg(test)]
mod tests {
    use kontena_schema::ids::PlacementId;

    use super::*;
    use crate::directory::tests::directory;
    use crate::docker::volumes::tests::volume;

    #[test]
    fn unknown_data_goes_a_day_after_the_master_did_not_know_it() {
        let mut directory = directory();
        directory.confirmed = false;
        let volumes = [volume(11, "/data", None), volume(99, "/data", None)];
        let (now, mut leftovers) = (Instant::now(), Leftovers::default());
        let mut ended = |directory: &_, days| {
            let now = now + UNKNOWN_FOR * days;
            leftovers.ended(now, directory, &volumes)
        };
        assert!(ended(&directory, 0).is_empty());
        assert!(ended(&directory, 2).is_empty(), "nothing was heard yet");
        directory.confirmed = true;
        assert!(ended(&directory, 2).is_empty());
        assert_eq!(ended(&directory, 3), [volumes[1].name.clone()].into());
        // Wanted again, its day starts over.
        let mut wanted = directory.placements[&PlacementId(11)].clone();
        wanted.id = PlacementId(99);
        directory.placements.insert(wanted.id, wanted.clone());
        assert!(ended(&directory, 4).is_empty());
        directory.placements.remove(&wanted.id);
        assert!(ended(&directory, 4).is_empty());
    }

    #[test]
    fn data_of_a_removed_placement_goes_at_once_and_although_the_master_forgets_it() {
        let mut directory = directory();
        let volumes = [volume(11, "/data", None)];
        let (now, mut leftovers) = (Instant::now(), Leftovers::default());
        assert!(leftovers.ended(now, &directory, &volumes).is_empty());
        let placement = directory.placements.get_mut(&PlacementId(11)).unwrap();
        placement.desired = Desired::Removed;
        assert_eq!(leftovers.ended(now, &directory, &volumes).len(), 1);
        directory.placements.clear();
        directory.confirmed = true;
        // Also data found only now.
        let volumes = [volume(11, "/data", None), volume(11, "/log", None)];
        assert_eq!(leftovers.ended(now, &directory, &volumes).len(), 2);
    }

    #[test]
    fn data_of_another_grid_or_instance_is_of_nobody_whatever_its_number() {
        let mut directory = directory();
        directory.confirmed = true;
        let owner = volume(11, "/data", None).owner;
        assert!(!has_ended(&owner, &directory));
        let of_another_grid = Owner {
            grid: "another".to_owned(),
            ..owner.clone()
        };
        // The Master was installed anew, and has given the number again.
        let of_another_instance = Owner {
            instance: "other-db-1".to_owned(),
            ..owner
        };
        for owner in [of_another_grid, of_another_instance] {
            directory.confirmed = true;
            assert!(has_ended(&owner, &directory));
            assert_eq!(left(&owner, &directory), Left::Unknown, "it has a day");
            directory.confirmed = false;
            assert!(!has_ended(&owner, &directory));
        }
    }

    #[test]
    fn a_node_that_was_removed_keeps_nothing() {
        let directory = Directory {
            removed: true,
            ..Directory::default()
        };
        let volumes = [volume(11, "/data", None)];
        let ended = Leftovers::default().ended(Instant::now(), &directory, &volumes);
        assert_eq!(ended.len(), 1);
    }
}
