//! The one way to start a task: it has a name, an owner, and an end that is logged.
//!
//! [`supervise`] starts a task that is to run for ever from a function that creates it: if it
//! panics or returns, that is logged and it is restarted after a pause, while all others go on.
//! State that must survive a restart is kept outside of it. A task that cannot be restarted belongs
//! to [`Tasks`], whose owner is told when it ends. [`TaskSet`] is for many short ones with results.
//!
//! Invariants: a task never outlives its owner; every panic is logged; a task that panics at every
//! start is restarted at most once in [`PAUSE_MAX`].

mod set;

use std::future::Future;

pub use set::TaskSet;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Duration, Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, error, info_span};

/// The pause before the first restart; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause before a restart: how long an operator has to wait after the cause is fixed.
pub const PAUSE_MAX: Duration = Duration::from_secs(30);
/// After running for so long, a task is restarted with the shortest pause again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// A task; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the task ends when this is dropped"]
pub struct Task(AbortOnDropHandle<()>);

impl Task {
    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

/// Starts a task that ends by itself. Must be called inside a tokio runtime.
pub fn spawn<F>(name: &'static str, future: F) -> Task
where
    F: Future<Output = ()> + Send + 'static,
{
    let work = tokio::spawn(future.instrument(info_span!("task", name)));
    let work = AbortOnDropHandle::new(work);
    let watch = async move {
        if let Err(err) = work.await {
            log_death(name, &err);
        }
    };
    Task(AbortOnDropHandle::new(tokio::spawn(watch)))
}

/// Starts a task that runs for ever, and restarts it whenever it ends. Must be called inside a tokio
/// runtime.
pub fn supervise<F>(name: &'static str, make: impl FnMut() -> F + Send + 'static) -> Task
where
    F: Future<Output = ()> + Send + 'static,
{
    Task(AbortOnDropHandle::new(tokio::spawn(supervised(name, make))))
}

/// Runs a task, and restarts it whenever it ends.
async fn supervised<F>(name: &'static str, mut make: impl FnMut() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut pause = Duration::ZERO;
    loop {
        let began = Instant::now();
        let part = tokio::spawn(make().instrument(info_span!("task", name)));
        match AbortOnDropHandle::new(part).await {
            Ok(()) => error!(task = name, "a task ended that must not"),
            // The runtime shuts down.
            Err(err) if err.is_cancelled() => return,
            Err(err) => log_death(name, &err),
        }
        pause = next_pause(pause, began.elapsed());
        sleep(pause).await;
    }
}

/// The pause before a restart, after this pause and this run time.
fn next_pause(before: Duration, ran: Duration) -> Duration {
    if ran >= HEALTHY_AFTER {
        PAUSE_MIN
    } else {
        (before * 2).clamp(PAUSE_MIN, PAUSE_MAX)
    }
}

fn log_death(name: &'static str, err: &JoinError) {
    if !err.is_cancelled() {
        error!(task = name, %err, "a task panicked");
    }
}

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

    /// Starts a task with a name, which is in all of its log lines.
    pub fn spawn<F>(&mut self, name: &'static str, future: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, future.instrument(info_span!("task", name)))
    }

    fn start<F>(&mut self, name: &'static str, future: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let handle = self.set.spawn(async move {
            future.await;
            name
        });
        self.names.push((handle.id(), name));
        handle
    }

    /// Starts a task that runs for ever, and restarts it whenever it ends.
    pub fn supervise<F>(
        &mut self,
        name: &'static str,
        make: impl FnMut() -> F + Send + 'static,
    ) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, supervised(name, make))
    }

    /// Waits until any of them ends, and returns its name; none if there are none.
    pub async fn first_end(&mut self) -> Option<&'static str> {
        let ended = self.set.join_next().await?;
        Some(match ended {
            Ok(name) => name,
            Err(err) => {
                let name = self.name(err.id());
                log_death(name, &err);
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_task_is_reported_by_name_also_after_a_panic() {
        let mut tasks = Tasks::new();
        assert_eq!(tasks.first_end().await, None);
        tasks.spawn("returns", async {});
        assert_eq!(tasks.first_end().await, Some("returns"));
        tasks.spawn("panics", async { panic!("on purpose") });
        assert_eq!(tasks.first_end().await, Some("panics"));
    }

    #[tokio::test]
    async fn a_task_that_panics_is_restarted_and_the_others_go_on() {
        let (starts_in, mut starts) = mpsc::channel(8);
        let mut tasks = Tasks::new();
        tasks.supervise("panics", move || {
            let starts = starts_in.clone();
            async move {
                starts.send(()).await.unwrap();
                panic!("on purpose");
            }
        });
        let (alive_in, mut alive) = mpsc::channel(1);
        tasks.spawn(
            "other",
            async move { while alive_in.send(()).await.is_ok() {} },
        );
        for _ in 0..3 {
            starts.recv().await.expect("it is started again");
            alive.recv().await.expect("the other goes on");
        }
    }

    #[test]
    fn the_pause_before_a_restart_doubles_up_to_a_bound() {
        let mut pause = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            pause = next_pause(pause, Duration::ZERO);
            pauses.push(pause);
        }
        assert_eq!(pauses[..3], [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4]);
        assert_eq!(pauses[11], PAUSE_MAX);
        assert_eq!(next_pause(PAUSE_MAX, HEALTHY_AFTER), PAUSE_MIN);
    }

    #[tokio::test]
    async fn a_task_ends_with_its_owner() {
        let held = Arc::new(AtomicU32::new(0));
        let part = held.clone();
        let task = supervise("forever", move || {
            let part = part.clone();
            async move {
                part.fetch_add(1, Ordering::Relaxed);
                std::future::pending().await
            }
        });
        let other = held.clone();
        let once = spawn("once", async move {
            other.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        });
        while held.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        drop((task, once));
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
