//! What this host reports to the Master.
//!
//! [`derive`] builds a placement's report, purely, from the directory and what was
//! observed; [`Sent`] keeps what one connection was sent and returns the delta. The
//! first report of a connection is the delta from nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use kontena_schema::agent::{
    CommandReport, Desired, Health, InstanceState, InventoryEntry, PeerReport, Placement,
    PlacementReport, Report,
};
use kontena_schema::ids::{CommandId, NodeId, PlacementId, Revision};
use tokio::sync::watch;

use crate::docker::container::{Container, HealthCheck, State};
use crate::plan::{Phase, matches};

/// What is known about the host after a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostState {
    /// Which node this host was then.
    pub node: Option<NodeId>,
    /// The service containers that exist.
    pub inventory: Vec<InventoryEntry>,
    /// What is reported.
    pub reported: Reported,
}

/// The host's latest state; none before the first pass.
pub type HostSlot = watch::Receiver<Option<Arc<HostState>>>;

/// Everything that reports are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The last revision applied to the host.
    pub applied: Revision,
    /// Every placement of this node.
    pub placements: BTreeMap<PlacementId, PlacementReport>,
    /// The newest commands that were started.
    pub commands: BTreeMap<CommandId, CommandReport>,
    /// Every peer.
    pub peers: BTreeMap<NodeId, PeerReport>,
}

impl Default for Reported {
    fn default() -> Self {
        Self {
            applied: Revision::ZERO,
            placements: BTreeMap::new(),
            commands: BTreeMap::new(),
            peers: BTreeMap::new(),
        }
    }
}

/// What one connection was sent.
#[derive(Default)]
pub struct Sent(Option<Reported>);

impl Sent {
    /// The report that brings the Master up to `now`; none if it is already.
    pub fn next(&mut self, now: &Reported) -> Option<Report> {
        let first = self.0.is_none();
        let old = self.0.take().unwrap_or_default();
        let report = Report {
            applied: now.applied,
            placements: news(&old.placements, &now.placements),
            commands: news(&old.commands, &now.commands),
            peers: news(&old.peers, &now.peers),
        };
        let nothing = old.applied == now.applied
            && report.placements.is_empty()
            && report.commands.is_empty()
            && report.peers.is_empty();
        self.0 = Some(now.clone());
        (first || !nothing).then_some(report)
    }
}

fn news<K: Ord, V: Clone + PartialEq>(old: &BTreeMap<K, V>, now: &BTreeMap<K, V>) -> Vec<V> {
    let differs = |(key, value): &(&K, &V)| old.get(*key) != Some(*value);
    now.iter()
        .filter(differs)
        .map(|(_, value)| value.clone())
        .collect()
}

/// The containers that prove a lease.
pub fn inventory(containers: &[Container]) -> Vec<InventoryEntry> {
    let entry = |container: &Container| {
        let origin = container.origin.as_ref()?;
        Some(InventoryEntry {
            placement: origin.placement,
            node: origin.node,
            lease: origin.lease?,
            address: origin.overlay?.ip(),
        })
    };
    containers.iter().filter_map(entry).collect()
}

/// What the user reads about a container that cannot be inspected, or of which Docker
/// says that it runs while its process is not there.
const SILENT: &str =
    "Docker does not report this container's state; it is left alone until Docker does";

/// What affects the report of a placement besides its container.
pub struct Context<'a> {
    /// This node.
    pub node: NodeId,
    /// The step under way.
    pub phase: Option<Phase>,
    /// Why the last step failed, until one succeeds.
    pub failure: Option<&'a str>,
    /// Whether the container is on the overlay; none if it was not tried.
    pub attached: Option<&'a Result<(), String>>,
    /// Why the host has no overlay.
    pub unavailable: Option<&'a str>,
}

/// The report of one placement.
pub fn derive(
    placement: &Placement,
    containers: &[&Container],
    context: &Context<'_>,
) -> PlacementReport {
    let matching = containers
        .iter()
        .find(|c| matches(c, placement, context.node));
    // A container left alone is what the placement has, whatever is wanted.
    let unknown = containers.iter().find(|c| c.is_unknown());
    let matching = unknown.or(matching);
    let container = matching.or(containers.first()).copied();
    let origin = container.and_then(|container| container.origin.as_ref());
    let (state, error) = match (placement.desired, container, matching) {
        // A container being created may still appear.
        (Desired::Removed, None, _) if context.phase == Some(Phase::Starting) => {
            (InstanceState::Starting, None)
        }
        (Desired::Removed, None, _) => (InstanceState::Removed, None),
        (Desired::Stopped, None, _) => (InstanceState::Stopped, None),
        (Desired::Running, _, Some(container)) => running(container, placement, context),
        (Desired::Running, _, None) => absent(placement, context),
        (Desired::Stopped | Desired::Removed, Some(container), _) => leaving(container, context),
    };
    let service_revision = match (state, origin) {
        // What failed is the wanted revision, whatever is left of another.
        (InstanceState::Failed, _) | (_, None) => placement.service_revision,
        (_, Some(origin)) => origin.service_revision,
    };
    PlacementReport {
        placement: placement.id,
        service_revision,
        lease: origin.and_then(|origin| origin.lease),
        state,
        health: container.map_or(Health::Unknown, |container| health(container.health)),
        container_id: container.map(|container| container.id.clone()),
        container_name: container.map(|container| container.name.clone()),
        error,
    }
}

/// A health check without a result says nothing about health; that the instance is not
/// ready shows in its state, which Masters of the previous version understand too.
fn health(check: HealthCheck) -> Health {
    match check {
        HealthCheck::Absent | HealthCheck::Starting => Health::Unknown,
        HealthCheck::Healthy => Health::Healthy,
        HealthCheck::Unhealthy => Health::Unhealthy,
    }
}

/// The state of the right container.
fn running(
    container: &Container,
    placement: &Placement,
    context: &Context<'_>,
) -> (InstanceState, Option<String>) {
    match &container.state {
        State::Running { .. } => ready(container, placement, context),
        State::Unknown { process: Some(_) } => {
            let (state, error) = ready(container, placement, context);
            (state, error.or_else(|| Some(SILENT.to_owned())))
        }
        State::Unknown { process: None } => (InstanceState::Pending, Some(SILENT.to_owned())),
        State::Created => failed_or(context, InstanceState::Starting),
        State::Restarting { exit_code } => (InstanceState::Failed, Some(ended(*exit_code))),
        State::Exited { exit_code, error } => match (context.phase, context.failure) {
            (Some(_), _) => (InstanceState::Starting, None),
            (None, Some(failure)) => (InstanceState::Failed, Some(failure.to_owned())),
            (None, None) => {
                let why = error.clone().unwrap_or_else(|| ended(*exit_code));
                (InstanceState::Failed, Some(why))
            }
        },
        State::Going => failed_or(context, InstanceState::Pending),
    }
}

/// Its command runs: it is ready once it is on the overlay and its health check has a
/// result.
fn ready(
    container: &Container,
    placement: &Placement,
    context: &Context<'_>,
) -> (InstanceState, Option<String>) {
    match context.attached {
        Some(Err(why)) => (InstanceState::Starting, Some(why.clone())),
        None if placement.address.is_some() => {
            let why = context.unavailable.map(str::to_owned);
            (InstanceState::Starting, why)
        }
        _ if container.health == HealthCheck::Starting => (InstanceState::Starting, None),
        Some(Ok(())) | None => (InstanceState::Running, None),
    }
}

/// The right container is not there yet.
fn absent(placement: &Placement, context: &Context<'_>) -> (InstanceState, Option<String>) {
    match context.phase {
        Some(Phase::Pulling) => (InstanceState::Pulling, None),
        Some(Phase::Starting) => (InstanceState::Starting, None),
        Some(Phase::Stopping) | None if placement.address.is_none() => {
            (InstanceState::Pending, context.failure.map(str::to_owned))
        }
        Some(Phase::Stopping) | None => failed_or(context, InstanceState::Pending),
    }
}

/// To be stopped or removed.
fn leaving(container: &Container, context: &Context<'_>) -> (InstanceState, Option<String>) {
    let failure = if container.is_unknown() {
        Some(SILENT)
    } else {
        context.failure
    };
    let state = if container.is_running() {
        InstanceState::Running
    } else {
        InstanceState::Stopped
    };
    (state, failure.map(str::to_owned))
}

fn failed_or(context: &Context<'_>, otherwise: InstanceState) -> (InstanceState, Option<String>) {
    match (context.failure, context.phase) {
        (Some(failure), None) => (InstanceState::Failed, Some(failure.to_owned())),
        _ => (otherwise, None),
    }
}

fn ended(exit_code: i64) -> String {
    format!("the container ended with exit code {exit_code}")
}

#[cfg(test)]
mod tests {
    use kontena_schema::ids::ServiceRevision;

    use super::*;
    use crate::directory::tests::placement;
    use crate::plan::tests::{container_of, exited, running as up, unknown};

    const NODE: NodeId = NodeId(1);

    fn context() -> Context<'static> {
        Context {
            node: NODE,
            phase: None,
            failure: None,
            attached: None,
            unavailable: None,
        }
    }

    #[test]
    fn it_runs_when_its_container_does_and_is_on_the_overlay() {
        let placement = placement(11, 1);
        let container = container_of(&placement, up(7));
        let attached = Ok(());
        let lost = Err("no such process".to_owned());
        for (attached, state) in [
            (None, InstanceState::Starting),
            (Some(&attached), InstanceState::Running),
            (Some(&lost), InstanceState::Starting),
        ] {
            let report = derive(
                &placement,
                &[&container],
                &Context {
                    attached,
                    ..context()
                },
            );
            assert_eq!(report.state, state);
            assert_eq!(report.lease, placement.lease);
            assert_eq!(report.error.is_some(), attached == Some(&lost));
        }
    }

    #[test]
    fn a_container_that_waits_for_an_overlay_says_why_there_is_none() {
        let placement = placement(11, 1);
        let container = container_of(&placement, up(7));
        let unavailable = Some("the overlay cannot be opened");
        let waiting = Context {
            unavailable,
            ..context()
        };
        let report = derive(&placement, &[&container], &waiting);
        assert_eq!(report.state, InstanceState::Starting);
        assert_eq!(report.error.as_deref(), unavailable);
        let without = Placement {
            address: None,
            ..placement
        };
        let container = container_of(&without, up(7));
        let report = derive(&without, &[&container], &waiting);
        assert_eq!((report.state, report.error), (InstanceState::Running, None));
    }

    #[test]
    fn a_container_whose_health_check_has_no_result_is_not_ready() {
        let placement = placement(11, 1);
        let mut container = container_of(&placement, up(7));
        for (check, state, health) in [
            (
                HealthCheck::Starting,
                InstanceState::Starting,
                Health::Unknown,
            ),
            (
                HealthCheck::Healthy,
                InstanceState::Running,
                Health::Healthy,
            ),
            (
                HealthCheck::Unhealthy,
                InstanceState::Running,
                Health::Unhealthy,
            ),
        ] {
            container.health = check;
            let context = Context {
                attached: Some(&Ok(())),
                ..context()
            };
            let report = derive(&placement, &[&container], &context);
            assert_eq!((report.state, report.health), (state, health));
        }
    }

    #[test]
    fn a_container_that_docker_does_not_answer_for_is_as_it_was_and_says_so() {
        let mut placement = placement(11, 1);
        for (pid, desired, state) in [
            (Some(7), Desired::Running, InstanceState::Running),
            (None, Desired::Running, InstanceState::Pending),
            (Some(7), Desired::Removed, InstanceState::Running),
        ] {
            placement.desired = desired;
            let container = container_of(&placement, unknown(pid));
            // It is not replaced, though another revision is wanted.
            placement.service_revision.0 += 1;
            let context = Context {
                attached: Some(&Ok(())),
                ..context()
            };
            let report = derive(&placement, &[&container], &context);
            assert_eq!(report.state, state);
            assert!(report.service_revision < placement.service_revision);
            assert_eq!(report.error.as_deref(), Some(SILENT));
        }
    }

    #[test]
    fn what_went_wrong_is_told_until_it_is_tried_again() {
        let placement = placement(11, 1);
        let failure = Some("no such image");
        let report = derive(
            &placement,
            &[],
            &Context {
                failure,
                ..context()
            },
        );
        assert_eq!(report.state, InstanceState::Failed);
        assert_eq!(report.error.as_deref(), failure);
        let phase = Some(Phase::Pulling);
        let report = derive(
            &placement,
            &[],
            &Context {
                failure,
                phase,
                ..context()
            },
        );
        assert_eq!((report.state, report.error), (InstanceState::Pulling, None));

        let container = container_of(&placement, exited(137));
        let report = derive(&placement, &[&container], &context());
        assert_eq!(report.state, InstanceState::Failed);
        assert!(report.error.unwrap().contains("137"));
    }

    #[test]
    fn what_failed_is_the_revision_that_was_tried() {
        let mut placement = placement(11, 1);
        let old = container_of(&placement, up(7));
        placement.service_revision = ServiceRevision(2);
        let failure = Some("no such image");
        let report = derive(
            &placement,
            &[&old],
            &Context {
                failure,
                ..context()
            },
        );
        assert_eq!(report.state, InstanceState::Failed);
        assert_eq!(report.service_revision, ServiceRevision(2));
        let phase = Some(Phase::Pulling);
        let report = derive(&placement, &[&old], &Context { phase, ..context() });
        assert_eq!(report.service_revision, ServiceRevision(1));
    }

    #[test]
    fn it_is_removed_only_when_its_container_is_gone() {
        let mut placement = placement(11, 1);
        placement.desired = Desired::Removed;
        let container = container_of(&placement, up(7));
        assert_eq!(
            derive(&placement, &[&container], &context()).state,
            InstanceState::Running
        );
        let gone = derive(&placement, &[], &context());
        assert_eq!(
            (gone.state, gone.container_id),
            (InstanceState::Removed, None)
        );
        for (phase, state) in [
            (Phase::Starting, InstanceState::Starting),
            (Phase::Pulling, InstanceState::Removed),
            (Phase::Stopping, InstanceState::Removed),
        ] {
            let phase = Some(phase);
            let report = derive(&placement, &[], &Context { phase, ..context() });
            assert_eq!(report.state, state);
        }
    }

    #[test]
    fn without_an_address_it_waits() {
        let mut placement = placement(11, 1);
        (placement.address, placement.lease) = (None, None);
        assert_eq!(
            derive(&placement, &[], &context()).state,
            InstanceState::Pending
        );
    }

    #[test]
    fn a_connection_is_told_everything_and_then_differences() {
        let placement = placement(11, 1);
        let mut reported = Reported {
            applied: Revision(7),
            ..Reported::default()
        };
        let mut sent = Sent::default();
        assert_eq!(sent.next(&reported).unwrap().applied, Revision(7));
        assert_eq!(sent.next(&reported), None);
        reported
            .placements
            .insert(placement.id, derive(&placement, &[], &context()));
        assert_eq!(sent.next(&reported).unwrap().placements.len(), 1);
        reported.applied = Revision(8);
        assert_eq!(sent.next(&reported).unwrap().placements.len(), 0);
        assert_eq!(Sent::default().next(&reported).unwrap().placements.len(), 1);
    }
}
