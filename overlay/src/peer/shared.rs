//! The table of peers as the manager and its tasks share it.
//!
//! Everything is behind one lock that is held for short: no await, no disk.

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
use crate::peer::path_probe_socket::Heard;
use crate::peer::table::PeerTable;
use crate::wireguard::{Control, Looked, Moment, Observed};

/// Most messages that wait to be read. More than one heartbeat of each peer never wait,
/// and what is lost is sent again.
const INBOX: usize = 1024;

/// What is known of the peers, for those who keep them up.
pub(crate) struct Shared {
    peers: Mutex<PeerTable>,
    /// The way to WireGuard, where it encrypts.
    pub(crate) control: Option<Control>,
    states: watch::Sender<PeerStates>,
    pub(crate) inbox: mpsc::Sender<Message>,
    pub(crate) path_probe_inbox: mpsc::Sender<Heard>,
    /// Held by the task that reads them, and left to the one that takes its place.
    pub(crate) received: AsyncMutex<Received>,
}

/// What came from peers and was not read yet.
pub(crate) struct Received {
    pub(crate) messages: mpsc::Receiver<Message>,
    pub(crate) path_probes: mpsc::Receiver<Heard>,
}

impl Shared {
    /// No peers yet. `control` is the way to WireGuard, where it encrypts.
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

    /// A panic elsewhere leaves peers that are as good as before.
    pub(crate) fn lock(&self) -> MutexGuard<'_, PeerTable> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at WireGuard if peers are looked at now.
    pub(crate) async fn look_if_due(&self) {
        if self.control.is_some()
            && self.lock().is_due(Instant::now())
            && let Err(err) = self.look().await
        {
            tracing::debug!(%err, "WireGuard cannot be looked at");
        }
    }

    pub(crate) async fn look(&self) -> Result<Option<Looked>, Cause> {
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
        watch.look(device.as_ref().unwrap_or(&Observed::default()), asked);
        Ok(device.map(|device| watch.looked(device, asked)))
    }

    pub(crate) fn hear(&self, message: &Message) {
        let Some(heartbeat) = Heartbeat::read(&message.contents) else {
            return;
        };
        let now = Instant::now();
        let of = |peer: &Peer| peer.tunnel_address() == message.from;
        self.hear_from(of, |peer| peer.hear(heartbeat, now), now);
    }

    pub(crate) fn hear_path_probe(&self, heard: &Heard) {
        let of = |peer: &Peer| peer.mac() == heard.from;
        self.hear_from(
            of,
            |peer| peer.hear_path_probe(heard.path_probe),
            Instant::now(),
        );
    }

    /// Something came from a peer, if it is one; what `hear` does not take changes nothing.
    fn hear_from(
        &self,
        of: impl Fn(&Peer) -> bool,
        hear: impl FnOnce(&mut Peer) -> bool,
        now: Instant,
    ) {
        let mut peers = self.lock();
        if let Some((node, state)) = peers.hear(of, hear, now) {
            // In a large grid far more often one peer changes than all are looked at.
            self.states.send_if_modified(|states| {
                let before = states.insert(node, state);
                before != Some(state)
            });
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<PeerStates> {
        self.states.subscribe()
    }

    /// The peer to check for now, if it is anybody's turn; and where.
    pub(crate) fn next_check(&self) -> Option<(NodeId, Vec<Ipv4Addr>)> {
        self.lock().next_check(Instant::now())
    }

    /// That was found.
    pub(crate) fn checked(&self, node: NodeId, answers: CheckOutcomes) {
        let mut peers = self.lock();
        if peers.checked(node, answers) {
            self.publish(&peers);
        }
    }

    /// Nobody publishes something older afterwards: the lock is still held.
    pub(crate) fn publish(&self, peers: &MutexGuard<'_, PeerTable>) {
        let states = peers.states();
        self.states.send_if_modified(|old| {
            let differs = *old != states;
            *old = states;
            differs
        });
    }
}
