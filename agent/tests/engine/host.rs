//! A host with an agent's loop on it, and the test in the place of the Master.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::{
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveImageOptions, TagImageOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use kontena_agent::apply::Tools;
use kontena_agent::directory::{Directory, Store};
use kontena_agent::dns::zone::Zone;
use kontena_agent::docker::dirty::DirtySet;
use kontena_agent::docker::{events, volumes};
use kontena_agent::keys;
use kontena_agent::overlay::{self, Sources};
use kontena_agent::reconcile::{Reconciler, Slots};
use kontena_agent::report::HostState;
use kontena_overlay::{MulticastLimit, Overlay, OverlayError};
use kontena_schema::address::InnerSubnet;
use kontena_schema::agent::{
    Changes, Desired, GridSettings, InstanceState, NodeEntry, Own, Placement, PlacementReport,
    Shared, Welcome,
};
use kontena_schema::http::services::ServiceSpec;
use kontena_schema::ids::{
    Epoch, GridId, LeaseNumber, NodeId, NodeNumber, PlacementId, Revision, ServiceRevision,
};
use kontena_schema::path::Site;
use kontena_task::Tasks;
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::watch;
use tokio::time::timeout;

pub const BOUND: Duration = Duration::from_secs(60);
pub const GRID: &str = "agent-test";
pub const FIRST: PlacementId = PlacementId(11);
pub const SECOND: PlacementId = PlacementId(12);
pub const NAME: &str = "stack-web.agent-test.kontena.local";
pub const ENGINE: &str = "/var/run/docker.sock";

/// Runs a story on a host of its own, one at a time.
pub fn on_a_host<F>(story: impl FnOnce(PathBuf) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let lock = File::create(std::env::temp_dir().join("kontena-agent-engine.lock")).unwrap();
    let turn = Flock::lock(lock, FlockArg::LockExclusive);
    let _turn = turn.map_err(|(_, err)| err).unwrap();
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

/// A host with an agent's loop on it.
pub struct Host {
    pub docker: Docker,
    /// How the agent reaches the engine.
    socket: PathBuf,
    pub store: Store,
    pub directory: Directory,
    slot: watch::Sender<Arc<Directory>>,
    pub zone: watch::Receiver<Arc<Zone>>,
    pub host: watch::Receiver<Option<Arc<HostState>>>,
    _tasks: Tasks,
}

pub fn directory() -> Directory {
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
pub fn placement(id: PlacementId, instance: u8, image: &str) -> Placement {
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

pub fn weavewait() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.ancestors().nth(2).unwrap().join("weavewait");
    assert!(
        path.exists(),
        "{} is missing: cargo build --release -p weavewait",
        path.display()
    );
    path
}

/// Speaks with the engine behind a socket.
pub async fn connect(socket: &Path) -> Docker {
    let socket = socket.to_str().unwrap();
    let docker = Docker::connect_with_unix(socket, 10, API_DEFAULT_VERSION).unwrap();
    docker
        .negotiate_version()
        .await
        .expect("there is no Docker engine")
}

impl Host {
    /// Starts an agent's loop, as on a host that knows `directory`.
    pub async fn start(directory: Directory, store: Store) -> Self {
        Self::start_through(Path::new(ENGINE), directory, store).await
    }

    /// The same, with an agent that reaches the engine through this socket.
    pub async fn start_through(socket: &Path, directory: Directory, store: Store) -> Self {
        Self::start_opening(socket, directory, store, Overlay::new).await
    }

    /// The same, with an agent that opens its overlay so.
    pub async fn start_opening<F>(
        socket: &Path,
        directory: Directory,
        store: Store,
        open: impl Fn() -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Overlay, OverlayError>> + Send + 'static,
    {
        let docker = connect(socket).await;
        let dirty = Arc::new(DirtySet::default());
        let mut tasks = Tasks::new();
        tasks.spawn("events", events::watch(docker.clone(), dirty.clone()));
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
        let (volumes_in, volumes) = watch::channel(None);
        tasks.spawn("volumes", volumes::watch(docker.clone(), volumes_in));
        let (containers_in, containers) = watch::channel(Arc::default());
        let sources = Sources {
            directory: received.clone(),
            keys,
            masters,
            bridges,
            containers,
            multicast: MulticastLimit::default(),
        };
        let (overlay_in, _) = watch::channel(None);
        let overlay = overlay::start(&mut tasks, sources, overlay_in, open);
        let slots = Slots {
            directory: received,
            overlay: overlay.state,
            unavailable: overlay.unavailable,
            dirty,
            volumes,
            attached: containers_in,
            zone: zone_in,
            host: host_in,
        };
        let reconciler = Reconciler::new(slots, store.clone(), Some(tools));
        tasks.spawn("reconcile", reconciler.run());
        Self {
            docker: connect(Path::new(ENGINE)).await,
            socket: socket.to_owned(),
            store,
            directory,
            slot,
            zone,
            host,
            _tasks: tasks,
        }
    }

    /// The agent ends and another one starts; only its files stay.
    pub async fn restart(self) -> Self {
        let (directory, store, socket) = self.end();
        Self::start_through(&socket, directory, store).await
    }

    /// The agent ends; what it knew, its files and its way to the engine stay.
    pub fn end(self) -> (Directory, Store, PathBuf) {
        let Self {
            directory,
            store,
            socket,
            _tasks: tasks,
            ..
        } = self;
        drop(tasks);
        (directory, store, socket)
    }

    pub fn change(&mut self, own: Own) {
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

    pub fn place(&mut self, placement: Placement) {
        self.change(Own {
            placements: vec![placement],
            ..Own::default()
        });
    }

    pub async fn until(&mut self, what: &str, is: impl Fn(&HostState) -> bool) -> Arc<HostState> {
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
    pub async fn until_placement(
        &mut self,
        id: PlacementId,
        state: InstanceState,
    ) -> PlacementReport {
        let is = |host: &HostState| {
            host.reported
                .placements
                .get(&id)
                .is_some_and(|report| report.state == state)
        };
        let host = self.until(&format!("{id} becomes {state:?}"), is).await;
        host.reported.placements[&id].clone()
    }

    pub async fn until_named(&mut self, count: usize) {
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
    pub async fn until_logged(&self, container: &str, text: &str, times: usize) {
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

    /// What is reported of a placement.
    pub fn reported(&self, id: PlacementId) -> PlacementReport {
        let host = self.host.borrow().clone().unwrap();
        host.reported.placements[&id].clone()
    }

    /// Gives the base image another name, under which nobody pulls it.
    pub async fn tag_base(&self, image: &str) {
        let (repo, tag) = image.split_once(':').unwrap();
        let options = TagImageOptionsBuilder::default().repo(repo).tag(tag);
        let tagged = self.docker.tag_image("kontena/base", Some(options.build()));
        tagged.await.expect("kontena/base is missing");
    }

    pub async fn untag(&self, image: &str) {
        let options = None::<RemoveImageOptions>;
        let removed = self.docker.remove_image(image, options, None).await;
        removed.unwrap();
    }

    /// The loop would remove the containers of others.
    pub async fn assert_engine_is_free(&self) {
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
