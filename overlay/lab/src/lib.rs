//! Hosts for tests of the overlay: a switch, hosts, and containers on them.
//!
//! A host runs the overlay under test; a container is a process.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test that cannot go on fails"
)]

mod wireguard_go;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

pub use kontena_lab::{BOUND, Netns, Switch, count, counted, eventually, send, underlay, within};
use kontena_lab::{Keeper, packets};

use kontena_overlay::{
    Attachment, Clear, Echoes, EgressPolicy, EncryptedBy, Health, HostServices, MulticastLimit,
    Overlay, OverlayError, OverlayIntent, OverlayReport, OwnState, PeerStates, Process,
};
use kontena_schema::address::InnerSubnet;
use kontena_schema::agent::{Endpoint, GridSettings, Measures, NodeEntry};
use kontena_schema::ids::{GridId, KeyTurn, LeaseNumber, NodeId, NodeNumber, PlacementId};
use kontena_schema::key::PublicKeys;
use kontena_schema::limits::VXLAN_PORT;
use kontena_schema::mac::Mac;
use kontena_schema::path::{Path, Site, path};
use kontena_sleeve::PrivateKey;
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::{Builder, Handle, Runtime};

use wireguard_go::WireGuard;

/// The address of the lab's Master, which does not run.
pub const MASTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 250);

/// A container, as its first process.
pub struct Container {
    child: Child,
    /// What the child is to Docker.
    process: Process,
    pub netns: Netns,
    pub placement: PlacementId,
    pub address: Ipv4Addr,
    pub lease: LeaseNumber,
}

impl Container {
    pub fn start(id: i64, address: Ipv4Addr) -> Self {
        let mut command = Command::new("sleep");
        command.arg("infinity").stdin(Stdio::null());
        // SAFETY: both are system calls, which are allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(unshare(CloneFlags::CLONE_NEWNET)?)
            });
        }
        // `spawn` returns after `exec`, so the namespace is there.
        let child = command.spawn().unwrap();
        let process = Process::of(child.id().cast_signed()).unwrap();
        let netns = Netns::of(process.pid);
        netns.run("ip link set lo up");
        Self {
            child,
            process,
            netns,
            placement: PlacementId(id),
            address,
            lease: LeaseNumber(id),
        }
    }

    pub fn attachment(&self) -> Attachment {
        Attachment {
            process: self.process,
            container_id: format!("c{}", self.placement),
            address: self.address,
            mac: Mac::of_lease(self.address, self.lease),
        }
    }

    pub fn endpoint(&self, node: NodeId) -> Endpoint {
        Endpoint {
            placement: self.placement,
            node,
            address: self.address,
            lease: self.lease,
            stack: None,
            service: "web".to_owned(),
            instance: 1,
            ready: true,
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host with the overlay under test.
pub struct Host {
    keeper: Keeper,
    agent: Mutex<Option<Agent>>,
    pub netns: Netns,
    pub node: NodeEntry,
    pub keys: Vec<PrivateKey>,
    /// Its WireGuard; without one, the sleeve encrypts.
    pub wireguard: Option<WireGuard>,
    pub containers: Vec<Container>,
    /// Whether its kernel has tables of the packet filter that nobody else can take away.
    pub live_table: bool,
    /// What it serves at its overlay address.
    pub services: HostServices,
    /// How much each of its containers may send to all.
    pub multicast: MulticastLimit,
}

/// The part of an agent that a host runs: the overlay, and its runtime.
struct Agent {
    overlay: Arc<Overlay>,
    runtime: Runtime,
}

impl Host {
    /// A host with underlay address 198.51.100.`number` on the switch.
    pub fn start(switch: &Switch, number: u8) -> Self {
        Self::start_at(number, site(number), |netns| switch.plug(netns, number))
    }

    /// The same, with a WireGuard device.
    pub fn start_with_wireguard(switch: &Switch, number: u8) -> Self {
        let mut host = Self::idle(number, site(number), |netns| switch.plug(netns, number));
        host.wireguard = Some(WireGuard::start(&host.netns));
        host.start_agent();
        host
    }

    /// The same, where whoever likes can change all of the packet filter.
    pub fn start_without_live_table(switch: &Switch, number: u8) -> Self {
        let mut host = Self::idle(number, site(number), |netns| switch.plug(netns, number));
        host.live_table = false;
        host.start_agent();
        host
    }

    /// A host at another netns.
    pub fn start_at(number: u8, site: Site, plug: impl FnOnce(&Netns)) -> Self {
        let host = Self::idle(number, site, plug);
        host.start_agent();
        host
    }

    /// A host without an agent.
    fn idle(number: u8, site: Site, plug: impl FnOnce(&Netns)) -> Self {
        let (keeper, netns) = Keeper::start();
        plug(&netns);
        let key = PrivateKey::from_octets([number; 32]);
        let keys = PublicKeys {
            current: key.public(),
            next: None,
        };
        let node = NodeEntry {
            id: NodeId(number.into()),
            name: format!("node-{number}"),
            number: NodeNumber::try_from(number).unwrap(),
            address: Ipv4Addr::new(10, 81, 0, number),
            site,
            behind_nat: None,
            keys: Some(keys),
            next_key_known: false,
            key_turn: KeyTurn(0),
        };
        Self {
            keeper,
            agent: Mutex::new(None),
            netns,
            node,
            keys: vec![key],
            wireguard: None,
            containers: Vec::new(),
            live_table: true,
            services: HostServices::default(),
            multicast: MulticastLimit::default(),
        }
    }

    /// Starts a container with address 10.81.1.`id`.
    pub fn add_container(&mut self, id: u8) {
        self.containers
            .push(Container::start(id.into(), Ipv4Addr::new(10, 81, 1, id)));
    }

    /// Stops the agent without any cleanup.
    pub fn stop_agent(&self) {
        let Some(Agent { overlay, runtime }) = self.agent.lock().unwrap().take() else {
            return;
        };
        drop(overlay);
        // Its tasks hold the encrypted path.
        runtime.shutdown_timeout(BOUND);
    }

    pub fn start_agent(&self) {
        let by = match &self.wireguard {
            Some(wireguard) => EncryptedBy::UserSpace(wireguard.socket()),
            None => EncryptedBy::Sleeve,
        };
        let open = match self.live_table {
            true => Overlay::encrypted_by,
            false => Overlay::without_live_table,
        };
        let agent = self.keeper.run(move || {
            // Its threads are in the namespace of the thread that starts them.
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let overlay = runtime.block_on(async { open(&by) }).unwrap();
            let overlay = Arc::new(overlay);
            Agent { overlay, runtime }
        });
        *self.agent.lock().unwrap() = Some(agent);
    }

    /// Starts the agent anew, on a thread that was prepared for it.
    pub fn restart_agent_in(&self, prepare: impl FnOnce() + Send + 'static) {
        self.stop_agent();
        self.keeper.run(prepare);
        self.start_agent();
    }

    /// The agent is about to be stopped, as planned.
    pub fn outlive(&self) {
        let (overlay, runtime) = self.agent();
        runtime.block_on(async { overlay.outlive().await });
    }

    pub fn agent(&self) -> (Arc<Overlay>, Handle) {
        let agent = self.agent.lock().unwrap();
        let agent = agent.as_ref().expect("an agent");
        (Arc::clone(&agent.overlay), agent.runtime.handle().clone())
    }

    /// One reconciliation pass.
    pub fn reconcile(&self, intent: &OverlayIntent) -> OverlayReport {
        let (overlay, runtime) = self.agent();
        let intent = intent.clone();
        overlay.permit(Some(&intent));
        let pass = move || runtime.block_on(async { overlay.reconcile(&intent).await });
        self.keeper.run(pass)
    }

    /// What it knows of its peers.
    pub fn peers(&self) -> PeerStates {
        self.agent().0.peers().borrow().clone()
    }

    pub fn health(&self) -> BTreeMap<NodeId, Health> {
        self.agent().0.health()
    }

    /// Sends echoes from its own overlay address.
    pub fn echo(&self, to: Ipv4Addr, count: u16) -> Result<Echoes, OverlayError> {
        let (overlay, runtime) = self.agent();
        let from = self.node.address;
        // Not on a thread inside: the agent enters its namespace by itself.
        runtime.block_on(async { overlay.echo(from, to, count).await })
    }

    pub fn statistics(&self) -> Measures {
        let (overlay, runtime) = self.agent();
        let measure = move || runtime.block_on(async { overlay.statistics().await });
        self.keeper.run(measure).unwrap()
    }

    /// One pass that must succeed.
    pub fn must_reconcile(&self, intent: &OverlayIntent) -> OverlayReport {
        let report = self.reconcile(intent);
        assert!(
            report.errors.is_empty(),
            "{}: {:#?}",
            self.node.name,
            report.errors
        );
        assert!(
            report.attached.values().all(Result::is_ok),
            "{:?}",
            report.attached
        );
        report
    }

    /// Leaves the grid.
    pub fn remove_all(&self) -> Vec<OverlayError> {
        let (overlay, runtime) = self.agent();
        let leave = move || runtime.block_on(async { overlay.remove_all().await });
        self.keeper.run(leave)
    }
}

/// Retries a call that a signal interrupted: child processes of the agent exit at any time, and
/// the kernel does not restart a socket call that has a timeout.
pub fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Takes the packet filter away for good, and the agent with it, whose live table nobody
/// else can take away.
pub fn remove_filter(host: &Host) {
    host.stop_agent();
    host.netns.run("nft delete table inet kontena");
}

/// How many packets or frames one of our own tables dropped.
pub fn dropped(host: &Host, counter: &str) -> u64 {
    let table = match counter {
        "dropped_sender" | "dropped_arp" => "netdev kontena",
        "dropped_source" | "dropped_multicast" | "dropped_ethertype" => "netdev kontena_ports",
        _ => "inet kontena",
    };
    let list = format!("nft -j list counter {table} {counter}");
    packets(&host.netns.run(&list))
}

/// The UDP payload of a frame in clear between two hosts (RFC 7348).
pub fn in_clear(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0], &(vni << 8).to_be_bytes()[..], frame].concat()
}

/// Sends frames to the VXLAN ports of other hosts (by the last octet of the underlay address),
/// which this host's own device would not send.
pub fn forger(host: &Host, vni: u32) -> impl Fn(u8, &[u8]) {
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let socket = host.netns.inside(bind).unwrap();
    move |to, frame| {
        let at = (underlay(to), VXLAN_PORT);
        socket.send_to(&in_clear(vni, frame), at).unwrap();
    }
}

/// The public keys of a host, as the directory has them.
pub fn public_keys(current: &PrivateKey, next: Option<&PrivateKey>) -> Option<PublicKeys> {
    Some(PublicKeys {
        current: current.public(),
        next: next.map(PrivateKey::public),
    })
}

/// A grid that trusts these subnets.
pub fn grid(vni: u32, trusted: &[&str]) -> GridSettings {
    GridSettings {
        id: GridId(vni.into()),
        name: format!("grid-{vni}"),
        subnet: "10.81.0.0/19".parse().unwrap(),
        supernet: "10.81.0.0/17".parse().unwrap(),
        inner_subnet: InnerSubnet::default(),
        trusted_subnets: trusted
            .iter()
            .map(|subnet| subnet.parse().unwrap())
            .collect(),
        vni,
    }
}

/// The grid that trusts all hosts of the lab.
pub fn trusting() -> GridSettings {
    grid(7, &["198.51.100.0/24"])
}

/// The intent of one host, from a directory of all these hosts.
pub fn intent(grid: &GridSettings, own: &Host, all: &[&Host]) -> OverlayIntent {
    let nodes = all.iter().map(|host| &host.node);
    let endpoints: Vec<Endpoint> = all
        .iter()
        .flat_map(|host| host.containers.iter().map(|c| c.endpoint(host.node.id)))
        .collect();
    let attachments: BTreeMap<_, _> = own
        .containers
        .iter()
        .map(|c| (c.placement, c.attachment()))
        .collect();
    let state = OwnState {
        attachments: Some(attachments),
        keys: own.keys.clone(),
        peers: own.peers(),
        services: own.services.clone(),
        egress: EgressPolicy {
            masters: Some(BTreeSet::from([(MASTER, 443).into()])),
            bridges: Some(BTreeSet::from(["docker0".to_owned(), "kontena".to_owned()])),
        },
        multicast: own.multicast,
    };
    OverlayIntent::from_directory(grid, &own.node, nodes, &endpoints, state)
}

/// One pass on a host, with a directory of all of them; returns the number of steps.
pub fn pass(grid: &GridSettings, host: &Host, all: &[&Host]) -> usize {
    host.must_reconcile(&intent(grid, host, all)).steps_applied
}

/// Passes on every host until all peers are in the state that the grid asks for and no step is
/// left; returns the number of steps.
pub fn converge(grid: &GridSettings, all: &[&Host]) -> usize {
    let mut steps = 0;
    eventually("all peers are in the state that is asked for", || {
        // Read before the passes, so that they are based on it.
        let there = all.iter().try_for_each(|host| converged(grid, host, all));
        let more: usize = all.iter().map(|host| pass(grid, host, all)).sum();
        steps += more;
        if more > 0 {
            return Err(format!("{more} steps more"));
        }
        there
    });
    steps
}

/// Whether the peers of a host are in the state that the grid asks for.
fn converged(grid: &GridSettings, own: &Host, all: &[&Host]) -> Result<(), String> {
    let peers = own.peers();
    for other in all.iter().filter(|other| other.node.id != own.node.id) {
        let wanted = path(&own.node.site, &other.node.site, &grid.trusted_subnets);
        let peer = peers.get(&other.node.id).copied().unwrap_or_default();
        let clear = match wanted {
            Path::Fast { .. } => Clear::Send,
            _ => Clear::No,
        };
        if !peer.alive || peer.clear != clear {
            let (own, other) = (&own.node.name, &other.node.name);
            return Err(format!("{own} to {other}: {peer:?}"));
        }
    }
    Ok(())
}

fn site(number: u8) -> Site {
    Site {
        region: "lab".into(),
        public_ip: None,
        private_ip: Some(underlay(number)),
    }
}

/// Hosts 1 to `count` with a container each, converged.
pub fn world(count: u8, grid: &GridSettings) -> (Switch, Vec<Host>) {
    let all: Vec<_> = (1..=count).map(|_| Host::start as Start).collect();
    world_of(&all, grid)
}

/// How a host is started.
pub type Start = fn(&Switch, u8) -> Host;

/// The same, with hosts of different kinds.
pub fn world_of(all: &[Start], grid: &GridSettings) -> (Switch, Vec<Host>) {
    let switch = Switch::start();
    let start = |(number, start): (u8, &Start)| {
        let mut host = start(&switch, number);
        host.add_container(number);
        host
    };
    let hosts: Vec<Host> = (1..).zip(all).map(start).collect();
    converge(grid, &hosts.iter().collect::<Vec<_>>());
    (switch, hosts)
}
