//! The labels of a service container: those of the original (`KONTENA.md` 1.7)
//! and ours, which say on whose behalf the container exists.

use std::collections::HashMap;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use kontena_schema::agent::Placement;
use kontena_schema::ids::{LeaseNumber, NodeId, PlacementId, ServiceRevision};
use kontena_schema::name;

/// The label that makes a container one of ours.
pub const TYPE: &str = "io.kontena.container.type";
/// The value of [`TYPE`] of a service container.
pub const TYPE_CONTAINER: &str = "container";

/// The stack of a service that is in none, as in the original.
const NO_STACK: &str = "null";

pub(super) const NAME: &str = "io.kontena.container.name";
const OVERLAY_CIDR: &str = "io.kontena.container.overlay_cidr";
const SERVICE_REVISION: &str = "io.kontena.container.service_revision";
const SERVICE_NAME: &str = "io.kontena.service.name";
const INSTANCE: &str = "io.kontena.service.instance_number";
const STACK: &str = "io.kontena.stack.name";
pub(super) const GRID: &str = "io.kontena.grid.name";
/// The label with the placement; the original's containers have none.
pub const PLACEMENT: &str = "io.kontena.placement.id";
pub(super) const NODE: &str = "io.kontena.node.id";
const LEASE: &str = "io.kontena.lease";

/// On whose behalf a container exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The placement that it is of.
    pub placement: PlacementId,
    /// The node that created it.
    pub node: NodeId,
    /// The version of the service that it was created from.
    pub service_revision: ServiceRevision,
    /// The lease under which it was created.
    pub lease: Option<LeaseNumber>,
    /// The address of that lease, with the grid's on-link prefix.
    pub overlay: Option<Ipv4Network>,
}

/// Docker's name of a placement's container.
pub fn container_name(placement: &Placement) -> String {
    let stack = placement.stack.as_deref();
    name_of(stack, &placement.service, &placement.instance.to_string())
}

fn name_of(stack: Option<&str>, service: &str, instance: &str) -> String {
    match stack {
        Some(stack) => format!("{stack}.{service}-{instance}"),
        None => format!("{service}-{instance}"),
    }
}

/// The name of the container that was created with these labels. Another one
/// has them only because its image was made from that container.
pub fn own_name(labels: &HashMap<String, String>) -> Option<String> {
    let stack = labels.get(STACK)?.as_str();
    let stack = (stack != NO_STACK).then_some(stack);
    Some(name_of(
        stack,
        labels.get(SERVICE_NAME)?,
        labels.get(INSTANCE)?,
    ))
}

/// The labels of a placement's container.
pub fn write(placement: &Placement, origin: &Origin, grid: &str) -> HashMap<String, String> {
    let stack = placement.stack.as_deref();
    let mut labels = HashMap::from([
        (TYPE, TYPE_CONTAINER.to_owned()),
        (
            NAME,
            name::instance_label(stack, &placement.service, placement.instance),
        ),
        (SERVICE_NAME, placement.service.clone()),
        (INSTANCE, placement.instance.to_string()),
        (STACK, stack.unwrap_or(NO_STACK).to_owned()),
        (GRID, grid.to_owned()),
        (SERVICE_REVISION, origin.service_revision.to_string()),
        (PLACEMENT, origin.placement.to_string()),
        (NODE, origin.node.to_string()),
    ]);
    if let (Some(lease), Some(overlay)) = (origin.lease, origin.overlay) {
        labels.insert(LEASE, lease.to_string());
        labels.insert(OVERLAY_CIDR, overlay.to_string());
    }
    labels
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// Reads the labels back; none if they are not whole.
pub fn read(labels: &HashMap<String, String>) -> Option<Origin> {
    Some(Origin {
        placement: PlacementId(parse(labels, PLACEMENT)?),
        node: NodeId(parse(labels, NODE)?),
        service_revision: ServiceRevision(parse(labels, SERVICE_REVISION)?),
        lease: parse(labels, LEASE).map(LeaseNumber),
        overlay: parse(labels, OVERLAY_CIDR),
    })
}

fn parse<T: FromStr>(labels: &HashMap<String, String>, key: &str) -> Option<T> {
    labels.get(key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::placement;

    #[test]
    fn what_was_written_is_read_back() {
        let placement = placement(11, 1);
        for lease in [None, Some(LeaseNumber(5))] {
            let origin = Origin {
                placement: placement.id,
                node: NodeId(3),
                service_revision: ServiceRevision(4),
                lease,
                overlay: lease.map(|_| "10.81.1.1/17".parse().unwrap()),
            };
            let labels = write(&placement, &origin, "demo");
            assert_eq!(read(&labels), Some(origin));
            assert_eq!(own_name(&labels), Some(container_name(&placement)));
            assert_eq!(labels[NAME], "testapp-web-1");
            assert_eq!(labels[STACK], "testapp");
        }
    }

    #[test]
    fn a_container_without_a_placement_has_no_origin() {
        let labels = HashMap::from([(TYPE.to_owned(), TYPE_CONTAINER.to_owned())]);
        assert_eq!(read(&labels), None);
    }

    #[test]
    fn containers_are_named_as_in_the_original() {
        let mut placement = placement(11, 2);
        assert_eq!(container_name(&placement), "testapp.web-2");
        placement.stack = None;
        assert_eq!(container_name(&placement), "web-2");
    }
}
