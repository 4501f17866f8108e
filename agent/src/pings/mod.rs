//! Pings: checks whether frames of this node reach another one, when the Master asks.
//!
//! A separate task starts each ping as soon as the directory has it. It waits for no
//! pass of the reconciler and no pass waits for it: a ping changes nothing on the host.
//! The results are in a slot from which the link reports them, again on every
//! connection.
//!
//! Invariants: no ping is started twice ([`book`]); no more than [`PINGS_MAX`] are under way.

mod book;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use book::Book;
use kontena_schema::agent::{Ping, PingReport, PingResult, PingState, RoundTrips};
use kontena_schema::ids::{NodeId, PingId};
use kontena_schema::limits::{OVERLAY_MTU, PINGS_MAX};
use kontena_schema::path::Path;
use tokio::sync::watch;
use tokio::task::Id;
use tracing::info;

use crate::directory::Directory;
use crate::overlay::OverlaySlot;
use crate::report::HostSlot;
use kontena_overlay::{Echoes, Overlay};
use kontena_task::TaskSet;

/// The reports on pings, and their node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Which node this host was.
    pub node: Option<NodeId>,
    /// The states of the last pings, by number.
    pub reports: Vec<PingReport>,
}

/// The latest reports.
pub type PingsSlot = watch::Receiver<Arc<Told>>;

/// The pings of this node.
pub struct Pings {
    directory: watch::Receiver<Arc<Directory>>,
    /// Has the paths to peers.
    host: HostSlot,
    overlay: OverlaySlot,
    slot: watch::Sender<Arc<Told>>,
    book: Book,
    tasks: TaskSet<PingState>,
    under_way: BTreeMap<Id, PingId>,
}

impl Pings {
    /// Nothing is under way; what an earlier run may have started is not repeated.
    pub fn new(
        directory: watch::Receiver<Arc<Directory>>,
        host: HostSlot,
        overlay: OverlaySlot,
        slot: watch::Sender<Arc<Told>>,
    ) -> Self {
        let book = Book::resumed(&directory.borrow());
        Self {
            directory,
            host,
            overlay,
            slot,
            book,
            tasks: no_tasks(),
            under_way: BTreeMap::new(),
        }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        loop {
            self.begin();
            tokio::select! {
                Ok(()) = self.directory.changed() => {}
                Some((task, state)) = self.tasks.next() => self.ended(task, state),
                // The agent is stopping.
                else => std::future::pending().await,
            }
        }
    }

    /// Starts new pings, and publishes the states of all.
    fn begin(&mut self) {
        let directory = self.directory.borrow_and_update().clone();
        if self.book.enter(&directory) {
            // Those under way are of another grid, or of another timeline of it.
            self.tasks = no_tasks();
            self.under_way.clear();
        }
        while let Some(ping) = self.book.begin(&directory) {
            match self.task(ping, &directory) {
                Ok(task) => {
                    let task = self.tasks.spawn(task);
                    self.under_way.insert(task, ping.id);
                }
                Err(error) => self.book.ended(ping.id, PingState::Failed { error }),
            }
        }
        let told = Told {
            node: directory.me.as_ref().map(|me| me.node),
            reports: self.book.reports(),
        };
        self.slot.send_if_modified(|old| {
            let differs = **old != told;
            if differs {
                *old = Arc::new(told);
            }
            differs
        });
    }

    /// What a ping does, or why it cannot run.
    fn task(
        &self,
        ping: Ping,
        directory: &Directory,
    ) -> Result<impl Future<Output = PingState> + Send + use<>, String> {
        if self.tasks.len() >= PINGS_MAX {
            return Err(format!("{PINGS_MAX} pings are under way"));
        }
        let own = directory.own().ok_or("the node is not in its grid yet")?;
        let peer = directory.nodes.get(&ping.peer);
        let peer = peer.ok_or("the other node is not known here")?;
        let overlay = self.overlay.borrow().clone();
        let overlay = overlay.ok_or("this host's overlay is not up")?;
        info!(ping = %ping.id, to = %peer.name, "pinging");
        let path = self.path(ping.peer);
        let between = (own.address, peer.address);
        Ok(run(overlay, between, ping.count, path))
    }

    /// The path to a peer, as of the last pass.
    fn path(&self, peer: NodeId) -> Path {
        let host = self.host.borrow();
        let report = host
            .as_ref()
            .and_then(|host| host.reported.peers.get(&peer));
        report.map_or(Path::Unknown, |report| report.path)
    }

    fn ended(&mut self, task: Id, state: Option<PingState>) {
        let state = state.unwrap_or_else(|| PingState::Failed {
            error: "the agent failed; see its log".to_owned(),
        });
        if let Some(ping) = self.under_way.remove(&task) {
            info!(%ping, ?state, "ping ended");
            self.book.ended(ping, state);
        }
    }
}

fn no_tasks() -> TaskSet<PingState> {
    TaskSet::new("pings")
}

async fn run(
    overlay: Arc<Overlay>,
    (from, to): (Ipv4Addr, Ipv4Addr),
    count: u16,
    path: Path,
) -> PingState {
    match overlay.echo(from, to, count).await {
        Ok(echoes) => PingState::Done {
            result: result(path, &echoes),
        },
        Err(err) => PingState::Failed {
            error: err.to_string(),
        },
    }
}

fn result(path: Path, echoes: &Echoes) -> PingResult {
    PingResult {
        path,
        sent: echoes.sent,
        received: u16::try_from(echoes.round_trips.len()).unwrap_or(u16::MAX),
        round_trips: round_trips(&echoes.round_trips),
        mtu: OVERLAY_MTU,
        full_size_passes: echoes.full_size_passes,
    }
}

fn round_trips(took: &[Duration]) -> Option<RoundTrips> {
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let many = u32::try_from(took.len()).ok().filter(|many| *many > 0)?;
    let sum: Duration = took.iter().sum();
    Some(RoundTrips {
        min_us: us(took.iter().min().copied()?),
        avg_us: us(sum / many),
        max_us: us(took.iter().max().copied()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_summed_up_in_microseconds() {
        assert_eq!(round_trips(&[]), None);
        let took = [300, 200, 700].map(Duration::from_micros);
        let trips = RoundTrips {
            min_us: 200,
            avg_us: 400,
            max_us: 700,
        };
        assert_eq!(round_trips(&took), Some(trips));
        let echoes = Echoes {
            sent: 5,
            round_trips: took.to_vec(),
            full_size_passes: true,
        };
        let result = result(Path::Unknown, &echoes);
        assert_eq!((result.sent, result.received), (5, 3));
        assert_eq!(result.round_trips, Some(trips));
    }
}
