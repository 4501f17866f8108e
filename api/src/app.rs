//! What a replica is made of. It holds nothing that another could not rebuild
//! from Postgres.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kontena_schema::ids::ReplicaId;
use tokio::sync::Notify;

use crate::agents::Hub;
use crate::config::Timers;
use crate::control::lane::Lanes;
use crate::db::Db;
use crate::notify::Bell;
use crate::token::Signer;

/// A replica.
pub struct App {
    /// Which replica this is, from its start to its end.
    pub replica: ReplicaId,
    /// Postgres.
    pub db: Db,
    /// The sessions of this replica, by grid.
    pub hub: Arc<Hub>,
    /// Tells all replicas of a change.
    pub bell: Bell,
    /// Signs and checks tokens.
    pub signer: Signer,
    /// How long things last.
    pub timers: Timers,
    /// Requests for addresses, by grid.
    pub lanes: Lanes,
    /// Wakes who declares nodes lost: a session ended.
    pub losses: Notify,
    /// Set when the replica is about to stop.
    draining: AtomicBool,
    /// Since when every renewal of this replica's row succeeded, and the last one.
    steady: Mutex<Option<(Instant, Instant)>>,
}

impl App {
    /// A replica of these parts.
    pub fn new(db: Db, hub: Arc<Hub>, bell: Bell, signer: Signer, timers: Timers) -> Self {
        let replica = ReplicaId(uuid::Uuid::new_v4());
        Self {
            replica,
            db,
            hub,
            bell,
            signer,
            timers,
            lanes: Lanes::default(),
            losses: Notify::new(),
            draining: AtomicBool::new(false),
            steady: Mutex::new(None),
        }
    }

    /// This replica's row was renewed.
    pub fn renewed(&self) {
        let now = Instant::now();
        let since = now - self.steady_for();
        *self.lock_steady() = Some((since, now));
    }

    /// This replica's row could not be renewed.
    pub fn renewal_failed(&self) {
        *self.lock_steady() = None;
    }

    /// For how long every renewal succeeded; nothing after a time without any, in
    /// which the process may have been frozen.
    pub fn steady_for(&self) -> Duration {
        match *self.lock_steady() {
            Some((since, last)) if last.elapsed() < self.timers.replica_ttl => since.elapsed(),
            _ => Duration::ZERO,
        }
    }

    fn lock_steady(&self) -> MutexGuard<'_, Option<(Instant, Instant)>> {
        self.steady.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the health checks in front that this replica is about to stop.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether it is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
