//! Which grids have sessions on this replica, and how far each is.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kontena_schema::ids::{Epoch, GridId, NodeId, Revision};
use tokio::sync::watch;

/// The local sessions' view of their grids.
#[derive(Default)]
pub struct Hub {
    grids: Mutex<HashMap<GridId, watch::Sender<Revision>>>,
    /// Counts the times that all sessions had to close.
    closes: watch::Sender<u64>,
    /// The sessions that are open here.
    live: Mutex<HashSet<(NodeId, Epoch)>>,
}

/// Why a session wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The grid moved on.
    Beyond,
    /// The session is to close.
    Close,
}

/// A session's place in the hub; it leaves when this is dropped.
pub struct GridWatch {
    hub: Arc<Hub>,
    grid: GridId,
    revisions: Option<watch::Receiver<Revision>>,
    closes: watch::Receiver<u64>,
}

impl Hub {
    /// Joins a grid's sessions.
    pub fn join(self: &Arc<Self>, grid: GridId) -> GridWatch {
        let closes = self.closes.subscribe();
        let mut grids = self.lock();
        let sender = grids
            .entry(grid)
            .or_insert_with(|| watch::Sender::new(Revision::ZERO));
        let revisions = Some(sender.subscribe());
        GridWatch {
            hub: Arc::clone(self),
            grid,
            revisions,
            closes,
        }
    }

    /// Notes a session as open here, until the answer is dropped.
    pub fn live(self: &Arc<Self>, node: NodeId, epoch: Epoch) -> Live {
        self.lock_live().insert((node, epoch));
        Live {
            hub: Arc::clone(self),
            session: (node, epoch),
        }
    }

    /// The sessions that are open here.
    pub fn sessions(&self) -> Vec<(NodeId, Epoch)> {
        self.lock_live().iter().copied().collect()
    }

    fn lock_live(&self) -> MutexGuard<'_, HashSet<(NodeId, Epoch)>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The grids that have sessions here.
    pub fn grids(&self) -> Vec<GridId> {
        self.lock().keys().copied().collect()
    }

    /// The highest revision that a grid with sessions here was heard to be at.
    pub fn heard(&self, grid: GridId) -> Revision {
        self.lock()
            .get(&grid)
            .map_or(Revision::ZERO, |sender| *sender.borrow())
    }

    /// Tells a grid's sessions that it is at a revision, if that is news.
    pub fn wake(&self, grid: GridId, revision: Revision) {
        if let Some(sender) = self.lock().get(&grid) {
            sender.send_if_modified(|known| {
                let news = revision > *known;
                *known = revision.max(*known);
                news
            });
        }
    }

    /// Ends all sessions of this replica.
    pub fn close_all(&self) {
        self.closes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GridId, watch::Sender<Revision>>> {
        self.grids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GridWatch {
    /// Waits until the grid was heard to be beyond `revision`, or all sessions are
    /// to close.
    pub async fn next(&mut self, revision: Revision) -> Wake {
        let revisions = self
            .revisions
            .as_mut()
            .expect("it is taken only when this is dropped");
        let beyond = async {
            let woken = revisions
                .wait_for(|heard| *heard > revision)
                .await
                .map(drop);
            hub_lives(woken).await;
            Wake::Beyond
        };
        let close = async {
            hub_lives(self.closes.changed().await).await;
            Wake::Close
        };
        tokio::select! {
            wake = beyond => wake,
            wake = close => wake,
        }
    }
}

/// The hub outlives its watches and keeps their senders, so an error cannot be;
/// if it were, nobody would wake.
async fn hub_lives(woken: Result<(), watch::error::RecvError>) {
    if woken.is_err() {
        std::future::pending().await
    }
}

/// A session that is open here.
pub struct Live {
    hub: Arc<Hub>,
    session: (NodeId, Epoch),
}

impl Drop for Live {
    fn drop(&mut self) {
        self.hub.lock_live().remove(&self.session);
    }
}

impl Drop for GridWatch {
    fn drop(&mut self) {
        let mut grids = self.hub.lock();
        self.revisions = None;
        if grids
            .get(&self.grid)
            .is_some_and(|sender| sender.receiver_count() == 0)
        {
            grids.remove(&self.grid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: GridId = GridId(1);

    #[tokio::test]
    async fn a_session_wakes_for_what_is_beyond_it_and_keeps_what_it_missed() {
        let hub = Arc::new(Hub::default());
        let mut watch = hub.join(GRID);
        hub.wake(GRID, Revision(5));
        hub.wake(GRID, Revision(3));
        assert_eq!(watch.next(Revision(4)).await, Wake::Beyond);
        let mut beyond = std::pin::pin!(watch.next(Revision(5)));
        assert!(futures_util::poll!(&mut beyond).is_pending());
        hub.wake(GRID, Revision(6));
        assert_eq!(beyond.await, Wake::Beyond);
    }

    #[tokio::test]
    async fn a_grid_without_sessions_is_forgotten() {
        let hub = Arc::new(Hub::default());
        let (a, b) = (hub.join(GRID), hub.join(GRID));
        drop(a);
        assert_eq!(hub.grids(), [GRID]);
        drop(b);
        assert!(hub.grids().is_empty());
        hub.wake(GRID, Revision(1));
    }

    #[tokio::test]
    async fn closing_reaches_every_session() {
        let hub = Arc::new(Hub::default());
        let mut watches = [hub.join(GRID), hub.join(GridId(2))];
        hub.close_all();
        for watch in &mut watches {
            assert_eq!(watch.next(Revision::ZERO).await, Wake::Close);
        }
    }
}
