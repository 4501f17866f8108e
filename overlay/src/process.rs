//! A process, distinguished from others that have had its process ID.

use std::fs;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// `USER_HZ`, the unit of `/proc/PID/stat`, is 100 on every architecture that Docker runs
/// on.
const TICKS_PER_SECOND: u128 = 100;

/// Where `starttime` is, counted from the field after the program's name.
const STARTED: usize = 19;

/// A process of this host. Its ID alone is not enough: Linux reuses those of processes that
/// have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its ID, in this host's pid namespace.
    pub pid: i32,
    /// When it started, in clock ticks (100 a second) since the host's boot: field 22 of
    /// `/proc/PID/stat`, proc_pid_stat(5).
    pub started: u64,
}

impl Process {
    /// The process that has this ID now.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let started = started(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, started })
    }

    /// Whether it has not ended.
    pub fn lives(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// Now, on the clock of [`Process::started`].
    pub fn clock() -> u64 {
        let since_boot =
            clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        let ticks = since_boot.as_nanos() * TICKS_PER_SECOND / Duration::from_secs(1).as_nanos();
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

/// The name of the program, in parentheses, may hold anything.
fn started(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(STARTED)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::id;

    use super::*;

    #[test]
    fn a_process_is_told_by_its_number_and_by_when_it_started() {
        let before = Process::clock();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let process = Process::of(child.id().cast_signed()).unwrap();
        assert!((before..=Process::clock()).contains(&process.started));
        assert_eq!(Process::of(process.pid).unwrap(), process);
        assert!(process.lives());
        let own = Process::of(id().cast_signed()).unwrap();
        assert!(own.started <= before && own.pid != process.pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.lives());
        let gone = Process::of(process.pid).unwrap_err();
        assert!(
            matches!(gone.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
            "{gone}"
        );
    }

    #[test]
    fn a_program_may_have_any_name() {
        let fields = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        for name in ["sleep", "a b) (c", "7)"] {
            assert_eq!(started(&format!("12 ({name}) {fields}")), Some(4711));
        }
        assert_eq!(started("12 (sleep) S 1"), None);
        assert_eq!(started(""), None);
    }
}
