//! A host changes its key.

use kontena_sleeve::PrivateKey;

use super::host::{Host, MIXES, finally, peer_report, settle, world};
use super::stream::{ends, nothing_in_clear, streaming};
use kontena_overlay_lab::{grid, public_keys};

/// The first host goes over to its next key, as the Master leads it.
fn rotate(hosts: &mut [Host]) {
    let closed = grid(7, &[]);
    let old = hosts[0].keys[0].clone();
    let new = PrivateKey::from_octets([77; 32]);
    let next_of_first = |hosts: &[Host]| {
        let all: Vec<&Host> = hosts.iter().collect();
        peer_report(&closed, all[0], &all);
        peer_report(&closed, all[1], &all).next_key
    };
    hosts[0].node.keys = public_keys(&old, Some(&new));
    finally("the peer knows the next key", || {
        match next_of_first(hosts) {
            Some(next) if next == new.public() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    hosts[0].keys = vec![new.clone(), old];
    finally("the new key is in use on both sides", || {
        next_of_first(hosts);
        let health = [hosts[0].health(), hosts[1].health()];
        let mut own = health[0].values().map(|health| health.tunnel.own);
        let mut of_peer = health[1].values().map(|health| health.tunnel.key);
        let used = own.all(|key| key == new.public()) && of_peer.all(|key| key == new.public());
        used.then_some(()).ok_or(format!("{health:?}"))
    });
    hosts[0].node.keys = public_keys(&new, None);
    hosts[0].keys = vec![new];
    assert_eq!(next_of_first(hosts), None);
    settle(&closed, &hosts.iter().collect::<Vec<_>>());
}

#[test]
fn a_key_is_rotated_under_a_running_stream() {
    for kinds in MIXES {
        let (switch, mut hosts) = world(&grid(7, &[]), &kinds);
        let [from, to] = ends(&hosts);
        streaming(&from, &to, |stream| {
            nothing_in_clear(&switch, || {
                stream.goes_on();
                rotate(&mut hosts);
                stream.goes_on();
            });
        });
    }
}
