//! The one way to start a task: it has a name, an owner, and an end that is
//! logged.
//!
//! A task of the agent's spine (link, reconcile, names) must not end before the
//! agent does. Its end, by return or by panic, is an error that
//! [`Tasks::first_end`] hands to `run`, and the whole agent is restarted by
//! whoever keeps it: half an agent is worse than none.

use std::future::Future;

use tokio::task::{AbortHandle, JoinSet};
use tracing::{Instrument, error, info_span};

/// The tasks of one owner; all of them are aborted when it is dropped.
#[derive(Default)]
pub struct Tasks {
    set: JoinSet<&'static str>,
    names: Vec<(tokio::task::Id, &'static str)>,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task under a name that is in all of its log lines.
    pub fn spawn<F>(&mut self, name: &'static str, future: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = async move {
            future.await;
            name
        };
        let handle = self.set.spawn(task.instrument(info_span!("task", name)));
        self.names.push((handle.id(), name));
        handle
    }

    /// Waits until any of them ended, and names it; none if there are none.
    pub async fn first_end(&mut self) -> Option<&'static str> {
        let ended = self.set.join_next().await?;
        Some(match ended {
            Ok(name) => name,
            Err(err) => {
                let name = self.name(err.id());
                if !err.is_cancelled() {
                    error!(task = name, %err, "a task died");
                }
                name
            }
        })
    }

    fn name(&self, id: tokio::task::Id) -> &'static str {
        self.names
            .iter()
            .find(|(known, _)| *known == id)
            .map_or("unknown", |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_task_is_told_by_name_also_after_a_panic() {
        let mut tasks = Tasks::new();
        assert_eq!(tasks.first_end().await, None);
        tasks.spawn("returns", async {});
        assert_eq!(tasks.first_end().await, Some("returns"));
        tasks.spawn("panics", async { panic!("on purpose") });
        assert_eq!(tasks.first_end().await, Some("panics"));
    }
}
