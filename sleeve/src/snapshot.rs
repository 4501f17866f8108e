//! The table in the form that the threads need: replaced as a whole, read per frame.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use kontena_schema::key::PublicKey;
use kontena_schema::mac::Mac;

use crate::key::PrivateKey;
use crate::peer::{Keys, Tunnel};
use crate::table::{Peer, Table};

/// Handshakes a second beyond which a sender must prove its address: more than a whole grid
/// causes that starts all at once. Each is counted twice.
const HANDSHAKES_PER_S: u64 = 1024;
/// Tunnel indexes have 24 bits (boringtun).
const INDEXES: u32 = 1 << 24;

/// The threads' lookup tables.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// This host's keys; it initiates with the first.
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

/// The tunnels to one peer: one, or several during a key rotation.
#[derive(Clone)]
pub(crate) struct Route {
    /// Newest keys first.
    tunnels: Vec<Arc<Tunnel>>,
}

impl Route {
    /// The tunnel for a frame: the one with the newest keys in which anything was received
    /// lately, so that a new key is used from its first handshake on and not before.
    pub(crate) fn tunnel(&self) -> Option<&Arc<Tunnel>> {
        let alone = self.tunnels.len() == 1;
        let alive = self.tunnels.iter().find(|one| alone || one.is_alive());
        alive.or_else(|| self.tunnels.iter().find(|one| one.initiates()))
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
    /// The snapshot of a table that follows `old`, and the tunnels that must initiate a handshake.
    /// A tunnel whose keys and peer stay is kept, with its session.
    pub(crate) fn next(
        old: &Self,
        table: &Table,
        next_index: &mut u32,
    ) -> (Self, Vec<Arc<Tunnel>>) {
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
            let tunnels =
                snapshot.tunnels(old, (tunnel_address, peer), next_index, &mut initiating);
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
        next_index: &mut u32,
        initiating: &mut Vec<Arc<Tunnel>>,
    ) -> Vec<Arc<Tunnel>> {
        let mut tunnels = Vec::new();
        for (at, identity) in self.identities.clone().iter().enumerate() {
            for key in peer.next.into_iter().chain([peer.current]) {
                let own = identity.key();
                let keys = Keys { own, peer: key };
                // Two tunnels with the same keys would steal each other's sessions.
                if own == key || self.by_keys.contains_key(&keys) {
                    continue;
                }
                let kept = old
                    .by_keys
                    .get(&keys)
                    .filter(|kept| kept.tunnel_address == tunnel_address);
                let tunnel = kept.cloned().unwrap_or_else(|| {
                    let index = self.free_index(old, next_index);
                    let tunn = tunn(identity, key, index);
                    Arc::new(Tunnel::new(
                        keys,
                        (tunnel_address, peer.endpoint),
                        (index, tunn),
                    ))
                });
                let initiates = at == 0 && key == peer.current;
                if tunnel.configure(peer.endpoint, initiates) {
                    initiating.push(Arc::clone(&tunnel));
                }
                self.by_index.insert(tunnel.index, Arc::clone(&tunnel));
                self.by_keys.insert(keys, Arc::clone(&tunnel));
                tunnels.push(tunnel);
            }
        }
        tunnels
    }

    /// An index that no tunnel has, so that a late packet never matches another tunnel.
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

    /// The tunnels to each peer.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values()
    }

    /// The tunnels to one peer.
    pub(crate) fn route(&self, tunnel_address: Ipv4Addr) -> Option<&Route> {
        self.routes.get(&tunnel_address)
    }

    /// The peer that owns a MAC.
    pub(crate) fn owner(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.owners.get(&mac).copied()
    }

    /// The routes of a frame for this MAC.
    pub(crate) fn targets(&self, mac: Mac) -> &[Route] {
        const GROUP_BIT: u8 = 1;
        if mac.0[0] & GROUP_BIT != 0 {
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
        // Boringtun's keepalives are sent even when there is other traffic.
        None,
        index,
        Some(Arc::clone(&identity.limiter)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boringtun_sends_no_keepalives_of_its_own() {
        let [own, peer] = [1, 2].map(|octet| PrivateKey::from_octets([octet; 32]));
        let tunn = tunn(&Identity::new(&own), peer.public(), 1);
        assert_eq!(tunn.persistent_keepalive(), None);
    }
}
