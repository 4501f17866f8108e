//! When a pair may be clear, and where its other end is looked for.

use proptest::prelude::*;

use super::super::falls::{FALLS_FORGOTTEN, HELD_MAX};
use super::*;

const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(super) const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(super) const EVERY: Duration = Duration::from_secs(1);

pub(crate) fn wanted() -> Wanted {
    Wanted {
        inner: Ipv4Addr::new(100, 127, 81, 2),
        mac: Mac([2, 0, 0, 0, 0, 2]),
        agreement: 7,
        fast: Some(Ends {
            peer: PEER,
            own: OWN,
        }),
        places: vec![PEER, OTHER],
    }
}

pub(super) fn tunnel(peer: Ipv4Addr) -> Tunnel {
    Tunnel {
        key: None,
        heard_at: Some(at(peer).into()),
        alive: true,
    }
}

/// A probe of a peer that agrees, and whose version knows no trials.
pub(crate) fn probe(number: u32, accepts: bool) -> Probe {
    Probe {
        agreement: 7,
        hears_at: Some(at(OWN)),
        accepts,
        number,
        run: 1,
        heard: None,
        trials: Trials::Unknown,
    }
}

/// A pair whose peer was just heard with this probe.
pub(super) fn heard(probe: Probe) -> (Pair, Instant) {
    let now = Instant::now();
    let mut pair = Pair::new(wanted(), now);
    pair.hear(probe, now);
    pair.look(tunnel(PEER), now);
    (pair, now)
}

pub(super) fn clear(pair: &Pair) -> Clear {
    pair.state().clear
}

#[test]
fn a_pair_is_clear_only_when_all_of_it_is_right() {
    let (pair, _) = heard(probe(1, true));
    assert_eq!(clear(&pair), Clear::Send);
    let (pair, _) = heard(probe(1, false));
    assert_eq!(clear(&pair), Clear::Accept);
    let strangers = [
        Probe {
            agreement: 8,
            ..probe(1, true)
        },
        Probe {
            hears_at: Some(at(OTHER)),
            ..probe(1, true)
        },
        Probe {
            hears_at: Some(SocketAddrV4::new(OWN, 1)),
            ..probe(1, true)
        },
        Probe {
            hears_at: None,
            ..probe(1, true)
        },
    ];
    for strange in strangers {
        assert_eq!(clear(&heard(strange).0), Clear::No, "{strange:?}");
    }
}

#[test]
fn a_pair_that_was_clear_is_sealed_when_any_of_it_ends() {
    let fresh = || heard(probe(1, true));
    let (mut pair, now) = fresh();
    pair.look(tunnel(OTHER), now);
    assert_eq!(clear(&pair), Clear::No, "the peer is somewhere else");
    let (mut pair, now) = fresh();
    pair.look(Tunnel::default(), now);
    assert_eq!(clear(&pair), Clear::No, "there is no tunnel");
    let (mut pair, now) = fresh();
    pair.look(tunnel(PEER), now + SILENCE - EVERY);
    assert_eq!(clear(&pair), Clear::Send);
    pair.look(tunnel(PEER), now + SILENCE);
    assert_eq!(clear(&pair), Clear::No, "probes stopped");
    let (mut pair, now) = fresh();
    let mut sealed = wanted();
    sealed.fast = None;
    pair.want(sealed, now);
    pair.look(tunnel(PEER), now);
    assert_eq!(clear(&pair), Clear::No, "the directory says so");
    let (mut pair, now) = fresh();
    pair.hear(probe(2, false), now);
    pair.look(tunnel(PEER), now);
    assert_eq!(clear(&pair), Clear::Accept, "the peer takes no more");
    let (mut pair, now) = fresh();
    let mut changed = wanted();
    changed.agreement = 8;
    pair.want(changed, now);
    pair.look(tunnel(PEER), now);
    assert_eq!(clear(&pair), Clear::No, "the peer knows something else");
}

#[test]
fn a_pair_that_waits_for_others_stays_sealed_and_no_other_does() {
    let now = Instant::now();
    let mut pair = Pair::new(wanted(), now);
    pair.set_waits(true);
    pair.hear(probe(1, false), now);
    pair.look(tunnel(PEER), now);
    assert_eq!(clear(&pair), Clear::No);
    pair.set_waits(false);
    pair.look(tunnel(PEER), now);
    assert_eq!(clear(&pair), Clear::Accept);
    pair.set_waits(true);
    pair.hear(probe(2, true), now);
    pair.look(tunnel(PEER), now);
    assert_eq!(clear(&pair), Clear::Send, "it has begun");
    pair.look(Tunnel::default(), now);
    assert_eq!(clear(&pair), Clear::No);
}

#[test]
fn what_a_former_run_left_stands_until_the_peer_says_otherwise() {
    let now = Instant::now();
    let fresh = |left| {
        let mut pair = Pair::new(wanted(), now);
        pair.adopt(left, now);
        pair.look(Tunnel::default(), now);
        pair
    };
    for left in [Clear::Accept, Clear::Send] {
        let mut pair = fresh(left);
        assert_eq!(clear(&pair), left);
        pair.look(tunnel(PEER), now + SILENCE - EVERY);
        assert_eq!(clear(&pair), left);
        pair.look(tunnel(PEER), now + SILENCE);
        assert_eq!(clear(&pair), Clear::No, "nobody ever spoke");
        let mut pair = fresh(left);
        pair.hear(probe(1, true), now);
        pair.look(tunnel(PEER), now);
        assert_eq!(clear(&pair), Clear::Send);
        let mut pair = fresh(left);
        let other = Probe {
            agreement: 8,
            ..probe(1, true)
        };
        pair.hear(other, now);
        pair.look(tunnel(PEER), now);
        assert_eq!(clear(&pair), Clear::No);
        let mut pair = fresh(left);
        pair.look(tunnel(OTHER), now);
        assert_eq!(clear(&pair), Clear::No, "it is somewhere else");
    }
    let mut pair = fresh(Clear::Send);
    assert!(
        pair.probe(1, EVERY, now).unwrap().accepts,
        "the filter is open"
    );
    // What was proven was of other addresses, or of other settings.
    let ends = Ends {
        peer: OTHER,
        own: OWN,
    };
    let moved = Wanted {
        fast: Some(ends),
        ..wanted()
    };
    let changed = Wanted {
        agreement: 8,
        ..wanted()
    };
    for other in [moved, changed] {
        let mut pair = fresh(Clear::Send);
        pair.want(other, now);
        pair.look(Tunnel::default(), now);
        assert_eq!(clear(&pair), Clear::No);
    }
}

#[test]
fn it_accepts_in_words_when_the_kernel_does() {
    let (mut pair, now) = heard(probe(1, false));
    assert!(!pair.probe(1, EVERY, now).unwrap().accepts);
    pair.set_accepted(true);
    let said = pair.probe(1, EVERY, now).unwrap();
    assert!(said.accepts);
    pair.sent(&said, now);
    // Sooner in words than in the kernel when it ends.
    pair.look(tunnel(OTHER), now);
    assert!(!pair.probe(1, EVERY, now).unwrap().accepts);
}

#[test]
fn probes_go_out_in_time_and_when_they_say_something_new() {
    let (mut pair, now) = heard(probe(1, false));
    let first = pair.probe(9, EVERY, now).unwrap();
    assert_eq!(
        (first.number, first.run, first.hears_at),
        (1, 9, Some(at(PEER)))
    );
    // What could not be sent is tried again.
    assert_eq!(pair.probe(9, EVERY, now), Some(first));
    pair.sent(&first, now);
    assert_eq!(pair.probe(9, EVERY, now + EVERY / 2), None);
    let second = pair.probe(9, EVERY, now + EVERY).unwrap();
    assert_eq!(second.number, 2);
    pair.sent(&second, now + EVERY);
    let mut changed = wanted();
    changed.agreement = 8;
    pair.want(changed, now + EVERY);
    assert_eq!(pair.probe(9, EVERY, now + EVERY).unwrap().agreement, 8);
}

#[test]
fn the_round_trip_is_without_the_time_that_the_peer_waited() {
    let (mut pair, now) = heard(probe(1, false));
    let said = pair.probe(1, EVERY, now).unwrap();
    pair.sent(&said, now);
    let ms = Duration::from_millis;
    let answer = Probe {
        heard: Some((said.number, ms(700))),
        ..probe(2, false)
    };
    pair.hear(answer, now + ms(702));
    assert_eq!(pair.round_trip(), Some(ms(2)));
    // About one that was sent too long ago, or never.
    let answer = Probe {
        heard: Some((99, ms(1))),
        ..probe(3, false)
    };
    pair.hear(answer, now + ms(800));
    assert_eq!(pair.round_trip(), Some(ms(2)));
}

#[test]
fn losses_are_counted_over_the_last_probes() {
    let (mut pair, now) = heard(probe(1, false));
    assert_eq!(pair.loss(), Some(0.0));
    pair.hear(probe(4, false), now);
    assert_eq!(pair.loss(), Some(0.5));
    // One was overtaken, and says nothing new.
    pair.hear(probe(3, true), now);
    assert_eq!(pair.loss(), Some(0.25));
    pair.look(tunnel(PEER), now);
    assert_eq!(clear(&pair), Clear::Accept);
    for number in 5..=100 {
        pair.hear(probe(number, false), now);
    }
    assert_eq!(pair.loss(), Some(0.0));
    // A peer that was restarted counts anew.
    let again = Probe {
        run: 2,
        ..probe(1, true)
    };
    pair.hear(again, now);
    assert_eq!(pair.loss(), Some(0.0));
    let (late, _) = heard(probe(90, false));
    assert_eq!(late.loss(), Some(0.0), "nobody listened before");
    pair.look(tunnel(PEER), now);
    assert_eq!(clear(&pair), Clear::Send);
}

#[test]
fn a_peer_that_is_not_found_is_tried_at_its_other_address_and_back() {
    let now = Instant::now();
    let mut pair = Pair::new(wanted(), now);
    let mut places = Vec::new();
    for second in 0..=45 {
        pair.look(Tunnel::default(), now + EVERY * second);
        places.push(pair.state().place);
        places.dedup();
    }
    assert_eq!(places, [PEER, OTHER, PEER, OTHER].map(Some));
    // Where it is found it stays.
    let later = now + EVERY * 45;
    for second in 0..60 {
        pair.look(tunnel(OTHER), later + EVERY * second);
    }
    assert_eq!(pair.state().place, Some(OTHER));
    // Another address is another try.
    let mut moved = wanted();
    moved.places = vec![OWN];
    pair.want(moved, later);
    assert_eq!(pair.state().place, Some(OWN));
    pair.look(Tunnel::default(), later + PATIENCE * 9);
    assert_eq!(pair.state().place, Some(OWN), "there is no other");
    let mut nowhere = wanted();
    nowhere.places = vec![];
    pair.want(nowhere, later);
    pair.look(Tunnel::default(), later + PATIENCE * 99);
    assert_eq!(pair.state().place, None);
}

/// Something that happens to a pair.
#[derive(Clone, Debug)]
enum Event {
    Hear(Probe),
    Look(Option<Ipv4Addr>),
    Pass(u8),
    Want(bool, u64),
    Accepted(bool),
}

fn any_event() -> impl Strategy<Value = Event> {
    let place = prop_oneof![Just(PEER), Just(OTHER), Just(OWN)];
    let probe = (7_u64..9, place.clone(), any::<bool>(), 1_u32..5, 1_u32..3);
    let probe = probe.prop_map(|(agreement, hears_at, accepts, number, run)| Probe {
        agreement,
        hears_at: Some(at(hears_at)),
        accepts,
        number,
        run,
        heard: None,
        trials: Trials::Unknown,
    });
    prop_oneof![
        probe.prop_map(Event::Hear),
        proptest::option::of(place).prop_map(Event::Look),
        (1_u8..40).prop_map(Event::Pass),
        (any::<bool>(), 7_u64..9).prop_map(|(fast, agreement)| Event::Want(fast, agreement)),
        any::<bool>().prop_map(Event::Accepted),
    ]
}

proptest! {
    /// Whatever happened before, a pair is clear only towards a peer that was heard
    /// lately, at its address, and agreed when it was.
    #[test]
    fn no_history_makes_a_pair_clear_that_should_not_be(events in prop::collection::vec(any_event(), 1..40)) {
        let mut now = Instant::now();
        let mut pair = Pair::new(wanted(), now);
        let mut place = None;
        for event in events {
            match event {
                Event::Hear(probe) => {
                    pair.hear(probe, now);
                }
                Event::Look(at) => place = at,
                Event::Pass(seconds) => now += EVERY * seconds.into(),
                Event::Want(fast, agreement) => {
                    let fast = wanted().fast.filter(|_| fast);
                    pair.want(Wanted { fast, agreement, ..wanted() }, now);
                }
                Event::Accepted(accepted) => pair.set_accepted(accepted),
            }
            pair.look(place.map(tunnel).unwrap_or_default(), now);
            let said = pair.probe(1, EVERY, now);
            if clear(&pair) > Clear::No {
                let heard = pair.heard.as_ref().unwrap();
                prop_assert!(pair.wanted.fast.is_some() && place == Some(PEER));
                prop_assert!(now - heard.at < SILENCE);
                prop_assert_eq!(heard.probe.agreement, pair.wanted.agreement);
                prop_assert_eq!(heard.probe.hears_at, Some(at(OWN)));
                prop_assert!(clear(&pair) < Clear::Send || heard.probe.accepts);
            } else if let Some(said) = said {
                prop_assert!(!said.accepts);
            }
        }
    }
}

#[test]
fn a_peer_that_flaps_is_held_back_for_longer_each_time() {
    let (mut pair, begun) = heard(probe(1, true));
    let mut rises = Vec::new();
    let mut number = 1;
    // For ten minutes it takes clear packets and takes none, by turns.
    for half_second in 1..1200 {
        let now = begun + Duration::from_millis(500) * half_second;
        number += 1;
        let before = clear(&pair);
        pair.hear(probe(number, half_second % 2 == 0), now);
        pair.look(tunnel(PEER), now);
        if clear(&pair) > before {
            rises.push(now);
        }
        assert!(
            half_second % 2 == 0 || clear(&pair) < Clear::Send,
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
    pair.hear(probe(number + 1, true), quiet);
    pair.look(tunnel(PEER), quiet);
    assert_eq!(clear(&pair), Clear::Send);
    let later = quiet + FALLS_FORGOTTEN;
    for (after, accepts) in [(2, true), (3, false), (4, true)] {
        pair.hear(probe(number + after, accepts), later);
        pair.look(tunnel(PEER), later);
    }
    assert_eq!(clear(&pair), Clear::Send);
}

#[test]
fn what_the_directory_decides_is_no_flapping() {
    let (mut pair, now) = heard(probe(1, true));
    let mut sealed = wanted();
    (sealed.fast, sealed.agreement) = (None, 8);
    for turn in 0..200 {
        // This end hears of it after its peer, which is a fall, and then itself.
        let (number, other) = (
            2 + 2 * turn,
            Probe {
                agreement: 8,
                ..probe(2 + 2 * turn, false)
            },
        );
        pair.hear(other, now);
        pair.look(tunnel(PEER), now);
        assert_eq!(clear(&pair), Clear::No);
        pair.want(sealed.clone(), now);
        pair.want(wanted(), now);
        pair.hear(probe(number + 1, true), now);
        pair.look(tunnel(PEER), now);
        assert_eq!(clear(&pair), Clear::Send, "turn {turn}");
    }
}

/// A peer of whom nothing is heard.
fn silence() -> Tunnel {
    Tunnel::default()
}

#[test]
fn only_a_silent_peer_is_knocked_for_and_not_again_at_once() {
    let now = Instant::now();
    let mut pair = Pair::new(wanted(), now);
    pair.look(silence(), now);
    let due = pair.knock_due(1).unwrap();
    assert!(due > now + PATIENCE, "each place was tried by then");
    assert_eq!(pair.knock(due, 1, 0.0), [PEER, OTHER]);
    assert!(pair.knock_due(1).unwrap() > due + Duration::from_secs(20));
    pair.look(tunnel(PEER), due);
    assert_eq!(pair.knock_due(1), None);
    // It is silent anew when it is lost again.
    let lost = due + Duration::from_secs(1000);
    pair.look(tunnel(PEER), lost);
    pair.look(silence(), lost);
    assert_eq!(pair.knock_due(1), Some(lost + (due - now)));

    let mut nowhere = wanted();
    nowhere.places.clear();
    assert_eq!(Pair::new(nowhere, now).knock_due(1), None);
}

#[test]
fn what_was_found_is_forgotten_when_the_peer_lives_or_is_elsewhere() {
    use crate::overlay::knock::Answer;
    let now = Instant::now();
    let found: Answers = [(PEER, Answer::Closed)].into_iter().collect();
    let mut pair = Pair::new(wanted(), now);
    pair.knocked(found);
    assert_eq!(pair.state().answers, found);
    pair.want(wanted(), now);
    assert_eq!(pair.state().answers, found, "the directory says the same");
    pair.look(tunnel(PEER), now);
    assert_eq!(pair.state().answers, Answers::default());
    assert!(pair.state().met);
    // A knock that was under way comes too late.
    pair.knocked(found);
    assert_eq!(pair.state().answers, Answers::default());

    pair.look(silence(), now);
    pair.knocked(found);
    assert!(pair.state().met && pair.state().answers == found);
    let moved = Wanted {
        places: vec![OTHER],
        ..wanted()
    };
    pair.want(moved, now);
    assert!(!pair.state().met && pair.state().answers == Answers::default());
}
