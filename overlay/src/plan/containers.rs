//! The containers' part of the plan: their veth pairs.

use std::collections::{BTreeMap, BTreeSet};

use kontena_schema::ids::PlacementId;

use crate::model::devices::Link;
use crate::model::intent::{Attachment, OverlayIntent};
use crate::model::state::{ContainerEnd, HostEnd, Observed, PortFilter, PortSettings};
use crate::plan::step::Step;

/// Deletes veth pairs that have no container, or the wrong one.
pub(crate) fn detach(intent: &OverlayIntent, observed: &Observed, steps: &mut Vec<Step>) {
    if intent.attachments.is_none() {
        return;
    }
    let gone = observed.host_ends.keys().copied();
    let gone: BTreeSet<_> = gone.filter(|&id| !keeps(intent, observed, id)).collect();
    steps.extend(gone.iter().map(|&id| Step::DeleteLink(Link::HostEnd(id))));
    if let Some(stale) = &observed.stale_port_filters {
        // Whoever is attached anew gets a filter in the place of this one.
        let again = |id: &PlacementId| {
            intent.attachment(*id).is_some() && observed.containers.contains_key(id)
        };
        let stale = stale.union(&gone).copied();
        let stale: BTreeSet<_> = stale.filter(|id| !again(id)).collect();
        if !stale.is_empty() {
            steps.push(Step::DiscardPortFilters(stale));
        }
    }
}

/// Whether the host's end of a pair stays.
fn keeps(intent: &OverlayIntent, observed: &Observed, placement: PlacementId) -> bool {
    match (
        intent.attachment(placement),
        observed.containers.get(&placement),
    ) {
        (None, _) => false,
        // It cannot be looked into; if it is gone, its interface goes by itself.
        (Some(_), None) => true,
        (Some(to), Some(end)) => end.as_ref().is_some_and(|end| is_of_lease(end, to)),
    }
}

/// Mends the filters of the ports that stay, also of those whose containers cannot be
/// looked into.
pub(crate) fn filter_ports(intent: &OverlayIntent, observed: &Observed, steps: &mut Vec<Step>) {
    let wrong = |(&placement, end): (&PlacementId, &HostEnd)| {
        let to = intent.attachment(placement);
        let wanted = port_filter(intent, to.filter(|_| keeps(intent, observed, placement))?);
        (end.filter != Some(wanted)).then_some((placement, wanted))
    };
    let wrong: BTreeMap<_, _> = observed.host_ends.iter().filter_map(wrong).collect();
    if !wrong.is_empty() {
        steps.push(Step::SetPortFilters(wrong));
    }
}

fn port_filter(intent: &OverlayIntent, to: &Attachment) -> PortFilter {
    PortFilter {
        mac: to.mac,
        address: to.address,
        multicast: intent.multicast,
    }
}

fn is_of_lease(end: &ContainerEnd, to: &Attachment) -> bool {
    end.paired && end.mac == to.mac
}

/// Attaches every container that is to be attached and can be inspected.
pub(crate) fn attach(intent: &OverlayIntent, observed: &Observed, steps: &mut Vec<Step>) {
    for (placement, to) in intent.attachments() {
        if let Some(end) = observed.containers.get(&placement) {
            let end = end.as_ref().filter(|end| is_of_lease(end, to));
            let host_end = observed.host_ends.get(&placement).filter(|_| end.is_some());
            attach_one(intent, (placement, to), (host_end, end), steps);
        }
    }
}

fn attach_one(
    intent: &OverlayIntent,
    (placement, to): (PlacementId, &Attachment),
    (host_end, end): (Option<&HostEnd>, Option<&ContainerEnd>),
    steps: &mut Vec<Step>,
) {
    let address = intent.on_link(to.address);
    let mtu = intent.mtu;
    let port = PortSettings {
        mtu,
        up: true,
        on_bridge: true,
        learning: false,
        // What is for a MAC that the bridge does not know is for nobody here: it knows those
        // of all its containers. What is for all, or for a group, still comes.
        flood: false,
        isolated: false,
        // Addresses are resolved by MAC, so a container must not use another one's.
        locked: true,
        neigh_suppress: false,
    };
    let pinned = BTreeSet::from([to.mac]);
    let wanted_end = ContainerEnd {
        paired: true,
        mac: to.mac,
        mtu,
        up: true,
        addresses: BTreeSet::from([address]),
        multicast_route: true,
    };
    if end.is_none() {
        steps.push(Step::Attach {
            placement,
            to: to.clone(),
            mtu,
        });
        let filter = (placement, port_filter(intent, to));
        steps.push(Step::SetPortFilters(BTreeMap::from([filter])));
    }
    if host_end.is_none_or(|end| end.port != port || end.pinned != pinned) {
        steps.push(Step::SetHostEnd {
            placement,
            mac: to.mac,
            port,
        });
    }
    if end != Some(&wanted_end) {
        steps.push(Step::Configure {
            placement,
            to: to.clone(),
            address,
            mtu,
        });
    }
}
