//! Our two paths, as an agent makes them: its overlay on each host, in a grid that
//! trusts the switch or nobody.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use kontena_lab::underlay;
use kontena_overlay::{
    Attachment, Clear, EgressPolicy, HostServices, MulticastLimit, Overlay, OverlayIntent,
    OverlayReport, OwnState, Process,
};
use kontena_schema::address::InnerSubnet;
use kontena_schema::agent::{Endpoint, GridSettings, NodeEntry};
use kontena_schema::ids::{GridId, KeyTurn, LeaseNumber, NodeId, NodeNumber, PlacementId};
use kontena_schema::key::PublicKeys;
use kontena_schema::mac::Mac;
use kontena_schema::path::Site;
use kontena_sleeve::PrivateKey;
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

use super::hosts::{Container, Host, Pair, address, of_each};
use super::process::until;
use crate::bench::BenchError;

const VNI: u32 = 7;
/// How often an agent looks at everything.
const PASS_EVERY: Duration = Duration::from_secs(10);
/// What the fast path's grid trusts: the switch.
const TRUSTED: &str = "198.51.100.0/24";

/// The path in clear.
pub(crate) fn fast(hosts: [Host; 2]) -> Result<Pair, BenchError> {
    start(hosts, &[TRUSTED])
}

/// The encrypted path.
pub(crate) fn sleeve(hosts: [Host; 2]) -> Result<Pair, BenchError> {
    start(hosts, &[])
}

/// The overlay of an agent, and what runs it.
struct Agent {
    overlay: Arc<Overlay>,
    runtime: Runtime,
}

impl Agent {
    /// On a host's thread: its own threads are in the same namespace then.
    fn start(host: &Host) -> Result<Self, BenchError> {
        host.keeper.run(|| {
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?;
            let overlay = runtime.block_on(Overlay::new());
            let overlay = overlay.map_err(|err| BenchError::Failed(err.to_string()))?;
            let overlay = Arc::new(overlay);
            Ok(Self { overlay, runtime })
        })
    }

    /// Looks again and again, as an agent does: the filter closes behind one that does
    /// not.
    fn keep_up(&self, intent: OverlayIntent) {
        let overlay = Arc::clone(&self.overlay);
        self.runtime.spawn(async move {
            loop {
                sleep(PASS_EVERY).await;
                let passed = overlay.reconcile(&intent).await;
                for error in passed.errors {
                    eprintln!("a pass of ours: {error}");
                }
            }
        });
    }

    fn reconcile(&self, host: &Host, intent: OverlayIntent) -> OverlayReport {
        let (overlay, runtime) = (Arc::clone(&self.overlay), self.runtime.handle().clone());
        overlay.permit(Some(&intent));
        let pass = move || runtime.block_on(async { overlay.reconcile(&intent).await });
        host.keeper.run(pass)
    }
}

fn start(hosts: [Host; 2], trusted: &[&str]) -> Result<Pair, BenchError> {
    let grid = grid(trusted)?;
    let containers = [(); 2].map(|()| Container::start());
    let agents = of_each(&hosts, Agent::start)?;
    let nodes = of_each(&hosts, |host| node(host.number))?;
    let endpoints = hosts.each_ref().map(|host| endpoint(host.number));
    let clear = if trusted.is_empty() {
        Clear::No
    } else {
        Clear::Send
    };
    let mut intents = [None, None];
    let pass = || {
        let mut settled = true;
        for (at, host) in hosts.iter().enumerate() {
            let pairs = agents[at].overlay.peers().borrow().clone();
            let pair = pairs.values().next().copied().unwrap_or_default();
            let state = OwnState {
                attachments: Some(attachments(host.number, &containers[at])),
                keys: vec![key(host.number)],
                peers: pairs,
                services: HostServices::default(),
                egress: EgressPolicy::default(),
                multicast: MulticastLimit::default(),
            };
            let intent =
                OverlayIntent::from_directory(&grid, &nodes[at], &nodes, &endpoints, state);
            let passed = agents[at].reconcile(host, intent.clone());
            let detached = passed.attached.values().any(Result::is_err);
            if !passed.errors.is_empty() || detached {
                return Err(format!("host {}: {passed:?}", host.number));
            }
            settled &= pair.alive && pair.clear == clear && passed.steps_applied == 0;
            intents[at] = Some(intent);
        }
        settled
            .then_some(())
            .ok_or("the pair is not settled".to_owned())
    };
    until("the pair is as it should be", pass)?;
    for (agent, intent) in agents.iter().zip(intents.into_iter().flatten()) {
        agent.keep_up(intent);
    }
    Pair::of(containers, address(hosts[1].number), (agents, hosts))
}

fn grid(trusted: &[&str]) -> Result<GridSettings, BenchError> {
    let network = |text: &str| {
        let failed = |err| BenchError::Failed(format!("{text}: {err}"));
        text.parse::<Ipv4Network>().map_err(failed)
    };
    let trusted: Result<_, _> = trusted.iter().map(|text| network(text)).collect();
    Ok(GridSettings {
        id: GridId(1),
        name: "bench".to_owned(),
        subnet: network("10.81.0.0/19")?,
        supernet: network("10.81.0.0/17")?,
        inner_subnet: InnerSubnet::default(),
        trusted_subnets: trusted?,
        vni: VNI,
    })
}

/// Of a host that has no secrets.
fn key(number: u8) -> PrivateKey {
    PrivateKey::from_octets([number; 32])
}

fn node(number: u8) -> Result<NodeEntry, BenchError> {
    let failed = |err| BenchError::Failed(format!("node {number}: {err}"));
    Ok(NodeEntry {
        id: NodeId(number.into()),
        name: format!("node-{number}"),
        number: NodeNumber::try_from(number).map_err(failed)?,
        address: Ipv4Addr::new(10, 81, 0, number),
        site: Site {
            region: "bench".into(),
            public_ip: None,
            private_ip: Some(underlay(number)),
        },
        behind_nat: None,
        keys: Some(PublicKeys {
            current: key(number).public(),
            next: None,
        }),
        next_key_known: false,
        key_turn: KeyTurn(0),
    })
}

fn endpoint(number: u8) -> Endpoint {
    Endpoint {
        placement: PlacementId(number.into()),
        node: NodeId(number.into()),
        address: address(number),
        lease: LeaseNumber(number.into()),
        stack: None,
        service: "bench".to_owned(),
        instance: 1,
        ready: true,
    }
}

fn attachments(number: u8, container: &Container) -> BTreeMap<PlacementId, Attachment> {
    let endpoint = endpoint(number);
    let attachment = Attachment {
        process: Process::of(container.netns.task()).expect("the namespace is kept by a task"),
        container_id: format!("c{number}"),
        address: endpoint.address,
        mac: Mac::of_lease(endpoint.address, endpoint.lease),
    };
    BTreeMap::from([(endpoint.placement, attachment)])
}
