//! What a WireGuard device is to be, what it is, and what the kernel is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::time::SystemTime;

use ipnetwork::{IpNetwork, Ipv4Network};
use kontena_schema::key::PublicKey;
use kontena_sleeve::PrivateKey;

/// The device that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) private_key: PrivateKey,
    /// The UDP port; not 0, with which the kernel would choose one.
    pub(crate) listen_port: u16,
    pub(crate) peers: BTreeMap<PublicKey, WgPeer>,
}

#[cfg(test)]
impl Device {
    /// Where each peer is advertised to be: what [`super::changes`] wants to know the
    /// next time.
    pub(crate) fn endpoints(&self) -> BTreeMap<PublicKey, SocketAddrV4> {
        let told = |(key, peer): (&PublicKey, &WgPeer)| Some((*key, peer.endpoint?));
        self.peers.iter().filter_map(told).collect()
    }
}

/// A peer that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WgPeer {
    /// Where it is to be found; None leaves it to the peer to come.
    pub(crate) endpoint: Option<SocketAddrV4>,
    /// What is sent to it, and may come from it. If two peers have the same, it is
    /// the first one's, in the order of keys.
    pub(crate) allowed: BTreeSet<Ipv4Network>,
    /// Seconds between packets that keep the way open; 0 for none.
    pub(crate) keepalive_s: u16,
}

/// The device that the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// None if it has no key yet.
    pub(crate) public_key: Option<PublicKey>,
    /// 0 if none was chosen yet.
    pub(crate) listen_port: u16,
    pub(crate) peers: BTreeMap<PublicKey, ObservedPeer>,
}

/// A peer that the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObservedPeer {
    /// Where it was last heard from, or is to be found.
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) allowed: BTreeSet<IpNetwork>,
    pub(crate) keepalive_s: u16,
    /// None if there was none yet.
    pub(crate) last_handshake: Option<SystemTime>,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

/// One request to change the device. What is None stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) private_key: Option<PrivateKey>,
    pub(crate) listen_port: Option<u16>,
    /// The kernel makes them in this order, until one fails.
    pub(crate) peers: Vec<PeerChange>,
}

impl Message {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A change of one peer. What is None stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerChange {
    pub(crate) key: PublicKey,
    pub(crate) how: How,
    pub(crate) endpoint: Option<SocketAddrV4>,
    pub(crate) keepalive_s: Option<u16>,
    /// The networks that the peer gets; the kernel takes each from the peer that
    /// had it, in one step.
    pub(crate) allowed: Vec<Ipv4Network>,
}

/// What a change does with the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Makes it.
    Add,
    /// Changes it, if it is there.
    Update,
    /// Changes it, if it is there, and leaves it no networks but those that it gets.
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
