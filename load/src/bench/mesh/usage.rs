//! What processes use, as the kernel tells.

use std::fs;
use std::ops::AddAssign;
use std::path::Path;

use crate::bench::BenchError;
use crate::cpu::TICKS_PER_S;

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// Resident memory, with what it shares with others.
    pub(crate) rss_mib: f64,
    /// The same, but of what is shared only its part.
    pub(crate) pss_mib: f64,
    /// Processor time of its own.
    pub(crate) own_s: f64,
    /// Processor time of programs that it ran to their ends.
    pub(crate) programs_s: f64,
}

impl Usage {
    /// What a process uses now.
    pub(crate) fn of(process: u32) -> Result<Self, BenchError> {
        let file = format!("/proc/{process}");
        let read = |name: &str| fs::read_to_string(Path::new(&file).join(name));
        let usage = parse(&read("smaps_rollup")?, &read("stat")?);
        usage.ok_or_else(|| BenchError::Failed(format!("{file} is not understood")))
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.rss_mib += other.rss_mib;
        self.pss_mib += other.pss_mib;
        self.own_s += other.own_s;
        self.programs_s += other.programs_s;
    }
}

fn parse(memory: &str, stat: &str) -> Option<Usage> {
    let mib = |name: &str| {
        let mut lines = memory.lines();
        let value = lines.find_map(|line| line.strip_prefix(name))?;
        let kib: f64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib / 1024.0)
    };
    // User and system time, its own and that of its children, are the 14th to the 17th
    // column; the second may hold spaces.
    let (_, columns) = stat.rsplit_once(") ")?;
    let ticks = columns.split(' ').skip(11).take(4);
    let times: Vec<f64> = ticks.map_while(|ticks| ticks.parse().ok()).collect();
    let [user, system, programs_user, programs_system] = times[..] else {
        return None;
    };
    Some(Usage {
        rss_mib: mib("Rss:")?,
        pss_mib: mib("Pss:")?,
        own_s: (user + system) / TICKS_PER_S,
        programs_s: (programs_user + programs_system) / TICKS_PER_S,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_of_a_process() {
        let memory = "00400000-7ffe [rollup]\nRss:    2048 kB\nPss:    1024 kB\nPss_Anon: 1 kB\n";
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 100 50 20 30 0\n";
        let want = Usage {
            rss_mib: 2.0,
            pss_mib: 1.0,
            own_s: 1.5,
            programs_s: 0.5,
        };
        assert_eq!(parse(memory, stat), Some(want));
        assert_eq!(parse("", stat), None);
        assert!(Usage::of(std::process::id()).is_ok());
    }
}
