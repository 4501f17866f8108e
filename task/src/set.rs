//! Tasks that end by themselves and answer with something.

use std::future::Future;

use tokio::task::{Id, JoinError, JoinSet};
use tracing::{Instrument, info_span};

use crate::log_death;

/// Tasks of one kind, whose results their owner takes; all are aborted when it is dropped.
#[derive(Debug)]
pub struct TaskSet<T> {
    name: &'static str,
    set: JoinSet<T>,
}

impl<T: Send + 'static> TaskSet<T> {
    /// No tasks yet; those to come have this name in the log.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            set: JoinSet::new(),
        }
    }

    /// Starts a task. Must be called inside a tokio runtime.
    pub fn spawn<F>(&mut self, future: F) -> Id
    where
        F: Future<Output = T> + Send + 'static,
    {
        let task = future.instrument(info_span!("task", name = self.name));
        self.set.spawn(task).id()
    }

    /// How many run, or have ended and were not taken.
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Waits for the end of any of them: its result, or none if it panicked, which is logged. None
    /// if there is no task. Cancel-safe.
    pub async fn next(&mut self) -> Option<(Id, Option<T>)> {
        let ended = self.set.join_next_with_id().await?;
        Some(self.result(ended))
    }

    /// The same of one that has ended already; none if none has.
    pub fn try_next(&mut self) -> Option<(Id, Option<T>)> {
        let ended = self.set.try_join_next_with_id()?;
        Some(self.result(ended))
    }

    fn result(&self, ended: Result<(Id, T), JoinError>) -> (Id, Option<T>) {
        match ended {
            Ok((id, result)) => (id, Some(result)),
            Err(err) => {
                log_death(self.name, &err);
                (err.id(), None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn each_task_has_one_end_also_one_that_panics() {
        let mut tasks = TaskSet::new("numbers");
        assert_eq!(tasks.next().await, None);
        let seven = tasks.spawn(async { 7 });
        assert_eq!(tasks.next().await, Some((seven, Some(7))));
        let panics = tasks.spawn(async { panic!("on purpose") });
        assert_eq!(tasks.len(), 1);
        assert_eq!(tasks.next().await, Some((panics, None)));
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn only_what_has_ended_is_taken_without_waiting() {
        let mut tasks = TaskSet::new("numbers");
        assert_eq!(tasks.try_next(), None);
        let (go_on, wait) = oneshot::channel::<()>();
        let seven = tasks.spawn(async {
            wait.await.unwrap();
            7
        });
        tokio::task::yield_now().await;
        assert_eq!((tasks.try_next(), tasks.len()), (None, 1));
        go_on.send(()).unwrap();
        let ended = loop {
            match tasks.try_next() {
                Some(ended) => break ended,
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!(ended, (seven, Some(7)));
    }

    #[tokio::test]
    async fn they_end_with_their_owner() {
        let mut tasks = TaskSet::new("for ever");
        let (held, let_go) = oneshot::channel::<()>();
        tasks.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(tasks);
        assert!(let_go.await.is_err());
    }
}
