use kontena_schema::ids::LeaseNumber;

use kontena_overlay::Process;

use super::*;
use crate::directory::tests::placement;
use crate::docker::container::HealthCheck;
use crate::docker::labels::Origin;
use crate::docker::volumes::tests::volume;

const NODE: NodeId = NodeId(1);

pub(crate) fn container_of(placement: &Placement, state: State) -> Container {
    Container {
        id: format!("id-{}", placement.id),
        name: container_name(placement),
        origin: Some(Origin {
            placement: placement.id,
            node: NODE,
            service_revision: placement.service_revision,
            lease: placement.lease,
            overlay: placement
                .address
                .map(|ip| format!("{ip}/17").parse().unwrap()),
        }),
        state,
        health: HealthCheck::Absent,
    }
}

pub(crate) fn running(pid: i32) -> State {
    State::Running {
        process: Process { pid, started: 0 },
    }
}

pub(crate) fn unknown(pid: Option<i32>) -> State {
    State::Unknown {
        process: pid.map(|pid| Process { pid, started: 0 }),
    }
}

pub(crate) fn exited(exit_code: i64) -> State {
    State::Exited {
        exit_code,
        error: None,
    }
}

/// A host on which the plan is carried out without Docker.
struct Host {
    placements: BTreeMap<PlacementId, Placement>,
    containers: Vec<Container>,
    prepared: BTreeMap<PlacementId, ServiceRevision>,
    held: BTreeSet<Subject>,
    volumes: Vec<Volume>,
    ended: BTreeSet<String>,
    done: Vec<&'static str>,
}

impl Host {
    fn new(placements: impl IntoIterator<Item = Placement>) -> Self {
        Self {
            placements: placements.into_iter().map(|p| (p.id, p)).collect(),
            containers: Vec::new(),
            prepared: BTreeMap::new(),
            held: BTreeSet::new(),
            volumes: Vec::new(),
            ended: BTreeSet::new(),
            done: Vec::new(),
        }
    }

    fn input(&self) -> PlanInput<'_> {
        PlanInput {
            node: NODE,
            placements: &self.placements,
            containers: &self.containers,
            prepared: &self.prepared,
            held: &self.held,
            volumes: &self.volumes,
            ended: &self.ended,
        }
    }

    fn plan(&self) -> Vec<Step> {
        plan(&self.input())
    }

    /// Carries plans out until there is nothing to do.
    fn settle(&mut self) -> Vec<&'static str> {
        for _ in 0..20 {
            let steps = self.plan();
            if steps.is_empty() {
                return std::mem::take(&mut self.done);
            }
            for step in steps {
                self.apply(&step);
            }
        }
        panic!("it never settles: {:?}", self.done);
    }

    fn apply(&mut self, step: &Step) {
        let placement = match &step.subject {
            Subject::Placement(id) => self.placements.get(id),
            Subject::Container(_) | Subject::Volume(_) => None,
        };
        let set = |containers: &mut Vec<Container>, id: &String, state| {
            containers.iter_mut().find(|c| c.id == *id).unwrap().state = state;
        };
        self.done.push(match &step.action {
            Action::Pull => {
                let placement = placement.unwrap();
                self.prepared
                    .insert(placement.id, placement.service_revision);
                "pull"
            }
            Action::Create => {
                let container = container_of(placement.unwrap(), running(1));
                assert!(self.containers.iter().all(|c| c.name != container.name));
                self.containers.push(container);
                "create"
            }
            Action::Start(id) => {
                set(&mut self.containers, id, running(1));
                "start"
            }
            Action::Stop(id) => {
                set(&mut self.containers, id, exited(0));
                "stop"
            }
            Action::Remove(id) => {
                self.containers.retain(|c| c.id != *id);
                "remove"
            }
            Action::RemoveVolume(volume) => {
                self.volumes.retain(|other| other != volume);
                "remove data"
            }
        });
    }
}

#[test]
fn a_new_placement_is_pulled_and_created_and_then_left_alone() {
    let mut host = Host::new([placement(11, 1)]);
    assert_eq!(host.settle(), ["pull", "create"]);
    assert_eq!(host.settle(), [""; 0]);
}

#[test]
fn a_container_that_matches_is_adopted() {
    let placement = placement(11, 1);
    let mut host = Host::new([placement.clone()]);
    host.containers.push(container_of(&placement, running(1)));
    assert_eq!(host.settle(), [""; 0]);
    host.containers[0].state = exited(0);
    assert_eq!(host.settle(), ["start"]);
    host.containers[0].state = State::Restarting { exit_code: 1 };
    assert_eq!(host.settle(), [""; 0]);
}

#[test]
fn what_docker_does_not_answer_for_is_left_alone_and_all_else_goes_on() {
    let wanted = placement(11, 1);
    let mut removed = placement(12, 2);
    removed.desired = Desired::Removed;
    let mut moved = placement(13, 3);
    let mut host = Host::new([wanted.clone(), removed.clone(), placement(14, 4)]);
    for of in [&wanted, &removed, &moved, &placement(15, 5)] {
        host.containers.push(container_of(of, unknown(Some(1))));
    }
    (moved.lease, moved.service_revision) = (Some(LeaseNumber(99)), ServiceRevision(2));
    host.placements.insert(moved.id, moved);
    assert_eq!(host.settle(), ["pull", "create"]);
    assert_eq!(host.containers.len(), 5);
}

#[test]
fn another_revision_is_pulled_before_the_old_container_goes() {
    let mut new = placement(11, 1);
    let old = container_of(&new, running(1));
    new.service_revision = ServiceRevision(2);
    let mut host = Host::new([new]);
    host.containers.push(old);
    assert_eq!(host.settle(), ["pull", "remove", "create"]);
}

#[test]
fn a_container_without_its_lease_goes_at_once() {
    let mut new = placement(11, 1);
    let old = container_of(&new, running(1));
    new.lease = Some(LeaseNumber(99));
    let mut host = Host::new([new.clone()]);
    host.containers.push(old.clone());
    assert_eq!(host.settle(), ["remove", "pull", "create"]);

    (new.lease, new.address) = (None, None);
    let mut host = Host::new([new]);
    host.containers.push(old);
    assert_eq!(host.settle(), ["remove"]);
}

#[test]
fn why_the_lease_is_another_is_told_when_the_container_goes_for_it() {
    let mut new = placement(11, 1);
    let mut host = Host::new([]);
    host.containers.push(container_of(&new, running(1)));
    let why = "10.81.1.1 was given away while the node was lost";
    new.lease_reason = Some(why.to_owned());
    new.service_revision = ServiceRevision(2);
    host.prepared.insert(new.id, new.service_revision);
    for (lease, told) in [(LeaseNumber(11), None), (LeaseNumber(99), Some(why))] {
        new.lease = Some(lease);
        host.placements.insert(new.id, new.clone());
        let steps = host.plan();
        assert!(matches!(
            steps[..],
            [Step {
                action: Action::Remove(_),
                ..
            }]
        ));
        assert_eq!(lease_reason(&steps[0], &host.input()), told);
    }
    host.containers.clear();
    let steps = host.plan();
    assert_eq!(lease_reason(&steps[0], &host.input()), None);
}

#[test]
fn a_container_of_another_node_goes() {
    let placement = placement(11, 1);
    let mut foreign = container_of(&placement, running(1));
    foreign.origin.as_mut().unwrap().node = NodeId(9);
    let mut host = Host::new([placement]);
    host.containers.push(foreign);
    assert_eq!(host.settle(), ["remove", "pull", "create"]);
}

#[test]
fn what_no_placement_confirms_goes_and_gives_its_name_free() {
    let old = container_of(&placement(10, 1), running(1));
    let new = placement(11, 1);
    assert_eq!(container_name(&new), old.name);
    let mut host = Host::new([new]);
    host.containers = vec![old];
    let mut done = host.settle();
    done.sort_unstable();
    assert_eq!(done, ["create", "pull", "remove"]);
}

#[test]
fn what_is_somebody_elses_stays() {
    let mut original = container_of(&placement(9, 3), running(1));
    original.origin = None;
    let mut copy = container_of(&placement(11, 1), running(1));
    copy.id = "copy".to_owned();
    copy.name = "of-a-commit".to_owned();
    let mut host = Host::new([placement(11, 1)]);
    host.containers = vec![original, copy];
    assert_eq!(host.settle(), ["pull", "create"]);
    assert_eq!(host.containers.len(), 3);
}

#[test]
fn stopped_is_stopped_and_removed_is_gone() {
    let mut host = Host::new([placement(11, 1)]);
    host.settle();
    let mut placement = placement(11, 1);
    placement.desired = Desired::Stopped;
    host.placements.insert(placement.id, placement.clone());
    assert_eq!(host.settle(), ["stop"]);
    assert_eq!(host.containers.len(), 1);
    placement.desired = Desired::Removed;
    host.placements.insert(placement.id, placement);
    assert_eq!(host.settle(), ["remove"]);
    assert!(host.containers.is_empty());
}

#[test]
fn data_goes_after_its_container_and_with_its_placement_only() {
    let mut host = Host::new([placement(11, 1)]);
    host.volumes = vec![volume(11, "/data", None), volume(11, "/log", None)];
    host.settle();
    let mut new = placement(11, 1);
    (new.service_revision, new.lease) = (ServiceRevision(2), Some(LeaseNumber(99)));
    host.placements.insert(new.id, new.clone());
    assert_eq!(host.settle(), ["remove", "pull", "create"]);
    new.desired = Desired::Removed;
    host.placements.insert(new.id, new);
    host.ended = host.volumes.iter().map(|v| v.name.clone()).collect();
    assert_eq!(host.settle(), ["remove", "remove data", "remove data"]);
}

#[test]
fn who_is_held_back_holds_nobody_else_back() {
    let mut host = Host::new([placement(11, 1), placement(12, 2)]);
    host.held.insert(Subject::Placement(PlacementId(11)));
    assert_eq!(host.settle(), ["pull", "create"]);
    assert_eq!(
        host.containers[0].origin.as_ref().unwrap().placement,
        PlacementId(12)
    );
}
