//! What trials of the clear way decide about a pair.

use super::tests::{EVERY, OTHER, PEER, clear, heard, probe, tunnel, wanted};
use super::*;

/// What a peer that knows trials says of this end's: how far probes came, and trials.
fn told(number: u32, (probes, trials): (u32, u32)) -> Probe {
    Probe {
        heard: Some((probes, Duration::ZERO)),
        trials: if trials == 0 {
            Trials::None
        } else {
            Trials::UpTo(trials)
        },
        ..probe(number, true)
    }
}

/// Both ends take clear packets, and this one is to find out whether they arrive.
fn trying() -> (Pair, Instant) {
    let (mut pair, now) = heard(told(1, (0, 0)));
    pair.set_accepted(true);
    assert_eq!(clear(&pair), Clear::Accept, "nobody knows yet");
    (pair, now)
}

fn send(pair: &mut Pair, now: Instant) -> Probe {
    let probe = pair.probe(9, EVERY, now).unwrap();
    pair.sent(&probe, now);
    probe
}

fn hear(pair: &mut Pair, probe: Probe, now: Instant) -> Clear {
    pair.hear(probe, now);
    pair.look(tunnel(PEER), now);
    clear(pair)
}

#[test]
fn nothing_is_sent_in_clear_before_a_trial_came() {
    let (mut pair, now) = trying();
    let first = send(&mut pair, now);
    let trial = Trial {
        run: 9,
        number: first.number,
        asks: true,
    };
    assert_eq!(pair.trial(&first, now), Some((PEER, trial)));
    assert_eq!(hear(&mut pair, told(2, (1, 0)), now), Clear::Accept);
    assert_eq!(
        hear(&mut pair, told(3, (1, 2)), now),
        Clear::Accept,
        "never sent"
    );
    assert_eq!(hear(&mut pair, told(4, (1, 1)), now), Clear::Send);
    let second = send(&mut pair, now + EVERY);
    let (_, trial) = pair.trial(&second, now).unwrap();
    assert!(!trial.asks, "it is known");
}

#[test]
fn no_trials_go_where_clear_packets_may_not() {
    let tries = |pair: &mut Pair, now| {
        let probe = send(pair, now);
        pair.trial(&probe, now).is_some()
    };
    let (mut pair, now) = trying();
    assert!(tries(&mut pair, now));
    pair.set_accepted(false);
    assert!(!tries(&mut pair, now + EVERY), "the own filter is closed");
    pair.set_accepted(true);
    let other = Probe {
        accepts: false,
        ..told(2, (1, 1))
    };
    hear(&mut pair, other, now);
    assert!(!tries(&mut pair, now + EVERY * 2), "the peer takes none");
    let (mut pair, now) = heard(probe(1, true));
    pair.set_accepted(true);
    assert!(!tries(&mut pair, now), "it would not know what that is");
    let mut sealed = wanted();
    sealed.fast = None;
    let (mut pair, now) = trying();
    pair.want(sealed, now);
    pair.look(tunnel(PEER), now);
    assert!(!tries(&mut pair, now), "the directory says so");
}

#[test]
fn a_clear_way_that_ends_is_left_while_the_sealed_one_goes_on() {
    let (mut pair, begun) = trying();
    let mut number = 1;
    let mut states = Vec::new();
    for second in 0..40 {
        let now = begun + EVERY * second;
        let sent = send(&mut pair, now).number;
        number += 1;
        // For fifteen seconds trials arrive, then for ten none do, then they do again.
        let arrived = if (15..25).contains(&second) { 15 } else { sent };
        states.push(hear(&mut pair, told(number, (sent, arrived)), now));
    }
    assert_eq!(states[0], Clear::Send);
    let sealed: Vec<_> = (0..40).filter(|at| states[*at] < Clear::Send).collect();
    assert_eq!(
        sealed,
        [20, 21, 22, 23, 24],
        "after five in vain, until one comes"
    );
    assert!(
        !states.contains(&Clear::No),
        "what the peer sends is still taken"
    );
    assert!(!pair.state().lost);
    // One of five is enough.
    for second in 40..60 {
        let now = begun + EVERY * second;
        let sent = send(&mut pair, now).number;
        number += 1;
        let state = hear(&mut pair, told(number, (sent, sent - sent % 5)), now);
        assert_eq!(state, Clear::Send);
    }
}

#[test]
fn a_trial_that_asks_is_answered_soon_and_once() {
    let (mut pair, now) = trying();
    send(&mut pair, now);
    let soon = now + ANSWER_EVERY;
    assert_eq!(pair.probe(9, EVERY, soon), None);
    let asks = Trial {
        run: 1,
        number: 4,
        asks: true,
    };
    assert!(
        !pair.hear_trial(Trial { run: 2, ..asks }),
        "nobody told of that run"
    );
    assert!(pair.hear_trial(asks));
    assert_eq!(
        pair.probe(9, EVERY, now),
        None,
        "a crowd is not answered one by one"
    );
    let answer = send(&mut pair, soon);
    assert_eq!(answer.trials, Trials::UpTo(4));
    let soon = soon + ANSWER_EVERY;
    // What is known already is told in time, and one that is repeated is not answered.
    let quiet = Trial {
        number: 5,
        asks: false,
        ..asks
    };
    assert!(pair.hear_trial(quiet) && !pair.hear_trial(asks) && !pair.hear_trial(quiet));
    assert_eq!(pair.probe(9, EVERY, soon), None);
    assert_eq!(send(&mut pair, now + EVERY * 2).trials, Trials::UpTo(5));
}

#[test]
fn nobody_speaks_of_trials_that_the_peer_cannot_have_sent() {
    let (mut pair, now) = trying();
    send(&mut pair, now);
    let forged = Trial {
        run: 1,
        number: u32::MAX,
        asks: true,
    };
    assert!(!pair.hear_trial(forged));
    assert_eq!(pair.probe(9, EVERY, now + EVERY / 2), None);
    let next = Trial {
        number: 2,
        ..forged
    };
    assert!(pair.hear_trial(next), "its probe may come later");
    assert_eq!(send(&mut pair, now + EVERY).trials, Trials::UpTo(2));
}

#[test]
fn two_ends_that_are_held_back_do_not_ask_each_other_again_and_again() {
    let (mut pair, begun) = trying();
    let mut number = 1;
    // The way flaps until the pair is held back.
    for second in 0..40 {
        let now = begun + EVERY * second;
        let sent = send(&mut pair, now).number;
        number += 1;
        let arrived = sent - if second % 8 < 7 { second % 8 } else { 0 };
        hear(&mut pair, told(number, (sent, arrived)), now);
    }
    let now = begun + EVERY * 40;
    let probe = send(&mut pair, now);
    let state = hear(
        &mut pair,
        told(number + 1, (probe.number, probe.number)),
        now,
    );
    assert_eq!(state, Clear::Accept, "it is held back");
    let (_, trial) = pair.trial(&probe, now).unwrap();
    assert!(!trial.asks, "the way is known to carry");
}

#[test]
fn a_clear_way_that_ends_is_left_in_time_where_probes_are_rare() {
    const RARE: Duration = Duration::from_secs(8);
    let (mut pair, begun) = trying();
    let mut number = 1;
    let mut sealed = None;
    for turn in 0..8 {
        let now = begun + RARE * turn;
        let probe = pair.probe(9, RARE, now).unwrap();
        pair.sent(&probe, now);
        number += 1;
        let arrived = probe.number.min(2);
        let state = hear(&mut pair, told(number, (probe.number, arrived)), now);
        if state < Clear::Send {
            sealed.get_or_insert(turn);
        }
    }
    // The second one was the last that came; one alone that is lost says nothing.
    assert_eq!(sealed, Some(4));
}

#[test]
fn what_was_tried_before_a_pair_was_sealed_counts_no_more() {
    let (mut pair, now) = trying();
    send(&mut pair, now);
    assert_eq!(hear(&mut pair, told(2, (1, 1)), now), Clear::Send);
    pair.hear_trial(Trial {
        run: 1,
        number: 2,
        asks: false,
    });
    pair.look(tunnel(OTHER), now);
    assert_eq!(clear(&pair), Clear::No);
    assert_eq!(send(&mut pair, now).trials, Trials::None);
    pair.look(tunnel(PEER), now);
    assert_eq!(clear(&pair), Clear::Accept, "it is tried anew");
    assert_eq!(hear(&mut pair, told(3, (2, 1)), now), Clear::Accept);
    send(&mut pair, now + EVERY);
    assert_eq!(hear(&mut pair, told(4, (3, 3)), now + EVERY), Clear::Send);
}

#[test]
fn a_restart_of_either_end_does_not_seal_a_clear_pair() {
    // The peer's: it begins to count anew, and heard nothing yet.
    let (mut pair, now) = trying();
    send(&mut pair, now);
    assert_eq!(hear(&mut pair, told(2, (1, 1)), now), Clear::Send);
    for number in 1..=4 {
        let at = now + EVERY * number;
        send(&mut pair, at);
        let again = Probe {
            run: 2,
            ..told(number, (number, 0))
        };
        assert_eq!(hear(&mut pair, again, at), Clear::Send);
    }
    let at = now + EVERY * 9;
    let again = Probe {
        run: 2,
        ..told(9, (5, 5))
    };
    assert_eq!(hear(&mut pair, again, at), Clear::Send);
    // This end's: the peer still speaks of the former run.
    let mut pair = Pair::new(wanted(), now);
    pair.adopt(Clear::Send, now);
    send(&mut pair, now);
    assert_eq!(hear(&mut pair, told(80, (900, 900)), now), Clear::Send);
    // And where nothing arrives, that does not last.
    for number in 2..9 {
        let sent = send(&mut pair, now + EVERY * number).number;
        hear(
            &mut pair,
            told(80 + number, (sent, 0)),
            now + EVERY * number,
        );
    }
    assert_eq!(clear(&pair), Clear::Accept);
}

#[test]
fn people_are_told_of_trials_that_are_lost_for_long() {
    let (mut pair, begun) = trying();
    let mut number = 1;
    let mut told_at = Vec::new();
    for second in 0..40 {
        let now = begun + EVERY * second;
        let sent = send(&mut pair, now).number;
        number += 1;
        let arrived = if second < 30 { 0 } else { sent };
        hear(&mut pair, told(number, (sent, arrived)), now);
        if pair.state().lost {
            told_at.push(second);
        }
    }
    assert_eq!(told_at, (8..30).collect::<Vec<_>>());
}

#[test]
fn only_a_pair_that_may_be_clear_tells_at_once_where_the_peer_is_heard() {
    for (fast, told) in [(wanted().fast, true), (None, false)] {
        let now = Instant::now();
        let mut pair = Pair::new(Wanted { fast, ..wanted() }, now);
        let first = pair.probe(1, EVERY, now).unwrap();
        assert_eq!(first.hears_at, None);
        pair.sent(&first, now);
        pair.look(tunnel(PEER), now);
        assert_eq!(pair.probe(1, EVERY, now).is_some(), told);
        let next = pair.probe(1, EVERY, now + EVERY).unwrap();
        assert_eq!(next.hears_at, Some(at(PEER)));
    }
}
