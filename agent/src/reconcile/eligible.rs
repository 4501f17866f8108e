//! Which containers may be on the overlay: those that run and hold the lease that
//! the directory names. Only they get an interface, and only they have names.
//!
//! One that Docker does not answer for stays eligible while it runs: nothing is
//! known against it.

use std::collections::{BTreeMap, BTreeSet};

use kontena_schema::agent::{Desired, Placement};
use kontena_schema::ids::PlacementId;
use kontena_schema::mac::Mac;

use crate::directory::Directory;
use crate::dns::zone::Local;
use crate::docker::container::{Container, HealthCheck};
use crate::plan::holds_lease;
use kontena_overlay::{Attachment, Process};

/// The running containers that hold their leases, with their first processes.
fn eligible<'a>(
    directory: &'a Directory,
    containers: &'a [Container],
) -> impl Iterator<Item = (&'a Placement, &'a Container, Process)> {
    let node = directory.me.as_ref().map(|me| me.node);
    containers.iter().filter_map(move |container| {
        let placement = directory
            .placements
            .get(&container.origin.as_ref()?.placement)?;
        let process = container.process()?;
        holds_lease(container, placement, node?).then_some((placement, container, process))
    })
}

/// What belongs on the overlay. A container to be removed keeps its interface until
/// it is gone, but gets no new one.
pub fn attachments(
    directory: &Directory,
    containers: &[Container],
    has_interface: impl Fn(PlacementId) -> bool,
) -> BTreeMap<PlacementId, Attachment> {
    let attachment = |(placement, container, process): (&Placement, &Container, Process)| {
        let (address, lease) = (placement.address?, placement.lease?);
        let mac = Mac::of_lease(address, lease);
        let container_id = container.id.clone();
        Some((
            placement.id,
            Attachment {
                process,
                container_id,
                address,
                mac,
            },
        ))
    };
    eligible(directory, containers)
        .filter(|(placement, ..)| {
            placement.desired != Desired::Removed || has_interface(placement.id)
        })
        .filter_map(attachment)
        .collect()
}

/// The instances of this host whose names resolve: they run, are on the overlay, and
/// their health check, if there is one, passes.
pub fn locals(
    directory: &Directory,
    containers: &[Container],
    attached: &BTreeMap<PlacementId, Result<(), String>>,
) -> BTreeSet<Local> {
    eligible(directory, containers)
        .filter(|(placement, container, _)| {
            matches!(container.health, HealthCheck::Absent | HealthCheck::Healthy)
                && matches!(attached.get(&placement.id), Some(Ok(())))
        })
        .filter_map(|(placement, _, _)| Local::of(placement))
        .collect()
}

/// Whether every eligible container that stays is known to be on the overlay or not.
pub fn all_decided(
    directory: &Directory,
    containers: &[Container],
    attached: &BTreeMap<PlacementId, Result<(), String>>,
) -> bool {
    eligible(directory, containers)
        .filter(|(placement, ..)| placement.desired != Desired::Removed)
        .all(|(placement, ..)| attached.contains_key(&placement.id))
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use kontena_schema::ids::{LeaseNumber, ServiceRevision};

    use super::*;
    use crate::directory::tests::directory;
    use crate::plan::tests::{container_of, exited, running, unknown};

    const PLACEMENT: PlacementId = PlacementId(11);

    #[test]
    fn only_what_runs_and_holds_its_lease_is_on_the_overlay() {
        let directory = directory();
        let mut container = container_of(&directory.placements[&PLACEMENT], running(7));
        let attached =
            |container: &Container| attachments(&directory, from_ref(container), |_| false);
        let attachment = &attached(&container)[&PLACEMENT];
        assert_eq!(
            (attachment.process.pid, attachment.address),
            (7, [10, 81, 1, 1].into())
        );
        // A container that is about to be replaced keeps its address until then.
        container.origin.as_mut().unwrap().service_revision = ServiceRevision(0);
        assert!(attached(&container).contains_key(&PLACEMENT));
        container.state = exited(0);
        assert!(attached(&container).is_empty());
        container.state = unknown(Some(7));
        assert_eq!(attached(&container)[&PLACEMENT].process.pid, 7);
        container.state = running(7);
        container.origin.as_mut().unwrap().lease = Some(LeaseNumber(99));
        assert!(attached(&container).is_empty());
    }

    #[test]
    fn what_is_to_go_keeps_its_interface_and_gets_none() {
        let mut directory = directory();
        let container = container_of(&directory.placements[&PLACEMENT], running(7));
        let placement = directory.placements.get_mut(&PLACEMENT).unwrap();
        placement.desired = Desired::Removed;
        let attached =
            |has: bool| !attachments(&directory, from_ref(&container), |_| has).is_empty();
        assert!(attached(true) && !attached(false));
    }

    #[test]
    fn only_what_is_attached_and_healthy_has_names() {
        let directory = directory();
        let mut container = container_of(&directory.placements[&PLACEMENT], running(7));
        let named = |container: &Container, attached: Option<Result<(), String>>| {
            let attached = attached
                .into_iter()
                .map(|result| (PLACEMENT, result))
                .collect();
            !locals(&directory, std::slice::from_ref(container), &attached).is_empty()
        };
        assert!(!named(&container, None));
        assert!(!named(&container, Some(Err("no such process".to_owned()))));
        assert!(named(&container, Some(Ok(()))));
        for (health, has) in [
            (HealthCheck::Starting, false),
            (HealthCheck::Healthy, true),
            (HealthCheck::Unhealthy, false),
        ] {
            container.health = health;
            assert_eq!(named(&container, Some(Ok(()))), has, "{health:?}");
        }
    }
}
