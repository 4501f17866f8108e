//! The WebSocket to the Master.
//!
//! It sends `hello`, receives the Master's decisions and reports the host's state.
//! Nothing waits in a queue: the state of the grid and that of the host are watch
//! slots, and a slow reader sees the newest value. What a connection loses is sent
//! again on the next one.
//!
//! Invariants: `changes` are merged only onto the revision that they name, else
//! the next `hello` asks for everything; the first report of a connection is
//! complete; a report is about the node that the Master welcomed, never about
//! the one that this host was before.
//!
//! The decisions are in [`machine`], which has no clock and no IO.

pub mod machine;
mod session;
mod socket;

use std::sync::Arc;
use std::time::Instant;

use kontena_schema::agent::close;
use tokio::sync::{Notify, watch};
use tokio::time::sleep_until;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::config::{Config, Secret};
use crate::directory::{Directory, Store};
use crate::dns::lookup::Lookup;
use crate::facts::FactsSlot;
use crate::measures::MeasuresSlot;
use crate::pings::PingsSlot;
use crate::report::HostSlot;
use machine::{Credential, End, Machine, Next};

/// What the link sends.
#[derive(Clone)]
pub struct Slots {
    /// The state of the host.
    pub host: HostSlot,
    /// Facts about it.
    pub facts: FactsSlot,
    /// The statistics.
    pub measures: MeasuresSlot,
    /// The results of pings.
    pub pings: PingsSlot,
}

/// The link to the Master.
pub struct Link {
    config: Arc<Config>,
    store: Store,
    /// The Master's changes, merged.
    directory: watch::Sender<Arc<Directory>>,
    host: HostSlot,
    facts: FactsSlot,
    measures: MeasuresSlot,
    pings: PingsSlot,
    /// Notified when another node of the grid has this host's key.
    key_taken: Arc<Notify>,
    /// How the Master's name is looked up.
    lookup: Lookup,
    machine: Machine,
    /// Tells this run of the agent from any other with the same engine id.
    instance: Uuid,
    /// Connections that this run opened.
    connections: u32,
    /// The next `hello` names no position.
    ask_everything: bool,
}

impl Link {
    /// A link that publishes what it receives in `directory`. A run of the agent
    /// has one.
    pub fn new(
        config: Arc<Config>,
        store: Store,
        directory: watch::Sender<Arc<Directory>>,
        slots: Slots,
        key_taken: Arc<Notify>,
        lookup: Lookup,
    ) -> Self {
        let Slots {
            host,
            facts,
            measures,
            pings,
        } = slots;
        let machine = Machine::new(Instant::now(), store.node_token().is_some());
        Self {
            config,
            store,
            directory,
            host,
            facts,
            measures,
            pings,
            key_taken,
            lookup,
            machine,
            instance: Uuid::new_v4(),
            connections: 0,
            ask_everything: false,
        }
    }

    /// Keeps a connection open until the node is removed from its grid; then
    /// records that in the directory and does nothing more.
    pub async fn run(mut self) {
        loop {
            match self.machine.next(Instant::now()) {
                Next::Wait(until) => sleep_until(until.into()).await,
                Next::Connect(credential) => self.connection(credential).await,
                Next::Stop => break,
            }
        }
        error!("this node was removed from its grid; restart the agent to join again");
        self.directory.send_replace(Arc::new(Directory {
            removed: true,
            ..Directory::default()
        }));
        // The supervisor treats the end of this task as a failure.
        std::future::pending::<()>().await;
    }

    async fn connection(&mut self, credential: Credential) {
        let token = self.token(credential);
        let Err(end) = self.session(&token).await;
        match &end {
            End::Failed(_) | End::Status(_) | End::Silent => warn!(%end, "not connected"),
            End::Closed(close::NODE_DUPLICATE, _) => error!(
                %end,
                "another host with the same Docker engine id is connected; this host keeps running \
                 as it is, but gets no updates until one of the two has another id"
            ),
            End::Closed(close::NETWORK_OVERLAP, _) => error!(
                %end,
                "this host cannot join: its networks overlap the grid's; create the grid with \
                 others (--subnet, --inner-subnet)"
            ),
            End::Closed(close::KEY_TAKEN, _) => {
                warn!(%end, "generating another key");
                self.key_taken.notify_one();
            }
            End::Closed(..) => info!(%end, "not connected"),
            End::Protocol(_) => {
                error!(%end, "not connected");
                self.ask_everything = true;
            }
        }
        self.machine.ended(Instant::now(), &end, fastrand::f64());
    }

    fn token(&self, credential: Credential) -> Secret {
        let node = match credential {
            Credential::Node => self.store.node_token(),
            Credential::Join => None,
        };
        node.unwrap_or_else(|| self.config.token.clone())
    }
}

#[cfg(test)]
mod tests;
