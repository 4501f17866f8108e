//! The bell: "grid G is at revision R", over Redis.
//!
//! It carries no truth. A ring that is lost is healed by the tick, which reads
//! the revisions of all local grids once a second and does not care whether
//! Redis is alive. Nothing is published inside a transaction.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kontena_schema::ids::{GridId, Revision};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands, Client, RedisError};
use tokio::sync::mpsc;

use crate::agents::Hub;

/// Rings that wait for Redis; beyond this they are dropped, which costs the
/// other replicas a tick.
const QUEUE: usize = 1024;
/// How long one command to Redis may take.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Between attempts to listen again.
const RETRY: Duration = Duration::from_millis(500);

/// Rings for every replica, this one included.
#[derive(Clone)]
pub struct Bell {
    hub: Arc<Hub>,
    queue: mpsc::Sender<(GridId, Revision)>,
}

/// What Redis is asked from.
pub struct Exchange {
    client: Client,
    prefix: String,
    queue: mpsc::Receiver<(GridId, Revision)>,
}

impl Bell {
    /// A bell and the exchange that carries it to other replicas.
    pub fn new(url: &str, prefix: &str, hub: Arc<Hub>) -> Result<(Self, Exchange), RedisError> {
        let client = Client::open(url)?;
        let (sender, queue) = mpsc::channel(QUEUE);
        let bell = Self { hub, queue: sender };
        Ok((
            bell,
            Exchange {
                client,
                prefix: prefix.to_owned(),
                queue,
            },
        ))
    }

    /// Rings for what a transaction changed, if agents must know.
    pub fn ring_changed(&self, changed: Option<(GridId, Revision)>) {
        if let Some((grid, revision)) = changed {
            tracing::debug!(%grid, %revision, "committed");
            self.ring(grid, revision);
        }
    }

    /// Tells all replicas that a grid is at a revision. Never waits and never
    /// fails: the change is committed already.
    pub fn ring(&self, grid: GridId, revision: Revision) {
        self.hub.wake(grid, revision);
        if self.queue.try_send((grid, revision)).is_err() {
            tracing::debug!(%grid, %revision, "the bell's queue is full");
        }
    }
}

impl Exchange {
    /// Publishes what this replica rings, until the bell is dropped.
    pub async fn publish(mut self) {
        let mut connection: Option<ConnectionManager> = None;
        while let Some((grid, revision)) = self.queue.recv().await {
            if connection.is_none() {
                let config = ConnectionManagerConfig::new()
                    .set_response_timeout(Some(TIMEOUT))
                    .set_connection_timeout(Some(TIMEOUT))
                    .set_number_of_retries(0);
                let made = ConnectionManager::new_with_config(self.client.clone(), config).await;
                connection = made.ok();
            }
            let Some(open) = connection.as_mut() else {
                continue;
            };
            let channel = format!("{}:grid:{grid}", self.prefix);
            if let Err(error) = open.publish::<_, _, ()>(channel, revision.0).await {
                tracing::warn!(%error, "Redis does not take the bell; agents of other replicas wait for the tick");
                connection = None;
            }
        }
    }

    /// A listener for what other replicas ring.
    pub fn listener(&self, hub: Arc<Hub>) -> Listener {
        Listener {
            client: self.client.clone(),
            prefix: self.prefix.clone(),
            hub,
        }
    }
}

/// Wakes this replica's sessions when another replica rings.
pub struct Listener {
    client: Client,
    prefix: String,
    hub: Arc<Hub>,
}

impl Listener {
    /// Listens for ever, connecting again after every failure.
    pub async fn listen(self) {
        loop {
            if let Err(error) = self.listen_once().await {
                tracing::warn!(%error, "no bell from Redis; the tick goes on");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn listen_once(&self) -> Result<(), RedisError> {
        let mut pubsub = self.client.get_async_pubsub().await?;
        let channels = format!("{}:grid:*", self.prefix);
        pubsub.psubscribe(&channels).await?;
        let mut rings = pubsub.on_message();
        while let Some(ring) = rings.next().await {
            let grid = ring
                .get_channel_name()
                .rsplit(':')
                .next()
                .and_then(|id| id.parse().ok());
            let revision = ring.get_payload::<i64>().ok();
            if let (Some(grid), Some(revision)) = (grid, revision) {
                self.hub.wake(GridId(grid), Revision(revision));
            }
        }
        Ok(())
    }
}
