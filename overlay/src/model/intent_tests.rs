//! Which changes require another pass.

use kontena_schema::key::PublicKey;

use super::*;

pub(crate) const NODE: NodeId = NodeId(2);
pub(crate) const FIRST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// A grid of two, with this state of the other node.
pub(crate) fn intent(state: PeerState) -> OverlayIntent {
    let peer = PeerIntent {
        overlay_address: Ipv4Addr::new(10, 81, 0, 2),
        tunnel_address: Ipv4Addr::new(100, 127, 81, 2),
        keys: Some(PublicKeys {
            current: PublicKey([1; 32]),
            next: Some(PublicKey([2; 32])),
        }),
        path: Path::Unknown,
        agreement: 7,
        back: None,
        candidates: vec![FIRST, OTHER],
        nat: None,
        state,
    };
    OverlayIntent {
        vni: 7,
        supernet: "10.81.0.0/17".parse().unwrap(),
        tunnel_subnet: InnerSubnet::default(),
        own: OwnNode {
            address: Ipv4Addr::new(10, 81, 0, 1),
            mac: Mac::of_node(Ipv4Addr::new(10, 81, 0, 1)),
            tunnel_address: Ipv4Addr::new(100, 127, 81, 1),
            underlay: BTreeSet::new(),
            behind_nat: false,
        },
        mtu: 1370,
        peers: BTreeMap::from([(NODE, peer)]),
        endpoints: Vec::new(),
        keys: Vec::new(),
        encryption: Encryption::Sleeve,
        services: HostServices::default(),
        egress: EgressPolicy::default(),
        multicast: MulticastLimit::default(),
        attachments: Some(BTreeMap::new()),
    }
}

pub(crate) fn clear(clear: Clear) -> PeerState {
    PeerState {
        clear,
        ..PeerState::default()
    }
}

pub(crate) fn of(state: PeerState) -> PeerStates {
    PeerStates::from([(NODE, state)])
}

#[test]
fn a_peer_that_comes_and_goes_requires_no_pass() {
    let intent = intent(clear(Clear::Accept));
    let heard = PeerState {
        alive: true,
        heard_at: Some(OTHER),
        candidate: Some(FIRST),
        ..clear(Clear::Accept)
    };
    assert!(intent.suits(&of(heard)) && !intent.is_urgent(&of(heard)));
}

#[test]
fn the_directory_says_which_nodes_are_behind_nat() {
    use kontena_schema::ids::{GridId, KeyTurn};
    use kontena_schema::path::Site;
    let node = |id: u8, behind_nat| NodeEntry {
        id: NodeId(id.into()),
        name: String::new(),
        number: id.try_into().unwrap(),
        address: [10, 81, 0, id].into(),
        site: Site {
            region: id.to_string(),
            public_ip: Some([203, 0, 113, id].into()),
            private_ip: None,
        },
        behind_nat,
        keys: None,
        next_key_known: false,
        key_turn: KeyTurn(0),
    };
    let grid = GridSettings {
        id: GridId(1),
        name: "demo".to_owned(),
        subnet: "10.81.0.0/19".parse().unwrap(),
        supernet: "10.81.0.0/17".parse().unwrap(),
        inner_subnet: InnerSubnet::default(),
        trusted_subnets: vec!["198.51.100.0/24".parse().unwrap()],
        vni: 4096,
    };
    for (reported, hidden) in [(Some(true), true), (Some(false), false), (None, false)] {
        let nodes = [node(1, reported), node(2, reported)];
        let state = OwnState::default();
        let intent = OverlayIntent::from_directory(&grid, &nodes[0], &nodes, [], state);
        assert_eq!(intent.own.behind_nat, hidden);
        let peer = &intent.peers[&NODE];
        assert_eq!(peer.nat.is_some(), hidden);
        assert_eq!(peer.candidates.first().copied(), nodes[1].site.public_ip);
    }
}

#[test]
fn every_change_that_concerns_the_kernel_requires_a_pass() {
    let intent = intent(clear(Clear::Accept));
    let ends = Ends {
        peer: FIRST,
        own: OTHER,
    };
    let others = [
        clear(Clear::Send),
        clear(Clear::No),
        PeerState {
            candidate: Some(OTHER),
            ..clear(Clear::Accept)
        },
        PeerState {
            ends: Some(ends),
            ..clear(Clear::Accept)
        },
        PeerState {
            key: Some(PublicKey([2; 32])),
            ..clear(Clear::Accept)
        },
    ];
    for other in others {
        assert!(!intent.suits(&of(other)), "{other:?}");
    }
    let unknown = PeerStates::from([(NodeId(3), PeerState::default())]);
    assert!(!intent.suits(&unknown));
}

#[test]
fn only_a_peer_that_turns_clear_may_wait() {
    let intent = intent(clear(Clear::Accept));
    assert!(!intent.is_urgent(&of(clear(Clear::Send))));
    assert!(intent.is_urgent(&of(clear(Clear::No))));
    assert!(intent.is_urgent(&PeerStates::new()), "it is gone");
    let elsewhere = PeerState {
        candidate: Some(OTHER),
        ..clear(Clear::Send)
    };
    assert!(intent.is_urgent(&of(elsewhere)));
    let changed = PeerState {
        key: Some(PublicKey([2; 32])),
        ..clear(Clear::Send)
    };
    assert!(intent.is_urgent(&of(changed)), "it uses its next key");
}

#[test]
fn an_intent_asks_the_same_whatever_the_state_of_the_peers() {
    let one = intent(clear(Clear::Send));
    let mut other = intent(PeerState::default());
    other.encryption = Encryption::WireGuard;
    assert!(one.asks_the_same(&other));
    other.vni = 8;
    assert!(!one.asks_the_same(&other));
    other.vni = 7;
    other.peers.get_mut(&NODE).unwrap().candidates = vec![OTHER];
    assert!(!one.asks_the_same(&other));
}
