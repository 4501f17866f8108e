//! Whose frames go where, and whose come in: an intent, as the tables of the bridge, of
//! the VXLAN device and of the encrypted path are to hold it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use kontena_schema::ids::NodeId;
use kontena_schema::limits::WIREGUARD_PORT;
use kontena_schema::mac::Mac;
use kontena_sleeve::{Peer, Table};

use crate::model::intent::{OverlayIntent, PeerIntent, Reach};
use crate::model::state::{Encryption, Port};

/// What the tables of bridge, VXLAN device and encrypted path are to hold.
pub(crate) struct Entries {
    /// The underlay addresses of peers whose clear packets are taken.
    pub(crate) accepted: BTreeSet<Ipv4Addr>,
    /// Where the VXLAN device sends what is for all: to peers that get clear packets, and where
    /// WireGuard encrypts, to the tunnel addresses of the others.
    pub(crate) floods: BTreeSet<Ipv4Addr>,
    /// Where the VXLAN device sends frames for a MAC.
    pub(crate) targets: BTreeMap<Mac, Ipv4Addr>,
    /// Where the bridge sends frames for a MAC.
    pub(crate) ports: BTreeMap<Mac, Port>,
    /// Whose frames come in through the VXLAN device.
    pub(crate) senders: BTreeSet<Mac>,
    /// Who has an overlay address: peers, their containers, and the containers of this host.
    pub(crate) neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// Who is at the other ends of the sleeve.
    pub(crate) table: Table,
}

impl Entries {
    pub(crate) fn of(intent: &OverlayIntent) -> Self {
        let local = intent.attachments().map(|(_, to)| (to.address, to.mac));
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
        let mut on_node: BTreeMap<NodeId, Vec<(Ipv4Addr, Mac)>> = BTreeMap::new();
        for endpoint in &intent.endpoints {
            let holder = (endpoint.address, endpoint.mac);
            on_node.entry(endpoint.node).or_default().push(holder);
        }
        for (node, peer) in &intent.peers {
            let own = (peer.overlay_address, Mac::of_node(peer.overlay_address));
            let others = on_node.remove(node).unwrap_or_default();
            let reach = (intent.encryption, &intent.reach(peer));
            entries.add(peer, reach, own, others);
        }
        entries
    }

    fn add(
        &mut self,
        peer: &PeerIntent,
        (encryption, reach): (Encryption, &Reach),
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
        let under = (encryption == Encryption::WireGuard).then_some(peer.tunnel_address);
        let target = fast.or(under);
        self.floods.extend(target);
        let candidate = peer.candidate();
        let encrypted = Peer {
            current: keys.current,
            next: keys.next,
            endpoint: candidate.map(|candidate| (candidate, WIREGUARD_PORT).into()),
        };
        self.table.peers.insert(peer.tunnel_address, encrypted);
        if fast.is_none() {
            self.table.floods.insert(peer.tunnel_address);
        }
        for (address, mac) in [own].into_iter().chain(others) {
            self.neighbours.insert(address, mac);
            self.table.owners.insert(mac, peer.tunnel_address);
            if accepted.or(under).is_some() {
                self.senders.insert(mac);
            }
            self.ports
                .insert(mac, target.map_or(Port::Tap, |_| Port::Vxlan));
            if let Some(to) = target {
                self.targets.insert(mac, to);
            }
        }
    }
}
