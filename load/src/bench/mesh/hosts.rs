//! The hosts, and the agents on them.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kontena_lab::ping::Pinger;
use kontena_lab::{Keeper, Netns, Switch, large_topology};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::usage::Usage;
use crate::bench::BenchError;

/// In memory: hosts have a disk each, and here they would share one.
const STATE: &str = "/dev/shm";
/// Agents stop at once, but all of them at a time.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// A switch with hosts and a netns for the Master.
pub(crate) struct Hosts {
    namespaces: Vec<Netns>,
    /// Where the Master is reached, and at which address.
    pub(crate) master: (Netns, Ipv4Addr),
    state: PathBuf,
    keep_state: bool,
    // They end after all that is in them.
    _keepers: Vec<Keeper>,
    _switch: Switch,
}

impl Hosts {
    /// So many hosts, with an empty directory for the agents' state.
    pub(crate) fn start(count: u16, state: Option<PathBuf>) -> Result<Self, BenchError> {
        let switch = Switch::start();
        let (keepers, mut namespaces): (Vec<_>, Vec<_>) =
            (0..=count).map(|_| Keeper::start()).unzip();
        large_topology::plug(&switch, &namespaces);
        let master = namespaces.pop().expect("there is one more than hosts");
        let keep_state = state.is_some();
        let own = || Path::new(STATE).join(format!("kontena-mesh-{}", std::process::id()));
        let state = state.unwrap_or_else(own);
        if state.exists() {
            fs::remove_dir_all(&state)?;
        }
        fs::create_dir_all(&state)?;
        Ok(Self {
            namespaces,
            master: (master, large_topology::address(count + 1)),
            state,
            keep_state,
            _keepers: keepers,
            _switch: switch,
        })
    }

    /// A pinger on each.
    pub(crate) fn pingers(&self) -> Vec<Pinger> {
        self.namespaces.iter().map(Pinger::open).collect()
    }

    /// Starts an agent on each. They end with the thread that calls this.
    pub(crate) fn agents(
        &self,
        program: &Path,
        (uri, token): (&str, &str),
        log: &str,
    ) -> Result<Agents, BenchError> {
        let mut agents = Agents(Vec::new());
        for (number, netns) in (1_u16..).zip(&self.namespaces) {
            let address = large_topology::address(number).to_string();
            let state = self.state.join(number.to_string());
            fs::create_dir_all(&state)?;
            let mut command = netns.command(&program.display().to_string());
            let settings = [
                ("KONTENA_URI", uri),
                ("KONTENA_TOKEN", token),
                ("KONTENA_PUBLIC_IP", &address),
                ("KONTENA_PRIVATE_IP", &address),
                ("KONTENA_NO_ENGINE", "1"),
                ("KONTENA_LOG", log),
            ];
            command
                .envs(settings)
                .env("KONTENA_STATE_DIR", &state)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(state.join("log"))?);
            agents.0.push(command.spawn()?);
        }
        Ok(agents)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if !self.keep_state {
            // It is only memory; the next run takes another directory.
            let _ = fs::remove_dir_all(&self.state);
        }
    }
}

/// Agents that run.
pub(crate) struct Agents(Vec<Child>);

impl Agents {
    /// What they use now and used up to now, all together; fails if one has ended.
    pub(crate) fn usage(&mut self) -> Result<Usage, BenchError> {
        let mut sum = Usage::default();
        for (number, agent) in (1..).zip(&mut self.0) {
            if let Some(status) = agent.try_wait()? {
                let what = format!("the agent of host {number} ended: {status}");
                return Err(BenchError::Failed(what));
            }
            sum += Usage::of(agent.id())?;
        }
        Ok(sum)
    }

    /// Stops all of them and waits.
    pub(crate) fn stop(mut self) -> Result<(), BenchError> {
        for agent in &self.0 {
            let process = Pid::from_raw(agent.id().cast_signed());
            kill(process, Signal::SIGTERM).map_err(std::io::Error::from)?;
        }
        let end = Instant::now() + STOP_WITHIN;
        for agent in &mut self.0 {
            while agent.try_wait()?.is_none() {
                if Instant::now() > end {
                    return Err(BenchError::Failed("agents do not stop".to_owned()));
                }
                // Between two looks at a process, which have a bound.
                sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for agent in &mut self.0 {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}
