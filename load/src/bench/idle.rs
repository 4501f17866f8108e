//! What an agent costs its host while nothing changes.
//!
//! Processor time is that of the agent's whole control group: programs that it runs, such
//! as `nft`, count as the agent. Memory is what the agent's process has resident.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::BenchError;
use crate::cpu::group_of;
use crate::stack::output;

const PROGRAM: &str = "kontena-agent";
/// How long after `up` nothing of it is under way any more.
const SETTLED_AFTER: Duration = Duration::from_secs(30);
/// Several of every tick of the agent: the longest is 10 s.
const MEASURED_FOR: Duration = Duration::from_secs(60);

/// The most that any agent of the grid uses.
pub(crate) struct Idle {
    /// Of one core.
    pub(crate) cpu_percent: f64,
    pub(crate) rss_mib: f64,
}

/// Waits until nothing is under way, and measures every agent of a stack.
pub(crate) fn measure(project: &str) -> Result<Idle, BenchError> {
    let agents = agents(project)?;
    sleep(SETTLED_AFTER);
    let (began, before) = (Instant::now(), used(&agents)?);
    sleep(MEASURED_FOR);
    let (elapsed, after) = (began.elapsed(), used(&agents)?);
    let us = before
        .iter()
        .zip(&after)
        .map(|(before, after)| after - before);
    let most_us = us.fold(0.0, f64::max);
    let mut most_mib = 0.0;
    for agent in &agents {
        most_mib = f64::max(most_mib, rss_mib(*agent)?);
    }
    Ok(Idle {
        cpu_percent: most_us / elapsed.as_secs_f64() / 1e6 * 100.0,
        rss_mib: most_mib,
    })
}

fn used(agents: &[i32]) -> Result<Vec<f64>, BenchError> {
    agents
        .iter()
        .map(|agent| group_of(agent)?.used_us())
        .collect()
}

fn rss_mib(agent: i32) -> Result<f64, BenchError> {
    let file = format!("/proc/{agent}/status");
    let kib = resident_kib(&fs::read_to_string(&file)?);
    let kib = kib.ok_or_else(|| BenchError::Failed(format!("{file}: no VmRSS")))?;
    Ok(kib / 1024.0)
}

/// The processes of the agents on the hosts of a stack, one each.
fn agents(project: &str) -> Result<Vec<i32>, BenchError> {
    let hosts = hosts(project)?;
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_one = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim_end() == PROGRAM && descends(*pid, &hosts)
    };
    let agents: Vec<_> = pids.filter(is_one).collect();
    if hosts.is_empty() || agents.len() != hosts.len() {
        let (agents, hosts) = (agents.len(), hosts.len());
        return Err(BenchError::Failed(format!(
            "{agents} agents on {hosts} hosts"
        )));
    }
    Ok(agents)
}

/// The first processes of the stack's hosts.
fn hosts(project: &str) -> Result<BTreeSet<i32>, BenchError> {
    let label = format!("label=com.docker.compose.project={project}");
    let names = docker(&["ps", "--filter", &label, "--format", "{{.Names}}"])?;
    let nodes = names.lines().filter(|name| name.contains("-node-"));
    nodes
        .map(|node| {
            let pid = docker(&["inspect", "--format", "{{.State.Pid}}", node])?;
            let not_running = || BenchError::Failed(format!("{node} does not run"));
            pid.parse().map_err(|_| not_running())
        })
        .collect()
}

fn docker(args: &[&str]) -> Result<String, BenchError> {
    let mut command = Command::new("docker");
    command.args(args);
    output(command)
}

fn descends(pid: i32, from: &BTreeSet<i32>) -> bool {
    let parent = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        parent.trim().parse().ok().filter(|parent| *parent > 0)
    };
    std::iter::successors(Some(pid), parent).any(|pid| from.contains(&pid))
}

fn resident_kib(status: &str) -> Option<f64> {
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    rss.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_descends_from_its_parents() {
        let own = std::process::id().cast_signed();
        let parent = std::os::unix::process::parent_id().cast_signed();
        assert!(descends(own, &[own].into()) && descends(own, &[parent].into()));
        assert!(!descends(parent, &[own].into()));
    }

    #[test]
    fn memory_is_what_is_resident() {
        let status = "Name:\tx\nVmPeak:\t  9000 kB\nVmRSS:\t   20480 kB\n";
        assert_eq!(resident_kib(status), Some(20_480.0));
        assert_eq!(resident_kib("Name:\tkthreadd\n"), None);
    }
}
