//! When a peer may be clear, and where its other end is looked for.

use proptest::prelude::*;

use super::*;
use crate::model::peer::Ends;
use crate::peer::damping::{FLAPS_FORGOTTEN, HELD_MAX};

const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(super) const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(super) const EVERY: Duration = Duration::from_secs(1);

pub(crate) fn wanted() -> PeerConfig {
    PeerConfig {
        tunnel_address: Ipv4Addr::new(100, 127, 81, 2),
        mac: Mac([2, 0, 0, 0, 0, 2]),
        agreement: 7,
        fast: Some(Ends {
            peer: PEER,
            own: OWN,
        }),
        candidates: vec![PEER, OTHER],
    }
}

pub(super) fn tunnel(peer: Ipv4Addr) -> Tunnel {
    Tunnel {
        key: None,
        heard_at: Some(at(peer).into()),
        alive: true,
    }
}

/// A heartbeat of a peer that agrees, and whose version knows no path_probes.
pub(crate) fn heartbeat(number: u32, accepts: bool) -> Heartbeat {
    Heartbeat {
        agreement: 7,
        hears_at: Some(at(OWN)),
        accepts,
        number,
        run: 1,
        heard: None,
        path_probes: ProbesHeard::Unknown,
    }
}

/// A peer whose peer was just heard with this heartbeat.
pub(super) fn heard(heartbeat: Heartbeat) -> (Peer, Instant) {
    let now = Instant::now();
    let mut peer = Peer::new(wanted(), now);
    peer.hear(heartbeat, now);
    peer.look(tunnel(PEER), now);
    (peer, now)
}

pub(super) fn clear(peer: &Peer) -> Clear {
    peer.state().clear
}

#[test]
fn a_peer_is_clear_only_when_all_of_it_is_right() {
    let (peer, _) = heard(heartbeat(1, true));
    assert_eq!(clear(&peer), Clear::Send);
    let (peer, _) = heard(heartbeat(1, false));
    assert_eq!(clear(&peer), Clear::Accept);
    let strangers = [
        Heartbeat {
            agreement: 8,
            ..heartbeat(1, true)
        },
        Heartbeat {
            hears_at: Some(at(OTHER)),
            ..heartbeat(1, true)
        },
        Heartbeat {
            hears_at: Some(SocketAddrV4::new(OWN, 1)),
            ..heartbeat(1, true)
        },
        Heartbeat {
            hears_at: None,
            ..heartbeat(1, true)
        },
    ];
    for strange in strangers {
        assert_eq!(clear(&heard(strange).0), Clear::No, "{strange:?}");
    }
}

#[test]
fn a_peer_that_was_clear_is_encrypted_when_any_of_it_ends() {
    let fresh = || heard(heartbeat(1, true));
    let (mut peer, now) = fresh();
    peer.look(tunnel(OTHER), now);
    assert_eq!(clear(&peer), Clear::No, "the peer is somewhere else");
    let (mut peer, now) = fresh();
    peer.look(Tunnel::default(), now);
    assert_eq!(clear(&peer), Clear::No, "there is no tunnel");
    let (mut peer, now) = fresh();
    peer.look(tunnel(PEER), now + SILENCE - EVERY);
    assert_eq!(clear(&peer), Clear::Send);
    peer.look(tunnel(PEER), now + SILENCE);
    assert_eq!(clear(&peer), Clear::No, "heartbeats stopped");
    let (mut peer, now) = fresh();
    let mut encrypted = wanted();
    encrypted.fast = None;
    peer.want(encrypted, now);
    peer.look(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::No, "the directory says so");
    let (mut peer, now) = fresh();
    peer.hear(heartbeat(2, false), now);
    peer.look(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Accept, "the peer takes no more");
    let (mut peer, now) = fresh();
    let mut changed = wanted();
    changed.agreement = 8;
    peer.want(changed, now);
    peer.look(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::No, "the peer knows something else");
}

#[test]
fn a_peer_that_waits_for_others_stays_encrypted_and_no_other_does() {
    let now = Instant::now();
    let mut peer = Peer::new(wanted(), now);
    peer.set_waits(true);
    peer.hear(heartbeat(1, false), now);
    peer.look(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::No);
    peer.set_waits(false);
    peer.look(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Accept);
    peer.set_waits(true);
    peer.hear(heartbeat(2, true), now);
    peer.look(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Send, "it has begun");
    peer.look(Tunnel::default(), now);
    assert_eq!(clear(&peer), Clear::No);
}

#[test]
fn what_a_former_run_left_stands_until_the_peer_says_otherwise() {
    let now = Instant::now();
    let fresh = |left| {
        let mut peer = Peer::new(wanted(), now);
        peer.adopt(left, now);
        peer.look(Tunnel::default(), now);
        peer
    };
    for left in [Clear::Accept, Clear::Send] {
        let mut peer = fresh(left);
        assert_eq!(clear(&peer), left);
        peer.look(tunnel(PEER), now + SILENCE - EVERY);
        assert_eq!(clear(&peer), left);
        peer.look(tunnel(PEER), now + SILENCE);
        assert_eq!(clear(&peer), Clear::No, "nobody ever spoke");
        let mut peer = fresh(left);
        peer.hear(heartbeat(1, true), now);
        peer.look(tunnel(PEER), now);
        assert_eq!(clear(&peer), Clear::Send);
        let mut peer = fresh(left);
        let other = Heartbeat {
            agreement: 8,
            ..heartbeat(1, true)
        };
        peer.hear(other, now);
        peer.look(tunnel(PEER), now);
        assert_eq!(clear(&peer), Clear::No);
        let mut peer = fresh(left);
        peer.look(tunnel(OTHER), now);
        assert_eq!(clear(&peer), Clear::No, "it is somewhere else");
    }
    let mut peer = fresh(Clear::Send);
    assert!(
        peer.heartbeat(1, EVERY, now).unwrap().accepts,
        "the filter is open"
    );
    // What was proven was of other addresses, or of other settings.
    let ends = Ends {
        peer: OTHER,
        own: OWN,
    };
    let moved = PeerConfig {
        fast: Some(ends),
        ..wanted()
    };
    let changed = PeerConfig {
        agreement: 8,
        ..wanted()
    };
    for other in [moved, changed] {
        let mut peer = fresh(Clear::Send);
        peer.want(other, now);
        peer.look(Tunnel::default(), now);
        assert_eq!(clear(&peer), Clear::No);
    }
}

#[test]
fn it_accepts_in_words_when_the_kernel_does() {
    let (mut peer, now) = heard(heartbeat(1, false));
    assert!(!peer.heartbeat(1, EVERY, now).unwrap().accepts);
    peer.set_accepted(true);
    let advertised = peer.heartbeat(1, EVERY, now).unwrap();
    assert!(advertised.accepts);
    peer.sent(&advertised, now);
    // Sooner in words than in the kernel when it ends.
    peer.look(tunnel(OTHER), now);
    assert!(!peer.heartbeat(1, EVERY, now).unwrap().accepts);
}

#[test]
fn probes_go_out_in_time_and_when_they_say_something_new() {
    let (mut peer, now) = heard(heartbeat(1, false));
    let first = peer.heartbeat(9, EVERY, now).unwrap();
    assert_eq!(
        (first.number, first.run, first.hears_at),
        (1, 9, Some(at(PEER)))
    );
    // What could not be sent is tried again.
    assert_eq!(peer.heartbeat(9, EVERY, now), Some(first));
    peer.sent(&first, now);
    assert_eq!(peer.heartbeat(9, EVERY, now + EVERY / 2), None);
    let second = peer.heartbeat(9, EVERY, now + EVERY).unwrap();
    assert_eq!(second.number, 2);
    peer.sent(&second, now + EVERY);
    let mut changed = wanted();
    changed.agreement = 8;
    peer.want(changed, now + EVERY);
    assert_eq!(peer.heartbeat(9, EVERY, now + EVERY).unwrap().agreement, 8);
}

#[test]
fn the_round_trip_is_without_the_time_that_the_peer_waited() {
    let (mut peer, now) = heard(heartbeat(1, false));
    let advertised = peer.heartbeat(1, EVERY, now).unwrap();
    peer.sent(&advertised, now);
    let ms = Duration::from_millis;
    let answer = Heartbeat {
        heard: Some((advertised.number, ms(700))),
        ..heartbeat(2, false)
    };
    peer.hear(answer, now + ms(702));
    assert_eq!(peer.round_trip(), Some(ms(2)));
    // About one that was sent too long ago, or never.
    let answer = Heartbeat {
        heard: Some((99, ms(1))),
        ..heartbeat(3, false)
    };
    peer.hear(answer, now + ms(800));
    assert_eq!(peer.round_trip(), Some(ms(2)));
}

#[test]
fn losses_are_counted_over_the_last_probes() {
    let (mut peer, now) = heard(heartbeat(1, false));
    assert_eq!(peer.loss(), Some(0.0));
    peer.hear(heartbeat(4, false), now);
    assert_eq!(peer.loss(), Some(0.5));
    // One was overtaken, and says nothing new.
    peer.hear(heartbeat(3, true), now);
    assert_eq!(peer.loss(), Some(0.25));
    peer.look(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Accept);
    for number in 5..=100 {
        peer.hear(heartbeat(number, false), now);
    }
    assert_eq!(peer.loss(), Some(0.0));
    // A peer that was restarted counts anew.
    let again = Heartbeat {
        run: 2,
        ..heartbeat(1, true)
    };
    peer.hear(again, now);
    assert_eq!(peer.loss(), Some(0.0));
    let (late, _) = heard(heartbeat(90, false));
    assert_eq!(late.loss(), Some(0.0), "nobody listened before");
    peer.look(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Send);
}

#[test]
fn a_peer_that_is_not_found_is_tried_at_its_other_address_and_back() {
    let now = Instant::now();
    let mut peer = Peer::new(wanted(), now);
    let mut candidates = Vec::new();
    for second in 0..=45 {
        peer.look(Tunnel::default(), now + EVERY * second);
        candidates.push(peer.state().candidate);
        candidates.dedup();
    }
    assert_eq!(candidates, [PEER, OTHER, PEER, OTHER].map(Some));
    // Where it is found it stays.
    let later = now + EVERY * 45;
    for second in 0..60 {
        peer.look(tunnel(OTHER), later + EVERY * second);
    }
    assert_eq!(peer.state().candidate, Some(OTHER));
    // Another address is another try.
    let mut moved = wanted();
    moved.candidates = vec![OWN];
    peer.want(moved, later);
    assert_eq!(peer.state().candidate, Some(OWN));
    peer.look(Tunnel::default(), later + CANDIDATE_TIMEOUT * 9);
    assert_eq!(peer.state().candidate, Some(OWN), "there is no other");
    let mut nowhere = wanted();
    nowhere.candidates = vec![];
    peer.want(nowhere, later);
    peer.look(Tunnel::default(), later + CANDIDATE_TIMEOUT * 99);
    assert_eq!(peer.state().candidate, None);
}

/// Something that happens to a peer.
#[derive(Clone, Debug)]
enum Event {
    Hear(Heartbeat),
    Look(Option<Ipv4Addr>),
    Pass(u8),
    Want(bool, u64),
    Accepted(bool),
}

fn any_event() -> impl Strategy<Value = Event> {
    let candidate = prop_oneof![Just(PEER), Just(OTHER), Just(OWN)];
    let heartbeat = (
        7_u64..9,
        candidate.clone(),
        any::<bool>(),
        1_u32..5,
        1_u32..3,
    );
    let heartbeat = heartbeat.prop_map(|(agreement, hears_at, accepts, number, run)| Heartbeat {
        agreement,
        hears_at: Some(at(hears_at)),
        accepts,
        number,
        run,
        heard: None,
        path_probes: ProbesHeard::Unknown,
    });
    prop_oneof![
        heartbeat.prop_map(Event::Hear),
        proptest::option::of(candidate).prop_map(Event::Look),
        (1_u8..40).prop_map(Event::Pass),
        (any::<bool>(), 7_u64..9).prop_map(|(fast, agreement)| Event::Want(fast, agreement)),
        any::<bool>().prop_map(Event::Accepted),
    ]
}

proptest! {
    /// Whatever happened before, a peer is clear only towards a peer that was heard
    /// lately, at its address, and agreed when it was.
    #[test]
    fn no_history_makes_a_peer_clear_that_should_not_be(events in prop::collection::vec(any_event(), 1..40)) {
        let mut now = Instant::now();
        let mut peer = Peer::new(wanted(), now);
        let mut candidate = None;
        for event in events {
            match event {
                Event::Hear(heartbeat) => {
                    peer.hear(heartbeat, now);
                }
                Event::Look(at) => candidate = at,
                Event::Pass(seconds) => now += EVERY * seconds.into(),
                Event::Want(fast, agreement) => {
                    let fast = wanted().fast.filter(|_| fast);
                    peer.want(PeerConfig { fast, agreement, ..wanted() }, now);
                }
                Event::Accepted(accepted) => peer.set_accepted(accepted),
            }
            peer.look(candidate.map(tunnel).unwrap_or_default(), now);
            let advertised = peer.heartbeat(1, EVERY, now);
            if clear(&peer) > Clear::No {
                let heard = peer.heard.as_ref().unwrap();
                prop_assert!(peer.wanted.fast.is_some() && candidate == Some(PEER));
                prop_assert!(now - heard.at < SILENCE);
                prop_assert_eq!(heard.heartbeat.agreement, peer.wanted.agreement);
                prop_assert_eq!(heard.heartbeat.hears_at, Some(at(OWN)));
                prop_assert!(clear(&peer) < Clear::Send || heard.heartbeat.accepts);
            } else if let Some(advertised) = advertised {
                prop_assert!(!advertised.accepts);
            }
        }
    }
}

#[test]
fn a_peer_that_flaps_is_held_back_for_longer_each_time() {
    let (mut peer, begun) = heard(heartbeat(1, true));
    let mut rises = Vec::new();
    let mut number = 1;
    // For ten minutes it takes clear packets and takes none, by turns.
    for half_second in 1..1200 {
        let now = begun + Duration::from_millis(500) * half_second;
        number += 1;
        let before = clear(&peer);
        peer.hear(heartbeat(number, half_second % 2 == 0), now);
        peer.look(tunnel(PEER), now);
        if clear(&peer) > before {
            rises.push(now);
        }
        assert!(
            half_second % 2 == 0 || clear(&peer) < Clear::Send,
            "down at once"
        );
    }
    assert!((8..20).contains(&rises.len()), "{rises:?}");
    let pauses: Vec<_> = rises.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(
        pauses.is_sorted() && pauses.last() >= Some(&HELD_MAX),
        "{pauses:?}"
    );

    // One that stops is clear after the longest pause, and forgiven later.
    let quiet = begun + Duration::from_secs(600) + HELD_MAX;
    peer.hear(heartbeat(number + 1, true), quiet);
    peer.look(tunnel(PEER), quiet);
    assert_eq!(clear(&peer), Clear::Send);
    let later = quiet + FLAPS_FORGOTTEN;
    for (after, accepts) in [(2, true), (3, false), (4, true)] {
        peer.hear(heartbeat(number + after, accepts), later);
        peer.look(tunnel(PEER), later);
    }
    assert_eq!(clear(&peer), Clear::Send);
}

#[test]
fn what_the_directory_decides_is_no_flapping() {
    let (mut peer, now) = heard(heartbeat(1, true));
    let mut encrypted = wanted();
    (encrypted.fast, encrypted.agreement) = (None, 8);
    for turn in 0..200 {
        // This end hears of it after its peer, which is a fall, and then itself.
        let (number, other) = (
            2 + 2 * turn,
            Heartbeat {
                agreement: 8,
                ..heartbeat(2 + 2 * turn, false)
            },
        );
        peer.hear(other, now);
        peer.look(tunnel(PEER), now);
        assert_eq!(clear(&peer), Clear::No);
        peer.want(encrypted.clone(), now);
        peer.want(wanted(), now);
        peer.hear(heartbeat(number + 1, true), now);
        peer.look(tunnel(PEER), now);
        assert_eq!(clear(&peer), Clear::Send, "turn {turn}");
    }
}

/// A peer of whom nothing is heard.
fn silence() -> Tunnel {
    Tunnel::default()
}

#[test]
fn only_a_silent_peer_is_knocked_for_and_not_again_at_once() {
    let now = Instant::now();
    let mut peer = Peer::new(wanted(), now);
    peer.look(silence(), now);
    let due = peer.check_due(1).unwrap();
    assert!(
        due > now + CANDIDATE_TIMEOUT,
        "each place was tried by then"
    );
    assert_eq!(peer.check(due, 1, 0.0), [PEER, OTHER]);
    assert!(peer.check_due(1).unwrap() > due + Duration::from_secs(20));
    peer.look(tunnel(PEER), due);
    assert_eq!(peer.check_due(1), None);
    // It is silent anew when it is lost again.
    let lost = due + Duration::from_secs(1000);
    peer.look(tunnel(PEER), lost);
    peer.look(silence(), lost);
    assert_eq!(peer.check_due(1), Some(lost + (due - now)));

    let mut nowhere = wanted();
    nowhere.candidates.clear();
    assert_eq!(Peer::new(nowhere, now).check_due(1), None);
}

#[test]
fn what_was_found_is_forgotten_when_the_peer_lives_or_is_elsewhere() {
    use crate::model::reachability::CheckOutcome;
    let now = Instant::now();
    let found: CheckOutcomes = [(PEER, CheckOutcome::Closed)].into_iter().collect();
    let mut peer = Peer::new(wanted(), now);
    peer.checked(found);
    assert_eq!(peer.state().reachability, found);
    peer.want(wanted(), now);
    assert_eq!(
        peer.state().reachability,
        found,
        "the directory says the same"
    );
    peer.look(tunnel(PEER), now);
    assert_eq!(peer.state().reachability, CheckOutcomes::default());
    assert!(peer.state().met);
    // A check that was under way comes too late.
    peer.checked(found);
    assert_eq!(peer.state().reachability, CheckOutcomes::default());

    peer.look(silence(), now);
    peer.checked(found);
    assert!(peer.state().met && peer.state().reachability == found);
    let moved = PeerConfig {
        candidates: vec![OTHER],
        ..wanted()
    };
    peer.want(moved, now);
    assert!(!peer.state().met && peer.state().reachability == CheckOutcomes::default());
}
