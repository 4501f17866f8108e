//! The jobs under way: steps of the plan, and commands.
//!
//! Each is a task of its own, so that a long pull delays no others. How many of a
//! kind run at once is bounded where they load the host; one that the engine does
//! not answer frees its slot for others after a while.
//!
//! Invariants: at most one job about a subject is under way; a subject is busy until
//! a look that began after its job's end is over, so that no plan uses what was seen
//! before; a command waits for its own placement only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kontena_schema::agent::{Command, CommandKind, CommandState, Desired, Placement};
use kontena_schema::ids::{CommandId, PlacementId, ServiceRevision};
use kontena_task::TaskSet;
use tokio::sync::{Semaphore, watch};
use tokio::task::Id;
use tokio::time::sleep;
use tracing::{info, warn};

use super::backoff::{Backoff, Failed};
use super::leftovers::has_ended;
use crate::apply::{self, ApplyError, Tools};
use crate::directory::Directory;
use crate::docker::container::Container;
use crate::docker::dirty::{DirtySet, Look};
use crate::docker::volumes::Volume;
use crate::plan::{Action, Phase, Step, Subject};

/// One pull alone can fill the link to the registry.
const PULLS_MAX: usize = 3;
/// Creating and starting load the engine and the disk.
const STARTS_MAX: usize = 8;
/// A stop mostly waits for the container, so many may run.
const STOPS_MAX: usize = 64;
/// A start or a stop that takes longer waits for something that must not delay others:
/// a stuck container, or one with a long grace period. There is at most one for each
/// placement.
const SLOT_HELD_MAX: Duration = Duration::from_secs(15);
/// The same for pulls: one from a slow registry must not delay all others for ever.
const PULL_SLOT_HELD_MAX: Duration = Duration::from_secs(10 * 60);
/// Commands that wait for their placements; the feed has no more at once.
const WAITING_MAX: usize = 256;

/// What a task is about.
#[derive(Clone, Debug)]
enum Job {
    Step(Step, Option<Box<Placement>>),
    Command(CommandId, PlacementId, String),
}

impl Job {
    fn subject(&self) -> Subject {
        match self {
            Self::Step(step, _) => step.subject.clone(),
            Self::Command(_, placement, _) => Subject::Placement(*placement),
        }
    }

    fn phase(&self) -> Phase {
        match self {
            Self::Step(step, _) => step.action.phase(),
            Self::Command(..) => Phase::Starting,
        }
    }

    /// The look that sees what it did; none if it changed no container.
    fn seen_by(&self, dirty: &DirtySet) -> Option<Look> {
        let container = match self {
            Self::Step(step, _) => match &step.action {
                Action::Pull | Action::RemoveVolume(_) => return None,
                Action::Create => None,
                Action::Start(id) | Action::Stop(id) | Action::Remove(id) => Some(id),
            },
            Self::Command(_, _, container) => Some(container),
        };
        Some(container.map_or_else(|| dirty.look(), |id| dirty.add(id.clone())))
    }
}

/// A subject with a job.
struct Busy {
    phase: Phase,
    /// The job has ended, and this look will have seen what it did.
    until: Option<Look>,
}

/// The jobs under way, and the results of others.
pub struct Jobs {
    /// None without an engine, where no step can be executed.
    tools: Option<Arc<Tools>>,
    /// What is wanted now; a step may have waited long for its slot.
    wanted: watch::Receiver<Arc<Directory>>,
    tasks: TaskSet<Result<(), ApplyError>>,
    about: BTreeMap<Id, Job>,
    busy: BTreeMap<Subject, Busy>,
    /// Started commands whose placement is still busy.
    waiting: VecDeque<Command>,
    /// Volumes that were removed and may still be listed.
    gone: BTreeSet<String>,
    /// Failures that hold their subjects back.
    pub backoff: Backoff,
    /// The service revision for which a placement's image is ready.
    pub prepared: BTreeMap<PlacementId, ServiceRevision>,
    pulls: Arc<Semaphore>,
    starts: Arc<Semaphore>,
    stops: Arc<Semaphore>,
}

/// A command that ended.
pub type Ended = (CommandId, CommandState, Option<String>);

impl Jobs {
    /// Nothing is under way.
    pub fn new(tools: Option<Tools>, wanted: watch::Receiver<Arc<Directory>>) -> Self {
        Self {
            tools: tools.map(Arc::new),
            wanted,
            tasks: TaskSet::new("jobs"),
            about: BTreeMap::new(),
            busy: BTreeMap::new(),
            waiting: VecDeque::new(),
            gone: BTreeSet::new(),
            backoff: Backoff::default(),
            prepared: BTreeMap::new(),
            pulls: Arc::new(Semaphore::new(PULLS_MAX)),
            starts: Arc::new(Semaphore::new(STARTS_MAX)),
            stops: Arc::new(Semaphore::new(STOPS_MAX)),
        }
    }

    /// Subjects that get no step now.
    pub fn held(&self, now: Instant) -> BTreeSet<Subject> {
        let mut held = self.backoff.held(now);
        held.extend(self.busy.keys().cloned());
        held.extend(self.gone.iter().cloned().map(Subject::Volume));
        held
    }

    /// The job under way about a placement.
    pub fn phase(&self, placement: PlacementId) -> Option<Phase> {
        let busy = self.busy.get(&Subject::Placement(placement));
        busy.map(|busy| busy.phase)
    }

    /// Starts a step.
    pub fn start(&mut self, step: Step, directory: &Arc<Directory>) {
        let placement = match &step.subject {
            Subject::Placement(id) => directory.placements.get(id).cloned(),
            Subject::Container(_) | Subject::Volume(_) => None,
        };
        let (slots, held_max) = match &step.action {
            // It ends by itself when the engine reports no progress.
            Action::Pull => (&self.pulls, PULL_SLOT_HELD_MAX),
            Action::Create | Action::Start(_) => (&self.starts, SLOT_HELD_MAX),
            Action::Stop(_) | Action::Remove(_) | Action::RemoveVolume(_) => {
                (&self.stops, SLOT_HELD_MAX)
            }
        };
        info!(subject = ?step.subject, action = ?step.action, "start");
        let (slots, tools, directory) = (slots.clone(), self.tools.clone(), directory.clone());
        let (action, mut wanted) = (step.action.clone(), self.wanted.clone());
        let job = Job::Step(step, placement.clone().map(Box::new));
        self.spawn(job, async move {
            let work = async {
                if !is_wanted(&action, placement.as_ref(), &wanted.borrow()) {
                    return Ok(());
                }
                let tools = tools.ok_or(ApplyError::NoEngine)?;
                let done = apply::execute(&tools, &action, placement.as_ref(), &directory);
                match (&action, &placement) {
                    (Action::Pull, Some(placement)) => tokio::select! {
                        done = done => done,
                        () = until_unwanted(placement, &mut wanted) => Err(ApplyError::Unwanted),
                    },
                    _ => done.await,
                }
            };
            Box::pin(with_slot(&slots, held_max, work)).await
        });
    }

    /// Whether another command may be queued.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Queues a started command; it runs as soon as its placement is free.
    pub fn queue(&mut self, command: Command) {
        self.waiting.push_back(command);
    }

    /// Starts the commands whose placements are free, in order; returns those that could
    /// not run.
    pub fn start_commands(&mut self, containers: &[Container]) -> Vec<Ended> {
        let mut ended = Vec::new();
        for command in std::mem::take(&mut self.waiting) {
            if self.phase(command.placement).is_some() {
                self.waiting.push_back(command);
                continue;
            }
            let of = |container: &&Container| {
                let origin = container.origin.as_ref();
                origin.is_some_and(|origin| origin.placement == command.placement)
            };
            let why = match containers.iter().find(of) {
                Some(container) if !container.is_unknown() => {
                    self.start_command(&command, container.id.clone());
                    continue;
                }
                Some(_) => "Docker does not report the container's state",
                None => "there is no container",
            };
            ended.push((command.id, CommandState::Failed, Some(why.to_owned())));
        }
        ended
    }

    fn start_command(&mut self, command: &Command, container: String) {
        info!(command = %command.id, placement = %command.placement, kind = ?command.kind, "start");
        let tools = self.tools.clone();
        let job = Job::Command(command.id, command.placement, container.clone());
        match command.kind {
            CommandKind::Restart => self.spawn(job, async move {
                let tools = tools.ok_or(ApplyError::NoEngine)?;
                apply::restart(&tools, &container).await
            }),
        }
    }

    fn spawn(
        &mut self,
        job: Job,
        task: impl Future<Output = Result<(), ApplyError>> + Send + 'static,
    ) {
        let busy = Busy {
            phase: job.phase(),
            until: None,
        };
        self.busy.insert(job.subject(), busy);
        let id = self.tasks.spawn(task);
        self.about.insert(id, job);
    }

    /// Waits until any of them ends, and records its result; the outcome of a
    /// command is returned.
    pub async fn ended(&mut self, dirty: &DirtySet) -> Option<Ended> {
        let (id, result) = match self.tasks.next().await {
            Some((id, Some(result))) => (id, result.map_err(Failed::from)),
            Some((id, None)) => (id, Err(Failed::died())),
            None => std::future::pending().await,
        };
        let job = self.about.remove(&id)?;
        match (job.seen_by(dirty), self.busy.get_mut(&job.subject())) {
            (Some(look), Some(busy)) => busy.until = Some(look),
            _ => drop(self.busy.remove(&job.subject())),
        }
        match (job, result) {
            (Job::Step(step, placement), result) => {
                self.step_ended(step, placement.as_deref(), result);
                None
            }
            (Job::Command(command, ..), Ok(())) => Some((command, CommandState::Done, None)),
            (Job::Command(command, ..), Err(failed)) => {
                Some((command, CommandState::Failed, Some(failed.reason)))
            }
        }
    }

    fn step_ended(
        &mut self,
        step: Step,
        placement: Option<&Placement>,
        result: Result<(), Failed>,
    ) {
        let Step { subject, action } = step;
        match result {
            Ok(()) => {
                info!(?subject, ?action, "done");
                // A pull that worked says nothing about a start that did not.
                if action != Action::Pull {
                    self.backoff.succeeded(&subject);
                }
                if let (Action::Pull, Some(placement)) = (&action, placement) {
                    self.prepared
                        .insert(placement.id, placement.service_revision);
                }
                if let Action::RemoveVolume(volume) = action {
                    self.gone.insert(volume.name);
                }
            }
            Err(failed) => {
                let reason = &failed.reason;
                warn!(?subject, ?action, reason, "failed; it will be retried");
                if action == Action::Create
                    && let Some(placement) = placement
                {
                    self.prepared.remove(&placement.id);
                }
                self.backoff
                    .failed(Instant::now(), subject, placement, failed);
            }
        }
    }

    /// Frees the subjects whose job's end was seen by a finished look.
    pub fn seen(&mut self, look: Look) {
        let open = |busy: &Busy| busy.until.is_none_or(|until| until > look);
        self.busy.retain(|_, busy| open(busy));
    }

    /// Drops the state of what the directory and the host no longer have.
    pub fn forget(&mut self, directory: &Directory, containers: &[Container], volumes: &[Volume]) {
        let placements = &directory.placements;
        self.prepared.retain(|id, _| placements.contains_key(id));
        let listed = |name: &String| volumes.iter().any(|volume| volume.name == *name);
        self.gone.retain(listed);
        let placement = |subject: &Subject| match subject {
            Subject::Placement(id) => placements.get(id),
            Subject::Container(_) | Subject::Volume(_) => None,
        };
        self.backoff.forget(placement, |subject| match subject {
            Subject::Placement(id) => placements.contains_key(id),
            Subject::Container(id) => containers.iter().any(|container| container.id == *id),
            Subject::Volume(name) => listed(name),
        });
    }
}

/// Works in one of the slots, and frees it for others after `held_max`.
async fn with_slot<T>(slots: &Semaphore, held_max: Duration, work: impl Future<Output = T>) -> T {
    let slot = slots.acquire().await.expect("nobody closes the semaphore");
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = sleep(held_max) => drop(slot),
    }
    work.await
}

/// Waits until nobody needs the image of a placement for it: then the engine may stop
/// pulling.
async fn until_unwanted(planned: &Placement, wanted: &mut watch::Receiver<Arc<Directory>>) {
    let is_unwanted = |directory: &Arc<Directory>| {
        let placement = directory.placements.get(&planned.id);
        !placement.is_some_and(|placement| {
            placement.desired == Desired::Running && placement.spec.image == planned.spec.image
        })
    };
    if wanted.wait_for(is_unwanted).await.is_err() {
        // The agent stops.
        std::future::pending().await
    }
}

/// Whether a step is still wanted as it was planned, if it is one that cannot be undone:
/// creating a container, which might be unwanted by now, and removing data.
fn is_wanted(action: &Action, planned: Option<&Placement>, directory: &Directory) -> bool {
    match action {
        Action::Create => {
            let wanted = planned.and_then(|planned| directory.placements.get(&planned.id));
            let runs = |wanted: &Placement| wanted.desired == Desired::Running;
            !directory.removed && wanted == planned && wanted.is_some_and(runs)
        }
        Action::RemoveVolume(volume) => has_ended(&volume.owner, directory),
        _ => true,
    }
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
