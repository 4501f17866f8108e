//! On what a result was measured, in one line: without it a figure says little.

use std::fs;

/// `2 x CPU MODEL, 7.8 GiB, Linux 6.1.0`.
pub(crate) fn describe() -> String {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    sentence(
        &read("/proc/cpuinfo"),
        &read("/proc/meminfo"),
        release.trim(),
    )
}

fn sentence(cpuinfo: &str, meminfo: &str, release: &str) -> String {
    let models: Vec<_> = values(cpuinfo, "model name").collect();
    let model = models.first().copied().unwrap_or("processor");
    // Not every architecture names its models, all number their processors.
    let cores = values(cpuinfo, "processor").count();
    let kib = values(meminfo, "MemTotal")
        .next()
        .and_then(|size| size.split(' ').next());
    let kib: f64 = kib.and_then(|kib| kib.parse().ok()).unwrap_or_default();
    format!(
        "{cores} x {model}, {:.1} GiB, Linux {release}",
        kib / 1024.0 / 1024.0
    )
}

fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_in_one_line() {
        let cpuinfo =
            "processor\t: 0\nmodel name\t: Some CPU\n\nprocessor\t: 1\nmodel name\t: Some CPU\n";
        let meminfo = "MemTotal:        8175012 kB\nMemFree: 1 kB\n";
        assert_eq!(
            sentence(cpuinfo, meminfo, "6.1.0"),
            "2 x Some CPU, 7.8 GiB, Linux 6.1.0"
        );
        assert_eq!(
            sentence("", "", "6.1.0"),
            "0 x processor, 0.0 GiB, Linux 6.1.0"
        );
    }
}
