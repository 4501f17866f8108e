//! The reconcile loop on a real Docker engine and a real overlay, the latter in a
//! network namespace of the test's own. One test, because the loop owns every
//! service container of its engine.
//!
//! It needs root, the engine at `/var/run/docker.sock`, the image `kontena/base`
//! and a built `weavewait`.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveImageOptions, TagImageOptionsBuilder,
};
use futures_util::StreamExt;
use kontena_agent::apply::Tools;
use kontena_agent::directory::{Directory, Store};
use kontena_agent::dns::zone::Zone;
use kontena_agent::docker::events;
use kontena_agent::docker::observe::Doubts;
use kontena_agent::keys;
use kontena_agent::overlay::{self, Sources};
use kontena_agent::reconcile::{Reconciler, Slots};
use kontena_agent::report::HostState;
use kontena_overlay::Overlay;
use kontena_schema::address::InnerSubnet;
use kontena_schema::agent::{
    Changes, Command, CommandKind, CommandState, Desired, GridSettings, InstanceState, NodeEntry,
    Own, Placement, PlacementReport, Shared, Welcome,
};
use kontena_schema::http::services::ServiceSpec;
use kontena_schema::ids::{
    CommandId, Epoch, GridId, LeaseNumber, NodeId, NodeNumber, PlacementId, Revision,
    ServiceRevision,
};
use kontena_schema::mac::Mac;
use kontena_schema::path::Site;
use kontena_task::Tasks;
use nix::sched::{CloneFlags, unshare};
use tokio::sync::watch;
use tokio::time::timeout;

const BOUND: Duration = Duration::from_secs(60);
const GRID: &str = "agent-test";
const IMAGE: &str = "kontena-agent-test:1";
const FIRST: PlacementId = PlacementId(11);
const SECOND: PlacementId = PlacementId(12);
const NAME: &str = "stack-web.agent-test.kontena.local";

/// A host with an agent's loop on it, and this test in the place of the Master.
struct Host {
    docker: Docker,
    store: Store,
    directory: Directory,
    slot: watch::Sender<Arc<Directory>>,
    zone: watch::Receiver<Arc<Zone>>,
    host: watch::Receiver<Option<Arc<HostState>>>,
    _tasks: Tasks,
}

fn directory() -> Directory {
    let number = NodeNumber::try_from(1_u8).unwrap();
    let mut directory = Directory::default();
    directory.welcome(&Welcome {
        protocol: 1,
        node: NodeId(1),
        name: "one".to_owned(),
        number,
        grid: GridId(1),
        grid_name: GRID.to_owned(),
        epoch: Epoch(1),
        node_token: None,
    });
    let grid = GridSettings {
        id: GridId(1),
        name: GRID.to_owned(),
        subnet: "10.81.0.0/19".parse().unwrap(),
        supernet: "10.81.0.0/17".parse().unwrap(),
        inner_subnet: InnerSubnet::default(),
        trusted_subnets: Vec::new(),
        vni: 4242,
    };
    let site = Site {
        region: "default".to_owned(),
        public_ip: None,
        private_ip: None,
    };
    let address = [10, 81, 0, 1].into();
    let node = NodeEntry {
        id: NodeId(1),
        name: "one".to_owned(),
        number,
        address,
        site,
        behind_nat: None,
        keys: None,
        next_key_known: false,
        key_turn: kontena_schema::ids::KeyTurn(0),
    };
    let shared = Shared {
        grid: Some(grid),
        nodes: vec![node],
        ..Shared::default()
    };
    let (from, to) = (Revision::ZERO, Revision(1));
    let timeline = "t".to_owned();
    directory
        .merge(Changes {
            timeline,
            from,
            to,
            shared,
            own: Own::default(),
        })
        .unwrap();
    directory
}

/// A container that says the MAC of its `ethwe` as soon as it is executed.
fn placement(id: PlacementId, instance: u8, image: &str) -> Placement {
    let command = "cat /sys/class/net/ethwe/address; trap exit TERM; sleep 1000 & wait";
    Placement {
        id,
        desired: Desired::Running,
        stack: Some("stack".to_owned()),
        service: "web".to_owned(),
        instance: u32::from(instance),
        service_revision: ServiceRevision(1),
        address: Some([10, 81, 1, instance].into()),
        lease: Some(LeaseNumber(id.0)),
        lease_reason: None,
        spec: ServiceSpec {
            image: image.to_owned(),
            cmd: Some(["sh", "-c", command].map(str::to_owned).to_vec()),
            stop_grace_period_s: Some(5),
            ..ServiceSpec::default()
        },
        platform_env: [("KONTENA_GRID_NAME".to_owned(), GRID.to_owned())].into(),
    }
}

fn weavewait() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.ancestors().nth(2).unwrap().join("weavewait");
    assert!(
        path.exists(),
        "{} is missing: cargo build --release -p weavewait",
        path.display()
    );
    path
}

impl Host {
    /// Starts an agent's loop, as on a host that knows `directory`.
    async fn start(directory: Directory, store: Store) -> Self {
        let docker = Docker::connect_with_unix_defaults().unwrap();
        let docker = docker
            .negotiate_version()
            .await
            .expect("there is no Docker engine");
        let doubts = Arc::new(Doubts::default());
        let mut tasks = Tasks::new();
        tasks.spawn("events", events::watch(docker.clone(), doubts.clone()));
        let (slot, received) = watch::channel(Arc::new(directory.clone()));
        let (zone_in, zone) = watch::channel(Arc::new(Zone::default()));
        let (host_in, host) = watch::channel(None);
        let (_, bridge) = watch::channel(Some([172, 17, 0, 1].into()));
        let tools = Tools {
            docker: docker.clone(),
            bin: store.bin(),
            bridge,
        };
        let (_, keys) = watch::channel(Arc::new(keys::load(&store, &keys::generate).host_keys()));
        let (_, masters) = watch::channel(None);
        let (_, bridges) = watch::channel(Some(BTreeSet::from(["docker0".to_owned()])));
        let (containers_in, containers) = watch::channel(Arc::default());
        let sources = Sources {
            directory: received.clone(),
            keys,
            masters,
            bridges,
            containers,
        };
        let overlay = Arc::new(Overlay::new().await.unwrap());
        let slots = Slots {
            directory: received,
            overlay: overlay::start(&mut tasks, &overlay, sources),
            doubts,
            attached: containers_in,
            zone: zone_in,
            host: host_in,
        };
        let reconciler = Reconciler::new(slots, store.clone(), Some(tools));
        tasks.spawn("reconcile", reconciler.run());
        Self {
            docker,
            store,
            directory,
            slot,
            zone,
            host,
            _tasks: tasks,
        }
    }

    /// The agent ends and another one starts; only its files stay.
    async fn restart(self) -> Self {
        let Self {
            directory,
            store,
            _tasks: tasks,
            ..
        } = self;
        drop(tasks);
        Self::start(directory, store).await
    }

    fn change(&mut self, own: Own) {
        let from = self.directory.revision();
        let to = Revision(from.0 + 1);
        let (timeline, shared) = ("t".to_owned(), Shared::default());
        self.directory
            .merge(Changes {
                timeline,
                from,
                to,
                shared,
                own,
            })
            .unwrap();
        self.slot.send_replace(Arc::new(self.directory.clone()));
    }

    fn place(&mut self, placement: Placement) {
        self.change(Own {
            placements: vec![placement],
            ..Own::default()
        });
    }

    async fn until(&mut self, what: &str, is: impl Fn(&HostState) -> bool) -> Arc<HostState> {
        let mut host = self.host.clone();
        let so = timeout(
            BOUND,
            host.wait_for(|host| host.as_deref().is_some_and(&is)),
        )
        .await;
        if let Ok(host) = so {
            return host.unwrap().clone().unwrap();
        }
        panic!("{what}: the last state is {:#?}", self.host.borrow());
    }

    /// Waits for a state of a placement.
    async fn until_placement(&mut self, id: PlacementId, state: InstanceState) -> PlacementReport {
        let is = |host: &HostState| {
            host.told
                .placements
                .get(&id)
                .is_some_and(|report| report.state == state)
        };
        let host = self.until(&format!("{id} becomes {state:?}"), is).await;
        host.told.placements[&id].clone()
    }

    async fn until_named(&mut self, count: usize) {
        let is = |zone: &Arc<Zone>| zone.addresses(NAME).map_or(0, <[_]>::len) == count;
        let named = timeout(BOUND, self.zone.clone().wait_for(is))
            .await
            .map(drop);
        assert!(
            named.is_ok(),
            "{NAME} has not {count} addresses: {:?}",
            self.zone.borrow()
        );
    }

    /// Waits until the container has written `text` so many times. What follows a
    /// log ends with the process that writes it, and then looks again.
    async fn until_logged(&self, container: &str, text: &str, times: usize) {
        let mut seen = String::new();
        let enough = async {
            let mut looks = tokio::time::interval(Duration::from_millis(50));
            while seen.matches(text).count() < times {
                looks.tick().await;
                self.read_log(container, text, times, &mut seen).await;
            }
        };
        let _ = timeout(BOUND, enough).await;
        assert_eq!(seen.matches(text).count(), times, "{text} in {seen:?}");
    }

    async fn read_log(&self, container: &str, text: &str, times: usize, seen: &mut String) {
        let options = LogsOptionsBuilder::default()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .build();
        let mut logs = std::pin::pin!(self.docker.logs(container, Some(options)));
        seen.clear();
        while let Some(chunk) = logs.next().await {
            seen.push_str(&chunk.unwrap().to_string());
            if seen.matches(text).count() >= times {
                return;
            }
        }
    }

    /// The loop would remove the containers of others.
    async fn assert_engine_is_free(&self) {
        let label = vec!["io.kontena.container.type=container"];
        let filters = HashMap::from([("label", label)]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        for container in self.docker.list_containers(Some(options)).await.unwrap() {
            let grid = container
                .labels
                .unwrap_or_default()
                .remove("io.kontena.grid.name");
            assert_eq!(
                grid.as_deref(),
                Some(GRID),
                "this engine is a node of a real grid"
            );
        }
    }
}

async fn story(dir: PathBuf) {
    let store = Store::open(&dir).unwrap();
    store.install_weavewait(&weavewait()).unwrap();
    let unknown = Host::start(Directory::default(), store.clone()).await;
    unknown.assert_engine_is_free().await;
    let tag = TagImageOptionsBuilder::default()
        .repo("kontena-agent-test")
        .tag("1")
        .build();
    unknown
        .docker
        .tag_image("kontena/base", Some(tag))
        .await
        .expect("kontena/base is missing");
    drop(unknown);

    let mut host = Host::start(directory(), store).await;
    host.until("what a failed run left is gone", |host| {
        host.inventory.is_empty()
    })
    .await;
    let id = it_starts(&mut host).await;
    it_survives_restarts(&mut host, &id).await;
    let mut host = it_is_adopted_by_the_next_agent(host, &id).await;
    a_command_restarts_it_once(&mut host).await;
    what_cannot_start_says_why_and_delays_nobody(&mut host).await;
    a_new_revision_replaces_it(&mut host, &id).await;
    it_stops_and_goes(&mut host).await;
    host.docker
        .remove_image(IMAGE, None::<RemoveImageOptions>, None)
        .await
        .unwrap();
}

fn mac() -> String {
    Mac::of_lease([10, 81, 1, 1].into(), LeaseNumber(11)).to_string()
}

async fn it_starts(host: &mut Host) -> String {
    host.place(placement(FIRST, 1, IMAGE));
    let report = host.until_placement(FIRST, InstanceState::Running).await;
    assert_eq!(report.container_name.as_deref(), Some("stack.web-1"));
    assert_eq!(report.lease, Some(LeaseNumber(11)));
    host.until_named(1).await;
    let id = report.container_id.unwrap();
    host.until_logged(&id, &mac(), 1).await;
    let entry = &host.host.borrow().clone().unwrap().inventory[0];
    assert_eq!(
        (entry.placement, entry.address),
        (FIRST, [10, 81, 1, 1].into())
    );
    id
}

async fn it_survives_restarts(host: &mut Host, id: &str) {
    // By an operator, then by Docker after a crash.
    host.docker.restart_container(id, None).await.unwrap();
    host.until_logged(id, &mac(), 2).await;
    host.docker.kill_container(id, None).await.unwrap();
    host.until_logged(id, &mac(), 3).await;
    host.until_placement(FIRST, InstanceState::Running).await;
    host.until_named(1).await;
}

async fn it_is_adopted_by_the_next_agent(host: Host, id: &str) -> Host {
    let mut host = host.restart().await;
    let report = host.until_placement(FIRST, InstanceState::Running).await;
    assert_eq!(report.container_id.as_deref(), Some(id));
    host
}

async fn a_command_restarts_it_once(host: &mut Host) {
    let (id, placement) = (CommandId(1), FIRST);
    let command = Command {
        id,
        placement,
        kind: CommandKind::Restart,
    };
    host.change(Own {
        commands: vec![command],
        ..Own::default()
    });
    let done = |host: &HostState| {
        host.told
            .commands
            .get(&id)
            .is_some_and(|report| report.state == CommandState::Done)
    };
    host.until("the command is done", done).await;
    let report = host.until_placement(FIRST, InstanceState::Running).await;
    host.until_logged(report.container_id.as_deref().unwrap(), &mac(), 4)
        .await;
}

async fn what_cannot_start_says_why_and_delays_nobody(host: &mut Host) {
    host.place(placement(SECOND, 2, "127.0.0.1:1/nobody/nothing:1"));
    let report = host.until_placement(SECOND, InstanceState::Failed).await;
    assert!(
        report
            .error
            .unwrap()
            .contains("127.0.0.1:1/nobody/nothing:1")
    );
    host.until_placement(FIRST, InstanceState::Running).await;
    // What it is told to run instead is tried at once.
    let mut good = placement(SECOND, 2, IMAGE);
    good.service_revision = ServiceRevision(2);
    host.place(good);
    host.until_placement(SECOND, InstanceState::Running).await;
    host.until_named(2).await;
}

async fn a_new_revision_replaces_it(host: &mut Host, id: &str) {
    let mut new = placement(FIRST, 1, IMAGE);
    new.service_revision = ServiceRevision(2);
    host.place(new);
    let is = |host: &HostState| {
        host.told.placements.get(&FIRST).is_some_and(|report| {
            report.service_revision == ServiceRevision(2) && report.state == InstanceState::Running
        })
    };
    let state = host.until("the new revision runs", is).await;
    assert_ne!(
        state.told.placements[&FIRST].container_id.as_deref(),
        Some(id)
    );
}

async fn it_stops_and_goes(host: &mut Host) {
    let mut stopped = placement(FIRST, 1, IMAGE);
    stopped.service_revision = ServiceRevision(2);
    stopped.desired = Desired::Stopped;
    host.place(stopped.clone());
    host.until_placement(FIRST, InstanceState::Stopped).await;
    host.until_named(1).await;

    stopped.desired = Desired::Removed;
    host.place(stopped);
    host.until_placement(FIRST, InstanceState::Removed).await;
    // The second one vanishes without a word of the Master's.
    host.change(Own {
        gone_placements: vec![FIRST, SECOND],
        ..Own::default()
    });
    host.until("nothing is left", |host| host.inventory.is_empty())
        .await;
    host.until_named(0).await;
}

#[test]
fn the_life_of_containers_on_a_real_engine() {
    let dir = std::env::temp_dir().join(format!("kontena-agent-engine-{}", std::process::id()));
    let there = dir.clone();
    let test = std::thread::spawn(move || {
        // The threads of the runtime are born in this namespace.
        unshare(CloneFlags::CLONE_NEWNET).expect("root is needed");
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(runtime.spawn(story(there))).unwrap();
    });
    let result = test.join();
    let _ = std::fs::remove_dir_all(&dir);
    assert!(result.is_ok(), "see above");
}
