//! What is reported of a peer that is not reached.

use ipnetwork::Ipv4Network;

use super::*;
use crate::model::intent::tests::{FIRST, NODE, clear, intent, of};
use crate::model::peer::{Clear, PeerState};

#[test]
fn what_is_found_out_of_a_silent_peer_changes_what_is_told_and_no_path() {
    use crate::model::reachability::CheckOutcome;
    let mut intent = intent(PeerState::default());
    let told = |intent: &OverlayIntent| peer_reports(intent, &BTreeSet::new()).remove(0);
    let before = told(&intent);
    let found = PeerState {
        reachability: [(FIRST, CheckOutcome::Closed)].into_iter().collect(),
        ..PeerState::default()
    };
    assert!(intent.suits(&of(found)) && !intent.is_urgent(&of(found)));
    intent.set_peers(&of(found));
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
fn nobody_is_reached_at_a_tunnel_address_and_the_reason_names_it() {
    let inside = Ipv4Addr::new(100, 127, 81, 200);
    let why = |intent: &OverlayIntent| {
        let peer = &intent.peers[&NODE];
        assert_eq!(intent.peer_config(peer), None);
        let [report] = &peer_reports(intent, &BTreeSet::new())[..] else {
            panic!("one peer has one report")
        };
        report.unreachable.clone().unwrap()
    };
    let mut of_peer = intent(clear(Clear::Accept));
    of_peer.peers.get_mut(&NODE).unwrap().candidates = vec![FIRST, inside];
    assert_eq!(
        why(&of_peer),
        "its address 100.127.81.200 is inside the tunnel subnet 100.127.81.0/24"
    );
    let mut of_own = intent(clear(Clear::Accept));
    of_own.own.underlay.insert(inside);
    assert_eq!(
        why(&of_own),
        "this node's own address 100.127.81.200 is inside the tunnel subnet 100.127.81.0/24"
    );
    // Elsewhere it is an address like any other.
    let network: Ipv4Network = "10.9.9.0/24".parse().unwrap();
    for mut intent in [of_peer, of_own] {
        intent.tunnel_subnet = network.try_into().unwrap();
        assert_eq!(intent.reach(&intent.peers[&NODE]), Reach::Encrypted);
    }
}
