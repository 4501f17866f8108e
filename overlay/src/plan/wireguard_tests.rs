//! What WireGuard is configured with when peers roam, are lost, or rotate their keys.

use std::net::SocketAddr;
use std::time::SystemTime;

use ipnetwork::IpNetwork;
use kontena_schema::ids::NodeId;
use kontena_schema::key::PublicKeys;
use kontena_schema::mac::Mac;
use kontena_schema::path::Path;
use kontena_sleeve::PrivateKey;

use super::*;
use crate::model::intent::OwnNode;
use crate::model::peer::PeerState;
use crate::model::state::{EgressPolicy, HostServices, MulticastLimit, WireGuardLink};
use crate::wireguard::model::deliver;

const CURRENT: PublicKey = PublicKey([2; 32]);
const NEXT: PublicKey = PublicKey([3; 32]);
const OWN: Ipv4Addr = Ipv4Addr::new(100, 127, 81, 1);
const TUNNEL_ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 127, 81, 2);

fn candidate(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, host)
}

/// A host with one peer.
fn intent() -> OverlayIntent {
    let peer = PeerIntent {
        overlay_address: Ipv4Addr::new(10, 81, 0, 2),
        tunnel_address: TUNNEL_ADDRESS,
        keys: Some(PublicKeys {
            current: CURRENT,
            next: None,
        }),
        path: Path::Sealed { to: candidate(2) },
        agreement: 7,
        back: Some(candidate(1)),
        candidates: vec![candidate(2), candidate(3)],
        nat: None,
        state: PeerState::default(),
    };
    OverlayIntent {
        vni: 7,
        supernet: "10.81.0.0/17".parse().unwrap(),
        tunnel_subnet: InnerSubnet::default(),
        own: OwnNode {
            address: Ipv4Addr::new(10, 81, 0, 1),
            mac: Mac([2; 6]),
            tunnel_address: OWN,
            underlay: BTreeSet::from([candidate(1)]),
            behind_nat: false,
        },
        mtu: 1370,
        peers: BTreeMap::from([(NodeId(2), peer)]),
        endpoints: Vec::new(),
        keys: vec![PrivateKey::from_octets([1; 32])],
        encryption: Encryption::WireGuard,
        services: HostServices::default(),
        egress: EgressPolicy::default(),
        multicast: MulticastLimit::default(),
        attachments: Some(BTreeMap::new()),
    }
}

fn peer(intent: &mut OverlayIntent) -> &mut PeerIntent {
    intent.peers.values_mut().next().unwrap()
}

/// A host as this intent wants it, whose peer has completed a handshake.
fn host(intent: &OverlayIntent) -> WireGuardState {
    let link = WireGuardLink {
        mtu: 1420,
        up: true,
        addresses: BTreeSet::from([OWN.into()]),
    };
    let mut inside = WireGuardState {
        link: Some(link),
        device: Some(Looked::default()),
        hears: Some(OWN),
        routes: BTreeSet::from([
            TunnelRoute::Unreachable(intent.tunnel_subnet),
            TunnelRoute::Through(intent.tunnel_subnet),
        ]),
    };
    tell(&mut inside, intent);
    let looked = inside.device.as_mut().unwrap();
    let peer = looked.device.peers.get_mut(&CURRENT).unwrap();
    peer.last_handshake = Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(9));
    inside
}

/// Configures the device; returns the number of messages.
fn tell(inside: &mut WireGuardState, intent: &OverlayIntent) -> usize {
    let mut steps = Vec::new();
    encrypt(intent, inside, &mut steps);
    let looked = inside.device.as_mut().unwrap();
    let mut messages = 0;
    for step in steps {
        let Step::WireGuard(WireGuardStep::UpdateWireGuard(update)) = step else {
            panic!("{step}")
        };
        for message in &update.messages {
            deliver(&mut looked.device, message, |_| {});
        }
        messages += update.messages.len();
        looked.named = update.named;
    }
    messages
}

fn endpoint(inside: &WireGuardState) -> Option<SocketAddr> {
    inside.device.as_ref().unwrap().device.peers[&CURRENT].endpoint
}

fn at(host: u8, port: u16) -> Option<SocketAddr> {
    Some((candidate(host), port).into())
}

#[test]
fn a_host_that_is_up_to_date_gets_no_messages() {
    let intent = intent();
    let mut inside = host(&intent);
    assert_eq!(endpoint(&inside), at(2, WIREGUARD_PORT));
    let mut steps = Vec::new();
    encrypt(&intent, &inside, &mut steps);
    assert_eq!(steps, vec![]);
    // A restarted agent only has to learn the owners of the keys.
    inside.device.as_mut().unwrap().named.clear();
    assert_eq!(tell(&mut inside, &intent), 0);
}

#[test]
fn a_peer_that_roamed_is_left_alone_until_its_candidate_changes_or_it_is_lost() {
    let mut intent = intent();
    let mut inside = host(&intent);
    let roam = |inside: &mut WireGuardState| {
        let peers = &mut inside.device.as_mut().unwrap().device.peers;
        peers.get_mut(&CURRENT).unwrap().endpoint = at(9, 4000);
    };
    roam(&mut inside);
    assert_eq!(tell(&mut inside, &intent), 0);
    assert_eq!(endpoint(&inside), at(9, 4000));
    peer(&mut intent).state.candidate = Some(candidate(3));
    assert_eq!(tell(&mut inside, &intent), 1);
    assert_eq!(endpoint(&inside), at(3, WIREGUARD_PORT));
    roam(&mut inside);
    assert_eq!(tell(&mut inside, &intent), 0);
    inside.device.as_mut().unwrap().lost.insert(CURRENT);
    assert_eq!(tell(&mut inside, &intent), 1);
    assert_eq!(endpoint(&inside), at(3, WIREGUARD_PORT));
    assert_eq!(tell(&mut inside, &intent), 0, "it is there already");
}

#[test]
fn the_allowed_network_moves_to_the_next_key_once_that_is_used() {
    let mut intent = intent();
    let mut inside = host(&intent);
    let holder = |inside: &WireGuardState| {
        let peers = &inside.device.as_ref().unwrap().device.peers;
        let network = IpNetwork::V4(TUNNEL_ADDRESS.into());
        let has = peers
            .iter()
            .filter(|(_, peer)| peer.allowed.contains(&network));
        has.map(|(key, peer)| (*key, peer.keepalive_s))
            .collect::<Vec<_>>()
    };
    peer(&mut intent).keys.as_mut().unwrap().next = Some(NEXT);
    assert_eq!(tell(&mut inside, &intent), 1);
    assert_eq!(holder(&inside), [(CURRENT, 15)]);
    // No keepalives are sent: the peer does not respond with that key yet.
    let peers = &inside.device.as_ref().unwrap().device.peers;
    assert_eq!(peers[&NEXT].keepalive_s, 0);
    peer(&mut intent).state.key = Some(NEXT);
    assert_eq!(tell(&mut inside, &intent), 1);
    assert_eq!(holder(&inside), [(NEXT, 15)]);
    // The directory follows.
    peer(&mut intent).keys = Some(PublicKeys {
        current: NEXT,
        next: None,
    });
    assert_eq!(tell(&mut inside, &intent), 1);
    assert_eq!(holder(&inside), [(NEXT, 15)]);
    let peers = &inside.device.as_ref().unwrap().device.peers;
    assert_eq!(peers.len(), 1, "the old one is gone");
}

#[test]
fn a_node_without_a_key_or_an_address_is_no_peer() {
    for (keys, candidates) in [
        (None, vec![candidate(2)]),
        (Some(CURRENT), vec![candidate(1)]),
    ] {
        let mut intent = intent();
        let keys = keys.map(|current| PublicKeys {
            current,
            next: None,
        });
        let peer = peer(&mut intent);
        (peer.keys, peer.candidates) = (keys, candidates);
        let (device, named) = wanted(&intent).unwrap();
        assert!(device.peers.is_empty() && named.is_empty());
    }
    let mut intent = intent();
    intent.keys.clear();
    assert_eq!(wanted(&intent), None);
}

#[test]
fn a_host_that_joins_another_grid_has_only_the_routes_of_that_grid() {
    let before = intent();
    let inside = host(&before);
    let old = before.tunnel_subnet;
    let network: Ipv4Network = "10.9.9.0/24".parse().unwrap();
    let new = InnerSubnet::try_from(network).unwrap();
    let mut intent = before;
    intent.tunnel_subnet = new;
    intent.own.tunnel_address = Ipv4Addr::new(10, 9, 9, 7);
    peer(&mut intent).tunnel_address = Ipv4Addr::new(10, 9, 9, 2);
    let mut steps = Vec::new();
    egress(&intent, &inside, &mut steps);
    encrypt(&intent, &inside, &mut steps);
    remove_unreachable(&intent, &inside, &mut steps);
    let told = steps
        .iter()
        .position(|step| matches!(step, Step::WireGuard(WireGuardStep::UpdateWireGuard(_))));
    let told = steps.remove(told.expect("its peer has another address"));
    assert!(
        matches!(told, Step::WireGuard(WireGuardStep::UpdateWireGuard(update)) if update.messages.len() == 1)
    );
    let link = Link::WireGuard;
    let wanted = vec![
        Step::WireGuard(WireGuardStep::AddRoute(TunnelRoute::Unreachable(new))),
        Step::WireGuard(WireGuardStep::DeleteRoute(TunnelRoute::Through(old))),
        Step::RemoveAddress(link, OWN.into()),
        Step::AddAddress(link, intent.own.tunnel_address.into()),
        Step::WireGuard(WireGuardStep::AddRoute(TunnelRoute::Through(new))),
        Step::WireGuard(WireGuardStep::ListenForHeartbeats(
            intent.own.tunnel_address,
        )),
        Step::WireGuard(WireGuardStep::DeleteRoute(TunnelRoute::Unreachable(old))),
    ];
    assert_eq!(steps, wanted);
    assert!(steps[0].protects_paths() && !steps[1].protects_paths());
}

#[test]
fn a_host_whose_own_network_is_the_tunnel_subnet_has_no_device_and_keeps_its_routes() {
    let mut intent = intent();
    let inside = host(&intent);
    let own = Ipv4Addr::new(100, 127, 81, 77);
    intent.own.underlay.insert(own);
    assert_eq!(intent.own_in_tunnel_subnet(), Some(own));
    let mut steps = Vec::new();
    let plan = |inside: &WireGuardState, steps: &mut Vec<Step>| {
        egress(&intent, inside, steps);
        encrypt(&intent, inside, steps);
        remove_unreachable(&intent, inside, steps);
    };
    plan(&inside, &mut steps);
    let unreachable = TunnelRoute::Unreachable(intent.tunnel_subnet);
    let wanted = vec![
        Step::DeleteLink(Link::WireGuard),
        Step::WireGuard(WireGuardStep::DeleteRoute(unreachable)),
    ];
    assert_eq!(steps, wanted);
    steps.clear();
    plan(&WireGuardState::default(), &mut steps);
    assert_eq!(steps, vec![], "none is created");
}
