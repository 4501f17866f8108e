//! What a replica is made of. It holds nothing that another could not rebuild
//! from Postgres.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
        }
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
