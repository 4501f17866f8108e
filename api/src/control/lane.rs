//! Many requests for addresses to one transaction.
//!
//! The grid's lock serialises the changes of a grid, so a request alone would cost
//! a commit. Requests for one grid wait in a lane; its driver takes all that wait
//! for one transaction, and what comes meanwhile is the next. A batch that fails is
//! run again one by one, so that nobody fails for another.
//!
//! There is no timer. A request that is alone leaves at once, with one statement that
//! is a transaction of its own. Where the last batch had several, the driver takes the
//! grid's lock first and then all that wait: what comes while others have the lock
//! still goes along.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kontena_schema::query;
use serde_json::Value;
use tokio::sync::oneshot;

use super::batch::{Applied, AtOnce, apply};
use super::reservation::{Answer, Asked, Outcome, Wish};
use super::{Call, ControlError, LockedGrid};
use crate::app::App;

/// Requests of one grid that may wait.
const LANE_MAX: usize = 2048;
/// Requests in one transaction, which has to stay short.
const BATCH_MAX: usize = 512;
/// Addresses that one batch asks for, unless a single request asks for more.
const BATCH_ADDRESSES_MAX: u32 = 8192;

/// A request, and whom to tell.
struct Job {
    call: Call,
    wish: Wish,
    answer: oneshot::Sender<Result<Answer, ControlError>>,
}

/// What waits for one grid.
#[derive(Default)]
struct Lane {
    jobs: VecDeque<Job>,
    /// Whether a driver is at work.
    driven: bool,
    /// Whether the last batch had several requests.
    crowded: bool,
}

/// The lanes of the grids that have requests waiting or under way, or had several at
/// once.
#[derive(Default)]
pub struct Lanes {
    lanes: Mutex<HashMap<String, Lane>>,
}

impl Lanes {
    /// Puts a request into its grid's lane; true if the lane has no driver yet.
    fn enter(&self, grid: &str, job: Job) -> Result<bool, ControlError> {
        let mut lanes = self.lock();
        let lane = match lanes.get_mut(grid) {
            Some(lane) => lane,
            None => lanes.entry(grid.to_owned()).or_default(),
        };
        if lane.jobs.len() >= LANE_MAX {
            return Err(ControlError::Busy {
                grid: grid.to_owned(),
            });
        }
        lane.jobs.push_back(job);
        Ok(!std::mem::replace(&mut lane.driven, true))
    }

    /// Moves what waits into `batch`, up to its bounds. A key or a release of an address
    /// that is in the batch already waits for the next one, which finds what this one did.
    fn board(&self, grid: &str, batch: &mut Vec<Job>) {
        let mut lanes = self.lock();
        let Some(Lane { jobs: lane, .. }) = lanes.get_mut(grid) else {
            return;
        };
        let key = |call: &Call| {
            call.idempotency
                .clone()
                .map(|key| (call.actor.clone(), key.key))
        };
        let mut keys: HashSet<_> = batch.iter().filter_map(|job| key(&job.call)).collect();
        let mut ending: HashSet<_> = (batch.iter())
            .filter_map(|job| job.wish.released())
            .collect();
        let size = |wish: &Wish| match wish {
            Wish::Take { count, .. } => *count,
            Wish::Claim { .. } | Wish::Release { .. } => 1,
        };
        let mut addresses: u32 = batch.iter().map(|job| size(&job.wish)).sum();
        while let Some(job) = lane.front() {
            // Nobody would know of what he gets.
            if job.answer.is_closed() {
                lane.pop_front();
                continue;
            }
            let full = batch.len() >= BATCH_MAX
                || !batch.is_empty() && addresses + size(&job.wish) > BATCH_ADDRESSES_MAX;
            // One call has one actor.
            let stranger = (batch.first()).is_some_and(|first| first.call.actor != job.call.actor);
            let again = key(&job.call).is_some_and(|key| !keys.insert(key))
                || job.wish.released().is_some_and(|ip| !ending.insert(ip));
            if full || stranger || again {
                break;
            }
            addresses += size(&job.wish);
            batch.extend(lane.pop_front());
        }
    }

    fn is_crowded(&self, grid: &str) -> bool {
        self.lock().get(grid).is_some_and(|lane| lane.crowded)
    }

    /// After a batch of so many: true if the lane is empty and its driver may leave.
    fn close(&self, grid: &str, served: usize) -> bool {
        let mut lanes = self.lock();
        let Some(lane) = lanes.get_mut(grid) else {
            return true;
        };
        lane.crowded = served > 1;
        lane.driven = !lane.jobs.is_empty();
        if lane.driven {
            return false;
        }
        if !lane.crowded {
            lanes.remove(grid);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drives a lane until it is empty. If it is cut short, whoever waits is told so by
/// the end of their channels.
struct Driver {
    app: Arc<App>,
    grid: String,
    /// The lane is closed, and may be another driver's by now.
    closed: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.closed {
            self.app.lanes.lock().remove(&self.grid);
        }
    }
}

impl Driver {
    async fn drive(mut self) {
        while !self.closed {
            let served = self.batch().await;
            self.closed = self.app.lanes.close(&self.grid, served);
        }
    }

    /// Serves those that wait. Answers how many it served; none where it failed, for a lane
    /// of no grid is not to stay.
    async fn batch(&self) -> usize {
        let mut jobs = Vec::new();
        let outcome = if self.app.lanes.is_crowded(&self.grid) {
            let boarding = Mutex::default();
            let outcome = self.lock_and_run(&boarding).await;
            jobs = boarding
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner);
            if outcome.is_err() && jobs.is_empty() {
                // The lock could not be had: all that wait now are told why.
                self.app.lanes.board(&self.grid, &mut jobs);
            }
            outcome
        } else {
            self.app.lanes.board(&self.grid, &mut jobs);
            self.run(&jobs).await
        };
        let served = jobs.len();
        match outcome {
            Ok(outcomes) => {
                self.answer(jobs, outcomes).await;
                return served;
            }
            Err(ControlError::NotFound { kind, name }) => {
                for job in jobs {
                    let _ = job.answer.send(Err(ControlError::not_found(kind, &name)));
                }
            }
            // None was done for what it asks, or perhaps all: whoever asks again with his key
            // learns what became of it.
            Err(error) if error.is_unavailable() => {
                tracing::warn!(grid = %self.grid, %error, requests = served, "a batch failed");
                for job in jobs {
                    let _ = job.answer.send(Err(ControlError::Unavailable));
                }
            }
            Err(error) => {
                tracing::warn!(grid = %self.grid, %error, requests = served, "a batch failed and is run one by one");
                self.one_by_one(jobs).await;
            }
        }
        0
    }

    async fn one_by_one(&self, jobs: Vec<Job>) {
        let mut away = false;
        for job in jobs {
            // Nobody would know of what he gets.
            if job.answer.is_closed() {
                continue;
            }
            let answer = if away {
                Err(ControlError::Unavailable)
            } else {
                match self.run(std::slice::from_ref(&job)).await {
                    Ok(outcomes) => {
                        self.answer(vec![job], outcomes).await;
                        continue;
                    }
                    Err(error) => Err(error),
                }
            };
            // The others would only wait for the same.
            away |= answer.as_ref().is_err_and(ControlError::is_unavailable);
            let _ = job.answer.send(answer);
        }
    }

    /// Runs jobs that are known, by one statement if that will do.
    async fn run(&self, jobs: &[Job]) -> Result<Vec<Outcome>, ControlError> {
        let asked = asked(jobs);
        let done = match AtOnce::of(&self.grid, &asked) {
            Some(all) => {
                let rows = self.app.db.rows(AtOnce::STATEMENT, &all.params()).await?;
                all.read(&rows)?
            }
            None => None,
        };
        self.finish(done, &asked).await
    }

    /// Takes the grid's lock, then the jobs that wait, and runs those. Where one statement
    /// will do, COMMIT travels with it.
    async fn lock_and_run(&self, boarding: &Mutex<Vec<Job>>) -> Result<Vec<Outcome>, ControlError> {
        let board = &move || {
            let mut jobs = boarding.lock().unwrap_or_else(PoisonError::into_inner);
            self.app.lanes.board(&self.grid, &mut jobs);
            asked(&jobs)
        };
        let grid = self.grid.as_str();
        let tx = self.app.db.tx("addresses_change", move |tx| {
            Box::pin(async move {
                if tx.rows(&query::GRID_AWAIT, &[&grid]).await?.is_empty() {
                    return Err(ControlError::not_found("grid", grid));
                }
                let asked = board();
                let Some(all) = AtOnce::of(grid, &asked) else {
                    let locked = LockedGrid::by_name(tx, grid).await?;
                    return apply(&locked, &asked).await.map(Some);
                };
                let rows = tx.rows_and_commit(AtOnce::STATEMENT, &all.params()).await?;
                all.read(&rows)
            })
        });
        let done = tx.await?;
        let asked = asked(&boarding.lock().unwrap_or_else(PoisonError::into_inner));
        self.finish(done, &asked).await
    }

    /// Rings for what was done; if nothing was, for placements are to be served first,
    /// does it with that.
    async fn finish(
        &self,
        done: Option<Applied>,
        asked: &[Asked],
    ) -> Result<Vec<Outcome>, ControlError> {
        let done = match done {
            Some(done) => done,
            None => self.transaction(asked).await?,
        };
        self.app.bell.ring_changed(done.ring);
        Ok(done.value)
    }

    async fn transaction(&self, asked: &[Asked]) -> Result<Applied, ControlError> {
        let grid = self.grid.as_str();
        let tx = self.app.db.tx("addresses_change", move |tx| {
            Box::pin(async move {
                let locked = LockedGrid::by_name(tx, grid).await?;
                apply(&locked, asked).await
            })
        });
        tx.await
    }

    /// Answers a batch that is committed, whatever else goes wrong. Those for whom
    /// there was too little are told last, with how full the grid is.
    async fn answer(&self, jobs: Vec<Job>, outcomes: Vec<Outcome>) {
        let mut late = Vec::new();
        for (job, outcome) in jobs.into_iter().zip(outcomes) {
            // Whoever asked may have left.
            let _ = match outcome {
                Outcome::Done(value) => job.answer.send(Ok(value)),
                Outcome::Refused(error) => job.answer.send(Err(error)),
                Outcome::Full(wanted) => {
                    late.push((job, wanted));
                    continue;
                }
            };
        }
        if late.is_empty() {
            return;
        }
        let rows = self.app.db.all(&query::ADDRESS_USAGE, &[&self.grid]).await;
        let usage = rows.map(|rows: Vec<Value>| rows.into_iter().next());
        for (job, wanted) in late {
            let _ = job.answer.send(Err(match &usage {
                Ok(Some(usage)) => ControlError::GridFullAddresses {
                    grid: self.grid.clone(),
                    wanted: i64::from(wanted),
                    usage: usage.clone(),
                },
                Ok(None) => ControlError::not_found("grid", &self.grid),
                // Nothing was done for it, and a refusal without figures is none.
                Err(_) => ControlError::Unavailable,
            }));
        }
    }
}

fn asked(jobs: &[Job]) -> Vec<Asked> {
    jobs.iter()
        .map(|job| (job.call.clone(), job.wish.clone()))
        .collect()
}

/// Asks for something, and waits for the answer.
pub(super) async fn ask(
    app: &Arc<App>,
    call: &Call,
    grid: &str,
    wish: Wish,
) -> Result<Answer, ControlError> {
    let (answer, answered) = oneshot::channel();
    let job = Job {
        call: call.clone(),
        wish,
        answer,
    };
    if app.lanes.enter(grid, job)? {
        let driver = Driver {
            app: Arc::clone(app),
            grid: grid.to_owned(),
            closed: false,
        };
        tokio::spawn(driver.drive());
    }
    answered.await.unwrap_or(Err(ControlError::Unavailable))
}

#[cfg(test)]
mod tests {
    use kontena_schema::limits::ADDRESSES_MAX;

    use super::super::IdempotencyKey;
    use super::*;

    fn job(key: Option<&str>, count: u32) -> Job {
        let idempotency = key.map(|key| IdempotencyKey::new(key.to_owned(), "POST", "/", b""));
        Job {
            call: Call {
                actor: "admin".to_owned(),
                idempotency,
            },
            wish: Wish::Take {
                name: "x".to_owned(),
                count,
            },
            answer: open(),
        }
    }

    /// To somebody who waits for ever.
    fn open() -> oneshot::Sender<Result<Answer, ControlError>> {
        let (sender, receiver) = oneshot::channel();
        std::mem::forget(receiver);
        sender
    }

    #[test]
    fn who_left_is_not_served() {
        let lanes = Lanes::default();
        let gone = Job {
            answer: oneshot::channel().0,
            ..job(None, 1)
        };
        lanes.enter("g", gone).unwrap();
        lanes.enter("g", job(None, 2)).unwrap();
        let mut batch = Vec::new();
        lanes.board("g", &mut batch);
        assert!(matches!(
            batch[..],
            [Job {
                wish: Wish::Take { count: 2, .. },
                ..
            }]
        ));
    }

    #[test]
    fn the_first_request_gets_a_driver_and_the_last_closes_the_lane() {
        let lanes = Lanes::default();
        assert!(lanes.enter("g", job(None, 1)).unwrap());
        assert!(!lanes.enter("g", job(None, 1)).unwrap());
        assert!(
            lanes.enter("h", job(None, 1)).unwrap(),
            "grids have lanes of their own"
        );
        let mut batch = Vec::new();
        lanes.board("g", &mut batch);
        assert_eq!(batch.len(), 2);
        assert!(lanes.close("g", 2));
        assert!(lanes.is_crowded("g"), "they may come back together");
        assert!(lanes.enter("g", job(None, 1)).unwrap());
        assert!(!lanes.close("g", 1), "one waits");
        assert!(!lanes.is_crowded("g"));
        lanes.board("g", &mut batch);
        assert!(lanes.close("g", 1));
        assert_eq!(lanes.lock().len(), 1, "only of h anything is kept");
    }

    #[test]
    fn batches_and_lanes_are_bounded_and_a_key_is_in_a_batch_once() {
        let lanes = Lanes::default();
        for _ in 0..LANE_MAX {
            lanes.enter("g", job(None, 1)).unwrap();
        }
        assert!(matches!(
            lanes.enter("g", job(None, 1)),
            Err(ControlError::Busy { .. })
        ));
        let mut batch = Vec::new();
        lanes.board("g", &mut batch);
        assert_eq!(batch.len(), BATCH_MAX);

        let mut keyed = Vec::new();
        for key in ["a", "b", "a", "c"] {
            lanes.enter("k", job(Some(key), 1)).unwrap();
        }
        lanes.board("k", &mut keyed);
        assert_eq!(keyed.len(), 2, "the second a waits, and what is behind it");

        let mut large = Vec::new();
        for count in [ADDRESSES_MAX, ADDRESSES_MAX] {
            lanes.enter("l", job(None, count)).unwrap();
        }
        lanes.board("l", &mut large);
        assert_eq!(large.len(), 1);
    }
}
