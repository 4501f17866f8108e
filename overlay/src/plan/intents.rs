//! Random intents for the plan's tests: small, so that two of them overlap.

use std::net::SocketAddr;

use ipnetwork::Ipv4Network;
use kontena_schema::address::InnerSubnet;
use kontena_schema::ids::{LeaseNumber, NodeId, PlacementId};
use kontena_schema::key::{PublicKey, PublicKeys};
use kontena_schema::path::Path;
use kontena_sleeve::PrivateKey;
use proptest::prelude::*;

use super::*;
use crate::model::intent::{Attachment, OwnNode, PeerIntent, RemoteEndpoint};
use crate::model::peer::{Clear, Ends, PeerState};
use crate::model::state::{EgressPolicy, HostServices, MulticastLimit};
use crate::process::Process;

pub(super) fn underlay(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, host)
}

pub(super) fn tunnel_subnet(text: &str) -> InnerSubnet {
    let network: Ipv4Network = text.parse().unwrap();
    network.try_into().unwrap()
}

fn any_tunnel_subnet() -> impl Strategy<Value = InnerSubnet> {
    prop_oneof![
        Just(InnerSubnet::default()),
        Just(tunnel_subnet("10.9.9.0/24"))
    ]
}

/// A node's tunnel address.
fn inside(subnet: InnerSubnet, number: u8) -> Ipv4Addr {
    subnet.address(number.try_into().unwrap())
}

fn any_path() -> impl Strategy<Value = Path> {
    (0_u8..4, 1_u8..6).prop_map(|(kind, host)| match kind {
        0 | 1 => Path::Fast { to: underlay(host) },
        2 => Path::Sealed { to: underlay(host) },
        _ => Path::Unknown,
    })
}

pub(super) fn any_state() -> impl Strategy<Value = PeerState> {
    let clear = prop_oneof![
        2 => Just(Clear::Send), 1 => Just(Clear::Accept), 1 => Just(Clear::No)
    ];
    (clear, proptest::option::of(1_u8..7)).prop_map(|(clear, key)| PeerState {
        clear,
        key: key.map(|key| PublicKey([key; 32])),
        ..PeerState::default()
    })
}

/// The path and the state of a peer, and its keys.
fn any_peer() -> impl Strategy<Value = (Path, PeerState, Option<PublicKeys>)> {
    let keys = (1_u8..4, proptest::option::of(4_u8..7)).prop_map(|(current, next)| PublicKeys {
        current: PublicKey([current; 32]),
        next: next.map(|next| PublicKey([next; 32])),
    });
    (
        any_path(),
        any_state(),
        proptest::option::weighted(0.9, keys),
    )
}

prop_compose! {
    pub(super) fn any_intent()(
        (vni, tunnel_subnet) in (7_u32..9, any_tunnel_subnet()),
        own in 1_u8..3,
        mtu in 1369_u32..1371,
        peers in proptest::collection::btree_map(10_i64..16, any_peer(), 0..5),
        (key, wireguard) in (1_u8..4, any::<bool>()),
        multicast in 50_u32..52,
        services in proptest::collection::btree_set(1_u16..4, 0..3),
        masters in proptest::collection::btree_set(1_u16..4, 0..3),
        endpoints in proptest::collection::btree_map((1_u8..20, 1_i64..3), 10_i64..18, 0..8),
        local in proptest::collection::btree_map(1_i64..5, (20_u8..23, 1_i64..3), 0..4),
    ) -> OverlayIntent {
        let own_address = Ipv4Addr::new(10, 81, 0, own);
        let peer = |(node, (path, state, keys)): (i64, (Path, PeerState, Option<PublicKeys>))| {
            let number = node.try_into().unwrap();
            let candidates = match path {
                Path::Fast { to } | Path::Sealed { to } => vec![to],
                Path::Unknown => vec![],
            };
            let back = underlay(own);
            let ends = match path {
                Path::Fast { to } => Some(Ends { peer: to, own: back }),
                _ => None,
            };
            // No two nodes have the same key.
            let of_node = |PublicKey(mut key)| {
                key[0] = number;
                PublicKey(key)
            };
            let key = state.key.map(of_node);
            let state = PeerState { ends, key, ..state };
            let keys = keys.map(|keys| PublicKeys {
                current: of_node(keys.current),
                next: keys.next.map(of_node),
            });
            let peer = PeerIntent {
                overlay_address: Ipv4Addr::new(10, 81, 0, number),
                tunnel_address: inside(tunnel_subnet, number),
                keys,
                path,
                agreement: 7,
                back: Some(back),
                candidates,
                nat: None,
                state,
            };
            (NodeId(node), peer)
        };
        let remote = |((host, lease), node): ((u8, i64), i64)| {
            let address = Ipv4Addr::new(10, 81, 1, host);
            RemoteEndpoint { address, mac: Mac::of_lease(address, LeaseNumber(lease)), node: NodeId(node) }
        };
        let attachment = |(id, (host, lease)): (i64, (u8, i64))| {
            let address = Ipv4Addr::new(10, 81, 1, host);
            let mac = Mac::of_lease(address, LeaseNumber(lease));
            let process = Process { pid: 1, started: 0 };
            (PlacementId(id), Attachment { process, container_id: id.to_string(), address, mac })
        };
        // The directory has each address only once.
        let endpoints: BTreeMap<_, _> =
            endpoints.into_iter().map(remote).map(|e| (e.address, e)).collect();
        OverlayIntent {
            vni,
            supernet: "10.81.0.0/17".parse().unwrap(),
            tunnel_subnet,
            own: OwnNode {
                address: own_address,
                mac: Mac::of_node(own_address),
                tunnel_address: inside(tunnel_subnet, own),
                underlay: BTreeSet::from([underlay(own)]),
                behind_nat: false,
            },
            mtu,
            keys: vec![PrivateKey::from_octets([key; 32])],
            encryption: if wireguard { Encryption::WireGuard } else { Encryption::Sleeve },
            services: HostServices { tcp: services, udp: BTreeSet::new() },
            egress: EgressPolicy {
                masters: Some(masters.into_iter().map(|port| SocketAddr::new(underlay(5).into(), port)).collect()),
                bridges: Some(BTreeSet::from(["docker0".to_owned()])),
            },
            multicast: MulticastLimit { rate: multicast, burst: 200 },
            peers: peers.into_iter().map(peer).collect(),
            endpoints: endpoints.into_values().collect(),
            attachments: Some(local.into_iter().map(attachment).collect()),
        }
    }
}
