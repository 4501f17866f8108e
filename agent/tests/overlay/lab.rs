//! A small world for one test: a switch, hosts on it, containers in them.
//!
//! A host runs the overlay under test; a container is a process.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

pub use kontena_lab::{BOUND, Place, Switch, count, counted, eventually, send, underlay};
use kontena_lab::{Keeper, packets};

use kontena_agent::overlay::{Attachment, Overlay, OverlayError, OverlayIntent, OverlayReport};
use kontena_schema::agent::{Endpoint, GridSettings, NodeEntry};
use kontena_schema::ids::{GridId, LeaseNumber, NodeId, NodeNumber, PlacementId};
use kontena_schema::mac::Mac;
use kontena_schema::path::Site;
use nix::sched::{CloneFlags, unshare};

/// A container's first process.
pub struct Container {
    process: Child,
    pub place: Place,
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
        let process = command.spawn().unwrap();
        let place = Place::of(process.id().cast_signed());
        place.run("ip link set lo up");
        Self {
            process,
            place,
            placement: PlacementId(id),
            address,
            lease: LeaseNumber(id),
        }
    }

    pub fn attachment(&self) -> Attachment {
        Attachment {
            pid: self.place.task(),
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
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A host node.
pub struct Host {
    keeper: Keeper,
    pub place: Place,
    pub node: NodeEntry,
    pub containers: Vec<Container>,
}

impl Host {
    /// A host with underlay address 198.51.100.`number` on the switch.
    pub fn start(switch: &Switch, number: u8) -> Self {
        let (keeper, place) = Keeper::start();
        switch.plug(&place, number);
        let ip = underlay(number);
        let site = Site {
            region: "lab".into(),
            public_ip: None,
            private_ip: Some(ip),
        };
        let node = NodeEntry {
            id: NodeId(number.into()),
            name: format!("node-{number}"),
            number: NodeNumber::try_from(number).unwrap(),
            address: Ipv4Addr::new(10, 81, 0, number),
            site,
            keys: None,
            next_key_known: false,
            key_turn: kontena_schema::ids::KeyTurn(0),
        };
        Self {
            keeper,
            place,
            node,
            containers: Vec::new(),
        }
    }

    /// Starts a container with address 10.81.1.`id`.
    pub fn add_container(&mut self, id: u8) {
        self.containers
            .push(Container::start(id.into(), Ipv4Addr::new(10, 81, 1, id)));
    }

    /// One pass of a freshly started agent.
    pub fn reconcile(&self, intent: &OverlayIntent) -> OverlayReport {
        let intent = intent.clone();
        self.keeper.run(move || {
            runtime().block_on(async { Overlay::new().await.unwrap().reconcile(&intent).await })
        })
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
        self.keeper
            .run(|| runtime().block_on(async { Overlay::new().await.unwrap().remove_all().await }))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// How many packets or frames one of our own tables dropped.
pub fn dropped(host: &Host, counter: &str) -> u64 {
    let of_guard = ["dropped_sender", "dropped_arp"].contains(&counter);
    let family = if of_guard { "netdev" } else { "inet" };
    let list = format!("nft -j list counter {family} kontena {counter}");
    packets(&host.place.run(&list))
}

/// A grid that trusts these subnets.
pub fn grid(vni: u32, trusted: &[&str]) -> GridSettings {
    GridSettings {
        id: GridId(vni.into()),
        name: format!("grid-{vni}"),
        subnet: "10.81.0.0/19".parse().unwrap(),
        supernet: "10.81.0.0/17".parse().unwrap(),
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

/// What the directory of all these hosts asks of one of them.
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
    OverlayIntent::from_directory(grid, &own.node, nodes, &endpoints, attachments)
}

/// One pass on every host, with what all of them have.
pub fn settle(grid: &GridSettings, all: &[&Host]) -> usize {
    all.iter()
        .map(|host| host.must_reconcile(&intent(grid, host, all)).steps_applied)
        .sum()
}

/// Hosts 1 to `count` with a container each, `settle`d.
pub fn world(count: u8, grid: &GridSettings) -> (Switch, Vec<Host>) {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=count)
        .map(|number| {
            let mut host = Host::start(&switch, number);
            host.add_container(number);
            host
        })
        .collect();
    settle(grid, &hosts.iter().collect::<Vec<_>>());
    (switch, hosts)
}
