//! When a silent peer's reachability is checked, and how long the outcomes are kept.

use super::tests::{OTHER, PEER, tunnel, wanted};
use super::*;

/// The tunnel of a silent peer.
fn silence() -> Tunnel {
    Tunnel::default()
}

#[test]
fn only_a_silent_peer_is_checked_and_not_again_at_once() {
    let now = Instant::now();
    let mut peer = Peer::new(wanted(), now);
    peer.update(silence(), now);
    let due = peer.check_due(1).unwrap();
    assert!(
        due > now + CANDIDATE_TIMEOUT,
        "each address was tried by then"
    );
    assert_eq!(peer.check(due, 1, 0.0), [PEER, OTHER]);
    assert!(peer.check_due(1).unwrap() > due + Duration::from_secs(20));
    peer.update(tunnel(PEER), due);
    assert_eq!(peer.check_due(1), None);
    // When it is lost again, the schedule starts over.
    let lost = due + Duration::from_secs(1000);
    peer.update(tunnel(PEER), lost);
    peer.update(silence(), lost);
    assert_eq!(peer.check_due(1), Some(lost + (due - now)));

    let mut nowhere = wanted();
    nowhere.candidates.clear();
    assert_eq!(Peer::new(nowhere, now).check_due(1), None);
}

#[test]
fn check_outcomes_are_discarded_when_the_peer_is_alive_or_moves() {
    use crate::model::reachability::CheckOutcome;
    let now = Instant::now();
    let found: CheckOutcomes = [(PEER, CheckOutcome::Closed)].into_iter().collect();
    let mut peer = Peer::new(wanted(), now);
    peer.checked(found);
    assert_eq!(peer.state().reachability, found);
    peer.configure(wanted(), now);
    assert_eq!(
        peer.state().reachability,
        found,
        "the directory says the same"
    );
    peer.update(tunnel(PEER), now);
    assert_eq!(peer.state().reachability, CheckOutcomes::default());
    assert!(peer.state().met);
    // The result of a check that was under way is too late.
    peer.checked(found);
    assert_eq!(peer.state().reachability, CheckOutcomes::default());

    peer.update(silence(), now);
    peer.checked(found);
    assert!(peer.state().met && peer.state().reachability == found);
    let moved = PeerConfig {
        candidates: vec![OTHER],
        ..wanted()
    };
    peer.configure(moved, now);
    assert!(!peer.state().met && peer.state().reachability == CheckOutcomes::default());
}
