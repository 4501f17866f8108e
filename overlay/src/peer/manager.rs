//! Owns the peers of this node and the encrypted path, and publishes the peers' states.
//!
//! The encrypted path lives here because heartbeats need it also between two passes. Everything
//! is behind one lock that is held briefly: no await, no disk.

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
    /// No peers yet; must be called inside a tokio runtime. `control` is the access to WireGuard's
    /// configuration, where WireGuard encrypts.
    pub(crate) fn new(control: Option<Control>) -> Self {
        let shared = Arc::new(Shared::new(control));
        let (heartbeats, checking) = (Arc::clone(&shared), Arc::clone(&shared));
        Self {
            shared,
            _keeper: supervise("peers", move || {
                keeper::exchange_heartbeats(Arc::clone(&heartbeats))
            }),
            _checker: supervise("reachability", move || keeper::check(Arc::clone(&checking))),
        }
    }

    /// The states of the peers, and their changes.
    pub(crate) fn states(&self) -> watch::Receiver<PeerStates> {
        self.shared.subscribe()
    }

    /// Starts the sleeve in the network namespace of the calling thread, after stopping the one
    /// before.
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

    /// Stops the sleeve.
    pub(crate) fn stop_sleeve(&self) {
        let ended = self.shared.lock().transports.encrypted.take();
        // Its threads are joined without the lock.
        drop(ended);
    }

    /// Sets the sleeve's table, if there is a sleeve.
    pub(crate) fn set_table(&self, table: &Table) {
        if let Some(EncryptedPath::Sleeve(running)) = &mut self.shared.lock().transports.encrypted {
            running.sleeve.set_table(table);
            running.table = table.clone();
        }
    }

    /// The sleeve, if it is running.
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

    /// Whether the encrypted path works.
    pub(crate) fn encrypts(&self) -> bool {
        match &self.shared.lock().transports.encrypted {
            Some(EncryptedPath::Sleeve(running)) => running.sleeve.is_alive(),
            Some(EncryptedPath::WireGuard(_)) => true,
            None => false,
        }
    }

    /// The access to WireGuard's configuration, where WireGuard encrypts.
    pub(crate) fn control(&self) -> Option<&Control> {
        self.shared.control.as_ref()
    }

    /// Reads WireGuard's state; none if there is no device.
    pub(crate) async fn look(&self) -> Result<Option<Looked>, Cause> {
        self.shared.observe().await
    }

    /// Configures WireGuard.
    pub(crate) async fn update(&self, update: &WireGuardUpdate) -> Result<(), Cause> {
        let Some(control) = self.control() else {
            return Ok(());
        };
        let started = Moment::now();
        for message in &update.messages {
            control.change(message).await?;
        }
        let mut peers = self.shared.lock();
        if let Some(EncryptedPath::WireGuard(watched)) = &mut peers.transports.encrypted {
            watched.watch.updated(update, [started, Moment::now()]);
        }
        Ok(())
    }

    /// Receives heartbeats at the own tunnel address, on the WireGuard device with this index.
    pub(crate) fn listen_for_heartbeats(&self, at: (Ipv4Addr, u32)) -> Result<(), Cause> {
        let mut peers = self.shared.lock();
        if let Some(EncryptedPath::WireGuard(watched)) = &mut peers.transports.encrypted {
            // The old socket still has the address.
            watched.socket = None;
            let socket = HeartbeatSocket::open(at, self.shared.inbox.clone());
            watched.socket = Some(socket.map_err(Cause::io("the socket for heartbeats"))?);
        }
        Ok(())
    }

    /// Sends path probes with this identity, and receives them on the bridge with this index.
    pub(crate) fn listen_for_path_probes(
        &self,
        identity: PathProbeIdentity,
        bridge: u32,
    ) -> Result<(), Cause> {
        let socket = PathProbeSocket::open(identity, bridge, self.shared.path_probe_inbox.clone());
        let socket = socket.map_err(Cause::io("the sockets for path probes"))?;
        self.shared.lock().transports.path_probes = Some(socket);
        Ok(())
    }

    /// The identity that path probes are sent with, and the index of the bridge that receives them.
    pub(crate) fn path_probes(&self) -> Option<(PathProbeIdentity, u32)> {
        self.shared
            .lock()
            .transports
            .path_probes
            .as_ref()
            .map(PathProbeSocket::at)
    }

    /// Closes the sockets for path probes: the bridge is deleted.
    pub(crate) fn close_path_probes(&self) {
        self.shared.lock().transports.path_probes = None;
    }

    /// Discards what is known of WireGuard: its device is deleted.
    pub(crate) fn forget_wireguard(&self) {
        if let Some(EncryptedPath::WireGuard(watched)) =
            &mut self.shared.lock().transports.encrypted
        {
            **watched = Watched::default();
        }
    }

    /// Where heartbeats are received: the tunnel address, and the index of the device.
    pub(crate) fn hears(&self) -> Option<(Ipv4Addr, u32)> {
        match &self.shared.lock().transports.encrypted {
            Some(EncryptedPath::WireGuard(watched)) => Some(watched.socket.as_ref()?.at),
            _ => None,
        }
    }

    /// The next keys of peers that the encrypted path is configured with.
    pub(crate) fn next_keys(&self) -> BTreeSet<PublicKey> {
        let peers = self.shared.lock();
        peers
            .transports
            .encrypted
            .iter()
            .flat_map(EncryptedPath::next_keys)
            .collect()
    }

    /// Applies the directory, and returns the peers' states. A new peer starts in the state of
    /// `adopted`, which a former run left.
    pub(crate) fn want(
        &self,
        wanted: BTreeMap<NodeId, PeerConfig>,
        adopted: &BTreeMap<NodeId, Clear>,
    ) -> PeerStates {
        let mut peers = self.shared.lock();
        peers.configure(wanted, adopted, Instant::now());
        self.shared.publish(&peers);
        peers.states()
    }

    /// Sets the peers whose clear packets the kernel accepts now.
    pub(crate) fn set_accepted(&self, accepted: &BTreeSet<NodeId>) {
        let mut peers = self.shared.lock();
        if peers.set_accepted(accepted, Instant::now()) {
            self.shared.publish(&peers);
        }
    }

    /// The measured state of each peer.
    pub(crate) fn health(&self) -> BTreeMap<NodeId, Health> {
        self.shared.lock().health()
    }

    /// What the encrypted path dropped since it was started.
    pub(crate) fn drops(&self) -> Option<kontena_sleeve::Drops> {
        let peers = self.shared.lock();
        peers.transports.encrypted.as_ref()?.drops()
    }
}
