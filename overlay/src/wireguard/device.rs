//! The wanted device, the actual one, and the requests to change it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::time::SystemTime;

use ipnetwork::{IpNetwork, Ipv4Network};
use kontena_schema::key::PublicKey;
use kontena_sleeve::PrivateKey;

/// The wanted device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) private_key: PrivateKey,
    /// The UDP port; not 0, for which the kernel would choose one.
    pub(crate) listen_port: u16,
    pub(crate) peers: BTreeMap<PublicKey, WgPeer>,
}

#[cfg(test)]
impl Device {
    /// The endpoint of each peer: the last ones sent, for the next call of [`super::changes`].
    pub(crate) fn endpoints(&self) -> BTreeMap<PublicKey, SocketAddrV4> {
        let endpoint = |(key, peer): (&PublicKey, &WgPeer)| Some((*key, peer.endpoint?));
        self.peers.iter().filter_map(endpoint).collect()
    }
}

/// A wanted peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WgPeer {
    /// Where it is expected; without one, only the peer can initiate.
    pub(crate) endpoint: Option<SocketAddrV4>,
    /// The networks that are routed to it and that its packets may come from. If two peers have
    /// the same one, the first by key gets it.
    pub(crate) allowed: BTreeSet<Ipv4Network>,
    /// The interval of keepalives in seconds; 0 for none.
    pub(crate) keepalive_s: u16,
}

/// The device in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// None if it has no key yet.
    pub(crate) public_key: Option<PublicKey>,
    /// 0 if none was chosen yet.
    pub(crate) listen_port: u16,
    pub(crate) peers: BTreeMap<PublicKey, ObservedPeer>,
}

/// A peer in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObservedPeer {
    /// Where packets last came from, or where it is expected.
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) allowed: BTreeSet<IpNetwork>,
    pub(crate) keepalive_s: u16,
    /// None if there was none yet.
    pub(crate) last_handshake: Option<SystemTime>,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

/// One request to change the device. None leaves a setting as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) private_key: Option<PrivateKey>,
    pub(crate) listen_port: Option<u16>,
    /// The kernel applies them in this order, until one fails.
    pub(crate) peers: Vec<PeerChange>,
}

impl Message {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A change of one peer. None leaves a setting as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerChange {
    pub(crate) key: PublicKey,
    pub(crate) how: How,
    pub(crate) endpoint: Option<SocketAddrV4>,
    pub(crate) keepalive_s: Option<u16>,
    /// The networks that the peer gets; the kernel moves each from its former peer in one step.
    pub(crate) allowed: Vec<Ipv4Network>,
}

/// The kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Creates the peer.
    Add,
    /// Changes it, if it exists.
    Update,
    /// Changes it, if it exists, and removes all networks but those of this change.
    Narrow,
    Remove,
}

impl PeerChange {
    pub(crate) fn new(key: PublicKey, how: How) -> Self {
        Self {
            key,
            how,
            endpoint: None,
            keepalive_s: None,
            allowed: Vec::new(),
        }
    }
}
