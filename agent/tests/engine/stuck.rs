//! An engine that does not answer for one container, an overlay that cannot be opened, and a
//! container that is not ready.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bollard::Docker;
use bollard::exec::StartExecOptions;
use bollard::models::{ContainerConfig, ContainerCreateBody, ExecConfig, HealthConfig};
use bollard::query_parameters::{CommitContainerOptionsBuilder, CreateContainerOptions};
use kontena_agent::directory::Store;
use kontena_agent::report::HostState;
use kontena_overlay::{Cause, Overlay, OverlayError};
use kontena_schema::agent::{Health, InstanceState, Own};
use kontena_schema::ids::{PlacementId, ServiceRevision};
use kontena_task::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::host::{ENGINE, FIRST, Host, SECOND, directory, on_a_host, placement, weavewait};

const IMAGE: &str = "kontena-agent-stuck:1";
const UNCHECKED: &str = "kontena-agent-unchecked:1";
const CHECKED: &str = "kontena-agent-checked:1";
const THIRD: PlacementId = PlacementId(13);

#[test]
fn a_container_that_docker_does_not_answer_for_stops_nothing_else() {
    on_a_host(stuck);
}

#[test]
fn a_container_is_ready_when_its_health_check_passes() {
    on_a_host(checked);
}

#[test]
fn a_container_says_that_it_waits_for_an_overlay_that_cannot_be_opened() {
    on_a_host(without_an_overlay);
}

/// The way to an engine that withholds the answers to requests for some path.
struct Proxy {
    withheld: watch::Sender<Option<String>>,
    socket: PathBuf,
    _tasks: Tasks,
}

impl Proxy {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (withheld, slot) = watch::channel(None);
        let mut tasks = Tasks::new();
        tasks.spawn("proxy", serve(listener, slot));
        Self {
            withheld,
            socket,
            _tasks: tasks,
        }
    }

    fn withhold(&self, path: &str) {
        self.withheld.send_replace(Some(path.to_owned()));
    }

    fn let_go(&self) {
        self.withheld.send_replace(None);
    }
}

async fn serve(listener: UnixListener, withheld: watch::Receiver<Option<String>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(relay(client, withheld.clone()));
    }
}

/// Requests without a body come in one piece, and one after another.
async fn relay(client: UnixStream, withheld: watch::Receiver<Option<String>>) -> io::Result<()> {
    let mut engine = UnixStream::connect(ENGINE).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_engine, mut to_engine) = engine.split();
    let requests = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = from_client.read(&mut buffer).await?;
            let line = buffer[..length].split(|octet| *octet == b'\r').next();
            let line = String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
            let is = |path: &Option<String>| path.as_ref().is_some_and(|path| line.contains(path));
            if is(&withheld.borrow().clone()) {
                // Until whoever asked gives up.
                while from_client.read(&mut buffer).await? > 0 {}
                return Ok(());
            }
            if length == 0 {
                return to_engine.shutdown().await;
            }
            to_engine.write_all(&buffer[..length]).await?;
        }
    };
    let answers = tokio::io::copy(&mut from_engine, &mut to_client);
    tokio::select! {
        ended = requests => ended,
        ended = answers => ended.map(drop),
    }
}

fn inspection(id: &str) -> String {
    format!("/containers/{id}/json")
}

async fn stuck(dir: PathBuf) {
    let store = Store::open(&dir).unwrap();
    store.install_weavewait(&weavewait()).unwrap();
    let proxy = Proxy::start(&dir);
    let mut host = Host::start_through(&proxy.socket, directory(), store).await;
    host.assert_engine_is_free().await;
    host.tag_base(IMAGE).await;
    for (id, instance) in [(FIRST, 1), (SECOND, 2)] {
        host.place(placement(id, instance, IMAGE));
        host.until_placement(id, InstanceState::Running).await;
    }
    host.until_named(2).await;
    let id = host.reported(FIRST).container_id.unwrap();

    proxy.withhold(&inspection(&id));
    let says_so = |host: &HostState| {
        let error = host.reported.placements[&FIRST].error.as_ref();
        error.is_some_and(|error| error.contains("Docker does not report"))
    };
    host.until("it is unknown", says_so).await;
    others_go_on(&mut host).await;
    let mut host = it_is_left_as_it_is(host, &id).await;

    proxy.let_go();
    let is = |host: &HostState| {
        let report = &host.reported.placements[&FIRST];
        report.service_revision == ServiceRevision(2) && report.state == InstanceState::Running
    };
    host.until("what it missed is made up for", is).await;
    assert_ne!(host.reported(FIRST).container_id.unwrap(), id);
    host.change(Own {
        gone_placements: vec![FIRST, SECOND, THIRD],
        ..Own::default()
    });
    host.until("nothing is left", |host| host.inventory.is_empty())
        .await;
    host.untag(IMAGE).await;
}

async fn others_go_on(host: &mut Host) {
    host.place(placement(THIRD, 3, IMAGE));
    host.until_placement(THIRD, InstanceState::Running).await;
    host.until_named(3).await;
    // One that ends has no name any more, and comes back.
    let second = host.reported(SECOND).container_id.unwrap();
    host.docker.stop_container(&second, None).await.unwrap();
    host.until_placement(SECOND, InstanceState::Running).await;
    host.until_named(3).await;
    let revision = host.directory.revision();
    host.until("the overlay goes on", |host| {
        host.reported.applied == revision
    })
    .await;
}

/// By this agent, and by the next one, which has never seen it running.
async fn it_is_left_as_it_is(mut host: Host, id: &str) -> Host {
    let mut new = placement(FIRST, 1, IMAGE);
    new.service_revision = ServiceRevision(2);
    host.place(new);
    let mut third = placement(THIRD, 3, IMAGE);
    third.service_revision = ServiceRevision(2);
    host.place(third);
    let replaced = |host: &HostState| {
        let report = &host.reported.placements[&THIRD];
        report.service_revision == ServiceRevision(2) && report.state == InstanceState::Running
    };
    host.until("another is replaced", replaced).await;
    let interface = interface(&host.docker, id).await;
    let mut host = host.restart().await;
    host.until_named(3).await;
    let report = host.until_placement(FIRST, InstanceState::Running).await;
    assert_eq!(report.container_id.as_deref(), Some(id));
    assert_eq!(self::interface(&host.docker, id).await, interface);
    host
}

/// The container's `ethwe`, by number and address.
async fn interface(docker: &Docker, id: &str) -> String {
    let pid = docker.inspect_container(id, None).await.unwrap();
    let pid = pid.state.unwrap().pid.unwrap();
    let output = tokio::process::Command::new("nsenter")
        .args([
            "-t",
            &pid.to_string(),
            "-n",
            "ip",
            "-o",
            "link",
            "show",
            "ethwe",
        ])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn the_first_goes(mut host: Host, image: &str) {
    host.change(Own {
        gone_placements: vec![FIRST],
        ..Own::default()
    });
    host.until("nothing is left", |host| host.inventory.is_empty())
        .await;
    host.untag(image).await;
}

/// An agent that may not open the overlay yet.
async fn without_an_overlay(dir: PathBuf) {
    let store = Store::open(&dir).unwrap();
    store.install_weavewait(&weavewait()).unwrap();
    let may_open = Arc::new(AtomicBool::new(false));
    let may = may_open.clone();
    let open = move || {
        let may = may.load(Ordering::Acquire);
        async move {
            let refused = io::Error::from_raw_os_error(libc::EPERM);
            if may {
                Overlay::new().await
            } else {
                Err(OverlayError::Observe {
                    what: "netlink".to_owned(),
                    cause: Cause::Kernel(refused),
                })
            }
        }
    };
    let mut host = Host::start_opening(Path::new(ENGINE), directory(), store, open).await;
    host.assert_engine_is_free().await;
    host.tag_base(UNCHECKED).await;
    host.place(placement(FIRST, 1, UNCHECKED));
    let waits = |host: &HostState| {
        let report = host.reported.placements.get(&FIRST);
        report.is_some_and(|report| report.container_id.is_some() && report.error.is_some())
    };
    host.until("it says what it waits for", waits).await;
    let report = host.reported(FIRST);
    assert_eq!(report.state, InstanceState::Starting);
    let why = report.error.unwrap();
    let expected = "the overlay cannot be started: cannot read netlink: Operation not permitted";
    assert!(why.starts_with(expected), "{why}");
    may_open.store(true, Ordering::Release);
    let report = host.until_placement(FIRST, InstanceState::Running).await;
    assert_eq!(report.error, None);
    the_first_goes(host, UNCHECKED).await;
}

async fn checked(dir: PathBuf) {
    let store = Store::open(&dir).unwrap();
    store.install_weavewait(&weavewait()).unwrap();
    let mut host = Host::start(directory(), store).await;
    host.assert_engine_is_free().await;
    build(&host.docker).await;
    host.place(placement(FIRST, 1, CHECKED));
    let made = |host: &HostState| {
        let report = host.reported.placements.get(&FIRST);
        report.is_some_and(|report| report.container_id.is_some())
    };
    host.until("it is there", made).await;
    let id = host.reported(FIRST).container_id.unwrap();
    // What its command says is said when it is on the overlay; it is not ready by then.
    host.until_logged(&id, ":", 5).await;
    let revision = host.directory.revision();
    host.until("it is on the overlay", |host| {
        host.reported.applied == revision
    })
    .await;
    // The overlay may be ahead of what was seen of the container.
    let report = host.until_placement(FIRST, InstanceState::Starting).await;
    assert_eq!(report.health, Health::Unknown);
    host.until_named(0).await;

    execute(&host.docker, &id, "touch /ok").await;
    let report = host.until_placement(FIRST, InstanceState::Running).await;
    assert_eq!(report.health, Health::Healthy);
    host.until_named(1).await;
    execute(&host.docker, &id, "rm /ok").await;
    host.until_named(0).await;
    let unhealthy = |host: &HostState| host.reported.placements[&FIRST].health == Health::Unhealthy;
    host.until("it is unhealthy", unhealthy).await;
    the_first_goes(host, CHECKED).await;
}

/// An image whose containers are ill and stay in their start period for long.
async fn build(docker: &Docker) {
    let body = ContainerCreateBody {
        image: Some("kontena/base".to_owned()),
        cmd: Some(vec!["true".to_owned()]),
        ..ContainerCreateBody::default()
    };
    let options = None::<CreateContainerOptions>;
    let id = docker.create_container(options, body).await.unwrap().id;
    let (second, hour) = (1_000_000_000, 3_600_000_000_000);
    let check = HealthConfig {
        test: Some(["CMD-SHELL", "test -e /ok"].map(str::to_owned).to_vec()),
        interval: Some(second / 5),
        retries: Some(1),
        start_period: Some(hour),
        ..HealthConfig::default()
    };
    let config = ContainerConfig {
        healthcheck: Some(check),
        ..ContainerConfig::default()
    };
    let (repo, tag) = CHECKED.split_once(':').unwrap();
    let options = CommitContainerOptionsBuilder::default()
        .container(&id)
        .repo(repo)
        .tag(tag)
        .build();
    docker.commit_container(options, config).await.unwrap();
    docker.remove_container(&id, None).await.unwrap();
}

async fn execute(docker: &Docker, id: &str, command: &str) {
    let exec = ExecConfig {
        cmd: Some(["sh", "-c", command].map(str::to_owned).to_vec()),
        ..ExecConfig::default()
    };
    let exec = docker.create_exec(id, exec).await.unwrap().id;
    docker
        .start_exec(&exec, None::<StartExecOptions>)
        .await
        .unwrap();
}
