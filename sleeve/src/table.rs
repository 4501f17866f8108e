//! Who the peers are, and whose frames go where.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use kontena_schema::key::PublicKey;
use kontena_schema::mac::Mac;

use crate::key::PrivateKey;

/// A host at the other end of an encrypted path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The key that it uses.
    pub current: PublicKey,
    /// The key that it will use next, if it advertised so.
    pub next: Option<PublicKey>,
    /// Where it is to be found; without, only it can begin. It may move, as WireGuard
    /// has it.
    pub endpoint: Option<SocketAddr>,
}

/// Everything that can be changed while the sleeve works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// This host's keys: with the first one it begins, under the others it still
    /// answers.
    pub own: Vec<PrivateKey>,
    /// The peers, by their addresses inside the tunnel.
    pub peers: BTreeMap<Ipv4Addr, Peer>,
    /// The tunnel address of the peer that each MAC is behind. It decides where a frame
    /// goes, and from whom it may come.
    pub owners: BTreeMap<Mac, Ipv4Addr>,
    /// The tunnel addresses of the peers that get a copy of what is for all. Those
    /// with a fast path get it there.
    pub floods: BTreeSet<Ipv4Addr>,
}
