//! What is counted, and that users are told what it means.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::encrypted::encryption;
use kontena_overlay_lab::{BOUND, world};

/// The counters in README's table.
fn explained() -> BTreeSet<String> {
    let readme = include_str!("../../../README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.filter_map(|row| Some(row.split_once('`')?.0));
    let counters =
        names.filter(|name| name.starts_with("dropped_") || name.starts_with("encrypted_"));
    counters.map(str::to_owned).collect()
}

#[test]
fn overlay_counters_are_those_that_users_are_told_of() {
    let (_switch, hosts) = world(1, &encryption());
    let counted: BTreeSet<String> = hosts[0].statistics().drops.into_keys().collect();
    assert_eq!(counted, explained());
}

/// Whoever sees that packets get lost learns that a container sends too much.
#[test]
fn overlay_counts_what_containers_send_beyond_what_can_be_encrypted() {
    const FULL: &str = "encrypted_queue_full";
    let (_switch, hosts) = world(2, &encryption());
    let [a, b] = &hosts[..] else { unreachable!() };
    let full = || a.statistics().drops[FULL];
    a.containers[0].netns.must_reach(b.containers[0].address);
    assert_eq!(full(), 0, "nobody sent much");

    let to = (b.containers[0].address, 9);
    let began = Instant::now();
    while full() == 0 {
        assert!(began.elapsed() < BOUND, "a flood fills the queue");
        // Many at once: the queue has room for 500 frames.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let netns = &a.containers[0].netns;
                    let socket = netns.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
                    let until = Instant::now() + Duration::from_millis(500);
                    while Instant::now() < until {
                        // Nobody listens there, and who answers so does no harm.
                        let _ = socket.send_to(&[0; 1200], to);
                    }
                });
            }
        });
    }
    // It was a flood and nothing worse.
    a.containers[0].netns.must_reach(b.containers[0].address);
}
