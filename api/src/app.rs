//! What a replica is made of. It holds nothing that another could not rebuild
//! from Postgres.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kontena_schema::ids::ReplicaId;

use crate::agents::Hub;
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
    /// Set when the replica is about to stop.
    draining: AtomicBool,
    /// Since when every renewal of this replica's row succeeded.
    steady: Mutex<Option<Instant>>,
}

impl App {
    /// A replica of these parts.
    pub fn new(db: Db, hub: Arc<Hub>, bell: Bell, signer: Signer) -> Self {
        let replica = ReplicaId(uuid::Uuid::new_v4());
        Self {
            replica,
            db,
            hub,
            bell,
            signer,
            draining: AtomicBool::new(false),
            steady: Mutex::new(None),
        }
    }

    /// This replica's row was renewed.
    pub fn renewed(&self) {
        self.lock_steady().get_or_insert_with(Instant::now);
    }

    /// This replica's row could not be renewed.
    pub fn renewal_failed(&self) {
        *self.lock_steady() = None;
    }

    /// For how long every renewal succeeded.
    pub fn steady_for(&self) -> Duration {
        self.lock_steady()
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn lock_steady(&self) -> MutexGuard<'_, Option<Instant>> {
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
