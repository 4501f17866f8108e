//! The program that containers wait in, as the agent installs it and a real engine
//! runs it.
//!
//! It needs root, the engine at `/var/run/docker.sock`, the image `kontena/base`
//! and a built `weavewait`.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, RemoveContainerOptionsBuilder,
    StartContainerOptions, StopContainerOptionsBuilder,
};
use kontena_agent::directory::Store;
use kontena_agent::docker::labels::Origin;
use kontena_agent::docker::spec::{ImageCommand, Surroundings, create_body};
use kontena_schema::agent::{Desired, Placement};
use kontena_schema::http::services::ServiceSpec;
use kontena_schema::ids::{LeaseNumber, NodeId, PlacementId, ServiceRevision};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const BOUND: Duration = Duration::from_secs(60);

async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < BOUND, "{what}: not within {BOUND:?}");
        // Between two looks at a state, which have a bound.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn make(name: &str) -> Self {
        let name = format!("kontena-{name}-{}", std::process::id());
        let dir = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&dir.0).unwrap();
        dir
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // What is left of it is only litter.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A program that does not outlive a test that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
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

fn placement() -> Placement {
    Placement {
        id: PlacementId(1),
        desired: Desired::Running,
        stack: None,
        service: "web".to_owned(),
        instance: 1,
        service_revision: ServiceRevision(1),
        address: Some([10, 81, 1, 1].into()),
        lease: Some(LeaseNumber(1)),
        lease_reason: None,
        spec: ServiceSpec {
            image: "kontena/base".to_owned(),
            ..ServiceSpec::default()
        },
        platform_env: [].into(),
    }
}

/// A container that never gets its interface, and whose image wants this signal
/// to stop.
async fn waiting_container(docker: &Docker, bin: &Path, stop_signal: &str) -> String {
    let placement = placement();
    let around = Surroundings {
        origin: Origin {
            placement: placement.id,
            node: NodeId(1),
            service_revision: placement.service_revision,
            lease: placement.lease,
            overlay: Some("10.81.1.1/17".parse().unwrap()),
        },
        grid: "waiting-test",
        resolver: [172, 17, 0, 1].into(),
        bin,
    };
    let image = ImageCommand {
        entrypoint: Vec::new(),
        cmd: vec!["true".to_owned()],
    };
    let mut body = create_body(&placement, &image, &around).unwrap();
    body.stop_signal = Some(stop_signal.to_owned());
    // With them another test's agent on this engine would remove it.
    body.labels = None;
    let name = format!("kontena-waiting-test-{}", stop_signal.replace('+', "."));
    // An earlier test may have left it.
    let _ = remove(docker, &name).await;
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    docker.create_container(Some(options), body).await.unwrap();
    name
}

async fn remove(docker: &Docker, name: &str) -> Result<(), bollard::errors::Error> {
    let options = RemoveContainerOptionsBuilder::default().force(true).build();
    docker.remove_container(name, Some(options)).await
}

async fn pid(docker: &Docker, name: &str) -> i64 {
    let container = docker
        .inspect_container(name, None::<InspectContainerOptions>)
        .await
        .unwrap();
    container.state.unwrap().pid.unwrap()
}

#[tokio::test]
async fn a_container_that_waits_obeys_the_stop_signal_of_its_image() {
    let docker = Docker::connect_with_unix_defaults().unwrap();
    let docker = docker
        .negotiate_version()
        .await
        .expect("there is no Docker engine");
    let dir = Dir::make("stop-signal");
    let store = Store::open(&dir.0).unwrap();
    store.install_weavewait(&weavewait()).unwrap();
    for (signal, number) in [("SIGWINCH", libc::SIGWINCH), ("SIGRTMIN+3", 37)] {
        let name = waiting_container(&docker, &store.bin(), signal).await;
        docker
            .start_container(&name, None::<StartContainerOptions>)
            .await
            .unwrap();
        let pid = pid(&docker, &name).await;
        eventually("it waits", async || {
            let call = std::fs::read_to_string(format!("/proc/{pid}/syscall"));
            let waits = format!("{} ", libc::SYS_recvfrom);
            call.is_ok_and(|call| call.starts_with(&waits))
        })
        .await;
        let options = StopContainerOptionsBuilder::default().t(20).build();
        docker.stop_container(&name, Some(options)).await.unwrap();
        let stopped = docker
            .inspect_container(&name, None::<InspectContainerOptions>)
            .await
            .unwrap();
        remove(&docker, &name).await.unwrap();
        let state = stopped.state.unwrap();
        assert_eq!(state.exit_code, Some(i64::from(128 + number)), "{state:?}");
    }
}

#[tokio::test]
async fn the_agent_refuses_a_directory_from_which_nothing_can_be_run() {
    let dir = Dir::make("noexec");
    let state = dir.0.clone();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kontena-agent"));
    command
        .env_clear()
        .env("KONTENA_URI", "ws://127.0.0.1:9")
        .env("KONTENA_TOKEN", "token")
        .env("KONTENA_PUBLIC_IP", "192.0.2.1")
        .env("KONTENA_STATE_DIR", &dir.0)
        .env("KONTENA_WEAVEWAIT", weavewait())
        .env("KONTENA_DOCKER_SOCKET", dir.0.join("no-engine.sock"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: system calls only, allowed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            mount(none, "/", none, private, none)?;
            mount(none, &state, Some("tmpfs"), MsFlags::MS_NOEXEC, none)?;
            Ok(())
        });
    }
    let mut agent = Running(command.spawn().expect("root may mount"));
    let mut status = None;
    eventually("the agent ends", async || {
        status = agent.0.try_wait().unwrap();
        status.is_some()
    })
    .await;
    let mut text = String::new();
    let mut stderr = agent.0.stderr.take().unwrap();
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(status.unwrap().code(), Some(1), "{text}");
    let bin = dir.0.join("bin");
    for word in [bin.to_str().unwrap(), "noexec", "KONTENA_STATE_DIR"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}
