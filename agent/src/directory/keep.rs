//! Keeps what the Master sends on disk, before anybody acts on it.
//!
//! Many changes at once are written once. A disk that is full or hangs delays nobody for
//! long: the agent continues from memory, and what is not on disk is written as soon as
//! that works again.
//!
//! Invariant: writes do not overtake each other.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Duration, sleep, timeout};
use tracing::{error, info};

use super::{Directory, Store, StoreError};

/// How long what the Master sent waits to be on disk before it is acted on. Within 5 s a
/// peer whose trust is withdrawn gets nothing in clear any more, whatever hangs.
const WRITE_WITHIN: Duration = Duration::from_millis(500);

/// How soon what could not be written is written again.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Passes on what was received as soon as it is on disk, or cannot be for now; for ever.
pub async fn run(
    mut writer: Writer,
    mut received: watch::Receiver<Arc<Directory>>,
    directory: watch::Sender<Arc<Directory>>,
) {
    loop {
        tokio::select! {
            changed = received.changed() => if changed.is_err() {
                return;
            },
            () = writer.progress() => {}
        }
        let newest = received.borrow_and_update().clone();
        // What a removed node knew is forgotten when nothing of it is left.
        if !newest.removed {
            writer.begin(&newest);
            let _ = timeout(WRITE_WITHIN, writer.progress()).await;
        }
        directory.send_if_modified(|old| {
            let differs = !Arc::ptr_eq(old, &newest);
            old.clone_from(&newest);
            differs
        });
    }
}

/// Writes directories to disk, one at a time.
pub struct Writer {
    store: Store,
    /// What is on disk.
    written: Arc<Directory>,
    writing: Option<Write>,
    failing: bool,
}

/// A write that is under way.
struct Write {
    of: Arc<Directory>,
    result: JoinHandle<Result<(), StoreError>>,
}

impl Writer {
    /// Writes nothing yet; this is on disk.
    pub fn new(store: Store, written: Arc<Directory>) -> Self {
        Self {
            store,
            written,
            writing: None,
            failing: false,
        }
    }

    /// Begins to write, unless it is on disk or another write is under way.
    fn begin(&mut self, newest: &Arc<Directory>) {
        if self.writing.is_some() || Arc::ptr_eq(&self.written, newest) {
            return;
        }
        let (store, directory) = (self.store.clone(), newest.clone());
        self.writing = Some(Write {
            of: newest.clone(),
            result: spawn_blocking(move || store.save_directory(&directory)),
        });
    }

    /// Waits for the write that is under way; without one, until a failed write is due
    /// again. May be dropped and called again.
    async fn progress(&mut self) {
        let Some(Write { of, result }) = &mut self.writing else {
            if self.failing {
                return sleep(WRITE_AGAIN_AFTER).await;
            }
            return pending().await;
        };
        let failure = match result.await {
            Ok(Ok(())) => None,
            Ok(Err(err)) => Some(err.to_string()),
            Err(err) => Some(err.to_string()),
        };
        match &failure {
            Some(why) if !self.failing => error!(
                why,
                "cannot save what the Master sent; continuing from memory"
            ),
            None if self.failing => info!("what the Master sent is saved again"),
            _ => {}
        }
        self.failing = failure.is_some();
        if !self.failing {
            self.written = of.clone();
        }
        self.writing = None;
    }
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;
