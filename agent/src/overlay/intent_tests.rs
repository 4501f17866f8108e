//! When an intent asks for another pass.

use super::*;

const NODE: NodeId = NodeId(2);
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// A grid of two, with what is known of the other one.
fn intent(state: PairState) -> OverlayIntent {
    let peer = PeerIntent {
        overlay_address: Ipv4Addr::new(10, 81, 0, 2),
        inner: Ipv4Addr::new(100, 127, 81, 2),
        keys: Some(PublicKeys {
            current: PublicKey([1; 32]),
            next: Some(PublicKey([2; 32])),
        }),
        path: Path::Unknown,
        agreement: 7,
        back: None,
        places: vec![FIRST, OTHER],
        translator: None,
        state,
    };
    OverlayIntent {
        vni: 7,
        supernet: "10.81.0.0/17".parse().unwrap(),
        inner_subnet: InnerSubnet::default(),
        own: OwnNode {
            address: Ipv4Addr::new(10, 81, 0, 1),
            mac: Mac::of_node(Ipv4Addr::new(10, 81, 0, 1)),
            inner: Ipv4Addr::new(100, 127, 81, 1),
            underlay: BTreeSet::new(),
            behind_nat: false,
        },
        mtu: 1370,
        peers: BTreeMap::from([(NODE, peer)]),
        endpoints: Vec::new(),
        keys: Vec::new(),
        sealing: Sealing::Sleeve,
        fence: Fence::default(),
        attachments: BTreeMap::new(),
    }
}

fn clear(clear: Clear) -> PairState {
    PairState {
        clear,
        ..PairState::default()
    }
}

fn of(state: PairState) -> PairStates {
    PairStates::from([(NODE, state)])
}

#[test]
fn a_peer_that_comes_and_goes_changes_no_path() {
    let intent = intent(clear(Clear::Accept));
    let heard = PairState {
        alive: true,
        heard_at: Some(OTHER),
        place: Some(FIRST),
        ..clear(Clear::Accept)
    };
    assert!(intent.suits(&of(heard)) && !intent.is_urgent(&of(heard)));
}

#[test]
fn what_is_found_out_of_a_silent_peer_changes_what_is_told_and_no_path() {
    use crate::overlay::knock::Answer;
    let mut intent = intent(PairState::default());
    let told = |intent: &OverlayIntent| intent.peer_reports(&BTreeSet::new()).remove(0);
    let before = told(&intent);
    let found = PairState {
        answers: [(FIRST, Answer::Closed)].into_iter().collect(),
        ..PairState::default()
    };
    assert!(intent.suits(&of(found)) && !intent.is_urgent(&of(found)));
    intent.set_pairs(&of(found));
    let after = told(&intent);
    assert_eq!(after.path, before.path);
    let words = after.unreachable.unwrap();
    assert!(words.starts_with(&before.unreachable.unwrap()), "{words}");
    assert!(words.contains("TCP port 6783 is closed"), "{words}");
    // What is decided comes before what is guessed.
    intent.peers.get_mut(&NODE).unwrap().keys = None;
    let words = told(&intent).unreachable.unwrap();
    assert_eq!(words, "its key is not known");
    intent.own.underlay = BTreeSet::from([FIRST]);
    let words = told(&intent).unreachable.unwrap();
    assert!(words.contains("this node's own"), "{words}");
}

#[test]
fn the_directory_says_who_is_behind_a_translator() {
    use kontena_schema::ids::KeyTurn;
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
    let grid = crate::directory::tests::grid();
    for (said, hidden) in [(Some(true), true), (Some(false), false), (None, false)] {
        let nodes = [node(1, said), node(2, said)];
        let state = OwnState::default();
        let intent = OverlayIntent::from_directory(&grid, &nodes[0], &nodes, [], state);
        assert_eq!(intent.own.behind_nat, hidden);
        let peer = &intent.peers[&NODE];
        assert_eq!(peer.translator.is_some(), hidden);
        assert_eq!(peer.places.first().copied(), nodes[1].site.public_ip);
    }
}

#[test]
fn what_the_kernel_is_to_do_otherwise_is_no_news_to_wait_with() {
    let intent = intent(clear(Clear::Accept));
    let ends = Ends {
        peer: FIRST,
        own: OTHER,
    };
    let others = [
        clear(Clear::Send),
        clear(Clear::No),
        PairState {
            place: Some(OTHER),
            ..clear(Clear::Accept)
        },
        PairState {
            ends: Some(ends),
            ..clear(Clear::Accept)
        },
        PairState {
            key: Some(PublicKey([2; 32])),
            ..clear(Clear::Accept)
        },
    ];
    for other in others {
        assert!(!intent.suits(&of(other)), "{other:?}");
    }
    let stranger = PairStates::from([(NodeId(3), PairState::default())]);
    assert!(!intent.suits(&stranger));
}

#[test]
fn only_a_pair_that_turns_clear_may_wait() {
    let intent = intent(clear(Clear::Accept));
    assert!(!intent.is_urgent(&of(clear(Clear::Send))));
    assert!(intent.is_urgent(&of(clear(Clear::No))));
    assert!(intent.is_urgent(&PairStates::new()), "it is gone");
    let elsewhere = PairState {
        place: Some(OTHER),
        ..clear(Clear::Send)
    };
    assert!(intent.is_urgent(&of(elsewhere)));
    let changed = PairState {
        key: Some(PublicKey([2; 32])),
        ..clear(Clear::Send)
    };
    assert!(intent.is_urgent(&of(changed)), "it uses its next key");
}

#[test]
fn an_intent_asks_the_same_whatever_is_known_of_the_pairs() {
    let one = intent(clear(Clear::Send));
    let mut other = intent(PairState::default());
    other.sealing = Sealing::WireGuard;
    assert!(one.asks_the_same(&other));
    other.vni = 8;
    assert!(!one.asks_the_same(&other));
    other.vni = 7;
    other.peers.get_mut(&NODE).unwrap().places = vec![OTHER];
    assert!(!one.asks_the_same(&other));
}

#[test]
fn nobody_is_reached_at_an_inner_address_and_the_reason_names_it() {
    let inside = Ipv4Addr::new(100, 127, 81, 200);
    let why = |intent: &OverlayIntent| {
        let peer = &intent.peers[&NODE];
        assert_eq!(intent.wanted(peer), None);
        let [report] = &intent.peer_reports(&BTreeSet::new())[..] else {
            panic!("one peer has one report")
        };
        report.unreachable.clone().unwrap()
    };
    let mut of_peer = intent(clear(Clear::Accept));
    of_peer.peers.get_mut(&NODE).unwrap().places = vec![FIRST, inside];
    assert_eq!(
        why(&of_peer),
        "its address 100.127.81.200 is inside the inner subnet 100.127.81.0/24"
    );
    let mut of_own = intent(clear(Clear::Accept));
    of_own.own.underlay.insert(inside);
    assert_eq!(
        why(&of_own),
        "this node's own address 100.127.81.200 is inside the inner subnet 100.127.81.0/24"
    );
    // Elsewhere it is an address like any other.
    let network: Ipv4Network = "10.9.9.0/24".parse().unwrap();
    for mut intent in [of_peer, of_own] {
        intent.inner_subnet = network.try_into().unwrap();
        assert_eq!(intent.reach(&intent.peers[&NODE]), Reach::Sealed);
    }
}
