//! One writer of the packet filter at a time, in this process.
//!
//! The kernel gives each namespace's packet filter a lock, which who commits holds, and who
//! closes a socket until the end of what was committed before (tens of milliseconds, on a
//! busy host seconds). Who waits for it holds another lock, which is the kernel's only one:
//! no namespace can change its packet filter meanwhile. So we wait here instead.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

static TURN: Mutex<()> = Mutex::const_new(());

pub(crate) type Turn = MutexGuard<'static, ()>;

/// Waits for the others, each of which has an end.
pub(crate) async fn take() -> Turn {
    TURN.lock().await
}

/// Waits for the others for so long; then one hangs, and is waited for in the kernel.
pub(crate) async fn take_within(patience: Duration) -> Option<Turn> {
    timeout(patience, take()).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_goes_after_the_other_and_nobody_waits_for_ever() {
        let one = take().await;
        assert!(take_within(Duration::from_millis(1)).await.is_none());
        drop(one);
        // Others of this process may have it for a moment.
        assert!(take_within(Duration::from_secs(60)).await.is_some());
    }
}
