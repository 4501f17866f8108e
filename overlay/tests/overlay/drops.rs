//! The drop counters, and their documentation.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::encrypted::encryption;
use kontena_overlay_lab::{BOUND, world};

/// The counters in the README's table.
fn documented() -> BTreeSet<String> {
    let readme = include_str!("../../../README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.filter_map(|row| Some(row.split_once('`')?.0));
    let counters =
        names.filter(|name| name.starts_with("dropped_") || name.starts_with("encrypted_"));
    counters.map(str::to_owned).collect()
}

#[test]
fn overlay_counters_are_those_of_the_readme() {
    let (_switch, hosts) = world(1, &encryption());
    let counted: BTreeSet<String> = hosts[0].statistics().drops.into_keys().collect();
    assert_eq!(counted, documented());
}

/// The counter shows that a container sends too much.
#[test]
fn overlay_counts_frames_beyond_what_can_be_encrypted() {
    const FULL: &str = "encrypted_queue_full";
    let (_switch, hosts) = world(2, &encryption());
    let [a, b] = &hosts[..] else { unreachable!() };
    let full = || a.statistics().drops[FULL];
    a.containers[0].netns.must_reach(b.containers[0].address);
    assert_eq!(full(), 0, "little was sent");

    let to = (b.containers[0].address, 9);
    let began = Instant::now();
    while full() == 0 {
        assert!(began.elapsed() < BOUND, "a flood fills the queue");
        // Several threads at once: the queue holds 500 frames.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let netns = &a.containers[0].netns;
                    let socket = netns.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
                    let until = Instant::now() + Duration::from_millis(500);
                    while Instant::now() < until {
                        // No process listens there; the ICMP errors do no harm.
                        let _ = socket.send_to(&[0; 1200], to);
                    }
                });
            }
        });
    }
    // The flood did no other harm.
    a.containers[0].netns.must_reach(b.containers[0].address);
}
