//! The first process of a container that Docker does not tell about.
//!
//! An agent that starts while Docker does not answer for a container must not take
//! the container's interface away. The kernel knows the container's processes:
//! their control group is named after it, and the first one is process 1 of its
//! namespace.

use std::fs;
use std::path::Path;

/// The process, as the host numbers it; none if there is none. Looks at every process
/// of the host.
pub(super) fn find(container: &str) -> Option<i32> {
    let entries = fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid| is_first(*pid, container))
}

fn is_first(pid: i32, container: &str) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let read = |name| fs::read_to_string(process.join(name)).unwrap_or_default();
    is_in(&read("cgroup"), container) && is_init(&read("status"))
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
