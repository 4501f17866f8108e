//! The steps under way.
//!
//! Each is a task of its own, so that a long pull delays nobody. How many of a
//! kind run at once is bounded where they cost the host something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use kontena_schema::agent::{CommandState, Desired, Placement};
use kontena_schema::ids::{CommandId, PlacementId, ServiceRevision};
use tokio::sync::{Semaphore, watch};
use tokio::task::{Id, JoinSet};
use tracing::{error, info, warn};

use super::backoff::Backoff;
use crate::apply::{self, ApplyError, Tools};
use crate::directory::Directory;
use crate::docker::dirty::DirtySet;
use crate::plan::{Action, Phase, Step, Subject};

/// Each pull fills the link to the registry by itself.
const PULLS_MAX: usize = 3;
/// Creating and starting is work for the engine and the disk.
const STARTS_MAX: usize = 8;
/// A stop mostly waits for the container, so many may.
const STOPS_MAX: usize = 64;

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

    /// The container that it changes.
    fn container(&self) -> Option<&String> {
        match self {
            Self::Step(Step { action, .. }, _) => action.container(),
            Self::Command(_, _, container) => Some(container),
        }
    }
}

/// The steps under way, and what came of the others.
pub struct Jobs {
    /// None without an engine, where no step can be carried out.
    tools: Option<Arc<Tools>>,
    /// What is wanted now; a step may have waited long for its place.
    wanted: watch::Receiver<Arc<Directory>>,
    tasks: JoinSet<Result<(), ApplyError>>,
    about: BTreeMap<Id, Job>,
    busy: BTreeMap<Subject, Phase>,
    /// Failures that hold their subjects back.
    pub backoff: Backoff,
    /// For which revision of its service a placement's image was brought.
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
            tasks: JoinSet::new(),
            about: BTreeMap::new(),
            busy: BTreeMap::new(),
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
        held
    }

    /// The step under way about a placement.
    pub fn phase(&self, placement: PlacementId) -> Option<Phase> {
        self.busy.get(&Subject::Placement(placement)).copied()
    }

    /// Starts a step.
    pub fn start(&mut self, step: Step, directory: &Arc<Directory>) {
        let placement = match &step.subject {
            Subject::Placement(id) => directory.placements.get(id).cloned(),
            Subject::Container(_) => None,
        };
        let places = match &step.action {
            Action::Pull => &self.pulls,
            Action::Create | Action::Start(_) => &self.starts,
            Action::Stop(_) | Action::Remove(_) => &self.stops,
        };
        info!(subject = ?step.subject, action = ?step.action, "begun");
        let (places, tools, directory) = (places.clone(), self.tools.clone(), directory.clone());
        let (subject, phase) = (step.subject.clone(), step.action.phase());
        let (action, wanted) = (step.action.clone(), self.wanted.clone());
        let job = Job::Step(step, placement.clone().map(Box::new));
        self.spawn(job, subject, phase, async move {
            let _place = places.acquire().await.expect("nobody closes the semaphore");
            if action == Action::Create && !is_wanted(placement.as_ref(), &wanted.borrow()) {
                return Ok(());
            }
            let tools = tools.ok_or(ApplyError::NoEngine)?;
            apply::execute(&tools, &action, placement.as_ref(), &directory).await
        });
    }

    /// Starts a restart that a command asked for.
    pub fn restart(&mut self, command: CommandId, placement: PlacementId, container: String) {
        let tools = self.tools.clone();
        let subject = Subject::Placement(placement);
        self.spawn(
            Job::Command(command, placement, container.clone()),
            subject,
            Phase::Starting,
            async move {
                let tools = tools.ok_or(ApplyError::NoEngine)?;
                apply::restart(&tools, &container).await
            },
        );
    }

    fn spawn(
        &mut self,
        job: Job,
        subject: Subject,
        phase: Phase,
        task: impl Future<Output = Result<(), ApplyError>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(task);
        self.about.insert(handle.id(), job);
        self.busy.insert(subject, phase);
    }

    /// Waits until any of them ended, and takes in what came of it; the outcome
    /// of a command is handed back. The container that it changed is marked: its
    /// event may come later than the next look.
    pub async fn ended(&mut self, dirty: &DirtySet) -> Option<Ended> {
        let (id, result) = match self.tasks.join_next_with_id().await {
            Some(Ok((id, result))) => (id, result.map_err(|err| err.to_string())),
            Some(Err(err)) => {
                error!(%err, "a step died");
                (err.id(), Err("the agent failed; see its log".to_owned()))
            }
            None => std::future::pending().await,
        };
        let job = self.about.remove(&id)?;
        self.busy.remove(&job.subject());
        if let Some(container) = job.container() {
            dirty.note(container.clone());
        }
        match (job, result) {
            (Job::Step(step, placement), result) => {
                self.step_ended(step, placement.as_deref(), result);
                None
            }
            (Job::Command(command, ..), Ok(())) => Some((command, CommandState::Done, None)),
            (Job::Command(command, ..), Err(why)) => {
                Some((command, CommandState::Failed, Some(why)))
            }
        }
    }

    fn step_ended(
        &mut self,
        step: Step,
        placement: Option<&Placement>,
        result: Result<(), String>,
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
            }
            Err(reason) => {
                warn!(?subject, ?action, reason, "failed; it will be tried again");
                if action == Action::Create
                    && let Some(placement) = placement
                {
                    self.prepared.remove(&placement.id);
                }
                self.backoff
                    .failed(Instant::now(), subject, placement, reason);
            }
        }
    }

    /// Forgets what the directory and the host have no more.
    pub fn forget(&mut self, directory: &Directory, containers: &BTreeSet<String>) {
        self.prepared
            .retain(|id, _| directory.placements.contains_key(id));
        let placement = |subject: &Subject| match subject {
            Subject::Placement(id) => directory.placements.get(id),
            Subject::Container(_) => None,
        };
        self.backoff.forget(placement, |subject| match subject {
            Subject::Placement(id) => directory.placements.contains_key(id),
            Subject::Container(id) => containers.contains(id),
        });
    }
}

/// Whether a container is still to be created for a placement as it was planned.
fn is_wanted(planned: Option<&Placement>, directory: &Directory) -> bool {
    let wanted = planned.and_then(|planned| directory.placements.get(&planned.id));
    let runs = |wanted: &Placement| wanted.desired == Desired::Running;
    !directory.removed && wanted == planned && wanted.is_some_and(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::directory;

    #[tokio::test]
    async fn without_an_engine_a_step_fails_and_says_why() {
        let directory = Arc::new(directory());
        let (_in, wanted) = watch::channel(directory.clone());
        let mut jobs = Jobs::new(None, wanted);
        let subject = Subject::Placement(PlacementId(11));
        let step = Step {
            subject: subject.clone(),
            action: Action::Pull,
        };
        jobs.start(step, &directory);
        assert_eq!(jobs.ended(&DirtySet::default()).await, None);
        let told = ApplyError::NoEngine.to_string();
        assert_eq!(jobs.backoff.reason(&subject), Some(told.as_str()));
    }

    #[test]
    fn nothing_is_created_that_is_not_wanted_any_more() {
        let planned = directory().placements[&PlacementId(11)].clone();
        let mut now = directory();
        assert!(is_wanted(Some(&planned), &now));
        now.removed = true;
        assert!(!is_wanted(Some(&planned), &now));
        now = directory();
        now.placements.get_mut(&planned.id).unwrap().desired = Desired::Removed;
        assert!(!is_wanted(Some(&planned), &now));
        now.placements.clear();
        assert!(!is_wanted(Some(&planned), &now));
    }
}
