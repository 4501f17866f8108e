//! When a peer turns clear or encrypted, and at which candidate address it is tried.

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

/// A heartbeat of a peer that agrees, of a version without path probes.
pub(crate) fn heartbeat(number: u32, accepts: bool) -> Heartbeat {
    Heartbeat {
        agreement: 7,
        sees_peer_at: Some(at(OWN)),
        accepts,
        number,
        run: 1,
        last_received: None,
        path_probes: ProbesReceived::Unknown,
    }
}

/// A peer from which this heartbeat was just received.
pub(super) fn received(heartbeat: Heartbeat) -> (Peer, Instant) {
    let now = Instant::now();
    let mut peer = Peer::new(wanted(), now);
    peer.receive_heartbeat(heartbeat, now);
    peer.update(tunnel(PEER), now);
    (peer, now)
}

pub(super) fn clear(peer: &Peer) -> Clear {
    peer.state().clear
}

#[test]
fn a_peer_turns_clear_only_when_every_condition_holds() {
    let (peer, _) = received(heartbeat(1, true));
    assert_eq!(clear(&peer), Clear::Send);
    let (peer, _) = received(heartbeat(1, false));
    assert_eq!(clear(&peer), Clear::Accept);
    let disagreeing = [
        Heartbeat {
            agreement: 8,
            ..heartbeat(1, true)
        },
        Heartbeat {
            sees_peer_at: Some(at(OTHER)),
            ..heartbeat(1, true)
        },
        Heartbeat {
            sees_peer_at: Some(SocketAddrV4::new(OWN, 1)),
            ..heartbeat(1, true)
        },
        Heartbeat {
            sees_peer_at: None,
            ..heartbeat(1, true)
        },
    ];
    for other in disagreeing {
        assert_eq!(clear(&received(other).0), Clear::No, "{other:?}");
    }
}

#[test]
fn a_clear_peer_turns_encrypted_when_any_condition_ends() {
    let fresh = || received(heartbeat(1, true));
    let (mut peer, now) = fresh();
    peer.update(tunnel(OTHER), now);
    assert_eq!(clear(&peer), Clear::No, "the peer is somewhere else");
    let (mut peer, now) = fresh();
    peer.update(Tunnel::default(), now);
    assert_eq!(clear(&peer), Clear::No, "there is no tunnel");
    let (mut peer, now) = fresh();
    peer.update(tunnel(PEER), now + SILENCE - EVERY);
    assert_eq!(clear(&peer), Clear::Send);
    peer.update(tunnel(PEER), now + SILENCE);
    assert_eq!(clear(&peer), Clear::No, "heartbeats stopped");
    let (mut peer, now) = fresh();
    let mut encrypted = wanted();
    encrypted.fast = None;
    peer.configure(encrypted, now);
    peer.update(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::No, "the directory says so");
    let (mut peer, now) = fresh();
    peer.receive_heartbeat(heartbeat(2, false), now);
    peer.update(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Accept, "the peer accepts no more");
    let (mut peer, now) = fresh();
    let mut changed = wanted();
    changed.agreement = 8;
    peer.configure(changed, now);
    peer.update(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::No, "the peer has other settings");
}

#[test]
fn the_hold_down_keeps_only_an_encrypted_peer_encrypted() {
    let now = Instant::now();
    let mut peer = Peer::new(wanted(), now);
    peer.set_held_down(true);
    peer.receive_heartbeat(heartbeat(1, false), now);
    peer.update(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::No);
    peer.set_held_down(false);
    peer.update(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Accept);
    peer.set_held_down(true);
    peer.receive_heartbeat(heartbeat(2, true), now);
    peer.update(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Send, "it turned clear before");
    peer.update(Tunnel::default(), now);
    assert_eq!(clear(&peer), Clear::No);
}

#[test]
fn the_state_of_a_former_run_is_kept_until_the_peer_contradicts_it() {
    let now = Instant::now();
    let fresh = |left| {
        let mut peer = Peer::new(wanted(), now);
        peer.adopt(left, now);
        peer.update(Tunnel::default(), now);
        peer
    };
    for left in [Clear::Accept, Clear::Send] {
        let mut peer = fresh(left);
        assert_eq!(clear(&peer), left);
        peer.update(tunnel(PEER), now + SILENCE - EVERY);
        assert_eq!(clear(&peer), left);
        peer.update(tunnel(PEER), now + SILENCE);
        assert_eq!(clear(&peer), Clear::No, "nothing was received");
        let mut peer = fresh(left);
        peer.receive_heartbeat(heartbeat(1, true), now);
        peer.update(tunnel(PEER), now);
        assert_eq!(clear(&peer), Clear::Send);
        let mut peer = fresh(left);
        let other = Heartbeat {
            agreement: 8,
            ..heartbeat(1, true)
        };
        peer.receive_heartbeat(other, now);
        peer.update(tunnel(PEER), now);
        assert_eq!(clear(&peer), Clear::No);
        let mut peer = fresh(left);
        peer.update(tunnel(OTHER), now);
        assert_eq!(clear(&peer), Clear::No, "it is somewhere else");
    }
    let mut peer = fresh(Clear::Send);
    assert!(
        peer.heartbeat(1, EVERY, now).unwrap().accepts,
        "the filter is open"
    );
    // It was proven for other addresses, or for other settings.
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
        peer.configure(other, now);
        peer.update(Tunnel::default(), now);
        assert_eq!(clear(&peer), Clear::No);
    }
}

#[test]
fn a_peer_advertises_that_it_accepts_only_while_the_kernel_does() {
    let (mut peer, now) = received(heartbeat(1, false));
    assert!(!peer.heartbeat(1, EVERY, now).unwrap().accepts);
    peer.set_accepted(true);
    let advertised = peer.heartbeat(1, EVERY, now).unwrap();
    assert!(advertised.accepts);
    peer.sent(&advertised, now);
    // It is withdrawn before the kernel stops.
    peer.update(tunnel(OTHER), now);
    assert!(!peer.heartbeat(1, EVERY, now).unwrap().accepts);
}

#[test]
fn heartbeats_are_sent_when_due_and_when_there_is_something_new() {
    let (mut peer, now) = received(heartbeat(1, false));
    let first = peer.heartbeat(9, EVERY, now).unwrap();
    assert_eq!(
        (first.number, first.run, first.sees_peer_at),
        (1, 9, Some(at(PEER)))
    );
    // One that could not be sent is returned again.
    assert_eq!(peer.heartbeat(9, EVERY, now), Some(first));
    peer.sent(&first, now);
    assert_eq!(peer.heartbeat(9, EVERY, now + EVERY / 2), None);
    let second = peer.heartbeat(9, EVERY, now + EVERY).unwrap();
    assert_eq!(second.number, 2);
    peer.sent(&second, now + EVERY);
    let mut changed = wanted();
    changed.agreement = 8;
    peer.configure(changed, now + EVERY);
    assert_eq!(peer.heartbeat(9, EVERY, now + EVERY).unwrap().agreement, 8);
}

#[test]
fn the_round_trip_excludes_the_time_that_the_peer_waited() {
    let (mut peer, now) = received(heartbeat(1, false));
    let advertised = peer.heartbeat(1, EVERY, now).unwrap();
    peer.sent(&advertised, now);
    let ms = Duration::from_millis;
    let answer = Heartbeat {
        last_received: Some((advertised.number, ms(700))),
        ..heartbeat(2, false)
    };
    peer.receive_heartbeat(answer, now + ms(702));
    assert_eq!(peer.round_trip(), Some(ms(2)));
    // An answer to a heartbeat that is no longer remembered, or was never sent.
    let answer = Heartbeat {
        last_received: Some((99, ms(1))),
        ..heartbeat(3, false)
    };
    peer.receive_heartbeat(answer, now + ms(800));
    assert_eq!(peer.round_trip(), Some(ms(2)));
}

#[test]
fn loss_is_computed_over_the_last_heartbeats() {
    let (mut peer, now) = received(heartbeat(1, false));
    assert_eq!(peer.loss(), Some(0.0));
    peer.receive_heartbeat(heartbeat(4, false), now);
    assert_eq!(peer.loss(), Some(0.5));
    // One was overtaken, and changes nothing else.
    peer.receive_heartbeat(heartbeat(3, true), now);
    assert_eq!(peer.loss(), Some(0.25));
    peer.update(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Accept);
    for number in 5..=100 {
        peer.receive_heartbeat(heartbeat(number, false), now);
    }
    assert_eq!(peer.loss(), Some(0.0));
    // A restarted peer counts from 1.
    let again = Heartbeat {
        run: 2,
        ..heartbeat(1, true)
    };
    peer.receive_heartbeat(again, now);
    assert_eq!(peer.loss(), Some(0.0));
    let (late, _) = received(heartbeat(90, false));
    assert_eq!(late.loss(), Some(0.0), "this end did not listen before");
    peer.update(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Send);
}

#[test]
fn a_silent_peer_is_tried_at_each_address_in_turn() {
    let now = Instant::now();
    let mut peer = Peer::new(wanted(), now);
    let mut candidates = Vec::new();
    for second in 0..=45 {
        peer.update(Tunnel::default(), now + EVERY * second);
        candidates.push(peer.state().candidate);
        candidates.dedup();
    }
    assert_eq!(candidates, [PEER, OTHER, PEER, OTHER].map(Some));
    // At the address where it is found it stays.
    let later = now + EVERY * 45;
    for second in 0..60 {
        peer.update(tunnel(OTHER), later + EVERY * second);
    }
    assert_eq!(peer.state().candidate, Some(OTHER));
    // A new address is tried at once.
    let mut moved = wanted();
    moved.candidates = vec![OWN];
    peer.configure(moved, later);
    assert_eq!(peer.state().candidate, Some(OWN));
    peer.update(Tunnel::default(), later + CANDIDATE_TIMEOUT * 9);
    assert_eq!(peer.state().candidate, Some(OWN), "there is no other");
    let mut nowhere = wanted();
    nowhere.candidates = vec![];
    peer.configure(nowhere, later);
    peer.update(Tunnel::default(), later + CANDIDATE_TIMEOUT * 99);
    assert_eq!(peer.state().candidate, None);
}

/// An event of a peer.
#[derive(Clone, Debug)]
enum Event {
    Receive(Heartbeat),
    Update(Option<Ipv4Addr>),
    Pass(u8),
    Configure(bool, u64),
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
    let heartbeat =
        heartbeat.prop_map(
            |(agreement, sees_peer_at, accepts, number, run)| Heartbeat {
                agreement,
                sees_peer_at: Some(at(sees_peer_at)),
                accepts,
                number,
                run,
                last_received: None,
                path_probes: ProbesReceived::Unknown,
            },
        );
    prop_oneof![
        heartbeat.prop_map(Event::Receive),
        proptest::option::of(candidate).prop_map(Event::Update),
        (1_u8..40).prop_map(Event::Pass),
        (any::<bool>(), 7_u64..9).prop_map(|(fast, agreement)| Event::Configure(fast, agreement)),
        any::<bool>().prop_map(Event::Accepted),
    ]
}

proptest! {
    /// Whatever happened before, a peer is clear only if its heartbeat was received lately, from
    /// its address, and agreed.
    #[test]
    fn no_history_makes_a_peer_clear_that_should_not_be(events in prop::collection::vec(any_event(), 1..40)) {
        let mut now = Instant::now();
        let mut peer = Peer::new(wanted(), now);
        let mut candidate = None;
        for event in events {
            match event {
                Event::Receive(heartbeat) => {
                    peer.receive_heartbeat(heartbeat, now);
                }
                Event::Update(at) => candidate = at,
                Event::Pass(seconds) => now += EVERY * seconds.into(),
                Event::Configure(fast, agreement) => {
                    let fast = wanted().fast.filter(|_| fast);
                    peer.configure(PeerConfig { fast, agreement, ..wanted() }, now);
                }
                Event::Accepted(accepted) => peer.set_accepted(accepted),
            }
            peer.update(candidate.map(tunnel).unwrap_or_default(), now);
            let advertised = peer.heartbeat(1, EVERY, now);
            if clear(&peer) > Clear::No {
                let last = peer.last.as_ref().unwrap();
                prop_assert!(peer.config.fast.is_some() && candidate == Some(PEER));
                prop_assert!(now - last.at < SILENCE);
                prop_assert_eq!(last.heartbeat.agreement, peer.config.agreement);
                prop_assert_eq!(last.heartbeat.sees_peer_at, Some(at(OWN)));
                prop_assert!(clear(&peer) < Clear::Send || last.heartbeat.accepts);
            } else if let Some(advertised) = advertised {
                prop_assert!(!advertised.accepts);
            }
        }
    }
}

#[test]
fn a_flapping_peer_is_held_back_for_longer_each_time() {
    let (mut peer, start) = received(heartbeat(1, true));
    let mut rises = Vec::new();
    let mut number = 1;
    // For ten minutes it accepts clear packets and stops, in turns.
    for half_second in 1..1200 {
        let now = start + Duration::from_millis(500) * half_second;
        number += 1;
        let before = clear(&peer);
        peer.receive_heartbeat(heartbeat(number, half_second % 2 == 0), now);
        peer.update(tunnel(PEER), now);
        if clear(&peer) > before {
            rises.push(now);
        }
        assert!(
            half_second % 2 == 0 || clear(&peer) < Clear::Send,
            "it falls back at once"
        );
    }
    assert!((8..20).contains(&rises.len()), "{rises:?}");
    let pauses: Vec<_> = rises.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(
        pauses.is_sorted() && pauses.last() >= Some(&HELD_MAX),
        "{pauses:?}"
    );

    // When it stops flapping, it is clear after the longest pause, and later not damped at all.
    let quiet = start + Duration::from_secs(600) + HELD_MAX;
    peer.receive_heartbeat(heartbeat(number + 1, true), quiet);
    peer.update(tunnel(PEER), quiet);
    assert_eq!(clear(&peer), Clear::Send);
    let later = quiet + FLAPS_FORGOTTEN;
    for (after, accepts) in [(2, true), (3, false), (4, true)] {
        peer.receive_heartbeat(heartbeat(number + after, accepts), later);
        peer.update(tunnel(PEER), later);
    }
    assert_eq!(clear(&peer), Clear::Send);
}

#[test]
fn changes_of_the_directory_are_not_flaps() {
    let (mut peer, now) = received(heartbeat(1, true));
    let mut encrypted = wanted();
    (encrypted.fast, encrypted.agreement) = (None, 8);
    for round in 0..200 {
        // This end learns of it after its peer, which counts as a fall, and then itself.
        let (number, other) = (
            2 + 2 * round,
            Heartbeat {
                agreement: 8,
                ..heartbeat(2 + 2 * round, false)
            },
        );
        peer.receive_heartbeat(other, now);
        peer.update(tunnel(PEER), now);
        assert_eq!(clear(&peer), Clear::No);
        peer.configure(encrypted.clone(), now);
        peer.configure(wanted(), now);
        peer.receive_heartbeat(heartbeat(number + 1, true), now);
        peer.update(tunnel(PEER), now);
        assert_eq!(clear(&peer), Clear::Send, "round {round}");
    }
}
