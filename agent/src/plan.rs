//! What to do about containers: a pure function of what the Master wants and what
//! exists.
//!
//! At most one step per subject and pass; the next pass observes again and finds
//! what follows. A subject with a step under way, or held back after a failure, gets
//! none, nor does one with a container that Docker does not answer for: the unknown
//! is left alone.
//!
//! Invariants: a container is adopted if and only if placement, node, revision,
//! lease and address all match; one without a placement on this node is removed; one
//! that lost its lease is removed before anything else is done for its placement;
//! otherwise the image is present before the old container is removed; data is
//! removed last, with its placement.

use std::collections::{BTreeMap, BTreeSet};

use kontena_schema::agent::{Desired, Placement};
use kontena_schema::ids::{NodeId, PlacementId, ServiceRevision};

use crate::docker::container::{Container, State};
use crate::docker::labels::container_name;
use crate::docker::volumes::Volume;

/// What a step is about; no two steps about one subject are under way at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A placement and its containers.
    Placement(PlacementId),
    /// A container without a placement, by Docker's id.
    Container(String),
    /// A volume of a placement, by Docker's name.
    Volume(String),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it is about.
    pub subject: Subject,
    /// What it does.
    pub action: Action,
}

/// The kinds of steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Pull the placement's image.
    Pull,
    /// Create and start the placement's container.
    Create,
    /// Start a container.
    Start(String),
    /// Stop a container.
    Stop(String),
    /// Stop and remove a container. The data of its placement stays.
    Remove(String),
    /// Remove data of a placement that has ended.
    RemoveVolume(Volume),
}

/// The kind of a step under way, as reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// An image is being pulled.
    Pulling,
    /// A container is being created or started.
    Starting,
    /// A container is being stopped or removed, or its data.
    Stopping,
}

impl Action {
    /// The container that it changes; none for one that it creates.
    pub fn container(&self) -> Option<&String> {
        match self {
            Self::Pull | Self::Create | Self::RemoveVolume(_) => None,
            Self::Start(id) | Self::Stop(id) | Self::Remove(id) => Some(id),
        }
    }

    /// How it is reported.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Pull => Phase::Pulling,
            Self::Create | Self::Start(_) => Phase::Starting,
            Self::Stop(_) | Self::Remove(_) | Self::RemoveVolume(_) => Phase::Stopping,
        }
    }
}

/// Everything that the plan depends on.
pub struct PlanInput<'a> {
    /// This node.
    pub node: NodeId,
    /// What the Master wants.
    pub placements: &'a BTreeMap<PlacementId, Placement>,
    /// What exists.
    pub containers: &'a [Container],
    /// The service revision for which a placement's image is ready.
    pub prepared: &'a BTreeMap<PlacementId, ServiceRevision>,
    /// Subjects that get no step now.
    pub held: &'a BTreeSet<Subject>,
    /// The volumes of placements.
    pub volumes: &'a [Volume],
    /// Those whose placements have ended.
    pub ended: &'a BTreeSet<String>,
}

/// Whether a container is the one that the placement describes.
pub fn matches(container: &Container, placement: &Placement, node: NodeId) -> bool {
    let revision = container
        .origin
        .as_ref()
        .map(|origin| origin.service_revision);
    holds_lease(container, placement, node) && revision == Some(placement.service_revision)
}

/// Whether a container is the placement's and holds its lease.
pub fn holds_lease(container: &Container, placement: &Placement, node: NodeId) -> bool {
    container.origin.as_ref().is_some_and(|origin| {
        origin.placement == placement.id
            && container.name == container_name(placement)
            && origin.node == node
            && origin.lease == placement.lease
            && origin.overlay.map(|overlay| overlay.ip()) == placement.address
    })
}

/// The containers of each placement of this node, and those of none. One without
/// all our labels, or without the name that goes with them, is not ours.
pub fn by_placement<'a>(
    placements: &BTreeMap<PlacementId, Placement>,
    containers: &'a [Container],
) -> (
    BTreeMap<PlacementId, Vec<&'a Container>>,
    Vec<&'a Container>,
) {
    let mut of = BTreeMap::<_, Vec<_>>::new();
    let mut unconfirmed = Vec::new();
    for container in containers {
        let Some(origin) = &container.origin else {
            continue;
        };
        match placements.get(&origin.placement) {
            Some(placement) if container.name == container_name(placement) => {
                of.entry(placement.id).or_default().push(container);
            }
            Some(_) => {}
            None => unconfirmed.push(container),
        }
    }
    (of, unconfirmed)
}

/// The steps that bring the host closer to what is wanted.
pub fn plan(input: &PlanInput<'_>) -> Vec<Step> {
    let (of, unconfirmed) = by_placement(input.placements, input.containers);
    let known = |container: &&Container| !container.is_unknown();
    let removals = unconfirmed.into_iter().filter(known).map(|container| Step {
        subject: Subject::Container(container.id.clone()),
        action: Action::Remove(container.id.clone()),
    });
    let others = input.placements.values().filter_map(|placement| {
        let mine = of.get(&placement.id).map_or(&[][..], Vec::as_slice);
        let action = step(placement, mine, input)?;
        Some(Step {
            subject: Subject::Placement(placement.id),
            action,
        })
    });
    removals
        .chain(others)
        .chain(removals_of_data(input))
        .filter(|step| !input.held.contains(&step.subject))
        .collect()
}

/// Data is removed once its placement has ended and has no container left.
fn removals_of_data(input: &PlanInput<'_>) -> Vec<Step> {
    let origins = input.containers.iter().filter_map(|c| c.origin.as_ref());
    let used: BTreeSet<PlacementId> = origins.map(|origin| origin.placement).collect();
    let ended = |volume: &&Volume| {
        let placement = volume.owner.placement;
        input.ended.contains(&volume.name)
            && !used.contains(&placement)
            && !input.held.contains(&Subject::Placement(placement))
    };
    let steps = input.volumes.iter().filter(ended).map(|volume| Step {
        subject: Subject::Volume(volume.name.clone()),
        action: Action::RemoveVolume(volume.clone()),
    });
    steps.collect()
}

/// The Master's reason, if a step removes a container whose lease its placement no
/// longer has.
pub fn lease_reason<'a>(step: &Step, on: &PlanInput<'a>) -> Option<&'a str> {
    let (Subject::Placement(id), Action::Remove(container)) = (&step.subject, &step.action) else {
        return None;
    };
    let placement = on.placements.get(id)?;
    let container = on.containers.iter().find(|c| c.id == *container)?;
    let other = container.origin.as_ref()?.lease != placement.lease;
    placement.lease_reason.as_deref().filter(|_| other)
}

fn step(placement: &Placement, mine: &[&Container], on: &PlanInput<'_>) -> Option<Action> {
    if mine.iter().any(|container| container.is_unknown()) {
        return None;
    }
    let remove = |container: &&Container| Action::Remove(container.id.clone());
    if placement.desired == Desired::Removed {
        return mine.first().map(remove);
    }
    let lost = mine
        .iter()
        .find(|container| !holds_lease(container, placement, on.node));
    if lost.is_some() {
        return lost.map(remove);
    }
    if placement.desired == Desired::Stopped {
        let runs =
            |c: &&&Container| matches!(c.state, State::Running { .. } | State::Restarting { .. });
        return mine
            .iter()
            .find(runs)
            .map(|container| Action::Stop(container.id.clone()));
    }
    let right = mine
        .iter()
        .find(|container| matches(container, placement, on.node));
    let wrong = mine
        .iter()
        .find(|c| right.is_none_or(|right| right.id != c.id));
    match right {
        Some(right) => wrong.map(remove).or_else(|| keep_running(right)),
        None if placement.lease.is_none() => None,
        None if on.prepared.get(&placement.id) != Some(&placement.service_revision) => {
            Some(Action::Pull)
        }
        None => wrong.map(remove).or_else(|| create(placement, on)),
    }
}

fn keep_running(right: &Container) -> Option<Action> {
    match right.state {
        State::Running { .. } | State::Restarting { .. } | State::Unknown { .. } => None,
        State::Created | State::Exited { .. } => Some(Action::Start(right.id.clone())),
        State::Going => Some(Action::Remove(right.id.clone())),
    }
}

/// Creates, unless a container yet to be removed has the name.
fn create(placement: &Placement, on: &PlanInput<'_>) -> Option<Action> {
    let name = container_name(placement);
    on.containers
        .iter()
        .all(|container| container.name != name)
        .then_some(Action::Create)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(crate) mod tests;
