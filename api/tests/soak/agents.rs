//! Agents without hosts. Each keeps what the feed tells it, and has a session, or finds
//! one. What its containers are, and when it leaves, decides the one who drives it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kontena_schema::agent::{
    Changes, Desired, Endpoint, Health, InstanceState, InventoryEntry, Placement, PlacementReport,
    Position, Welcome,
};
use kontena_schema::ids::{LeaseNumber, NodeId, PlacementId, Revision, ServiceRevision};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::session::Runner;
use crate::world::World;

/// The longest that an agent may be without a replica, and its driver without what
/// must come.
pub const WITHIN: Duration = Duration::from_secs(60);

/// A container, by what it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Container {
    pub node: NodeId,
    pub lease: LeaseNumber,
    pub address: Ipv4Addr,
}

/// What an agent knows and has.
#[derive(Default)]
pub struct View {
    pub welcome: Option<Welcome>,
    pub at: Option<Position>,
    pub placements: BTreeMap<PlacementId, Placement>,
    pub endpoints: BTreeMap<PlacementId, Endpoint>,
    pub containers: BTreeMap<PlacementId, Container>,
    /// Whether a session is open, as far as the agent knows.
    pub online: bool,
    /// Counts its sessions.
    pub welcomes: u64,
    /// The code with which the Master told it not to come back.
    pub refused: Option<u16>,
    /// Until when a `hello` of which nothing was heard may still be taken, in
    /// milliseconds of the world.
    pub doubtful_until_ms: u64,
    /// What became of a copy of the host: with which code it was refused, if it was.
    pub twin: Option<Option<u16>>,
    /// What the Master did against the protocol.
    pub violations: Vec<String>,
}

impl View {
    pub fn node(&self) -> NodeId {
        self.welcome.as_ref().expect("it was welcomed").node
    }

    pub fn inventory(&self) -> Vec<InventoryEntry> {
        let entries = self.containers.iter();
        let entry = |(&placement, container): (&PlacementId, &Container)| InventoryEntry {
            placement,
            node: container.node,
            lease: container.lease,
            address: container.address,
        };
        entries.map(entry).collect()
    }

    /// Makes the containers agree with the feed, those apart that are to go, and
    /// answers what to report.
    pub fn apply(&mut self) -> Vec<PlacementReport> {
        let node = self.node();
        let mut reports = Vec::new();
        self.containers
            .retain(|id, _| self.placements.contains_key(id));
        for (&id, placement) in &self.placements {
            let (Desired::Running, Some(address), Some(lease)) =
                (placement.desired, placement.address, placement.lease)
            else {
                continue;
            };
            let container = Container {
                node,
                lease,
                address,
            };
            if self.containers.insert(id, container) != Some(container) {
                reports.push(report(id, Some(lease), InstanceState::Running));
            }
        }
        reports
    }

    pub fn merge(&mut self, changes: Changes) {
        let at = self.at.as_ref().map_or(Revision::ZERO, |at| at.revision);
        if changes.from != at && changes.from != Revision::ZERO {
            let (from, to) = (changes.from, changes.to);
            self.violations
                .push(format!("changes from {from} to {to} for an agent at {at}"));
        }
        if changes.from == Revision::ZERO {
            self.placements.clear();
            self.endpoints.clear();
        }
        let (shared, own) = (changes.shared, changes.own);
        let gone = own.gone_placements.iter();
        gone.for_each(|id| drop(self.placements.remove(id)));
        let gone = shared.gone_endpoints.iter();
        gone.for_each(|id| drop(self.endpoints.remove(id)));
        self.placements
            .extend(own.placements.into_iter().map(|p| (p.id, p)));
        self.endpoints
            .extend(shared.endpoints.into_iter().map(|e| (e.placement, e)));
        let grid = self.welcome.as_ref().expect("it was welcomed").grid;
        self.at = Some(Position {
            grid,
            timeline: changes.timeline,
            revision: changes.to,
        });
    }
}

pub fn report(
    placement: PlacementId,
    lease: Option<LeaseNumber>,
    state: InstanceState,
) -> PlacementReport {
    PlacementReport {
        placement,
        service_revision: ServiceRevision(1),
        lease,
        state,
        health: Health::Unknown,
        container_id: None,
        container_name: None,
        error: None,
    }
}

/// How an agent leaves.
#[derive(Clone, Copy, Debug)]
pub enum Leave {
    /// With a word.
    Close,
    /// The connection ends.
    Drop,
}

pub enum Command {
    Connect(Vec<InventoryEntry>),
    /// Whoever waits at the other end of the channel learns that it was obeyed.
    Leave(Leave, oneshot::Sender<()>),
    Send(Vec<PlacementReport>),
    /// Opens another session, and then says this over the old one.
    Move(Vec<PlacementReport>),
    /// The agent starts anew; then the run before it comes back, as a copy of the host
    /// does.
    Restart,
}

/// The driver's end of an agent.
pub struct Agent {
    pub engine: String,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

pub struct Shared {
    view: Mutex<View>,
    /// Counts the changes of the view.
    changed: watch::Sender<u64>,
}

impl Shared {
    pub fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn update<T>(&self, update: impl FnOnce(&mut View) -> T) -> T {
        let answer = update(&mut self.view());
        self.changed.send_modify(|count| *count += 1);
        answer
    }
}

impl Agent {
    pub fn new(world: &Arc<World>, engine: String, token: String) -> Self {
        let shared = Arc::new(Shared {
            view: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        // A driver does one thing after the other.
        let (commands, receiver) = mpsc::channel(16);
        let runner = Runner::new(world, &shared, engine.clone(), token);
        let task = tokio::spawn(runner.run(receiver));
        Self {
            engine,
            shared,
            commands,
            task,
        }
    }

    pub fn view(&self) -> MutexGuard<'_, View> {
        self.shared.view()
    }

    /// Waits until the view has what is looked for.
    pub async fn until<T>(
        &self,
        mut found: impl FnMut(&View) -> Option<T>,
        bound: Duration,
    ) -> Option<T> {
        let mut changed = self.shared.changed.subscribe();
        let look = async {
            loop {
                changed.mark_unchanged();
                if let Some(value) = found(&self.view()) {
                    return value;
                }
                changed.changed().await.expect("the agent keeps it");
            }
        };
        timeout(bound, look).await.ok()
    }

    async fn command(&self, command: Command) {
        let sent = self.commands.send(command).await;
        assert!(sent.is_ok(), "agent {} ended", self.engine);
    }

    /// Opens a session that begins with `inventory`, or learns that it may not.
    pub async fn connect(&self, inventory: Vec<InventoryEntry>) -> Result<(), u16> {
        self.shared.update(|view| view.refused = None);
        let before = self.view().welcomes;
        self.command(Command::Connect(inventory)).await;
        let opened = self.until(
            |view| match view.refused {
                Some(code) => Some(Err(code)),
                None => (view.welcomes > before && view.online).then_some(Ok(())),
            },
            WITHIN,
        );
        let opened = opened.await;
        opened.unwrap_or_else(|| panic!("agent {} finds no replica", self.engine))
    }

    /// Leaves, and does not come back before it is told to: an agent that has just lost its
    /// replica finds another one first, and leaves that.
    pub async fn leave(&self, how: Leave) {
        let (obeyed, left) = oneshot::channel();
        self.command(Command::Leave(how, obeyed)).await;
        // One that has no session has nothing to leave, and drops its end.
        let _ = timeout(WITHIN * 2, left).await.expect("leaving has an end");
    }

    pub async fn send(&self, reports: Vec<PlacementReport>) {
        self.command(Command::Send(reports)).await;
    }

    /// Opens another session and says `late` over the one before.
    pub async fn change_session(&self, late: Vec<PlacementReport>) {
        let before = self.view().welcomes;
        self.command(Command::Move(late)).await;
        let moved = self.until(
            |view| (view.refused.is_some() || view.welcomes > before && view.online).then_some(()),
            WITHIN,
        );
        moved.await.expect("a replica is there");
    }

    /// Starts the agent anew, and lets the run before it come back; answers with which
    /// code that was refused, if it was.
    pub async fn restart(&self) -> Option<u16> {
        self.shared.update(|view| view.twin = None);
        self.command(Command::Restart).await;
        let twin = self.until(|view| view.twin, WITHIN).await;
        twin.expect("it has an end")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
