//! The loop that makes the host agree with the directory.
//!
//! Woken by a new directory, by a look at the containers, by a step that ended, by
//! a tick: take what is seen, plan, start the steps, tell the overlay which containers are to be
//! attached, publish names and state. A hint and the tick run the same pass, and a pass
//! that finds everything right changes nothing. The overlay converges in a task of its
//! own; what becomes of it is published as soon as it is known.
//!
//! Invariants: without a directory that the Master gave, nothing is removed;
//! attachments come from what runs, not from what was started, so that a
//! container that Docker restarted gets its interface again without the Master.
//!
//! Absent on purpose: waiting for Docker. What is observed is what was seen last, and
//! a pass starts steps and does not wait for them.

mod backoff;
mod commands;
mod eligible;
mod jobs;
mod leftovers;
mod names;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kontena_overlay::OverlayState;
use kontena_schema::agent::CommandState;
use kontena_schema::ids::{NodeId, Revision};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{error, info};

use crate::apply::Tools;
use crate::directory::{Directory, Store};
use crate::dns::zone::Zone;
use crate::docker::container::Container;
use crate::docker::dirty::{DirtySet, Look};
use crate::docker::observe::Observer;
use crate::docker::volumes::{Volume, VolumesSlot};
use crate::overlay::{Containers, UnavailableSlot};
use crate::plan::{PlanInput, Subject, by_placement, lease_reason, plan};
use crate::report::{Context, HostState, Reported, derive, inventory};
use commands::Journal;
use eligible::attachments;
use jobs::{Ended, Jobs};
use leftovers::Leftovers;
use names::Names;

/// How often everything is looked at even if nothing rang.
const TICK: Duration = Duration::from_secs(10);

/// What the loop listens to and where it publishes.
#[derive(Clone)]
pub struct Slots {
    /// What the Master wants.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// What became of the overlay.
    pub overlay: watch::Receiver<Arc<OverlayState>>,
    /// Why there is none.
    pub unavailable: UnavailableSlot,
    /// Containers that have to be looked at.
    pub dirty: Arc<DirtySet>,
    /// The data of placements.
    pub volumes: VolumesSlot,
    /// What the overlay must know of the containers.
    pub attached: watch::Sender<Arc<Containers>>,
    /// The names.
    pub zone: watch::Sender<Arc<Zone>>,
    /// The state of the host.
    pub host: watch::Sender<Option<Arc<HostState>>>,
}

/// The loop's own state: what is under way, and what the last pass saw. All of
/// it but the journal may be lost.
pub struct Reconciler {
    slots: Slots,
    store: Store,
    observer: Observer,
    leftovers: Leftovers,
    jobs: Jobs,
    journal: Journal,
    names: Names,
    /// The removed grid is forgotten on disk, too.
    forgotten: bool,
}

impl Reconciler {
    /// A loop over the given slots; without tools there is no engine.
    pub fn new(slots: Slots, store: Store, tools: Option<Tools>) -> Self {
        let journal = match store.commands::<Journal>() {
            Ok(journal) => journal.unwrap_or_default().resumed(),
            Err(_) => Journal::lost(&slots.directory.borrow()),
        };
        let names = Names::new(&slots.directory.borrow());
        let observer = Observer::new(tools.as_ref().map(|tools| tools.docker.clone()));
        let jobs = Jobs::new(tools, slots.directory.clone());
        Self {
            slots,
            store,
            observer,
            leftovers: Leftovers::default(),
            jobs,
            journal,
            names,
            forgotten: false,
        }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry = self.jobs.backoff.next(Instant::now());
            let retry = retry.unwrap_or_else(|| Instant::now() + TICK);
            let dirty = self.slots.dirty.clone();
            tokio::select! {
                Ok(()) = self.slots.directory.changed() => {}
                () = self.observer.progress(&dirty) => {}
                ended = self.jobs.ended(&dirty) => self.command_ended(ended),
                Ok(()) = self.slots.volumes.changed() => {}
                Ok(()) = self.slots.overlay.changed() => {
                    self.overlay_changed();
                    continue;
                }
                Ok(()) = self.slots.unavailable.changed() => {
                    self.overlay_changed();
                    continue;
                }
                () = sleep_until(retry.into()) => {}
                // The look that follows makes the pass.
                _ = ticks.tick() => {
                    dirty.add_all();
                    continue;
                }
            }
            self.pass();
        }
    }

    fn pass(&mut self) {
        let directory = self.slots.directory.borrow_and_update().clone();
        // Before the first look there is nothing to go by.
        if self.observer.seen() < Look::FIRST {
            return;
        }
        let containers = self.observer.last();
        let volumes = self.slots.volumes.borrow_and_update().clone();
        let volumes = volumes.as_deref().map_or(&[][..], Vec::as_slice);
        self.jobs.seen(self.observer.seen());
        self.jobs.forget(&directory, &containers, volumes);
        // Names of what died vanish before anything else is done.
        self.publish_names(&directory, &containers);
        self.start_steps(&directory, &containers, volumes);
        if !directory.outdated {
            self.start_commands(&directory, &containers);
        }
        self.tell_overlay(&directory, &containers);
        self.forget_grid(&directory);
        self.publish(&directory, &containers);
    }

    fn start_steps(
        &mut self,
        directory: &Arc<Directory>,
        containers: &[Container],
        volumes: &[Volume],
    ) {
        let known = directory.reached.is_some() || directory.removed;
        if !known || directory.outdated || self.observer.is_away() {
            return;
        }
        let now = Instant::now();
        let input = PlanInput {
            node: node(directory).unwrap_or(NodeId(0)),
            placements: &directory.placements,
            containers,
            prepared: &self.jobs.prepared,
            held: &self.jobs.held(now),
            volumes,
            ended: &self.leftovers.ended(now, directory, volumes),
        };
        let steps = plan(&input);
        for step in &steps {
            if let Some(reason) = lease_reason(step, &input) {
                info!(subject = ?step.subject, reason, "the container lost its lease");
            }
        }
        for step in steps {
            self.jobs.start(step, directory);
        }
    }

    fn start_commands(&mut self, directory: &Directory, containers: &[Container]) {
        self.journal.enter(directory);
        while self.jobs.has_room()
            && let Some(command) = self.journal.next(directory)
        {
            self.journal.started(command.id);
            // At most once: what is not on disk is not begun.
            if let Err(err) = self.save_journal() {
                let why = format!("cannot record the command: {err}");
                self.journal
                    .ended(command.id, CommandState::Failed, Some(why));
                continue;
            }
            self.jobs.queue(command.clone());
        }
        for ended in self.jobs.start_commands(containers) {
            self.command_ended(Some(ended));
        }
    }

    fn command_ended(&mut self, ended: Option<Ended>) {
        let Some((command, state, error)) = ended else {
            return;
        };
        info!(%command, ?state, error, "command ended");
        self.journal.ended(command, state, error);
        if let Err(err) = self.save_journal() {
            error!(%err, "cannot record the outcome of a command");
        }
    }

    fn save_journal(&self) -> Result<(), crate::directory::StoreError> {
        tokio::task::block_in_place(|| self.store.save_commands(&self.journal))
    }

    /// Tells the overlay which containers are to have an interface.
    fn tell_overlay(&self, directory: &Directory, containers: &[Container]) {
        let overlay = self.slots.overlay.borrow().clone();
        // Before the first pass that went well nobody knows who has one.
        let has_interface = |id| {
            let attached = overlay.attached.get(&id);
            overlay.applied == Revision::ZERO || matches!(attached, Some(Ok(())))
        };
        let new = Containers {
            // By what is outdated nobody can tell; what is attached stays.
            attachments: (!directory.outdated)
                .then(|| attachments(directory, containers, has_interface)),
            // What Docker does not answer for cannot be removed; it loses the overlay.
            left: directory.removed
                && !self.observer.is_away()
                && containers.iter().all(Container::is_unknown),
        };
        self.slots.attached.send_if_modified(|old| {
            let differs = **old != new;
            if differs {
                *old = Arc::new(new);
            }
            differs
        });
    }

    /// What was kept on disk of a grid that this node was removed from goes last.
    fn forget_grid(&mut self, directory: &Directory) {
        if !directory.removed {
            self.forgotten = false;
        } else if !self.forgotten && self.slots.overlay.borrow().left {
            match self.store.forget() {
                Ok(()) => self.forgotten = true,
                Err(err) => error!(%err, "cannot delete the state of the removed grid"),
            }
            info!(complete = self.forgotten, "left the grid");
        }
    }

    /// The overlay changed: who answers to which name may have, and what is reported.
    fn overlay_changed(&mut self) {
        self.slots.overlay.borrow_and_update();
        let directory = self.slots.directory.borrow().clone();
        self.forget_grid(&directory);
        // Before the first look there is nothing to report.
        if self.slots.host.borrow().is_some() {
            let containers = self.observer.last();
            self.publish(&directory, &containers);
        }
    }

    fn publish(&mut self, directory: &Arc<Directory>, containers: &[Container]) {
        self.publish_names(directory, containers);
        self.publish_state(directory, containers);
    }

    fn publish_names(&mut self, directory: &Arc<Directory>, containers: &[Container]) {
        let (zone, overlay) = (&self.slots.zone, self.slots.overlay.borrow());
        self.names
            .publish(zone, directory, containers, &overlay.attached);
    }

    fn publish_state(&self, directory: &Directory, containers: &[Container]) {
        let node = node(directory);
        let overlay = self.slots.overlay.borrow().clone();
        let unavailable = self.slots.unavailable.borrow().clone();
        let (of, _) = by_placement(&directory.placements, containers);
        let reports = directory.placements.values().map(|placement| {
            let subject = Subject::Placement(placement.id);
            let context = Context {
                node: node.unwrap_or(NodeId(0)),
                phase: self.jobs.phase(placement.id),
                failure: self.jobs.backoff.reason(&subject),
                attached: overlay.attached.get(&placement.id),
                unavailable: unavailable.as_deref(),
            };
            let mine = of.get(&placement.id).map_or(&[][..], Vec::as_slice);
            (placement.id, derive(placement, mine, &context))
        });
        let reported = Reported {
            applied: overlay.applied.min(directory.revision()),
            placements: reports.collect(),
            commands: self.journal.reports(directory),
            peers: overlay
                .peers
                .iter()
                .map(|peer| (peer.node, peer.clone()))
                .collect(),
        };
        let state = HostState {
            node,
            inventory: inventory(containers),
            reported,
        };
        self.slots.host.send_if_modified(|old| {
            let differs = old.as_deref() != Some(&state);
            if differs {
                *old = Some(Arc::new(state));
            }
            differs
        });
    }
}

fn node(directory: &Directory) -> Option<NodeId> {
    directory.me.as_ref().map(|me| me.node)
}
