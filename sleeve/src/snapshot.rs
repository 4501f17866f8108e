//! The table, as the threads need it: replaced as a whole, looked at per frame.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use kontena_schema::key::PublicKey;
use kontena_schema::mac::Mac;

use crate::key::PrivateKey;
use crate::peer::Tunnel;
use crate::table::{Peer, Table};

/// Handshakes a second beyond which a sender must prove its address: a whole grid
/// that begins at once is below it. Each is counted twice.
const HANDSHAKES_PER_S: u64 = 1024;
/// Tunnels are numbered with 24 bits (boringtun).
const INDEXES: u32 = 1 << 24;

/// What the threads look things up in.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// This host's keys; it begins with the first.
    pub(crate) identities: Vec<Identity>,
    by_index: HashMap<u32, Arc<Tunnel>>,
    by_keys: HashMap<Keys, Arc<Tunnel>>,
    owners: HashMap<Mac, Ipv4Addr>,
    routes: HashMap<Ipv4Addr, Route>,
    floods: Vec<Route>,
}

/// One of this host's keys.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) public: x25519::PublicKey,
    pub(crate) limiter: Arc<RateLimiter>,
}

/// The keys at both ends of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Keys {
    pub(crate) own: PublicKey,
    pub(crate) peer: PublicKey,
}

/// The tunnels to one peer: one, and while a key changes more.
#[derive(Clone)]
pub(crate) struct Route {
    /// The newest keys first.
    tunnels: Vec<Arc<Tunnel>>,
}

impl Route {
    /// The tunnel that a frame takes: the one with the newest keys in which the peer
    /// was heard, so that a new key is used at its first handshake and not before.
    pub(crate) fn tunnel(&self) -> Option<&Arc<Tunnel>> {
        let alone = self.tunnels.len() == 1;
        let alive = self.tunnels.iter().find(|one| alone || one.is_alive());
        alive.or_else(|| self.tunnels.iter().find(|one| one.begins()))
    }
}

impl Identity {
    fn new(private: &PrivateKey) -> Self {
        let public = x25519::PublicKey::from(&private.0);
        Self {
            private: private.clone(),
            public,
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_S)),
        }
    }

    fn key(&self) -> PublicKey {
        PublicKey(self.public.to_bytes())
    }
}

impl Snapshot {
    /// The snapshot of a table after `old`, and the tunnels that must begin a handshake.
    /// A tunnel whose keys and peer stay is kept, with its session.
    pub(crate) fn next(old: &Self, table: &Table, numbers: &mut u32) -> (Self, Vec<Arc<Tunnel>>) {
        let mut snapshot = Self::default();
        for own in &table.own {
            let key = own.public();
            let known = old.identities.iter().find(|known| known.key() == key);
            snapshot
                .identities
                .push(known.cloned().unwrap_or_else(|| Identity::new(own)));
        }
        let mut initiating = Vec::new();
        for (&tunnel_address, peer) in &table.peers {
            let tunnels = snapshot.tunnels(old, (tunnel_address, peer), numbers, &mut initiating);
            let route = Route { tunnels };
            if table.floods.contains(&tunnel_address) {
                snapshot.floods.push(route.clone());
            }
            snapshot.routes.insert(tunnel_address, route);
        }
        snapshot.owners = table.owners.iter().map(|(&mac, &of)| (mac, of)).collect();
        (snapshot, initiating)
    }

    fn tunnels(
        &mut self,
        old: &Self,
        (tunnel_address, peer): (Ipv4Addr, &Peer),
        numbers: &mut u32,
        initiating: &mut Vec<Arc<Tunnel>>,
    ) -> Vec<Arc<Tunnel>> {
        let mut tunnels = Vec::new();
        for (at, identity) in self.identities.clone().iter().enumerate() {
            for key in peer.next.into_iter().chain([peer.current]) {
                let own = identity.key();
                let keys = Keys { own, peer: key };
                // Two tunnels with the same keys would take each other's sessions.
                if own == key || self.by_keys.contains_key(&keys) {
                    continue;
                }
                let kept = old
                    .by_keys
                    .get(&keys)
                    .filter(|kept| kept.tunnel_address == tunnel_address);
                let tunnel = kept.cloned().unwrap_or_else(|| {
                    let index = self.free_index(old, numbers);
                    let tunn = tunn(identity, key, index);
                    Arc::new(Tunnel::new(
                        keys,
                        (tunnel_address, peer.endpoint),
                        (index, tunn),
                    ))
                });
                let begins = at == 0 && key == peer.current;
                if tunnel.set(peer.endpoint, begins) {
                    initiating.push(Arc::clone(&tunnel));
                }
                self.by_index.insert(tunnel.index, Arc::clone(&tunnel));
                self.by_keys.insert(keys, Arc::clone(&tunnel));
                tunnels.push(tunnel);
            }
        }
        tunnels
    }

    /// A number that no tunnel has, so that a late packet meets no other tunnel.
    fn free_index(&self, old: &Self, next: &mut u32) -> u32 {
        loop {
            let index = *next;
            *next = (index + 1) % INDEXES;
            if !old.by_index.contains_key(&index) && !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }

    pub(crate) fn by_index(&self, index: u32) -> Option<&Arc<Tunnel>> {
        self.by_index.get(&index)
    }

    pub(crate) fn by_keys(&self, keys: Keys) -> Option<&Arc<Tunnel>> {
        self.by_keys.get(&keys)
    }

    pub(crate) fn tunnels_all(&self) -> impl Iterator<Item = &Arc<Tunnel>> {
        self.by_index.values()
    }

    /// The way to each peer.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values()
    }

    /// The way to one peer.
    pub(crate) fn route(&self, tunnel_address: Ipv4Addr) -> Option<&Route> {
        self.routes.get(&tunnel_address)
    }

    /// The peer that a MAC is behind.
    pub(crate) fn owner(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.owners.get(&mac).copied()
    }

    /// The transports that a frame for this MAC takes.
    pub(crate) fn targets(&self, mac: Mac) -> &[Route] {
        const FOR_MANY: u8 = 1;
        if mac.0[0] & FOR_MANY != 0 {
            return &self.floods;
        }
        let route = self.owner(mac).and_then(|peer| self.routes.get(&peer));
        route.map_or(&[], std::slice::from_ref)
    }
}

fn tunn(identity: &Identity, peer: PublicKey, index: u32) -> Tunn {
    Tunn::new(
        identity.private.0.clone(),
        peer.0.into(),
        None,
        // Boringtun's own would come however much else is sent.
        None,
        index,
        Some(Arc::clone(&identity.limiter)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_sends_no_signs_of_life_by_itself() {
        let [own, peer] = [1, 2].map(|octet| PrivateKey::from_octets([octet; 32]));
        let tunn = tunn(&Identity::new(&own), peer.public(), 1);
        assert_eq!(tunn.persistent_keepalive(), None);
    }
}
