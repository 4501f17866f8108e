//! Who used the processors, from what the kernel counts for each container and for
//! the whole machine.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use crate::bench::BenchError;
use crate::stack::{REPLICAS, Stack};

/// What `/proc` counts processor time in, per second (`USER_HZ`).
pub(crate) const TICKS_PER_S: f64 = 100.0;

/// Columns of `/proc/stat` that are no work: idle and waiting for disks.
const NO_WORK: [usize; 2] = [3, 4];
/// Those after user, nice, system, idle, iowait, irq, softirq and steal are parts
/// of the first ones.
const STAT_COLUMNS: usize = 8;

/// Microseconds of processor time, by who used it. `machine` is everything, `load`
/// this process, `others` what is of neither the load nor the stack.
pub(crate) type Used = BTreeMap<&'static str, f64>;

/// The counters of a stack.
pub(crate) struct Cpu(Vec<(&'static str, Group)>);

/// A control group, by the file in which the kernel counts its processor time.
pub(crate) struct Group(PathBuf);

impl Group {
    /// Microseconds of processor time up to now.
    pub(crate) fn used_us(&self) -> Result<f64, BenchError> {
        let us = usage_us(&fs::read_to_string(&self.0)?);
        us.ok_or_else(|| unread(&self.0))
    }
}

impl Cpu {
    pub(crate) fn of(stack: &Stack) -> Result<Self, BenchError> {
        let mut counters = Vec::new();
        for part in ["postgres", "redis", "edge", "pgbench"] {
            counters.push((part, counter(stack, part)?));
        }
        for number in 1..=REPLICAS {
            counters.push(("replicas", counter(stack, &format!("api-{number}"))?));
        }
        Ok(Self(counters))
    }

    /// What was used up to now.
    pub(crate) fn used(&self) -> Result<Used, BenchError> {
        let mut used = Used::new();
        for (part, group) in &self.0 {
            *used.entry(part).or_default() += group.used_us()?;
        }
        for (part, file, ticks) in [
            ("machine", "/proc/stat", machine_ticks as fn(&str) -> _),
            ("load", "/proc/self/stat", own_ticks),
        ] {
            let ticks = ticks(&fs::read_to_string(file)?);
            let ticks: f64 = ticks.ok_or_else(|| unread(Path::new(file)))?;
            used.insert(part, ticks / TICKS_PER_S * 1e6);
        }
        let known: f64 = used.values().sum::<f64>() - used["machine"];
        used.insert("others", used["machine"] - known);
        Ok(used)
    }
}

/// What all processors together did up to a moment.
pub(crate) struct Ticks {
    work: f64,
    all: f64,
}

impl Ticks {
    /// Up to now.
    pub(crate) fn now() -> Result<Self, BenchError> {
        const FILE: &str = "/proc/stat";
        let stat = fs::read_to_string(FILE)?;
        let ticks = Self::parse(&stat);
        ticks.ok_or_else(|| unread(Path::new(FILE)))
    }

    /// How much of what they could have done since.
    pub(crate) fn percent_since(&self, earlier: &Self) -> f64 {
        (self.work - earlier.work) / (self.all - earlier.all) * 100.0
    }

    fn parse(stat: &str) -> Option<Self> {
        Some(Self {
            work: machine_ticks(stat)?,
            all: columns(stat)?
                .map(|(_, ticks)| ticks)
                .sum::<Option<f64>>()?,
        })
    }
}

fn unread(file: &Path) -> BenchError {
    BenchError::Failed(format!("{}: no processor time in it", file.display()))
}

/// Where the kernel counts for a container.
fn counter(stack: &Stack, part: &str) -> Result<Group, BenchError> {
    group_of(stack.inspect(part, "{{.State.Pid}}")?)
}

/// The control group of a process, in either version of control groups.
pub(crate) fn group_of(process: impl Display) -> Result<Group, BenchError> {
    let file = format!("/proc/{process}/cgroup");
    let groups = fs::read_to_string(&file)?;
    let counter = counter_of(&groups).ok_or_else(|| unread(Path::new(&file)))?;
    Ok(Group(counter))
}

fn counter_of(groups: &str) -> Option<PathBuf> {
    let group = |wanted: fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(controllers).then_some(path)
        })
    };
    if let Some(path) = group(|controllers| controllers.split(',').any(|one| one == "cpuacct")) {
        return Some(format!("/sys/fs/cgroup/cpuacct{path}/cpuacct.usage").into());
    }
    let path = group(str::is_empty)?;
    Some(format!("/sys/fs/cgroup{path}/cpu.stat").into())
}

/// Nanoseconds alone in version 1, `usage_usec N` among others in version 2.
fn usage_us(text: &str) -> Option<f64> {
    if let Ok(ns) = text.trim().parse::<f64>() {
        return Some(ns / 1000.0);
    }
    let us = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    us?.parse().ok()
}

fn machine_ticks(stat: &str) -> Option<f64> {
    let work = columns(stat)?.filter(|(column, _)| !NO_WORK.contains(column));
    work.map(|(_, ticks)| ticks).sum()
}

/// The machine's columns, with their numbers.
fn columns(stat: &str) -> Option<impl Iterator<Item = (usize, Option<f64>)>> {
    let columns = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks = columns.split_whitespace().take(STAT_COLUMNS);
    Some(ticks.map(|ticks| ticks.parse().ok()).enumerate())
}

/// User and system time, the 14th and 15th column; the second may hold spaces.
fn own_ticks(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let ticks = rest.split(' ').skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups() {
        let old = "9:name=systemd:/docker/ab\n2:cpu,cpuacct:/docker/ab\n0::/docker/ab\n";
        let file = counter_of(old).unwrap();
        assert_eq!(
            file,
            Path::new("/sys/fs/cgroup/cpuacct/docker/ab/cpuacct.usage")
        );
        let new = "0::/system.slice/docker-ab.scope\n";
        let file = counter_of(new).unwrap();
        assert_eq!(
            file,
            Path::new("/sys/fs/cgroup/system.slice/docker-ab.scope/cpu.stat")
        );
        assert_eq!(usage_us("5000\n"), Some(5.0));
        assert_eq!(usage_us("usage_usec 7\nuser_usec 3\n"), Some(7.0));
        assert_eq!(usage_us("user_usec 3\n"), None);
    }

    #[test]
    fn ticks() {
        let machine = "cpu  1 2 4 1000 1000 8 16 32 64 64\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(machine_ticks(machine), Some(63.0));
        let [before, after] = ["cpu  10 0 0 80 10", "cpu  40 0 0 130 30"].map(Ticks::parse);
        let percent = after.unwrap().percent_since(&before.unwrap());
        assert!((percent - 30.0).abs() < 1e-9, "{percent}");
        let own = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0\n";
        assert_eq!(own_ticks(own), Some(42.0));
    }
}
