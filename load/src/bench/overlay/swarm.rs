//! Docker Swarm's overlay, not encrypted: an engine on each host, a swarm of both, a
//! network that containers may join, and a container on each that sleeps.
//!
//! No registry is asked: the image is empty, and the container sees the machine's own
//! `sleep`. An engine runs in a process namespace of its own, so that the kernel ends
//! it with all that it started.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kontena_lab::{Netns, underlay};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::hosts::{Host, Pair, of_each};
use super::process::{Daemon, output};
use super::scratch;
use crate::bench::BenchError;

const IMAGE: &str = "sleep";
const NETWORK: &str = "bench";
const CONTAINER: &str = "end";
/// How long an engine may take to do anything.
const WITHIN: Duration = Duration::from_secs(60);
/// What a program that is linked to libraries needs, where the machine has it.
const LIBRARIES: [&str; 4] = ["/usr", "/bin", "/lib", "/lib64"];
/// Two blocks of nothing end an archive.
const EMPTY_ARCHIVE: [u8; 1024] = [0; 1024];

/// An engine in a host.
struct Engine {
    directory: PathBuf,
    /// The engine as this process numbers it; the daemon's only child.
    task: Pid,
    _daemon: Daemon,
}

/// A container on a network of the swarm.
struct End {
    netns: Netns,
    address: Ipv4Addr,
}

pub(crate) fn start(hosts: [Host; 2]) -> Result<Pair, BenchError> {
    let engines = of_each(&hosts, Engine::start)?;
    let [manager, worker] = &engines;
    let [first, second] = hosts.each_ref().map(|host| underlay(host.number));
    let swarm = |action: &str, own: Ipv4Addr, rest: &str| {
        format!("swarm {action} --advertise-addr {own} --listen-addr {own}:2377 {rest}")
    };
    manager.docker(&swarm("init", first, ""))?;
    let token = manager.docker("swarm join-token --quiet worker")?;
    let join = format!("--token {token} {first}:2377");
    worker.docker(&swarm("join", second, &join))?;
    manager.docker(&format!(
        "network create --driver overlay --attachable {NETWORK}"
    ))?;
    let [from, to] = [manager.container()?, worker.container()?];
    Pair::connected(from.netns, to.netns, to.address, (engines, hosts))
}

impl Engine {
    fn start(host: &Host) -> Result<Self, BenchError> {
        let directory = scratch::directory(&format!("swarm-{}", host.number))?;
        let mut command = host
            .netns
            .command("unshare --mount --pid --fork --kill-child --mount-proc sh -c");
        // The engine and its containerd have paths in /run that two would share.
        command
            .arg("mount --bind \"$0\" /run && exec dockerd --data-root /run/data --storage-driver vfs")
            .arg(&directory);
        let mut daemon = Daemon::start(command, &directory.join("log"), Signal::SIGTERM)?;
        daemon.until("dockerd answers", || docker(&directory, "version"))?;
        let archive = directory.join("empty.tar");
        fs::write(&archive, EMPTY_ARCHIVE)?;
        let engine = Self {
            directory,
            task: only_child(daemon.process())?,
            _daemon: daemon,
        };
        engine.docker(&format!("import {} {IMAGE}", archive.display()))?;
        Ok(engine)
    }

    fn docker(&self, line: &str) -> Result<String, BenchError> {
        docker(&self.directory, line)
    }

    /// Starts a container on the network.
    fn container(&self) -> Result<End, BenchError> {
        let present = LIBRARIES.iter().filter(|path| Path::new(path).exists());
        let volumes: Vec<_> = present
            .map(|path| format!("--volume {path}:{path}:ro"))
            .collect();
        let volumes = volumes.join(" ");
        // In the engine's own process namespace it can be found from here.
        self.docker(&format!(
            "run --detach --name {CONTAINER} --network {NETWORK} --pid host {volumes} {IMAGE} sleep infinity"
        ))?;
        let look =
            |what: &str| self.docker(&format!("inspect --format {{{{{what}}}}} {CONTAINER}"));
        let said = look(&format!(".NetworkSettings.Networks.{NETWORK}.IPAddress"))?;
        let failed = || BenchError::Failed(format!("no address of a container: {said}"));
        let address = said.parse().map_err(|_| failed())?;
        let task = self.task(&look(".State.Pid")?)?;
        let netns = Netns::of(task);
        Ok(End { netns, address })
    }

    /// The number that this process knows a task under, which the engine knows under
    /// another one.
    fn task(&self, known_as: &str) -> Result<i32, BenchError> {
        let inside = fs::read_link(format!("/proc/{}/ns/pid", self.task))?;
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            // Others come and go meanwhile.
            let same = fs::read_link(path.join("ns/pid")).is_ok_and(|other| other == inside);
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            if let (true, Some(task)) = (same, task_of(&status, known_as)) {
                return Ok(task);
            }
        }
        let why = format!("no process {known_as} of an engine");
        Err(BenchError::Failed(why))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It takes the container's control groups with it. What goes wrong now harms
        // nothing that is left.
        let _ = client(&self.directory)
            .args(["rm", "--force", CONTAINER])
            .output();
        // As the first of its process namespace it takes all others along. What waits
        // for it, the daemon, ends then and heeds no signal before.
        let _ = kill(self.task, Signal::SIGKILL);
    }
}

fn docker(directory: &Path, line: &str) -> Result<String, BenchError> {
    let mut command = client(directory);
    command.args(line.split_whitespace());
    output(command, WITHIN)
}

/// The client, which must not hang on an engine that does, and knows nothing of its
/// user's settings.
fn client(directory: &Path) -> Command {
    let mut command = Command::new("timeout");
    let seconds = WITHIN.as_secs().to_string();
    command.args([&seconds, "docker", "--host"]);
    command.arg(format!("unix://{}/docker.sock", directory.display()));
    command.env("DOCKER_CONFIG", directory);
    command
}

fn only_child(parent: u32) -> Result<Pid, BenchError> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let failed = |_| BenchError::Failed(format!("not one child of {parent}: {children:?}"));
    children.trim().parse().map(Pid::from_raw).map_err(failed)
}

/// The first of a process's numbers, of which the second is given.
fn task_of(status: &str, second: &str) -> Option<i32> {
    let numbers = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    let mut numbers = numbers.split_whitespace();
    let first = numbers.next()?;
    (numbers.next()? == second).then(|| first.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_process_here() {
        let status = "Name:\tsleep\nNSpid:\t4711\t77\nVmPeak:\t1 kB\n";
        assert_eq!(task_of(status, "77"), Some(4711));
        assert_eq!(task_of(status, "4711"), None);
        assert_eq!(task_of("NSpid:\t77\n", "77"), None);
        assert_eq!(task_of("", "77"), None);
    }
}
