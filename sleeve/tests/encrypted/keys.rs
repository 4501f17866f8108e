//! Keys that change while frames travel, and messages between agents.

use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use kontena_lab::{Switch, eventually};
use kontena_sleeve::{Message, PrivateKey, Sleeve, Table};

use crate::host::{Host, VNI, address, key, table, tunnel_address, world};

/// A new key of a host.
fn newer(number: u8) -> PrivateKey {
    PrivateKey::from_octets([100 + number; 32])
}

fn in_use(sleeve: &Sleeve, wanted: (&PrivateKey, &PrivateKey)) {
    eventually("the keys are in use", || {
        let status = &sleeve.status()[0];
        let used = (status.own, status.key) == (wanted.0.public(), wanted.1.public());
        used.then_some(()).ok_or(format!("{status:?}"))
    });
}

fn with_next(mut table: Table, of: u8) -> Table {
    let peer = table.peers.get_mut(&tunnel_address(of)).unwrap();
    peer.next = Some(newer(of).public());
    table
}

fn with_new(mut table: Table, of: u8) -> Table {
    let peer = table.peers.get_mut(&tunnel_address(of)).unwrap();
    peer.current = newer(of).public();
    table
}

fn with_own(mut table: Table, own: &[PrivateKey]) -> Table {
    table.own = own.to_vec();
    table
}

#[test]
fn a_key_changes_and_no_datagram_is_lost() {
    let (_switch, hosts, sleeves) = world(2);
    let [a, b] = &hosts[..] else { unreachable!() };
    a.container.must_reach(address(2));
    b.container.must_reach(address(1));
    let socket = |host: &Host| {
        let at = (address(host.number), 7000);
        let socket = host.container.inside(|| UdpSocket::bind(at)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    };
    let sockets = [socket(a), socket(b)];
    let mut number = 0_u32;
    let mut exchange = || {
        for (from, to) in [(0, 2), (1, 1)] {
            for _ in 0..20 {
                number += 1;
                sockets[from]
                    .send_to(&number.to_be_bytes(), (address(to), 7000))
                    .unwrap();
                let mut got = [0; 4];
                sockets[1 - from].recv_from(&mut got).unwrap();
                assert_eq!(got, number.to_be_bytes());
            }
        }
    };
    exchange();
    // The peer learns the next key, and goes on with the current one.
    sleeves[1].set_table(&with_next(table(2, 1..=2), 1));
    exchange();
    in_use(&sleeves[1], (&key(2), &key(1)));
    // The host changes, and still answers under the old key.
    sleeves[0].set_table(&with_own(table(1, 1..=2), &[newer(1), key(1)]));
    exchange();
    in_use(&sleeves[0], (&newer(1), &key(2)));
    exchange();
    in_use(&sleeves[1], (&key(2), &newer(1)));
    exchange();
    // The old key is forgotten on both sides.
    sleeves[1].set_table(&with_new(table(2, 1..=2), 1));
    exchange();
    sleeves[0].set_table(&with_own(table(1, 1..=2), &[newer(1)]));
    exchange();
}

#[test]
fn both_ends_may_change_their_keys_at_once() {
    let (_switch, hosts, sleeves) = world(2);
    hosts[0].container.must_reach(address(2));
    let both = [(0, 1, 2), (1, 2, 1)];
    for (at, own, peer) in both {
        sleeves[at].set_table(&with_next(table(own, 1..=2), peer));
    }
    for (at, own, peer) in both {
        let changing = with_next(table(own, 1..=2), peer);
        sleeves[at].set_table(&with_own(changing, &[newer(own), key(own)]));
        hosts[0].container.must_reach(address(2));
    }
    for (at, own, peer) in both {
        let changed = with_new(table(own, 1..=2), peer);
        sleeves[at].set_table(&with_own(changed, &[newer(own)]));
        hosts[0].container.must_reach(address(2));
    }
    in_use(&sleeves[0], (&newer(1), &newer(2)));
    in_use(&sleeves[1], (&newer(2), &newer(1)));
}

#[test]
fn without_keys_of_its_own_a_host_speaks_with_nobody() {
    let (_switch, hosts, sleeves) = world(2);
    hosts[0].container.must_reach(address(2));
    sleeves[0].set_table(&with_own(table(1, 1..=2), &[]));
    assert!(sleeves[0].status().is_empty());
    assert!(hosts[0].container.ping(address(2)).is_err());
}

/// Two hosts and what their agents hear.
fn talking() -> (Switch, Vec<(Host, Sleeve, Receiver<Message>)>) {
    let switch = Switch::start();
    let start = |number| {
        let host = Host::start(&switch, number);
        let (tell, told) = sync_channel(16);
        let sleeve = host.sleeve_that(VNI, move |message| tell.try_send(message).unwrap());
        (host, sleeve, told)
    };
    let hosts = vec![start(1), start(2)];
    (switch, hosts)
}

#[test]
fn agents_send_each_other_messages_inside_the_tunnel() {
    let (_switch, hosts) = talking();
    let [(a, sleeve, _), (_, other, told)] = &hosts[..] else {
        unreachable!()
    };
    assert!(!sleeve.send(tunnel_address(2), b"nobody knows it yet"));
    sleeve.set_table(&table(1, 1..=2));
    other.set_table(&table(2, 1..=2));
    a.container.must_reach(address(2));
    assert!(sleeve.send(tunnel_address(2), b"hello"));
    let message = told.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(message.from, tunnel_address(1));
    assert_eq!(message.contents, b"hello");
    assert!(!sleeve.send(tunnel_address(3), b"nobody is there"));
    assert!(
        !sleeve.send(tunnel_address(2), &[0; 2000]),
        "it is too long"
    );
    assert_eq!(other.drops().wrong_encapsulation, 0);
}
