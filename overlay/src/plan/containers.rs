//! The part of the plan that is the containers': their pairs of interfaces.

use std::collections::BTreeSet;

use kontena_schema::ids::PlacementId;

use crate::model::devices::Link;
use crate::model::intent::{Attachment, OverlayIntent};
use crate::model::state::{ContainerEnd, HostEnd, Observed, PortSettings};
use crate::plan::step::Step;

/// Takes away what has no container, or the wrong one.
pub(crate) fn detach(intent: &OverlayIntent, observed: &Observed, steps: &mut Vec<Step>) {
    if intent.attachments.is_none() {
        return;
    }
    for &placement in observed.host_ends.keys() {
        let keep = match (
            intent.attachment(placement),
            observed.containers.get(&placement),
        ) {
            (None, _) => false,
            // It cannot be looked into; if it is gone, its interface goes by itself.
            (Some(_), None) => true,
            (Some(to), Some(end)) => end.as_ref().is_some_and(|end| is_of_lease(end, to)),
        };
        if !keep {
            steps.push(Step::DeleteLink(Link::HostEnd(placement)));
        }
    }
}

fn is_of_lease(end: &ContainerEnd, to: &Attachment) -> bool {
    end.paired && end.mac == to.mac
}

/// Gives every container what it is to have and can be looked into.
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
        flood: true,
        isolated: false,
        // Who has an address is known by its MAC, so nobody sends with that of another.
        locked: true,
        neigh_suppress: false,
    };
    let wanted_host_end = HostEnd {
        port,
        pinned: BTreeSet::from([to.mac]),
    };
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
    }
    if host_end != Some(&wanted_host_end) {
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
