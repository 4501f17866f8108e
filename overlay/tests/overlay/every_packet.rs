//! A million packets of every kind of pair, each looked at on the underlay.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};

use kontena_lab::{Seen, capture};

use kontena_overlay_lab::{BOUND, Host, Switch, grid, uninterrupted, world};

/// What containers send, in every packet.
pub const MARKER: &[u8; 16] = b"kontena-in-clear";
/// Datagrams under way at once: fewer than any queue on the way holds.
const UNDER_WAY: u64 = 128;

/// Sends datagrams with the marker from one host's container to the other's, all of
/// which must arrive, and looks at what passes the switch meanwhile.
pub fn send(switch: &Switch, [from, to]: [&Host; 2], datagrams: u64) -> Seen {
    let bind = |host: &Host| {
        let container = &host.containers[0];
        let at = (container.address, 7000);
        container.netns.inside(|| UdpSocket::bind(at)).unwrap()
    };
    let (sender, receiver) = (bind(from), bind(to));
    receiver.set_read_timeout(Some(BOUND)).unwrap();
    let at = (to.containers[0].address, 7000);
    let arrived = AtomicU64::new(0);
    let port = format!("port{}", from.node.number);
    capture(&switch.netns, &port, MARKER, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut datagram = [0; 64];
                for _ in 0..datagrams {
                    let length = uninterrupted(|| receiver.recv(&mut datagram));
                    let length = length.expect("every datagram arrives");
                    assert_eq!(datagram[..MARKER.len()], *MARKER);
                    assert_eq!(length, MARKER.len() + 8);
                    arrived.fetch_add(1, Ordering::Release);
                }
            });
            for number in 0..datagrams {
                while number - arrived.load(Ordering::Acquire) >= UNDER_WAY {
                    std::thread::yield_now();
                }
                let datagram = [&MARKER[..], &number.to_be_bytes()].concat();
                sender.send_to(&datagram, at).unwrap();
            }
        });
    })
}

#[test]
fn overlay_shows_a_marker_of_clear_pairs_on_their_port_only_and_never_one_of_encrypted_pairs() {
    const ENCRYPTED: u64 = 1_000_000;
    const CLEAR: u64 = 100_000;
    let narrow = grid(7, &["198.51.100.1/32", "198.51.100.2/32"]);
    let (switch, hosts) = world(3, &narrow);
    let [a, b, outside] = &hosts[..] else {
        unreachable!()
    };
    for pair in [[a, b], [a, outside], [b, outside]] {
        pair[0].containers[0]
            .netns
            .must_reach(pair[1].containers[0].address);
    }
    let seen = send(&switch, [a, b], CLEAR);
    assert_eq!(seen.lost, 0);
    assert_eq!(
        seen.marked,
        [(6784, CLEAR)].into(),
        "the look finds what is in clear"
    );
    for pair in [[a, outside], [outside, a], [outside, b]] {
        let seen = send(&switch, pair, ENCRYPTED / 3 + 1);
        assert_eq!(seen.lost, 0, "not every packet was looked at");
        assert!(seen.marked.is_empty(), "{seen:?}");
        assert!(seen.packets > 1000, "{seen:?}");
    }
}
