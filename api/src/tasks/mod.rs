//! Background tasks: named, owned and watched.

mod housekeeping;

use std::future::Future;

use tokio::task::JoinSet;

pub use self::housekeeping::{forget, lose, renew, tick};

/// The tasks of a replica. Dropping it ends them all.
#[derive(Default)]
pub struct Tasks {
    set: JoinSet<&'static str>,
}

impl Tasks {
    /// Starts a task that is to run as long as the replica does.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until one of the tasks ends, which none should, and names it.
    pub async fn ended(&mut self) -> String {
        match self.set.join_next().await {
            None => std::future::pending().await,
            Some(Ok(name)) => format!("task {name} ended"),
            Some(Err(error)) => format!("a task failed: {error}"),
        }
    }
}
