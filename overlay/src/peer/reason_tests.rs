//! The texts about a silent peer.

use kontena_schema::path::Path;

use super::*;
use crate::model::peer::PeerState;
use crate::model::reachability::CheckOutcomes;

const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const AGENT: CheckOutcome = CheckOutcome::Agent { translated: false };

/// A peer in another region, behind NAT or not.
fn peer(hidden: bool, found: &[(Ipv4Addr, CheckOutcome)]) -> PeerIntent {
    PeerIntent {
        overlay_address: Ipv4Addr::new(10, 81, 0, 2),
        tunnel_address: Ipv4Addr::new(100, 127, 81, 2),
        keys: None,
        path: Path::Sealed { to: PUBLIC },
        agreement: 7,
        back: None,
        candidates: vec![PUBLIC, PRIVATE],
        nat: hidden.then_some(PUBLIC),
        state: PeerState {
            reachability: found.iter().copied().collect::<CheckOutcomes>(),
            ..PeerState::default()
        },
    }
}

#[test]
fn only_known_findings_are_reported() {
    let mut peer = peer(false, &[]);
    let plain = "no handshake with 203.0.113.2 or 10.7.0.2 at UDP port 6783";
    assert_eq!(of_silence(&peer, false), plain);
    assert_eq!(of_silence(&peer, true), plain, "the peer is not behind NAT");
    peer.candidates.pop();
    peer.state.reachability = [(PRIVATE, AGENT)].into_iter().collect();
    assert_eq!(
        of_silence(&peer, false),
        "no handshake with 203.0.113.2 at UDP port 6783",
        "the finding is about an address that it no longer has"
    );
    peer.candidates.clear();
    assert!(of_silence(&peer, false).contains("address on the underlay is not known"));
}

#[test]
fn each_outcome_is_reported_with_its_address() {
    for (answer, words) in [
        (AGENT, "UDP is blocked on the path"),
        (CheckOutcome::Other, "no agent answers there"),
        (
            CheckOutcome::Closed,
            "TCP port 6783 is closed: the host is up",
        ),
        (
            CheckOutcome::Silent,
            "the host is down or the path is blocked",
        ),
        (CheckOutcome::NoRoute, "no route"),
    ] {
        let why = of_silence(&peer(false, &[(PRIVATE, answer)]), false);
        let (plain, found) = why.split_once("; ").unwrap();
        assert!(plain.starts_with("no handshake with"), "{why}");
        assert!(found.starts_with("10.7.0.2: "), "{why}");
        assert!(found.contains(words), "{why}");
        assert!(!why.contains("NAT") && !why.contains('\n'), "{why}");
    }
    let both = [
        (PUBLIC, CheckOutcome::Closed),
        (PRIVATE, CheckOutcome::Silent),
    ];
    let why = of_silence(&peer(false, &both), false);
    assert_eq!(why.split("; ").count(), 3, "{why}");
}

#[test]
fn two_nodes_behind_nat_get_a_hint_until_they_have_met() {
    let both = "both nodes seem to be behind NAT";
    let mut peer = peer(true, &[]);
    assert!(!of_silence(&peer, false).contains(both));
    assert!(of_silence(&peer, true).contains(both));
    // Within a region they use their private addresses.
    peer.candidates.reverse();
    assert!(!of_silence(&peer, true).contains(both));
    peer.candidates.reverse();
    // Everything may be forwarded to them.
    peer.state.met = true;
    assert!(!of_silence(&peer, true).contains(both));
}

#[test]
fn an_answer_of_a_nat_is_not_taken_for_its_host_s() {
    let or = "or its NAT forwards nothing";
    for answer in [CheckOutcome::Closed, CheckOutcome::Silent] {
        let at_both = [(PUBLIC, answer), (PRIVATE, answer)];
        let why = of_silence(&peer(true, &at_both), false);
        assert_eq!(why.matches(or).count(), 1, "{why}");
        assert!(!of_silence(&peer(false, &at_both), false).contains(or));
    }
    let seen = [(PUBLIC, CheckOutcome::Agent { translated: true })];
    let why = of_silence(&peer(true, &seen), false);
    assert!(why.contains("sees this node behind NAT"), "{why}");
    assert!(!why.contains(or), "{why}");
}
