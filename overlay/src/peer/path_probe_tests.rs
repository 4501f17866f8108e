//! How path probes decide whether a peer turns clear.

use super::tests::{EVERY, OTHER, PEER, clear, heartbeat, received, tunnel, wanted};
use super::*;

/// A heartbeat of a peer that knows path probes: the last of this end's heartbeats and path probes
/// that it received.
fn report(number: u32, (heartbeats, path_probes): (u32, u32)) -> Heartbeat {
    Heartbeat {
        last_received: Some((heartbeats, Duration::ZERO)),
        path_probes: if path_probes == 0 {
            ProbesReceived::None
        } else {
            ProbesReceived::UpTo(path_probes)
        },
        ..heartbeat(number, true)
    }
}

/// Both ends accept clear packets, and this one probes whether they arrive.
fn probing() -> (Peer, Instant) {
    let (mut peer, now) = received(report(1, (0, 0)));
    peer.set_accepted(true);
    assert_eq!(clear(&peer), Clear::Accept, "no probe arrived yet");
    (peer, now)
}

fn send(peer: &mut Peer, now: Instant) -> Heartbeat {
    let heartbeat = peer.heartbeat(9, EVERY, now).unwrap();
    peer.sent(&heartbeat, now);
    heartbeat
}

fn receive(peer: &mut Peer, heartbeat: Heartbeat, now: Instant) -> Clear {
    peer.receive_heartbeat(heartbeat, now);
    peer.update(tunnel(PEER), now);
    clear(peer)
}

#[test]
fn nothing_is_sent_in_clear_before_a_path_probe_arrived() {
    let (mut peer, now) = probing();
    let first = send(&mut peer, now);
    let path_probe = PathProbe {
        run: 9,
        number: first.number,
        wants_answer: true,
    };
    assert_eq!(peer.path_probe(&first, now), Some((PEER, path_probe)));
    assert_eq!(receive(&mut peer, report(2, (1, 0)), now), Clear::Accept);
    assert_eq!(
        receive(&mut peer, report(3, (1, 2)), now),
        Clear::Accept,
        "never sent"
    );
    assert_eq!(receive(&mut peer, report(4, (1, 1)), now), Clear::Send);
    let second = send(&mut peer, now + EVERY);
    let (_, path_probe) = peer.path_probe(&second, now).unwrap();
    assert!(!path_probe.wants_answer, "it is known");
}

#[test]
fn no_path_probes_are_sent_where_clear_packets_may_not_be() {
    let probes = |peer: &mut Peer, now| {
        let heartbeat = send(peer, now);
        peer.path_probe(&heartbeat, now).is_some()
    };
    let (mut peer, now) = probing();
    assert!(probes(&mut peer, now));
    peer.set_accepted(false);
    assert!(!probes(&mut peer, now + EVERY), "this end accepts none");
    peer.set_accepted(true);
    let other = Heartbeat {
        accepts: false,
        ..report(2, (1, 1))
    };
    receive(&mut peer, other, now);
    assert!(!probes(&mut peer, now + EVERY * 2), "the peer accepts none");
    let (mut peer, now) = received(heartbeat(1, true));
    peer.set_accepted(true);
    assert!(!probes(&mut peer, now), "its version knows no path probes");
    let mut encrypted = wanted();
    encrypted.fast = None;
    let (mut peer, now) = probing();
    peer.configure(encrypted, now);
    peer.update(tunnel(PEER), now);
    assert!(!probes(&mut peer, now), "the directory says so");
}

#[test]
fn a_peer_turns_encrypted_when_the_clear_path_fails() {
    let (mut peer, start) = probing();
    let mut number = 1;
    let mut states = Vec::new();
    for second in 0..40 {
        let now = start + EVERY * second;
        let sent = send(&mut peer, now).number;
        number += 1;
        // Path probes arrive for 15 s, are lost for 10 s, and arrive again.
        let arrived = if (15..25).contains(&second) { 15 } else { sent };
        states.push(receive(&mut peer, report(number, (sent, arrived)), now));
    }
    assert_eq!(states[0], Clear::Send);
    let encrypted: Vec<_> = (0..40).filter(|at| states[*at] < Clear::Send).collect();
    assert_eq!(
        encrypted,
        [20, 21, 22, 23, 24],
        "after five are lost, until one arrives"
    );
    assert!(
        !states.contains(&Clear::No),
        "the peer's clear packets are still accepted"
    );
    assert!(!peer.state().lost);
    // One of five is enough.
    for second in 40..60 {
        let now = start + EVERY * second;
        let sent = send(&mut peer, now).number;
        number += 1;
        let state = receive(&mut peer, report(number, (sent, sent - sent % 5)), now);
        assert_eq!(state, Clear::Send);
    }
}

#[test]
fn a_path_probe_that_wants_an_answer_gets_one_soon_and_only_one() {
    let (mut peer, now) = probing();
    send(&mut peer, now);
    let soon = now + ANSWER_EVERY;
    assert_eq!(peer.heartbeat(9, EVERY, soon), None);
    let wanting = PathProbe {
        run: 1,
        number: 4,
        wants_answer: true,
    };
    assert!(
        !peer.receive_path_probe(PathProbe { run: 2, ..wanting }),
        "that run is unknown"
    );
    assert!(peer.receive_path_probe(wanting));
    assert_eq!(
        peer.heartbeat(9, EVERY, now),
        None,
        "probes in a burst are not answered one by one"
    );
    let answer = send(&mut peer, soon);
    assert_eq!(answer.path_probes, ProbesReceived::UpTo(4));
    let soon = soon + ANSWER_EVERY;
    // Without a request the answer waits for the next heartbeat, and a repeated one gets none.
    let quiet = PathProbe {
        number: 5,
        wants_answer: false,
        ..wanting
    };
    assert!(
        peer.receive_path_probe(quiet)
            && !peer.receive_path_probe(wanting)
            && !peer.receive_path_probe(quiet)
    );
    assert_eq!(peer.heartbeat(9, EVERY, soon), None);
    assert_eq!(
        send(&mut peer, now + EVERY * 2).path_probes,
        ProbesReceived::UpTo(5)
    );
}

#[test]
fn path_probes_that_the_peer_cannot_have_sent_are_dropped() {
    let (mut peer, now) = probing();
    send(&mut peer, now);
    let forged = PathProbe {
        run: 1,
        number: u32::MAX,
        wants_answer: true,
    };
    assert!(!peer.receive_path_probe(forged));
    assert_eq!(peer.heartbeat(9, EVERY, now + EVERY / 2), None);
    let next = PathProbe {
        number: 2,
        ..forged
    };
    assert!(
        peer.receive_path_probe(next),
        "its heartbeat may arrive later"
    );
    assert_eq!(
        send(&mut peer, now + EVERY).path_probes,
        ProbesReceived::UpTo(2)
    );
}

#[test]
fn two_damped_ends_do_not_keep_requesting_answers() {
    let (mut peer, start) = probing();
    let mut number = 1;
    // The path flaps until the peer is held back.
    for second in 0..40 {
        let now = start + EVERY * second;
        let sent = send(&mut peer, now).number;
        number += 1;
        let arrived = sent - if second % 8 < 7 { second % 8 } else { 0 };
        receive(&mut peer, report(number, (sent, arrived)), now);
    }
    let now = start + EVERY * 40;
    let heartbeat = send(&mut peer, now);
    let state = receive(
        &mut peer,
        report(number + 1, (heartbeat.number, heartbeat.number)),
        now,
    );
    assert_eq!(state, Clear::Accept, "it is held back");
    let (_, path_probe) = peer.path_probe(&heartbeat, now).unwrap();
    assert!(!path_probe.wants_answer, "the path is known to work");
}

#[test]
fn a_peer_turns_encrypted_in_time_where_heartbeats_are_rare() {
    const RARE: Duration = Duration::from_secs(8);
    let (mut peer, start) = probing();
    let mut number = 1;
    let mut encrypted = None;
    for round in 0..8 {
        let now = start + RARE * round;
        let heartbeat = peer.heartbeat(9, RARE, now).unwrap();
        peer.sent(&heartbeat, now);
        number += 1;
        let arrived = heartbeat.number.min(2);
        let state = receive(&mut peer, report(number, (heartbeat.number, arrived)), now);
        if state < Clear::Send {
            encrypted.get_or_insert(round);
        }
    }
    // The second probe was the last to arrive; a single loss would change nothing.
    assert_eq!(encrypted, Some(4));
}

#[test]
fn probes_from_before_a_peer_turned_encrypted_do_not_count() {
    let (mut peer, now) = probing();
    send(&mut peer, now);
    assert_eq!(receive(&mut peer, report(2, (1, 1)), now), Clear::Send);
    peer.receive_path_probe(PathProbe {
        run: 1,
        number: 2,
        wants_answer: false,
    });
    peer.update(tunnel(OTHER), now);
    assert_eq!(clear(&peer), Clear::No);
    assert_eq!(send(&mut peer, now).path_probes, ProbesReceived::None);
    peer.update(tunnel(PEER), now);
    assert_eq!(clear(&peer), Clear::Accept, "probing starts over");
    assert_eq!(receive(&mut peer, report(3, (2, 1)), now), Clear::Accept);
    send(&mut peer, now + EVERY);
    assert_eq!(
        receive(&mut peer, report(4, (3, 3)), now + EVERY),
        Clear::Send
    );
}

#[test]
fn a_restart_of_either_end_does_not_encrypt_a_clear_peer() {
    // The peer's: it counts from 1 and has received nothing yet.
    let (mut peer, now) = probing();
    send(&mut peer, now);
    assert_eq!(receive(&mut peer, report(2, (1, 1)), now), Clear::Send);
    for number in 1..=4 {
        let at = now + EVERY * number;
        send(&mut peer, at);
        let again = Heartbeat {
            run: 2,
            ..report(number, (number, 0))
        };
        assert_eq!(receive(&mut peer, again, at), Clear::Send);
    }
    let at = now + EVERY * 9;
    let again = Heartbeat {
        run: 2,
        ..report(9, (5, 5))
    };
    assert_eq!(receive(&mut peer, again, at), Clear::Send);
    // This end's: the peer still reports numbers of the former run.
    let mut peer = Peer::new(wanted(), now);
    peer.adopt(Clear::Send, now);
    send(&mut peer, now);
    assert_eq!(receive(&mut peer, report(80, (900, 900)), now), Clear::Send);
    // If nothing arrives, that does not last.
    for number in 2..9 {
        let sent = send(&mut peer, now + EVERY * number).number;
        receive(
            &mut peer,
            report(80 + number, (sent, 0)),
            now + EVERY * number,
        );
    }
    assert_eq!(clear(&peer), Clear::Accept);
}

#[test]
fn a_long_loss_of_path_probes_is_reported() {
    let (mut peer, start) = probing();
    let mut number = 1;
    let mut lost_at = Vec::new();
    for second in 0..40 {
        let now = start + EVERY * second;
        let sent = send(&mut peer, now).number;
        number += 1;
        let arrived = if second < 30 { 0 } else { sent };
        receive(&mut peer, report(number, (sent, arrived)), now);
        if peer.state().lost {
            lost_at.push(second);
        }
    }
    assert_eq!(lost_at, (8..30).collect::<Vec<_>>());
}

#[test]
fn only_a_peer_that_may_be_clear_is_told_its_endpoint_at_once() {
    for (fast, at_once) in [(wanted().fast, true), (None, false)] {
        let now = Instant::now();
        let mut peer = Peer::new(PeerConfig { fast, ..wanted() }, now);
        let first = peer.heartbeat(1, EVERY, now).unwrap();
        assert_eq!(first.sees_peer_at, None);
        peer.sent(&first, now);
        peer.update(tunnel(PEER), now);
        assert_eq!(peer.heartbeat(1, EVERY, now).is_some(), at_once);
        let next = peer.heartbeat(1, EVERY, now + EVERY).unwrap();
        assert_eq!(next.sees_peer_at, Some(at(PEER)));
    }
}
