//! Which grids have sessions on this replica, and how far each is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kontena_schema::ids::{Epoch, GridId, NodeId, Revision};
use tokio::sync::{Notify, watch};

/// The local sessions' view of their grids.
#[derive(Default)]
pub struct Hub {
    grids: Mutex<HashMap<GridId, watch::Sender<Revision>>>,
    /// Counts the times that all sessions had to close.
    closes: watch::Sender<u64>,
    /// The sessions that are open here, and what makes each look at itself.
    live: Mutex<HashMap<(NodeId, Epoch), Arc<Notify>>>,
    /// How many there are.
    count: watch::Sender<usize>,
}

/// Why a session wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The grid moved.
    Moved,
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
        let doubt = Arc::new(Notify::new());
        let mut live = self.lock_live();
        live.insert((node, epoch), Arc::clone(&doubt));
        self.count.send_replace(live.len());
        Live {
            hub: Arc::clone(self),
            session: (node, epoch),
            doubt,
        }
    }

    /// The sessions that are open here.
    pub fn sessions(&self) -> Vec<(NodeId, Epoch)> {
        self.lock_live().keys().copied().collect()
    }

    /// Makes a session look whether it is still its node's latest.
    pub fn doubt(&self, node: NodeId, epoch: Epoch) {
        if let Some(doubt) = self.lock_live().get(&(node, epoch)) {
            doubt.notify_one();
        }
    }

    /// Waits until no session is open here.
    pub async fn emptied(&self) {
        hub_lives(
            self.count
                .subscribe()
                .wait_for(|count| *count == 0)
                .await
                .map(drop),
        )
        .await;
    }

    fn lock_live(&self) -> MutexGuard<'_, HashMap<(NodeId, Epoch), Arc<Notify>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The grids that have sessions here.
    pub fn grids(&self) -> Vec<GridId> {
        self.lock().keys().copied().collect()
    }

    /// Says at which revision a grid is for certain, as Postgres said. It may be
    /// lower than what was heard: a bell can lie, and a restore goes back.
    pub fn settle(&self, grid: GridId, revision: Revision) {
        if let Some(sender) = self.lock().get(&grid) {
            sender.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        }
    }

    /// The revision that a grid with sessions here was last heard to be at.
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
    /// Waits until the grid was heard to be at another revision than `seen`, or all
    /// sessions are to close.
    pub async fn next(&mut self, seen: Revision) -> Wake {
        let revisions = self
            .revisions
            .as_mut()
            .expect("it is taken only when this is dropped");
        let moved = async {
            hub_lives(revisions.wait_for(|heard| *heard != seen).await.map(drop)).await;
            Wake::Moved
        };
        let close = async {
            hub_lives(self.closes.changed().await).await;
            Wake::Close
        };
        tokio::select! {
            wake = moved => wake,
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
    doubt: Arc<Notify>,
}

impl Live {
    /// Waits until somebody doubts that this session is its node's latest.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let mut live = self.hub.lock_live();
        live.remove(&self.session);
        self.hub.count.send_replace(live.len());
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
    async fn a_session_wakes_for_what_it_has_not_seen() {
        let hub = Arc::new(Hub::default());
        let mut watch = hub.join(GRID);
        hub.wake(GRID, Revision(5));
        hub.wake(GRID, Revision(3));
        assert_eq!(watch.next(Revision(4)).await, Wake::Moved);
        assert_eq!(
            hub.heard(GRID),
            Revision(5),
            "a late bell takes nothing back"
        );
        let mut next = std::pin::pin!(watch.next(Revision(5)));
        assert!(futures_util::poll!(&mut next).is_pending());
        hub.settle(GRID, Revision(2));
        assert_eq!(next.await, Wake::Moved, "Postgres does");
        assert_eq!(hub.heard(GRID), Revision(2));
    }

    #[tokio::test]
    async fn sessions_are_doubted_and_counted() {
        let hub = Arc::new(Hub::default());
        let live = hub.live(NodeId(1), Epoch(2));
        hub.doubt(NodeId(1), Epoch(1));
        assert!(futures_util::poll!(std::pin::pin!(live.doubted())).is_pending());
        hub.doubt(NodeId(1), Epoch(2));
        live.doubted().await;
        assert!(futures_util::poll!(std::pin::pin!(hub.emptied())).is_pending());
        drop(live);
        hub.emptied().await;
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
