//! Programs that a run starts. None outlives it: what serves is ended when it is
//! dropped, and the kernel ends what is left if this process is killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kontena_lab::Netns;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;

use crate::bench::BenchError;

/// How long anything that is built may take to work.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long a program that is told to end may take.
const END_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at what cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on an interrupt is an error of what is being done, so that everything is
/// removed on the way out.
pub(crate) fn heed_interrupts() -> Result<(), BenchError> {
    let handler = SigHandler::Handler(note_interrupt);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but store into an atomic.
        unsafe { sigaction(signal, &action) }.map_err(std::io::Error::from)?;
    }
    Ok(())
}

fn check_interrupt() -> Result<(), BenchError> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(BenchError::Failed("interrupted".to_owned()));
    }
    Ok(())
}

/// Waits until `look` finds something; fails with the last thing it said.
pub(crate) fn until<T>(
    what: &str,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, BenchError> {
    let begun = Instant::now();
    loop {
        check_interrupt()?;
        match look() {
            Ok(found) => return Ok(found),
            Err(last) if begun.elapsed() > READY_WITHIN => {
                let why = format!("{what}: not within {READY_WITHIN:?}: {last}");
                return Err(BenchError::Failed(why));
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Runs a program to its end, which must come in time and be a good one; tells what
/// it wrote.
pub(crate) fn output(mut command: Command, within: Duration) -> Result<String, BenchError> {
    let shown = shown(&command);
    let failed = |why: &str| BenchError::Failed(format!("{shown}: {why}"));
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|err| failed(&err.to_string()))?;
    let process = Pid::from_raw(child.id().cast_signed());
    let (give, take) = mpsc::channel();
    std::thread::spawn(move || drop(give.send(child.wait_with_output())));
    let begun = Instant::now();
    let output = loop {
        if let Ok(output) = take.recv_timeout(LOOK_EVERY) {
            break output?;
        }
        let late = match begun.elapsed() > within {
            true => Err(failed(&format!("not within {within:?}"))),
            false => check_interrupt(),
        };
        if let Err(why) = late {
            let _ = kill(process, Signal::SIGKILL);
            return Err(why);
        }
    };
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (told, complained) = (words(&output.stdout), words(&output.stderr));
    if !output.status.success() {
        // iperf3 complains where it tells.
        return Err(failed(&format!("{} {complained} {told}", output.status)));
    }
    Ok(told)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// Runs a program inside a namespace that does its work at once.
pub(crate) fn inside(netns: &Netns, line: &str) -> Result<String, BenchError> {
    output(netns.command(line), READY_WITHIN)
}

/// Runs such a program where this one is.
pub(crate) fn here(line: &str) -> Result<String, BenchError> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    output(command, READY_WITHIN)
}

/// A program that serves until this is dropped.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    /// What ends it.
    signal: Signal,
}

impl Daemon {
    /// Starts it; what it says goes to the file `log`.
    pub(crate) fn start(
        mut command: Command,
        log: &Path,
        signal: Signal,
    ) -> Result<Self, BenchError> {
        use std::os::unix::process::CommandExt;
        let shown = shown(&command);
        let said = File::create(log)?;
        command.stdin(Stdio::null()).stderr(said.try_clone()?);
        // In a group of its own it does not hear an interrupt that is for us, and
        // ends in its turn.
        let child = command.stdout(said).process_group(0).spawn();
        let failed = |err| BenchError::Failed(format!("{shown}: {err}"));
        Ok(Self {
            child: child.map_err(failed)?,
            log: log.to_owned(),
            signal,
        })
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Tries something until it works, as long as the program runs.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let Self { child, log, .. } = self;
        let mut ended = None;
        let found = until(what, || {
            if let Ok(Some(status)) = child.try_wait() {
                ended = Some(status);
                return Ok(None);
            }
            look().map(Some).map_err(|err| err.to_string())
        });
        let said = || fs::read_to_string(&*log).unwrap_or_default();
        let why = match (found, ended) {
            (Ok(Some(found)), _) => return Ok(found),
            (Err(err), _) => err.to_string(),
            (Ok(None), status) => format!("{what}: it ended, {status:?}"),
        };
        Err(BenchError::Failed(format!("{why}\n{}", tail(&said()))))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let process = Pid::from_raw(self.child.id().cast_signed());
        let begun = Instant::now();
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(process, self.signal);
        }
        while let Ok(None) = self.child.try_wait() {
            if begun.elapsed() > END_WITHIN {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The end of what a program said.
fn tail(said: &str) -> String {
    const LINES: usize = 10;
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_says_which_program_and_why() {
        let said = here("sh -c false").unwrap_err().to_string();
        assert!(said.starts_with("sh -c false: exit status: 1"), "{said}");
        let said = here("no-such-program").unwrap_err().to_string();
        assert!(said.starts_with("no-such-program: No such file"), "{said}");
    }

    #[test]
    fn what_takes_too_long_is_ended() {
        let mut command = Command::new("sleep");
        command.arg("infinity");
        let said = output(command, Duration::from_millis(1)).unwrap_err();
        assert_eq!(said.to_string(), "sleep infinity: not within 1ms");
    }

    #[test]
    fn the_end_of_a_log() {
        assert_eq!(tail("a\nb\n"), "a\nb");
        let long: String = (0..20).map(|line| format!("{line}\n")).collect();
        assert_eq!(tail(&long), "10\n11\n12\n13\n14\n15\n16\n17\n18\n19");
    }
}
