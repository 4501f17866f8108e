//! Who the peers are, and whose frames go where.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

use boringtun::x25519::PublicKey;
use kontena_schema::mac::Mac;

/// A host at the other end of a sealed path, under one of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its key; there is one entry for each key that it may use.
    pub key: PublicKey,
    /// Its address inside the tunnel.
    pub inner: Ipv4Addr,
    /// Where it was last known to be. It may move, as WireGuard has it.
    pub endpoint: SocketAddr,
    /// Whether frames for it go to this key, and not only come from it.
    pub sends: bool,
}

/// Everything that can be changed while the sleeve works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The peers.
    pub peers: Vec<Peer>,
    /// The tunnel address of the peer that each MAC is behind. It decides where a
    /// frame goes, and from whom it may come.
    pub macs: HashMap<Mac, Ipv4Addr>,
    /// The tunnel addresses of the peers that get a copy of what is for all. Those
    /// with a fast path get it there.
    pub floods: HashSet<Ipv4Addr>,
}
