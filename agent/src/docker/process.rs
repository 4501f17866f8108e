//! The first process of a container.
//!
//! An agent that starts while Docker does not answer for a container must not take
//! the container's interface away. The kernel knows the container's processes:
//! their control group is named after it, and the first one is process 1 of its
//! namespace.

use std::fs;
use std::path::Path;

use kontena_overlay::Process;

/// The first process of a container, whose number Docker gave after it was asked; none if
/// that cannot be told.
///
/// A number may be given to another process before somebody looks, and Docker may not have
/// noticed that the container's ended. So the process must have started before Docker was
/// asked, and be in the container's control group.
pub(super) fn named(pid: i32, container: &str, asked: u64) -> Option<Process> {
    let process = Process::of(pid).ok()?;
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    // An init system may have moved itself to a group below the container's.
    let is_inside = !container.is_empty() && cgroup.contains(container);
    (process.started < asked && is_inside).then_some(process)
}

/// The process; none if there is none. Looks at every process of the host.
pub(super) fn find(container: &str) -> Option<Process> {
    let entries = fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find_map(|pid| first(pid, container))
}

fn first(pid: i32, container: &str) -> Option<Process> {
    let process = Process::of(pid).ok()?;
    let dir = Path::new("/proc").join(pid.to_string());
    let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let first = is_in(&read("cgroup"), container) && is_init(&read("status"));
    (first && process.lives()).then_some(process)
}

/// `/proc/PID/cgroup`: the group of a container, and not one below it, ends with its id,
/// as `docker/ID` or as `docker-ID.scope`.
fn is_in(cgroup: &str, container: &str) -> bool {
    let ends = |line: &str| line.trim_end_matches(".scope").ends_with(container);
    !container.is_empty() && cgroup.lines().any(ends)
}

/// `NSpid` of `/proc/PID/status` has a number for each namespace, the innermost last.
fn is_init(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let mut numbers = numbers.unwrap_or_default().split_whitespace();
    numbers.next().is_some() && numbers.last() == Some("1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_means_a_process_of_the_container_from_before_docker_was_asked() {
        let own = Process::of(std::process::id().cast_signed()).unwrap();
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let group = groups.lines().next().unwrap().rsplit('/').next().unwrap();
        // Outside of any group there is no name that could be wrong.
        let group = if group.is_empty() { "/" } else { group };
        assert_eq!(named(own.pid, group, own.started + 1), Some(own));
        // It may have started between the answer and this look.
        assert_eq!(named(own.pid, group, own.started), None);
        assert_eq!(named(own.pid, "another", own.started + 1), None);
        assert_eq!(named(i32::MAX, group, u64::MAX), None);
    }

    #[test]
    fn the_first_process_of_a_container_is_told_from_all_others() {
        for group in [
            "0::/docker/abc",
            "4:memory:/x\n1:name=systemd:/docker/abc",
            "0::/system.slice/docker-abc.scope",
        ] {
            assert!(is_in(group, "abc"), "{group}");
        }
        for group in ["", "0::/docker/abd", "0::/docker/abc/nested"] {
            assert!(!is_in(group, "abc"), "{group}");
        }
        assert!(is_init("Name:\tsh\nNSpid:\t4711\t1\n"));
        for status in ["", "NSpid:\t1\n", "NSpid:\t4711\t12\n"] {
            assert!(!is_init(status), "{status}");
        }
    }
}
