//! One writer of the packet filter at a time, in this process.
//!
//! The kernel gives each namespace's packet filter a lock, which who commits holds, and who
//! closes a socket until the end of what was committed before (tens of milliseconds, on a
//! busy host seconds). Who waits for it holds another lock, which is the kernel's only one:
//! no namespace can change its packet filter meanwhile. So we wait here instead.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

static TURN: Mutex<()> = Mutex::const_new(());
/// The program whose turn it is; 0 if it is none's.
static PROGRAM: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Turn {
    _held: MutexGuard<'static, ()>,
}

impl Turn {
    /// Says which program runs meanwhile.
    pub(crate) fn give_to(&self, program: u32) {
        PROGRAM.store(program, Ordering::Release);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        PROGRAM.store(0, Ordering::Release);
    }
}

/// Waits for the others, each of which has an end.
pub(crate) async fn take() -> Turn {
    let _held = TURN.lock().await;
    Turn { _held }
}

/// Waits for the others; none if after so long one hangs, but not in the kernel.
pub(crate) async fn take_unless_one_hangs(after: Duration) -> Option<Turn> {
    loop {
        match timeout(after, take()).await {
            Ok(turn) => return Some(turn),
            Err(_) if is_in_kernel(PROGRAM.load(Ordering::Acquire)) => {}
            Err(_) => return None,
        }
    }
}

/// Whether a process waits for the kernel and nothing else, or runs (proc(5)).
fn is_in_kernel(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    let state = stat.ok().and_then(|stat| {
        let (_, after_name) = stat.rsplit_once(") ")?;
        after_name.chars().next()
    });
    matches!(state, Some('D' | 'R'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_goes_after_the_other_and_nobody_waits_for_one_that_hangs() {
        let soon = Duration::from_millis(1);
        let one = take().await;
        assert!(take_unless_one_hangs(soon).await.is_none());
        let mut hangs = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        one.give_to(hangs.id());
        let goes_ahead = take_unless_one_hangs(soon).await.is_none();
        // This one runs for ever.
        let mut runs = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        one.give_to(runs.id());
        let waits = take_unless_one_hangs(soon);
        let in_vain = timeout(Duration::from_millis(50), waits).await;
        for program in [&mut hangs, &mut runs] {
            program.kill().unwrap();
            program.wait().unwrap();
        }
        assert!(goes_ahead);
        assert!(in_vain.is_err(), "it waits");
        drop(one);
        // Others of this process may have it for a moment.
        assert!(
            take_unless_one_hangs(Duration::from_secs(60))
                .await
                .is_some()
        );
    }
}
