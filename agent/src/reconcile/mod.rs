//! The loop that makes the host agree with the directory.
//!
//! Woken by a new directory, by an event of the engine, by a step that ended, by
//! a tick: observe, plan, start the steps, reconcile the overlay, publish names
//! and state. A hint and the tick run the same pass, and a pass that finds
//! everything right changes nothing.
//!
//! Invariants: without a directory that the Master gave, nothing is removed;
//! attachments come from what runs, not from what was started, so that a
//! container that Docker restarted gets its interface again without the Master.
//!
//! Absent on purpose: waiting. A pass starts steps and does not wait for them.

mod backoff;
mod commands;
mod names;
mod rightful;
mod works;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kontena_schema::agent::{CommandKind, CommandState, PeerReport};
use kontena_schema::ids::{NodeId, PlacementId, Revision};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use crate::apply::Tools;
use crate::directory::{Directory, Store};
use crate::dns::zone::Zone;
use crate::docker::networks::BridgesSlot;
use crate::docker::observe::{Container, Doubts, Observer};
use crate::docker::words;
use crate::keys::HostKeys;
use crate::overlay::{BRIDGE, Fence, Overlay, OverlayIntent, OwnState, PairStates, waits_longer};
use crate::plan::{Situation, Subject, by_placement, lease_reason, plan};
use crate::report::{Circumstances, HostState, Told, derive, inventory};
use commands::Journal;
use names::Names;
use rightful::attachments;
use works::{Ended, Works};

/// How often everything is looked at even if nothing rang.
const TICK: Duration = Duration::from_secs(10);

/// How soon an overlay with errors is tried again.
const OVERLAY_RETRY: Duration = Duration::from_secs(1);

/// Peers that come and go change no path; they are told together, so that a grid that
/// comes up is not told node by node. In a large one for longer, by [`waits_longer`].
const PEERS_TOLD_AFTER: Duration = Duration::from_secs(2);

/// Pairs that turn clear wait for others that do, so that a grid that comes up is not busy
/// with passes: a while, or so many times as long as the last pass took, and at most a
/// second, in a large grid longer by [`waits_longer`].
const CLEARED_TOGETHER: Duration = Duration::from_millis(250);
const CLEARED_AFTER_PASSES: u32 = 8;
const CLEARED_WITHIN: Duration = Duration::from_secs(1);
const CLEARED_WITHIN_MORE: Duration = Duration::from_secs(3);

/// What the loop listens to and where it publishes.
pub struct Slots {
    /// What the Master wants.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// This host's keys.
    pub keys: watch::Receiver<Arc<HostKeys>>,
    /// Where the Master is; none while that is not known.
    pub masters: watch::Receiver<Option<BTreeSet<SocketAddrV4>>>,
    /// What the engine's bridges are called.
    pub bridges: BridgesSlot,
    /// Containers that have to be looked at.
    pub doubts: Arc<Doubts>,
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
    engine_away: bool,
    overlay: Arc<Overlay>,
    /// What the overlay knows of this node's pairs.
    pairs: watch::Receiver<PairStates>,
    works: Works,
    journal: Journal,
    attached: BTreeMap<PlacementId, Result<(), String>>,
    names: Names,
    /// When the overlay is tried again after an error.
    overlay_retry: Option<Instant>,
    peers: Vec<PeerReport>,
    /// What the last pass made of the overlay.
    carried_out: Option<OverlayIntent>,
    /// When it did, if all went well, and how long it took.
    settled: Option<(Instant, Duration)>,
    /// When changes of peers are told that are nothing else.
    peers_due: Option<Instant>,
    applied: Revision,
    /// The overlay was taken down after the node's removal.
    torn_down: bool,
}

impl Reconciler {
    /// A loop over the given slots; without tools there is no engine.
    pub fn new(slots: Slots, store: Store, overlay: Arc<Overlay>, tools: Option<Tools>) -> Self {
        let journal = match store.commands::<Journal>() {
            Ok(journal) => journal.unwrap_or_default().resumed(),
            Err(_) => Journal::lost(&slots.directory.borrow()),
        };
        let names = Names::new(&slots.directory.borrow());
        let observer = Observer::new(tools.as_ref().map(|tools| tools.docker.clone()));
        let works = Works::new(tools, slots.directory.clone());
        Self {
            slots,
            store,
            observer,
            engine_away: false,
            pairs: overlay.pairs(),
            overlay,
            works,
            journal,
            attached: BTreeMap::new(),
            names,
            overlay_retry: None,
            peers: Vec::new(),
            carried_out: None,
            settled: None,
            peers_due: None,
            applied: Revision::ZERO,
            torn_down: false,
        }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retries = [self.works.backoff.next(Instant::now()), self.overlay_retry];
            let retry = retries.into_iter().flatten().min();
            let retry = retry.unwrap_or_else(|| Instant::now() + TICK);
            let told = self.peers_due.unwrap_or(retry);
            let doubts = self.slots.doubts.clone();
            tokio::select! {
                Ok(()) = self.slots.directory.changed() => {}
                () = doubts.changed() => {}
                ended = self.works.ended(&doubts) => self.command_ended(ended),
                Ok(()) = self.pairs.changed() => if self.pairs_wait() {
                    continue;
                },
                () = sleep_until(told.into()), if self.peers_due.is_some() => if self.tell_peers() {
                    continue;
                },
                Ok(()) = self.slots.keys.changed() => {}
                Ok(()) = self.slots.masters.changed() => {}
                Ok(()) = self.slots.bridges.changed() => {}
                () = sleep_until(retry.into()) => {}
                _ = ticks.tick() => doubts.add_all(),
            }
            self.pass().await;
        }
    }

    async fn pass(&mut self) {
        let directory = self.slots.directory.borrow_and_update().clone();
        if !self.observe().await {
            return;
        }
        let containers = self.observer.last();
        let ids = containers
            .iter()
            .map(|container| container.id.clone())
            .collect();
        self.works.forget(&directory, &ids);
        // Names of what died vanish before anything else is done.
        self.publish_names(&directory, &containers);
        self.start_steps(&directory, &containers);
        self.start_commands(&directory, &containers).await;
        self.reconcile_overlay(&directory, &containers).await;
        self.publish_names(&directory, &containers);
        self.publish_state(&directory, &containers);
    }

    /// Looks at the containers. What was seen last stands in for an engine that
    /// is away; before the first look there is nothing to go by.
    async fn observe(&mut self) -> bool {
        match self.observer.look(&self.slots.doubts).await {
            Ok(()) => self.engine_away = false,
            Err(err) if !self.engine_away => {
                warn!(reason = words(&err), "the containers cannot be seen");
                self.engine_away = true;
            }
            Err(_) => {}
        }
        !self.engine_away || self.slots.host.borrow().is_some()
    }

    fn start_steps(&mut self, directory: &Arc<Directory>, containers: &[Container]) {
        let known = directory.reached.is_some() || directory.removed;
        if !known || self.engine_away {
            return;
        }
        let situation = Situation {
            node: node(directory).unwrap_or(NodeId(0)),
            placements: &directory.placements,
            containers,
            prepared: &self.works.prepared,
            held: &self.works.held(Instant::now()),
        };
        let steps = plan(&situation);
        for step in &steps {
            if let Some(reason) = lease_reason(step, &situation) {
                info!(subject = ?step.subject, reason, "the container lost its lease");
            }
        }
        for step in steps {
            self.works.start(step, directory);
        }
    }

    async fn start_commands(&mut self, directory: &Directory, containers: &[Container]) {
        self.journal.enter(directory);
        while let Some(command) = self.journal.next(directory) {
            let subject = Subject::Placement(command.placement);
            if self.works.phase(command.placement).is_some() {
                break;
            }
            self.journal.started(command.id);
            // At most once: what is not on disk is not begun.
            if let Err(err) = self.save_journal() {
                let why = format!("it could not be written down: {err}");
                self.journal
                    .ended(command.id, CommandState::Failed, Some(why));
                continue;
            }
            let of = |container: &&Container| {
                let origin = container.origin.as_ref();
                origin.is_some_and(|origin| origin.placement == command.placement)
            };
            match (command.kind, containers.iter().find(of)) {
                (CommandKind::Restart, Some(container)) => {
                    info!(command = %command.id, ?subject, "restarting");
                    self.works
                        .restart(command.id, command.placement, container.id.clone());
                }
                (CommandKind::Restart, None) => {
                    let why = "there is no container".to_owned();
                    self.command_ended(Some((command.id, CommandState::Failed, Some(why))));
                }
            }
        }
    }

    fn command_ended(&mut self, ended: Option<Ended>) {
        let Some((command, state, error)) = ended else {
            return;
        };
        info!(%command, ?state, error, "command ended");
        self.journal.ended(command, state, error);
        if let Err(err) = self.save_journal() {
            error!(%err, "the end of a command is not written down");
        }
    }

    fn save_journal(&self) -> Result<(), crate::directory::StoreError> {
        tokio::task::block_in_place(|| self.store.save_commands(&self.journal))
    }

    /// Whether what is known of the pairs now asks for no pass, or for none yet.
    fn pairs_wait(&mut self) -> bool {
        let pairs = self.pairs.borrow_and_update();
        let Some(intent) = &self.carried_out else {
            return false;
        };
        let now = Instant::now();
        if intent.suits(&pairs) {
            let times = waits_longer(intent.peers.len());
            let due = now + PEERS_TOLD_AFTER * times.saturating_add(1);
            self.peers_due.get_or_insert(due);
            return true;
        }
        // What is to be sealed waits for nobody.
        let peers = intent.peers.len();
        let after = self
            .settled
            .map(|(at, took)| at + cleared_together(took, peers));
        let Some(after) = after.filter(|after| *after > now && !intent.is_urgent(&pairs)) else {
            return false;
        };
        self.overlay_retry = Some(self.overlay_retry.map_or(after, |at| at.min(after)));
        true
    }

    /// Tells of the peers; false if their paths are to change first.
    fn tell_peers(&mut self) -> bool {
        self.peers_due = None;
        let pairs = self.pairs.borrow_and_update().clone();
        let suits = |intent: &&mut OverlayIntent| intent.suits(&pairs);
        let Some(intent) = self.carried_out.as_mut().filter(suits) else {
            return false;
        };
        intent.set_pairs(&pairs);
        self.peers = self.overlay.peer_reports(intent);
        let directory = self.slots.directory.borrow().clone();
        self.publish_state(&directory, &self.observer.last());
        true
    }

    async fn reconcile_overlay(&mut self, directory: &Directory, containers: &[Container]) {
        self.overlay_retry = None;
        if directory.removed {
            return self.tear_down(containers).await;
        }
        let (Some(grid), Some(own)) = (&directory.grid, directory.own()) else {
            return;
        };
        self.torn_down = false;
        // Before the first pass that went well nobody knows who has one.
        let has_interface =
            |id| self.applied == Revision::ZERO || matches!(self.attached.get(&id), Some(Ok(())));
        let attachments = attachments(directory, containers, has_interface);
        let (nodes, endpoints) = (directory.nodes.values(), directory.endpoints.values());
        let fence = self.fence();
        let state = OwnState {
            attachments,
            keys: self.slots.keys.borrow_and_update().own.clone(),
            pairs: self.pairs.borrow_and_update().clone(),
            fence,
        };
        let intent = OverlayIntent::from_directory(grid, own, nodes, endpoints, state);
        if self.may_rest(&intent) {
            self.applied = directory.revision();
            // What was known of the pairs was read, and may be new.
            self.peers_due.get_or_insert_with(Instant::now);
            return;
        }
        let began = Instant::now();
        let report = self.overlay.reconcile(&intent).await;
        for err in &report.errors {
            error!(%err, "overlay");
        }
        for (placement, result) in &report.attached {
            if let Err(reason) = result {
                warn!(%placement, reason, "not attached");
            }
        }
        if report.errors.is_empty() && self.applied != directory.revision() {
            self.applied = directory.revision();
            info!(revision = %self.applied, steps = report.steps_applied, "reconciled");
        } else {
            debug!(revision = %self.applied, steps = report.steps_applied, "looked");
        }
        let failed = !report.errors.is_empty() || report.attached.values().any(Result::is_err);
        self.overlay_retry = failed.then(|| Instant::now() + OVERLAY_RETRY);
        self.settled = (!failed).then(|| (Instant::now(), began.elapsed()));
        self.attached = report.attached;
        self.peers = report.peers;
        self.peers_due = None;
        self.carried_out = report.carried_out;
    }

    /// Whether the overlay can be left as it is: it was made so a short while ago. A look
    /// costs as much as there are peers; what others do to it in the kernel is mended that
    /// much later.
    fn may_rest(&self, intent: &OverlayIntent) -> bool {
        let (Some((at, _)), Some(carried_out)) = (self.settled, &self.carried_out) else {
            return false;
        };
        at.elapsed() < TICK * waits_longer(intent.peers.len())
            && self.overlay.seals()
            && intent.asks_the_same(carried_out)
            && carried_out.suits(&self.pairs.borrow())
    }

    /// Containers have no business with the Master, on whichever way.
    fn fence(&mut self) -> Fence {
        let mut bridges = self.slots.bridges.borrow_and_update().clone();
        if let Some(bridges) = &mut bridges {
            bridges.insert(BRIDGE.to_owned());
        }
        Fence {
            masters: self.slots.masters.borrow_and_update().clone(),
            bridges,
        }
    }

    /// Nothing of a grid that this node was removed from stays: first the
    /// containers, then the overlay, then what was kept on disk.
    async fn tear_down(&mut self, containers: &[Container]) {
        self.attached.clear();
        self.peers.clear();
        self.carried_out = None;
        self.settled = None;
        if self.torn_down || self.engine_away || !containers.is_empty() {
            return;
        }
        let errors = self.overlay.remove_all().await;
        for err in &errors {
            error!(%err, "overlay");
        }
        if let Err(err) = self.store.forget() {
            error!(%err, "the removed grid is not forgotten");
        }
        self.torn_down = errors.is_empty();
        self.overlay_retry = (!self.torn_down).then(|| Instant::now() + OVERLAY_RETRY);
        info!(complete = self.torn_down, "left the grid");
    }

    fn publish_names(&mut self, directory: &Arc<Directory>, containers: &[Container]) {
        let (zone, attached) = (&self.slots.zone, &self.attached);
        self.names.publish(zone, directory, containers, attached);
    }

    fn publish_state(&self, directory: &Directory, containers: &[Container]) {
        let node = node(directory);
        let (of, _) = by_placement(&directory.placements, containers);
        let reports = directory.placements.values().map(|placement| {
            let subject = Subject::Placement(placement.id);
            let around = Circumstances {
                node: node.unwrap_or(NodeId(0)),
                phase: self.works.phase(placement.id),
                failure: self.works.backoff.reason(&subject),
                attached: self.attached.get(&placement.id),
            };
            let mine = of.get(&placement.id).map_or(&[][..], Vec::as_slice);
            (placement.id, derive(placement, mine, &around))
        });
        let told = Told {
            applied: self.applied.min(directory.revision()),
            placements: reports.collect(),
            commands: self.journal.reports(directory),
            peers: self
                .peers
                .iter()
                .map(|peer| (peer.node, peer.clone()))
                .collect(),
        };
        let state = HostState {
            node,
            inventory: inventory(containers),
            told,
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

/// How long after a pass that took so long pairs may turn clear, with so many peers.
fn cleared_together(took: Duration, peers: usize) -> Duration {
    let most = CLEARED_WITHIN + CLEARED_WITHIN_MORE * waits_longer(peers);
    (took * CLEARED_AFTER_PASSES).clamp(CLEARED_TOGETHER, most)
}

fn node(directory: &Directory) -> Option<NodeId> {
    directory.me.as_ref().map(|me| me.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_a_pass_costs_the_longer_pairs_wait_to_turn_clear() {
        let ms = Duration::from_millis;
        assert_eq!(cleared_together(ms(10), 2), CLEARED_TOGETHER);
        assert_eq!(cleared_together(ms(100), 2), ms(800));
        assert_eq!(
            cleared_together(ms(600), 2),
            CLEARED_WITHIN,
            "5 s are promised"
        );
        assert_eq!(cleared_together(ms(600), 253), ms(4800));
        assert_eq!(cleared_together(ms(60_000), 253), ms(10_000));
    }
}
