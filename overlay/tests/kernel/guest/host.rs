//! Hosts of two kinds, and their passes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kontena_lab::{Keeper, Netns, Switch, underlay, within};
use kontena_overlay::{
    Attachment, Clear, EgressPolicy, EncryptedBy, Health, Overlay, OverlayIntent, OverlayReport,
    OwnState, PeerStates,
};
use kontena_schema::agent::{Endpoint, GridSettings, NodeEntry, PeerReport};
use kontena_schema::ids::{KeyTurn, NodeId, NodeNumber, PlacementId};
use kontena_schema::path::{Path, Site, path};
use kontena_sleeve::PrivateKey;
use tokio::runtime::{Builder, Runtime};

use kontena_overlay_lab::{Container, public_keys};

/// How long anything may take to become so on a machine that is emulated.
pub const BOUND: Duration = Duration::from_secs(180);

/// Waits until `look` finds something; fails with the last thing it said.
pub fn finally<T>(what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    within(BOUND, what, look)
}

/// Fails unless pings are answered at last.
pub fn reaches(from: &Netns, to: Ipv4Addr) {
    finally(&format!("ping {to}"), || from.ping(to));
}

/// What encrypts on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Kernel,
    Sleeve,
}

/// Every kind of host with every kind of peer.
pub const MIXES: [[Kind; 2]; 3] = [
    [Kind::Kernel, Kind::Kernel],
    [Kind::Kernel, Kind::Sleeve],
    [Kind::Sleeve, Kind::Kernel],
];

/// What of an agent is on a host: its overlay, and what runs it. As an agent does, it passes by itself when a path changes
/// and when the packet filter does: trust that an emulated processor renews too late ends, and is given anew.
struct Agent {
    overlay: Arc<Overlay>,
    runtime: Runtime,
    mender: Arc<Mender>,
}

/// The passes that nobody asked for.
#[derive(Default)]
struct Mender {
    /// What the last pass was for.
    last: Mutex<Option<Known>>,
    /// How many steps it took by itself since somebody asked. It is locked during a pass.
    steps: tokio::sync::Mutex<usize>,
}

impl Mender {
    async fn run(self: Arc<Self>, overlay: Arc<Overlay>) {
        let mut peers = overlay.peers();
        loop {
            tokio::select! {
                _ = overlay.disturbed() => {}
                Ok(()) = peers.changed() => {}
            }
            let states = peers.borrow_and_update().clone();
            let last = self.last.lock().unwrap().clone();
            if let Some(known) = last {
                let intent = known.intent(states);
                let mut steps = self.steps.lock().await;
                *steps += overlay.reconcile(&intent).await.steps_applied;
            }
        }
    }
}

/// A host node.
pub struct Host {
    keeper: Keeper,
    agent: Mutex<Option<Agent>>,
    kind: Kind,
    pub netns: Netns,
    pub node: NodeEntry,
    pub keys: Vec<PrivateKey>,
    pub containers: Vec<Arc<Container>>,
}

impl Host {
    /// A host with its agent, underlay address 198.51.100.`number` and a container, 10.81.1.`number`.
    pub fn start(switch: &Switch, number: u8, kind: Kind) -> Self {
        let mut host = Self::idle(switch, number, kind);
        host.start_agent();
        let address = Ipv4Addr::new(10, 81, 1, number);
        let container = Container::start(number.into(), address);
        host.containers.push(Arc::new(container));
        host
    }

    /// A host without agent and containers.
    pub fn idle(switch: &Switch, number: u8, kind: Kind) -> Self {
        let (keeper, netns) = Keeper::start();
        switch.plug(&netns, number);
        let key = PrivateKey::from_octets([number; 32]);
        Self {
            keeper,
            agent: Mutex::new(None),
            kind,
            netns,
            node: node(number, &key),
            keys: vec![key],
            containers: Vec::new(),
        }
    }

    /// Ends the agent, with nothing done first.
    pub fn stop_agent(&self) {
        let Some(Agent {
            overlay, runtime, ..
        }) = self.agent.lock().unwrap().take()
        else {
            return;
        };
        drop(overlay);
        runtime.shutdown_timeout(BOUND);
    }

    pub fn start_agent(&self) {
        let kind = self.kind;
        let agent = self.keeper.run(move || start(kind));
        *self.agent.lock().unwrap() = Some(agent);
    }

    fn agent<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(&Overlay) -> T + Send + 'static,
    ) -> T {
        let agent = self.agent.lock().unwrap();
        let agent = agent.as_ref().expect("an agent");
        let (overlay, runtime) = (Arc::clone(&agent.overlay), agent.runtime.handle().clone());
        self.keeper
            .run(move || runtime.block_on(async { work(&overlay).await }))
    }

    /// One pass.
    fn reconcile(&self, known: &Known) -> OverlayReport {
        let intent = known.intent(self.peers());
        let report = self.agent(async move |overlay| {
            // As the agent's task does when it is asked for something.
            overlay.permit(Some(&intent));
            overlay.reconcile(&intent).await
        });
        *self.mender().last.lock().unwrap() = Some(known.clone());
        report
    }

    /// How many steps it took by itself since this was asked.
    fn own_steps(&self) -> usize {
        std::mem::take(&mut *self.mender().steps.blocking_lock())
    }

    fn mender(&self) -> Arc<Mender> {
        let agent = self.agent.lock().unwrap();
        Arc::clone(&agent.as_ref().expect("an agent").mender)
    }

    /// What it knows of its peers.
    pub fn peers(&self) -> PeerStates {
        self.agent(async |overlay| overlay.peers().borrow().clone())
    }

    pub fn health(&self) -> BTreeMap<NodeId, Health> {
        self.agent(async |overlay| overlay.health())
    }

    /// What it dropped, by counter.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let statistics = self.agent(async |overlay| overlay.statistics().await);
        statistics.unwrap().drops
    }

    /// Everything of the agent's own, gone.
    pub fn leave(&self) {
        let errors = self.agent(async |overlay| overlay.remove_all().await);
        assert!(errors.is_empty(), "{errors:?}");
    }
}

/// Starts an agent for the namespace of the calling thread.
fn start(kind: Kind) -> Agent {
    // Its threads are in the namespace of the one that starts them.
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let overlay = Arc::new(runtime.block_on(overlay(kind)));
    let mender = Arc::<Mender>::default();
    runtime.spawn(Arc::clone(&mender).run(Arc::clone(&overlay)));
    Agent {
        overlay,
        runtime,
        mender,
    }
}

/// The overlay of a host of this kind: the agent's own choice here is the kernel.
pub async fn overlay(kind: Kind) -> Overlay {
    match kind {
        Kind::Kernel => Overlay::new().await.unwrap(),
        Kind::Sleeve => Overlay::encrypted_by(&EncryptedBy::Sleeve).unwrap(),
    }
}

fn node(number: u8, key: &PrivateKey) -> NodeEntry {
    let site = Site {
        region: "lab".into(),
        public_ip: None,
        private_ip: Some(underlay(number)),
    };
    NodeEntry {
        id: NodeId(number.into()),
        name: format!("node-{number}"),
        number: NodeNumber::try_from(number).unwrap(),
        address: Ipv4Addr::new(10, 81, 0, number),
        site,
        behind_nat: None,
        keys: public_keys(key, None),
        next_key_known: false,
        key_turn: KeyTurn(0),
    }
}

/// Everything but what is known of the peers that a host's intent is made of.
#[derive(Clone)]
pub struct Known {
    pub grid: GridSettings,
    pub own: NodeEntry,
    pub nodes: Vec<NodeEntry>,
    pub endpoints: Vec<Endpoint>,
    pub keys: Vec<PrivateKey>,
    pub attachments: BTreeMap<PlacementId, Attachment>,
}

impl Known {
    /// What the directory of all these hosts has for one of them.
    pub fn of(grid: &GridSettings, own: &Host, all: &[&Host]) -> Self {
        let endpoints = |host: &&Host| {
            let (node, containers) = (host.node.id, host.containers.iter());
            containers.map(|c| c.endpoint(node)).collect::<Vec<_>>()
        };
        let attachments = own.containers.iter().map(|c| (c.placement, c.attachment()));
        Self {
            grid: grid.clone(),
            own: own.node.clone(),
            nodes: all.iter().map(|host| host.node.clone()).collect(),
            endpoints: all.iter().flat_map(endpoints).collect(),
            keys: own.keys.clone(),
            attachments: attachments.collect(),
        }
    }

    pub fn intent(&self, peers: PeerStates) -> OverlayIntent {
        let state = OwnState {
            attachments: Some(self.attachments.clone()),
            keys: self.keys.clone(),
            peers,
            egress: EgressPolicy {
                masters: Some(BTreeSet::new()),
                bridges: Some(BTreeSet::from(["docker0".to_owned(), "kontena".to_owned()])),
            },
            services: kontena_overlay::HostServices::default(),
            multicast: kontena_overlay::MulticastLimit::default(),
        };
        OverlayIntent::from_directory(&self.grid, &self.own, &self.nodes, &self.endpoints, state)
    }

    /// Whether the paths to peers are as far as they come.
    pub fn settled(&self, peers: &PeerStates) -> Result<(), String> {
        for other in self.nodes.iter().filter(|other| other.id != self.own.id) {
            let peer = peers.get(&other.id).copied().unwrap_or_default();
            let clear = match path(&self.own.site, &other.site, &self.grid.trusted_subnets) {
                Path::Fast { .. } => Clear::Send,
                _ => Clear::No,
            };
            if !peer.alive || peer.clear != clear {
                return Err(format!("{} to {}: {peer:?}", self.own.name, other.name));
            }
        }
        Ok(())
    }
}

/// One pass that must succeed, with what all of these hosts have.
pub fn pass(grid: &GridSettings, host: &Host, all: &[&Host]) -> OverlayReport {
    let report = host.reconcile(&Known::of(grid, host, all));
    let attached = report.attached.values().all(Result::is_ok);
    assert!(
        report.errors.is_empty() && attached,
        "{}: {report:#?}",
        host.node.name
    );
    report
}

/// Passes on every host until every path is as the grid has it and nothing is left to do; how many steps there were.
pub fn settle(grid: &GridSettings, all: &[&Host]) -> usize {
    let mut steps = 0;
    finally("every path is as it should be", || {
        // Before the passes, so that they are of these pairs.
        let settled = |host: &&Host| Known::of(grid, host, all).settled(&host.peers());
        let there = all.iter().try_for_each(settled);
        let more: usize = all
            .iter()
            .map(|host| pass(grid, host, all).steps_applied + host.own_steps())
            .sum();
        steps += more;
        if more > 0 {
            return Err(format!("{more} steps more, {there:?}"));
        }
        there
    });
    steps
}

/// What a host reports of its only peer.
pub fn peer_report(grid: &GridSettings, host: &Host, all: &[&Host]) -> PeerReport {
    pass(grid, host, all).peers.remove(0)
}

/// Hosts 1, 2.. of these kinds, settled.
pub fn world(grid: &GridSettings, kinds: &[Kind]) -> (Switch, Vec<Host>) {
    let switch = Switch::start();
    let start = |(number, kind): (u8, &Kind)| Host::start(&switch, number, *kind);
    let hosts: Vec<Host> = (1..).zip(kinds).map(start).collect();
    settle(grid, &hosts.iter().collect::<Vec<_>>());
    (switch, hosts)
}
