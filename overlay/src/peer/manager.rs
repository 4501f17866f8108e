//! The peers of this node, kept up: heartbeats are sent and heard, and what follows from
//! them is published.
//!
//! The encrypted path lives with them (`peers.rs`), because heartbeats need it while nobody
//! reconciles. Everything is behind one lock that is held for short: no await, no disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use kontena_schema::ids::NodeId;
use kontena_schema::key::PublicKey;
use kontena_schema::limits::WIREGUARD_PORT;
use kontena_sleeve::{Settings, Sleeve, SleeveError, Table};
use kontena_task::{Task, supervise};
use tokio::sync::watch;

use crate::error::Cause;
use crate::model::devices::TAP;
use crate::model::peer::{Clear, PeerConfig, PeerStates};
use crate::model::state::{PathProbeIdentity, SleeveIdentity, SleeveState};
use crate::peer::encryption::{EncryptedPath, HeartbeatSocket, RunningSleeve, Watched};
use crate::peer::keeper;
use crate::peer::path_probe_socket::PathProbeSocket;
use crate::peer::shared::Shared;
use crate::peer::table::Health;
use crate::wireguard::{Control, Looked, Moment, WireGuardUpdate};

/// The peers of this node.
pub(crate) struct PeerManager {
    shared: Arc<Shared>,
    _keeper: Task,
    _checker: Task,
}

impl PeerManager {
    /// No peers yet; must be called inside a tokio runtime. `control` is the way to
    /// WireGuard, where it encrypts.
    pub(crate) fn new(control: Option<Control>) -> Self {
        let shared = Arc::new(Shared::new(control));
        let (hearing, checking) = (Arc::clone(&shared), Arc::clone(&shared));
        Self {
            shared,
            _keeper: supervise("peers", move || keeper::hear(Arc::clone(&hearing))),
            _checker: supervise("reachability", move || keeper::check(Arc::clone(&checking))),
        }
    }

    /// What is known of the peers, now and later.
    pub(crate) fn states(&self) -> watch::Receiver<PeerStates> {
        self.shared.subscribe()
    }

    /// Starts the sleeve in the network namespace of the calling thread, after
    /// ending the one that was there.
    pub(crate) fn start_sleeve(&self, identity: SleeveIdentity) -> Result<(), SleeveError> {
        self.stop_sleeve();
        let inbox = self.shared.inbox.clone();
        let settings = Settings {
            device: TAP.to_owned(),
            port: WIREGUARD_PORT,
            tunnel_address: identity.tunnel_address,
            vni: identity.vni,
        };
        let sleeve = Sleeve::start(settings, move |message| {
            let _ = inbox.try_send(message);
        })?;
        self.shared.lock().transports.encrypted = Some(EncryptedPath::Sleeve(RunningSleeve {
            sleeve,
            identity,
            table: Table::default(),
        }));
        Ok(())
    }

    /// Ends the sleeve.
    pub(crate) fn stop_sleeve(&self) {
        let ended = self.shared.lock().transports.encrypted.take();
        // Its threads are waited for without the lock.
        drop(ended);
    }

    /// Sets who is at the other ends. Without a sleeve there is nobody.
    pub(crate) fn set_table(&self, table: &Table) {
        if let Some(EncryptedPath::Sleeve(running)) = &mut self.shared.lock().transports.encrypted {
            running.sleeve.set_table(table);
            running.table = table.clone();
        }
    }

    /// The sleeve, if it works.
    pub(crate) fn sleeve(&self) -> Option<SleeveState> {
        let peers = self.shared.lock();
        let Some(EncryptedPath::Sleeve(running)) = &peers.transports.encrypted else {
            return None;
        };
        running.sleeve.is_alive().then(|| SleeveState {
            identity: running.identity,
            table: running.table.clone(),
        })
    }

    /// Whether a sleeve that was started still works.
    pub(crate) fn encrypts(&self) -> bool {
        match &self.shared.lock().transports.encrypted {
            Some(EncryptedPath::Sleeve(running)) => running.sleeve.is_alive(),
            Some(EncryptedPath::WireGuard(_)) => true,
            None => false,
        }
    }

    /// The way to WireGuard, where it encrypts.
    pub(crate) fn control(&self) -> Option<&Control> {
        self.shared.control.as_ref()
    }

    /// Looks at WireGuard; none if there is no device.
    pub(crate) async fn look(&self) -> Result<Option<Looked>, Cause> {
        self.shared.look().await
    }

    /// Tells WireGuard who the peers are.
    pub(crate) async fn update(&self, update: &WireGuardUpdate) -> Result<(), Cause> {
        let Some(control) = self.control() else {
            return Ok(());
        };
        let began = Moment::now();
        for message in &update.messages {
            control.change(message).await?;
        }
        let mut peers = self.shared.lock();
        if let Some(EncryptedPath::WireGuard(watched)) = &mut peers.transports.encrypted {
            watched.watch.told(update, [began, Moment::now()]);
        }
        Ok(())
    }

    /// Hears heartbeats at the own tunnel address, on WireGuard's device of this number.
    pub(crate) fn listen_for_heartbeats(&self, at: (Ipv4Addr, u32)) -> Result<(), Cause> {
        let mut peers = self.shared.lock();
        if let Some(EncryptedPath::WireGuard(watched)) = &mut peers.transports.encrypted {
            // The old one has the address.
            watched.socket = None;
            let post = HeartbeatSocket::open(at, self.shared.inbox.clone());
            watched.socket = Some(post.map_err(Cause::io("the socket of heartbeats"))?);
        }
        Ok(())
    }

    /// Sends path_probes as this one, and hears them on the bridge of this number.
    pub(crate) fn listen_for_path_probes(
        &self,
        identity: PathProbeIdentity,
        bridge: u32,
    ) -> Result<(), Cause> {
        let post = PathProbeSocket::open(identity, bridge, self.shared.path_probe_inbox.clone());
        let post = post.map_err(Cause::io("the sockets of path_probes"))?;
        self.shared.lock().transports.path_probes = Some(post);
        Ok(())
    }

    /// As whom path_probes are sent, and the number of the bridge where they are heard.
    pub(crate) fn path_probes(&self) -> Option<(PathProbeIdentity, u32)> {
        self.shared
            .lock()
            .transports
            .path_probes
            .as_ref()
            .map(PathProbeSocket::at)
    }

    /// The bridge goes.
    pub(crate) fn close_path_probes(&self) {
        self.shared.lock().transports.path_probes = None;
    }

    /// WireGuard's device goes.
    pub(crate) fn forget_wireguard(&self) {
        if let Some(EncryptedPath::WireGuard(watched)) =
            &mut self.shared.lock().transports.encrypted
        {
            **watched = Watched::default();
        }
    }

    /// Where heartbeats are heard: the tunnel address, and the number of the device.
    pub(crate) fn hears(&self) -> Option<(Ipv4Addr, u32)> {
        match &self.shared.lock().transports.encrypted {
            Some(EncryptedPath::WireGuard(watched)) => Some(watched.socket.as_ref()?.at),
            _ => None,
        }
    }

    /// The keys that peers will use next and that the encrypted path knows.
    pub(crate) fn next_keys(&self) -> BTreeSet<PublicKey> {
        let peers = self.shared.lock();
        peers
            .transports
            .encrypted
            .iter()
            .flat_map(EncryptedPath::next_keys)
            .collect()
    }

    /// Takes what the directory says, and answers what follows for each peer. PeerTable that are not known yet are as `adopted`
    /// says, which is what a former run left.
    pub(crate) fn want(
        &self,
        wanted: BTreeMap<NodeId, PeerConfig>,
        adopted: &BTreeMap<NodeId, Clear>,
    ) -> PeerStates {
        let mut peers = self.shared.lock();
        peers.want(wanted, adopted, Instant::now());
        self.shared.publish(&peers);
        peers.states()
    }

    /// Of which peers the kernel takes clear packets now.
    pub(crate) fn set_accepted(&self, accepted: &BTreeSet<NodeId>) {
        let mut peers = self.shared.lock();
        if peers.set_accepted(accepted, Instant::now()) {
            self.shared.publish(&peers);
        }
    }

    /// How the way to each peer is.
    pub(crate) fn health(&self) -> BTreeMap<NodeId, Health> {
        self.shared.lock().health()
    }

    /// What the encrypted path dropped since its start.
    pub(crate) fn drops(&self) -> Option<kontena_sleeve::Drops> {
        let peers = self.shared.lock();
        peers.transports.encrypted.as_ref()?.drops()
    }
}
