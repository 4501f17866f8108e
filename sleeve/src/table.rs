//! The peers, and which of them owns which MAC.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use kontena_schema::key::PublicKey;
use kontena_schema::mac::Mac;

use crate::key::PrivateKey;

/// A host at the other end of an encrypted path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its current key.
    pub current: PublicKey,
    /// Its next key, if it announced one.
    pub next: Option<PublicKey>,
    /// Where it is expected; without one, only the peer can initiate. It may roam, as in
    /// WireGuard.
    pub endpoint: Option<SocketAddr>,
}

/// Everything that can be changed while the sleeve runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// This host's keys: it initiates with the first and still responds with the others.
    pub own: Vec<PrivateKey>,
    /// The peers, by tunnel address.
    pub peers: BTreeMap<Ipv4Addr, Peer>,
    /// The tunnel address of the peer that owns each MAC: where frames for it go, and the only
    /// peer that frames from it are accepted from.
    pub owners: BTreeMap<Mac, Ipv4Addr>,
    /// The tunnel addresses of the peers that get a copy of flooded frames. Peers with a fast
    /// path get theirs there.
    pub floods: BTreeSet<Ipv4Addr>,
}
