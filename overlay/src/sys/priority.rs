//! Threads and programs that go before others of the control group.
//!
//! The kernel lets one transaction of a namespace's packet filter follow the other. Whoever
//! is in one and gets no processor delays all others, and with them the renewal that keeps
//! the filter open. So everything of ours that writes to the packet filter goes first, not
//! only what is in a hurry.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

const NICE: libc::c_int = -19;

/// A runtime with one thread, which goes before others as the threads do that it starts to
/// wait in. It ends when this is dropped.
pub(crate) struct PriorityRuntime {
    handle: Handle,
    _alive: oneshot::Sender<()>,
}

impl PriorityRuntime {
    /// Starts it in the network namespace of the calling thread.
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        // A thread that waits is started by whoever has something for it to do.
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name(name)
            .on_thread_start(|| go_first(0))
            .build()?;
        let handle = runtime.handle().clone();
        let (_alive, end) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(move || {
            go_first(0);
            let _ = runtime.block_on(end);
            // A thread that hangs in the kernel is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _alive })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// Puts a thread, and those that it starts from now on, before others; 0 is the calling one.
pub(crate) fn go_first(thread: u32) {
    // SAFETY: it takes numbers.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, NICE) } != 0 {
        let err = io::Error::last_os_error();
        tracing::debug!(%err, thread, "cannot raise the thread's priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice(thread: u32) -> libc::c_int {
        // SAFETY: it takes numbers.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, thread) }
    }

    #[tokio::test]
    async fn its_thread_and_those_that_wait_go_first_and_nobody_else() {
        let before = nice(0);
        let runtime = PriorityRuntime::start("first").unwrap();
        assert_eq!(
            runtime.handle().spawn(async { nice(0) }).await.unwrap(),
            NICE
        );
        let waits = runtime.handle().spawn_blocking(|| nice(0));
        assert_eq!(waits.await.unwrap(), NICE);
        assert_eq!(nice(0), before);
    }

    #[tokio::test]
    async fn what_it_runs_ends_with_it() {
        let runtime = PriorityRuntime::start("first").unwrap();
        let (sender, ended) = oneshot::channel::<()>();
        runtime.handle().spawn(async move {
            let _kept = sender;
            std::future::pending::<()>().await;
        });
        drop(runtime);
        ended.await.expect_err("its end is dropped");
    }
}
