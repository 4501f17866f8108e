//! What path_probes of the clear way decide about a peer.

use super::tests::{EVERY, OTHER, PEER, clear, heard, heartbeat, tunnel, wanted};
use super::*;

/// What a peer that knows path_probes says of this end's: how far heartbeats came, and path_probes.
fn told(number: u32, (heartbeats, path_probes): (u32, u32)) -> Heartbeat {
    Heartbeat {
        heard: Some((heartbeats, Duration::ZERO)),
        path_probes: if path_probes == 0 {
            ProbesHeard::None
        } else {
            ProbesHeard::UpTo(path_probes)
        },
        ..heartbeat(number, true)
    }
}

/// Both ends take clear packets, and this one is to find out whether they arrive.
fn trying() -> (Peer, Instant) {
    let (mut peer, now) = heard(told(1, (0, 0)));
    peer.set_accepted(true);
    assert_eq!(clear(&peer), Clear::Accept, "nobody knows yet");
    (peer, now)
}

fn send(peer: &mut Peer, now: Instant) -> Heartbeat {
    let heartbeat = peer.heartbeat(9, EVERY, now).unwrap();
    peer.sent(&heartbeat, now);
    heartbeat
}

fn hear(peer: &mut Peer, heartbeat: Heartbeat, now: Instant) -> Clear {
    peer.hear(heartbeat, now);
    peer.look(tunnel(PEER), now);
    clear(peer)
}

#[test]
fn nothing_is_sent_in_clear_before_a_path_probe_came() {
    let (mut peer, now) = trying();
    let first = send(&mut peer, now);
    let path_probe = PathProbe {
        run: 9,
        number: first.number,
        asks: true,
    };
    assert_eq!(peer.path_probe(&first, now), Some((PEER, path_probe)));
    assert_eq!(hear(&mut peer, told(2, (1, 0)), now), Clear::Accept);
    assert_eq!(
        hear(&mut peer, told(3, (1, 2)), now),
        Clear::Accept,
        "never sent"
    );
    assert_eq!(hear(&mut peer, told(4, (1, 1)), now), Clear::Send);
    let second = send(&mut peer, now + EVERY);
    let (_, path_probe) = peer.path_probe(&second, now).unwrap();
    assert!(!path_probe.asks, "it is known");
}

#[test]
fn no_path_probes_go_where_clear_packets_may_not() {
    let tries = |peer: &mut Peer, now| {
        let heartbeat = send(peer, now);
        peer.path_probe(&heartbeat, now).is_some()
    };
    let (mut peer, now) = trying();
    assert!(tries(&mut peer, now));
    peer.set_accepted(false);
    assert!(!tries(&mut peer, now + EVERY), "the own filter is closed");
    peer.set_accepted(true);
    let other = Heartbeat {
        accepts: false,
        ..told(2, (1, 1))
    };
    hear(&mut peer, other, now);
    assert!(!tries(&mut peer, now + EVERY * 2), "the peer takes none");
    let (mut peer, now) = heard(heartbeat(1, true));
    peer.set_accepted(true);
    assert!(!tries(&mut peer, now), "it would not know what that is");
    let mut encrypted = wanted();
    encrypted.fast = None;
    let (mut peer, now) = trying();
    peer.want(encrypted, now);
    peer.look(tunnel(PEER), now);
    assert!(!tries(&mut peer, now), "the directory says so");
}

#[test]
fn a_clear_way_that_ends_is_left_while_the_encrypted_one_goes_on() {
    let (mut peer, begun) = trying();
    let mut number = 1;
    let mut states = Vec::new();
    for second in 0..40 {
        let now = begun + EVERY * second;
        let sent = send(&mut peer, now).number;
        number += 1;
        // For fifteen seconds path_probes arrive, then for ten none do, then they do again.
        let arrived = if (15..25).contains(&second) { 15 } else { sent };
        states.push(hear(&mut peer, told(number, (sent, arrived)), now));
    }
    assert_eq!(states[0], Clear::Send);
    let encrypted: Vec<_> = (0..40).filter(|at| states[*at] < Clear::Send).collect();
    assert_eq!(
        encrypted,
        [20, 21, 22, 23, 24],
        "after five in vain, until one comes"
    );
    assert!(
        !states.contains(&Clear::No),
        "what the peer sends is still taken"
    );
    assert!(!peer.state().lost);
    // One of five is enough.
    for second in 40..60 {
        let now = begun + EVERY * second;
        let sent = send(&mut peer, now).number;
        number += 1;
        let state = hear(&mut peer, told(number, (sent, sent - sent % 5)), now);
        assert_eq!(state, Clear::Send);
    }
}

#[test]
fn a_path_probe_that_asks_is_answered_soon_and_once() {
    let (mut peer, now) = trying();
    send(&mut peer, now);
    let soon = now + ANSWER_EVERY;
    assert_eq!(peer.heartbeat(9, EVERY, soon), None);
    let asks = PathProbe {
        run: 1,
        number: 4,
        asks: true,
    };
    assert!(
        !peer.hear_path_probe(PathProbe { run: 2, ..asks }),
        "nobody told of that run"
    );
    assert!(peer.hear_path_probe(asks));
    assert_eq!(
        peer.heartbeat(9, EVERY, now),
        None,
        "a crowd is not answered one by one"
    );
    let answer = send(&mut peer, soon);
    assert_eq!(answer.path_probes, ProbesHeard::UpTo(4));
    let soon = soon + ANSWER_EVERY;
    // What is known already is told in time, and one that is repeated is not answered.
    let quiet = PathProbe {
        number: 5,
        asks: false,
        ..asks
    };
    assert!(
        peer.hear_path_probe(quiet) && !peer.hear_path_probe(asks) && !peer.hear_path_probe(quiet)
    );
    assert_eq!(peer.heartbeat(9, EVERY, soon), None);
    assert_eq!(
        send(&mut peer, now + EVERY * 2).path_probes,
        ProbesHeard::UpTo(5)
    );
}

#[test]
fn nobody_speaks_of_path_probes_that_the_peer_cannot_have_sent() {
    let (mut peer, now) = trying();
    send(&mut peer, now);
    let forged = PathProbe {
        run: 1,
        number: u32::MAX,
        asks: true,
    };
    assert!(!peer.hear_path_probe(forged));
    assert_eq!(peer.heartbeat(9, EVERY, now + EVERY / 2), None);
    let next = PathProbe {
        number: 2,
        ..forged
    };
    assert!(peer.hear_path_probe(next), "its heartbeat may come later");
    assert_eq!(
        send(&mut peer, now + EVERY).path_probes,
        ProbesHeard::UpTo(2)
    );
}

#[test]
fn two_ends_that_are_held_back_do_not_ask_each_other_again_and_again() {
    let (mut peer, begun) = trying();
    let mut number = 1;
    // The way flaps until the peer is held back.
    for second in 0..40 {
        let now = begun + EVERY * second;
        let sent = send(&mut peer, now).number;
        number += 1;
        let arrived = sent - if second % 8 < 7 { second % 8 } else { 0 };
        hear(&mut peer, told(number, (sent, arrived)), now);
    }
    let now = begun + EVERY * 40;
    let heartbeat = send(&mut peer, now);
    let state = hear(
        &mut peer,
        told(number + 1, (heartbeat.number, heartbeat.number)),
        now,
    );
    assert_eq!(state, Clear::Accept, "it is held back");
    let (_, path_probe) = peer.path_probe(&heartbeat, now).unwrap();
    assert!(!path_probe.asks, "the way is known to carry");
}

#[test]
fn a_clear_way_that_ends_is_left_in_time_where_probes_are_rare() {
    const RARE: Duration = Duration::from_secs(8);
    let (mut peer, begun) = trying();
    let mut number = 1;
    let mut encrypted = None;
    for turn in 0..8 {
        let now = begun + RARE * turn;
        let heartbeat = peer.heartbeat(9, RARE, now).unwrap();
        peer.sent(&heartbeat, now);
        number += 1;
        let arrived = heartbeat.number.min(2);
        let state = hear(&mut peer, told(number, (heartbeat.number, arrived)), now);
        if state < Clear::Send {
            encrypted.get_or_insert(turn);
        }
    }
    // The second one was the last that came; one alone that is lost says nothing.
    assert_eq!(encrypted, Some(4));
}

#[test]
fn what_was_tried_before_a_peer_was_encrypted_counts_no_more() {
    let (mut peer, now) = trying();
    send(&mut peer, now);
    assert_eq!(hear(&mut peer, told(2, (1, 1)), now), Clear::Send);
    peer.hear_path_probe(PathProbe {
        run: 1,
        number: 2,
        asks: false,
    });
    peer.look(tunnel(OTHER), now);
    assert_eq!(clear(&peer), Clear::No);
    assert_eq!(send(&mut peer, now).path_probes, ProbesHeard::None);
    peer.look(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Accept, "it is tried anew");
    assert_eq!(hear(&mut peer, told(3, (2, 1)), now), Clear::Accept);
    send(&mut peer, now + EVERY);
    assert_eq!(hear(&mut peer, told(4, (3, 3)), now + EVERY), Clear::Send);
}

#[test]
fn a_restart_of_either_end_does_not_encrypt_a_clear_pair() {
    // The peer's: it begins to count anew, and heard nothing yet.
    let (mut peer, now) = trying();
    send(&mut peer, now);
    assert_eq!(hear(&mut peer, told(2, (1, 1)), now), Clear::Send);
    for number in 1..=4 {
        let at = now + EVERY * number;
        send(&mut peer, at);
        let again = Heartbeat {
            run: 2,
            ..told(number, (number, 0))
        };
        assert_eq!(hear(&mut peer, again, at), Clear::Send);
    }
    let at = now + EVERY * 9;
    let again = Heartbeat {
        run: 2,
        ..told(9, (5, 5))
    };
    assert_eq!(hear(&mut peer, again, at), Clear::Send);
    // This end's: the peer still speaks of the former run.
    let mut peer = Peer::new(wanted(), now);
    peer.adopt(Clear::Send, now);
    send(&mut peer, now);
    assert_eq!(hear(&mut peer, told(80, (900, 900)), now), Clear::Send);
    // And where nothing arrives, that does not last.
    for number in 2..9 {
        let sent = send(&mut peer, now + EVERY * number).number;
        hear(
            &mut peer,
            told(80 + number, (sent, 0)),
            now + EVERY * number,
        );
    }
    assert_eq!(clear(&peer), Clear::Accept);
}

#[test]
fn people_are_told_of_path_probes_that_are_lost_for_long() {
    let (mut peer, begun) = trying();
    let mut number = 1;
    let mut told_at = Vec::new();
    for second in 0..40 {
        let now = begun + EVERY * second;
        let sent = send(&mut peer, now).number;
        number += 1;
        let arrived = if second < 30 { 0 } else { sent };
        hear(&mut peer, told(number, (sent, arrived)), now);
        if peer.state().lost {
            told_at.push(second);
        }
    }
    assert_eq!(told_at, (8..30).collect::<Vec<_>>());
}

#[test]
fn only_a_peer_that_may_be_clear_tells_at_once_where_the_peer_is_heard() {
    for (fast, told) in [(wanted().fast, true), (None, false)] {
        let now = Instant::now();
        let mut peer = Peer::new(PeerConfig { fast, ..wanted() }, now);
        let first = peer.heartbeat(1, EVERY, now).unwrap();
        assert_eq!(first.hears_at, None);
        peer.sent(&first, now);
        peer.look(tunnel(PEER), now);
        assert_eq!(peer.heartbeat(1, EVERY, now).is_some(), told);
        let next = peer.heartbeat(1, EVERY, now + EVERY).unwrap();
        assert_eq!(next.hears_at, Some(at(PEER)));
    }
}
