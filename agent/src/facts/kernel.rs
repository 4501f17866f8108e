//! What the kernel knows about the host, in an engine's format; for an agent that runs
//! without an engine.

use std::fs;

use bollard::models::SystemInfo;

/// What an engine with this id would say about its host, as far as the agent asks.
pub fn info(id: &str) -> SystemInfo {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let line = |file| Some(read(file).trim().to_owned());
    SystemInfo {
        id: Some(id.to_owned()),
        name: line("/proc/sys/kernel/hostname"),
        kernel_version: line("/proc/sys/kernel/osrelease"),
        operating_system: pretty_name(&read("/etc/os-release")),
        ncpu: std::thread::available_parallelism()
            .ok()
            .and_then(|count| i64::try_from(count.get()).ok()),
        mem_total: total_bytes(&read("/proc/meminfo")),
        ..SystemInfo::default()
    }
}

fn pretty_name(os_release: &str) -> Option<String> {
    let mut lines = os_release.lines();
    let value = lines.find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

fn total_bytes(meminfo: &str) -> Option<i64> {
    let mut lines = meminfo.lines();
    let value = lines.find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: i64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_the_host() {
        let info = info("some-id");
        assert_eq!(info.id.as_deref(), Some("some-id"));
        assert!(info.name.is_some_and(|name| !name.is_empty()));
        assert!(info.ncpu.is_some_and(|count| count > 0));
        assert!(info.mem_total.is_some_and(|bytes| bytes > 0));
        let release = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        let pretty = pretty_name(release);
        assert_eq!(pretty.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(total_bytes("MemFree: 1 kB\n"), None);
    }
}
