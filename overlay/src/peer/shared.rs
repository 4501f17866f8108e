//! The peer table, as shared by the manager and its tasks.
//!
//! Everything is behind one lock that is held briefly: no await, no disk.

use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kontena_schema::ids::NodeId;
use kontena_sleeve::Message;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};

use crate::error::Cause;
use crate::model::peer::PeerStates;
use crate::model::reachability::CheckOutcomes;
use crate::peer::encryption::{EncryptedPath, Watched};
use crate::peer::heartbeat::Heartbeat;
use crate::peer::machine::Peer;
use crate::peer::path_probe_socket::ReceivedPathProbe;
use crate::peer::table::PeerTable;
use crate::wireguard::{Control, Looked, Moment, Observed};

/// The most messages that wait to be read. There is never more than one heartbeat of each peer, and
/// what is lost is repeated.
const INBOX: usize = 1024;

/// The state that the manager and its tasks share.
pub(crate) struct Shared {
    peers: Mutex<PeerTable>,
    /// The access to WireGuard's configuration, where WireGuard encrypts.
    pub(crate) control: Option<Control>,
    states: watch::Sender<PeerStates>,
    pub(crate) inbox: mpsc::Sender<Message>,
    pub(crate) path_probe_inbox: mpsc::Sender<ReceivedPathProbe>,
    /// Locked by the task that reads them, so that a restarted task can take over.
    pub(crate) received: AsyncMutex<Received>,
}

/// Messages and path probes that wait to be read.
pub(crate) struct Received {
    pub(crate) messages: mpsc::Receiver<Message>,
    pub(crate) path_probes: mpsc::Receiver<ReceivedPathProbe>,
}

impl Shared {
    /// No peers yet. `control` is the access to WireGuard's configuration, where WireGuard encrypts.
    pub(crate) fn new(control: Option<Control>) -> Self {
        let (inbox, messages) = mpsc::channel(INBOX);
        let (path_probe_inbox, path_probes) = mpsc::channel(INBOX);
        let watched = control.as_ref().map(|_| Box::<Watched>::default());
        let peers = PeerTable::new(watched.map(EncryptedPath::WireGuard));
        Self {
            peers: Mutex::new(peers),
            control,
            states: watch::Sender::new(PeerStates::new()),
            inbox,
            path_probe_inbox,
            received: AsyncMutex::new(Received {
                messages,
                path_probes,
            }),
        }
    }

    /// A panic while it was locked leaves the table usable.
    pub(crate) fn lock(&self) -> MutexGuard<'_, PeerTable> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads WireGuard's state if an update of all peers is due.
    pub(crate) async fn observe_if_due(&self) {
        if self.control.is_some()
            && self.lock().is_due(Instant::now())
            && let Err(err) = self.observe().await
        {
            tracing::debug!(%err, "cannot read the WireGuard device");
        }
    }

    pub(crate) async fn observe(&self) -> Result<Option<Looked>, Cause> {
        let Some(control) = &self.control else {
            return Ok(None);
        };
        let asked = Moment::now();
        let device = control.observe().await?;
        let mut peers = self.lock();
        let Some(EncryptedPath::WireGuard(watched)) = &mut peers.transports.encrypted else {
            return Ok(None);
        };
        let watch = &mut watched.watch;
        // Without a device there are no peers.
        watch.observe(device.as_ref().unwrap_or(&Observed::default()), asked);
        Ok(device.map(|device| watch.looked(device, asked)))
    }

    pub(crate) fn receive(&self, message: &Message) {
        let Some(heartbeat) = Heartbeat::read(&message.contents) else {
            return;
        };
        let now = Instant::now();
        let of = |peers: &PeerTable| peers.at_tunnel_address(message.from);
        self.receive_from(of, |peer| peer.receive_heartbeat(heartbeat, now), now);
    }

    pub(crate) fn receive_path_probe(&self, received: &ReceivedPathProbe) {
        let of = |peers: &PeerTable| peers.at_mac(received.from);
        self.receive_from(
            of,
            |peer| peer.receive_path_probe(received.path_probe),
            Instant::now(),
        );
    }

    /// Passes a message to the peer that it came from, if there is one; `receive` returns
    /// whether it accepts the message.
    fn receive_from(
        &self,
        of: impl FnOnce(&PeerTable) -> Option<NodeId>,
        receive: impl FnOnce(&mut Peer) -> bool,
        now: Instant,
    ) {
        let mut peers = self.lock();
        let Some(node) = of(&peers) else {
            return;
        };
        if let Some(state) = peers.receive(node, receive, now) {
            // In a large grid, one peer changes far more often than all are updated.
            self.states.send_if_modified(|states| {
                let before = states.insert(node, state);
                before != Some(state)
            });
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<PeerStates> {
        self.states.subscribe()
    }

    /// The peer whose reachability is to be checked now, if one is due, and its addresses.
    pub(crate) fn next_check(&self) -> Option<(NodeId, Vec<Ipv4Addr>)> {
        self.lock().next_check(Instant::now())
    }

    /// The outcomes of a check.
    pub(crate) fn checked(&self, node: NodeId, answers: CheckOutcomes) {
        let mut peers = self.lock();
        if peers.checked(node, answers) {
            self.publish(&peers);
        }
    }

    /// Publishes the states. The lock is still held, so nothing older is published afterwards.
    pub(crate) fn publish(&self, peers: &MutexGuard<'_, PeerTable>) {
        let states = peers.states();
        self.states.send_if_modified(|old| {
            let differs = *old != states;
            *old = states;
            differs
        });
    }
}
