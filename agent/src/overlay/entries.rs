//! Whose frames go where, and whose come in: an intent, as the tables of the bridge, of
//! the tunnel and of the sealed path are to hold it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use kontena_schema::ids::NodeId;
use kontena_schema::limits::WIREGUARD_PORT;
use kontena_schema::mac::Mac;
use kontena_sleeve::{Peer, Table};

use super::intent::{OverlayIntent, PeerIntent, Reach};
use super::state::{Port, Sealing};

/// What the tables of bridge, tunnel and sealed path are to hold.
pub(crate) struct Entries {
    /// The underlay addresses of peers whose clear packets are taken.
    pub(crate) accepted: BTreeSet<Ipv4Addr>,
    /// Where the tunnel sends what is for all: to peers that get clear packets, and where
    /// WireGuard seals, to the inner addresses of the others.
    pub(crate) floods: BTreeSet<Ipv4Addr>,
    /// Where the tunnel sends frames for a MAC.
    pub(crate) targets: BTreeMap<Mac, Ipv4Addr>,
    /// Where the bridge sends frames for a MAC.
    pub(crate) ports: BTreeMap<Mac, Port>,
    /// Whose frames come in through the tunnel.
    pub(crate) senders: BTreeSet<Mac>,
    /// Who has an overlay address: peers, their containers, and the containers of this host.
    pub(crate) neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// Who is at the other ends of the sleeve.
    pub(crate) table: Table,
}

impl Entries {
    pub(crate) fn of(intent: &OverlayIntent) -> Self {
        let local = intent.attachments.values().map(|to| (to.address, to.mac));
        let mut entries = Self {
            accepted: BTreeSet::new(),
            floods: BTreeSet::new(),
            targets: BTreeMap::new(),
            ports: BTreeMap::new(),
            senders: BTreeSet::new(),
            neighbours: local.collect(),
            table: Table {
                own: intent.keys.clone(),
                ..Table::default()
            },
        };
        let mut behind: BTreeMap<NodeId, Vec<(Ipv4Addr, Mac)>> = BTreeMap::new();
        for endpoint in &intent.endpoints {
            let holder = (endpoint.address, endpoint.mac);
            behind.entry(endpoint.node).or_default().push(holder);
        }
        for (node, peer) in &intent.peers {
            let own = (peer.overlay_address, Mac::of_node(peer.overlay_address));
            let others = behind.remove(node).unwrap_or_default();
            let reach = (intent.sealing, &intent.reach(peer));
            entries.add(peer, reach, own, others);
        }
        entries
    }

    fn add(
        &mut self,
        peer: &PeerIntent,
        (sealing, reach): (Sealing, &Reach),
        own: (Ipv4Addr, Mac),
        others: Vec<(Ipv4Addr, Mac)>,
    ) {
        let Some(keys) = peer.keys.filter(|_| !matches!(reach, Reach::None(_))) else {
            return;
        };
        let accepted = match *reach {
            Reach::Fast(to) | Reach::Accepting(to) => Some(to),
            _ => None,
        };
        let fast = accepted.filter(|_| matches!(reach, Reach::Fast(_)));
        self.accepted.extend(accepted);
        let under = (sealing == Sealing::WireGuard).then_some(peer.inner);
        let target = fast.or(under);
        self.floods.extend(target);
        let place = peer.place();
        let sealed = Peer {
            current: keys.current,
            next: keys.next,
            endpoint: place.map(|place| (place, WIREGUARD_PORT).into()),
        };
        self.table.peers.insert(peer.inner, sealed);
        if fast.is_none() {
            self.table.floods.insert(peer.inner);
        }
        for (address, mac) in [own].into_iter().chain(others) {
            self.neighbours.insert(address, mac);
            self.table.behind.insert(mac, peer.inner);
            if accepted.or(under).is_some() {
                self.senders.insert(mac);
            }
            self.ports
                .insert(mac, target.map_or(Port::Tap, |_| Port::Tunnel));
            if let Some(to) = target {
                self.targets.insert(mac, to);
            }
        }
    }
}
