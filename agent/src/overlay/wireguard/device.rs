//! What a WireGuard device is to be, what it is, and what the kernel is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::SystemTime;

use ipnetwork::{IpNetwork, Ipv4Network};
use x25519_dalek::X25519_BASEPOINT_BYTES;

/// The length of both halves of a key.
pub(crate) const KEY_BYTES: usize = 32;

/// A device's private key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PrivateKey([u8; KEY_BYTES]);

impl PrivateKey {
    /// Any bytes make a key.
    pub(crate) fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> [u8; KEY_BYTES] {
        self.0
    }

    /// The other half.
    pub(crate) fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::x25519(self.0, X25519_BASEPOINT_BYTES))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// The key that a device or a peer is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PublicKey(pub(crate) [u8; KEY_BYTES]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey(")?;
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

/// The device that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) private_key: PrivateKey,
    /// The UDP port; not 0, with which the kernel would choose one.
    pub(crate) listen_port: u16,
    pub(crate) peers: BTreeMap<PublicKey, WgPeer>,
}

impl Device {
    /// Where each peer is said to be: what [`super::changes`] wants to know the
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_is_not_printed() {
        let device = Device {
            private_key: PrivateKey::new([0xab; KEY_BYTES]),
            listen_port: 6783,
            peers: BTreeMap::new(),
        };
        let message = Message {
            private_key: Some(device.private_key.clone()),
            ..Message::default()
        };
        for text in [format!("{device:?}"), format!("{message:#?}")] {
            assert!(text.contains("PrivateKey(..)"), "{text}");
            assert!(!text.contains("ab, ") && !text.contains("171"), "{text}");
        }
    }

    /// Alice's keys of RFC 7748, section 6.1.
    #[test]
    fn a_public_key_is_that_of_its_private_key() {
        let private: [u8; KEY_BYTES] = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2,
            0x66, 0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5,
            0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let public = PrivateKey::new(private).public();
        let text = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
        assert_eq!(format!("{public:?}"), format!("PublicKey({text})"));
    }
}
