//! What others send comes to nothing.

use std::net::{Ipv4Addr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use kontena_lab::{Switch, count, counted, eventually, send, underlay};
use kontena_sleeve::Drops;

use crate::host::{EXPERIMENT, Host, PORT, address, mac, table, tunnel_address, world};

fn until(what: &str, drops: impl Fn() -> Drops, counter: impl Fn(&Drops) -> u64) {
    eventually(what, || {
        let drops = drops();
        (counter(&drops) > 0)
            .then_some(())
            .ok_or(format!("{drops:?}"))
    });
}

#[test]
fn a_stranger_on_the_underlay_is_counted_and_not_heard() {
    let (switch, hosts, sleeves) = world(2);
    let stranger = Host::start(&switch, 9);
    let socket = stranger
        .netns
        .inside(|| UdpSocket::bind((underlay(9), PORT)).unwrap());
    let data = [&[4, 0, 0, 0, 0, 0, 0, 0][..], &[0; 60]].concat();
    let messages: [&[u8]; 5] = [b"", b"x", &[1; 148], &data, &[0xff; 1400]];
    for message in messages {
        socket.send_to(message, (underlay(1), PORT)).unwrap();
    }
    until(
        "the stranger is counted",
        || sleeves[0].drops(),
        |drops| drops.not_authenticated,
    );
    hosts[0].container.must_reach(address(2));
}

#[test]
fn a_flood_of_junk_keeps_neither_frames_nor_a_new_table_out() {
    let (switch, hosts, sleeves) = world(3);
    sleeves[0].set_table(&table(1, [1, 2]));
    let stranger = Host::start(&switch, 9);
    let bind = || UdpSocket::bind((underlay(9), PORT)).unwrap();
    let socket = stranger.netns.inside(bind);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // What does not fit is lost, as it would be on a wire.
                let _ = socket.send_to(&[4; 200], (underlay(1), PORT));
            }
        });
        let reached = catch_unwind(AssertUnwindSafe(|| {
            until(
                "the flood is on",
                || sleeves[0].drops(),
                |drops| drops.not_authenticated / 1000,
            );
            hosts[0].container.must_reach(address(2));
            sleeves[0].set_table(&table(1, 1..=3));
            hosts[0].container.must_reach(address(3));
        }));
        done.store(true, Ordering::Relaxed);
        reached.unwrap();
    });
}

#[test]
fn a_peer_that_nobody_knows_gets_no_session() {
    let (switch, _hosts, sleeves) = world(2);
    let unknown = Host::start(&switch, 9);
    let sleeve = unknown.sleeve();
    sleeve.set_table(&table(9, [1]));
    until(
        "the handshake is counted",
        || sleeves[0].drops(),
        |drops| drops.not_authenticated,
    );
    assert_eq!(sleeve.status()[0].last_handshake, None);
}

#[test]
fn a_frame_that_is_not_of_the_peer_that_encrypted_it_is_dropped() {
    let (_switch, hosts, sleeves) = world(3);
    let [a, b, _] = &hosts[..] else {
        unreachable!()
    };
    a.container.must_reach(address(2));
    b.container.must_reach(address(1));
    // From the second host, with the MAC of the container on the third.
    let frame = [&mac(1).0[..], &mac(3).0, &EXPERIMENT, &[0; 46]].concat();
    send(&b.container, "ethwe", &frame);
    until(
        "the frame is counted",
        || sleeves[0].drops(),
        |drops| drops.wrong_sender,
    );
}

#[test]
fn nobody_else_hears_who_is_looked_for() {
    let (_switch, hosts, sleeves) = world(2);
    let [a, b] = &hosts[..] else { unreachable!() };
    a.container.must_reach(address(2));
    count(&b.container, "ethwe", "ether type { arp, ip6 }");
    let arp = |to: [u8; 6], operation: u8, about: Ipv4Addr| {
        let ethernet = [&to[..], &mac(1).0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
        let [own, about] = [address(1), about].map(|ip| ip.octets());
        [&ethernet[..], &mac(1).0, &own, &[0; 6], &about, &[0; 18]].concat()
    };
    let ipv6 = |next_header: u8, kind: u8| {
        let ethernet = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac(1).0, &[0x86, 0xdd]].concat();
        let ip = [&[0x60, 0, 0, 0, 0, 24, next_header, 255][..], &[0; 32]].concat();
        [&ethernet[..], &ip, &[kind], &[0; 23]].concat()
    };
    let nobody = Ipv4Addr::new(10, 81, 1, 99);
    let (everybody, peer) = ([0xff; 6], mac(2).0);
    let questions = [
        arp(everybody, 1, nobody),
        arp(everybody, 1, address(2)),
        arp(everybody, 1, address(1)),
        arp(everybody, 2, address(1)),
        arp(peer, 1, address(2)),
        arp(peer, 2, address(2)),
        [
            &arp(peer, 2, address(1))[..12],
            &[0x81, 0, 0, 0],
            &arp(peer, 2, address(1))[12..],
        ]
        .concat(),
        ipv6(58, 135),
    ];
    for (sent, question) in (1..).zip(&questions) {
        send(&a.container, "ethwe", question);
        eventually("it is counted", || match sleeves[0].drops().arp_out {
            count if count == sent => Ok(()),
            count => Err(format!("{count} of {sent}")),
        });
    }
    // By itself a container asks, too.
    assert!(a.container.ping(nobody).is_err());
    assert!(sleeves[0].drops().arp_out > questions.len() as u64);

    // What else is for all arrives, and so does the rest of IPv6.
    assert_eq!(counted(&b.container), 0);
    for other in [ipv6(58, 128), ipv6(17, 135)] {
        send(&a.container, "ethwe", &other);
    }
    eventually("the rest arrives", || match counted(&b.container) {
        2 => Ok(()),
        count => Err(count.to_string()),
    });
}

#[test]
fn another_grid_s_frames_are_dropped_though_the_key_is_known() {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=2).map(|number| Host::start(&switch, number)).collect();
    let sleeves = [hosts[0].sleeve_with(7), hosts[1].sleeve_with(8)];
    for (host, sleeve) in hosts.iter().zip(&sleeves) {
        sleeve.set_table(&table(host.number, 1..=2));
    }
    assert!(hosts[0].container.ping(address(2)).is_err());
    until(
        "the frame is counted",
        || sleeves[1].drops(),
        |drops| drops.wrong_encapsulation,
    );
}

#[test]
fn a_peer_may_not_speak_for_another_s_tunnel_address() {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=2).map(|number| Host::start(&switch, number)).collect();
    let sleeves: Vec<_> = hosts.iter().map(Host::sleeve).collect();
    sleeves[0].set_table(&table(1, 1..=2));
    // The second has the first's key right, but believes in another tunnel address.
    let mut wrong = table(2, 1..=2);
    let peer = wrong.peers.remove(&tunnel_address(1)).unwrap();
    wrong.peers.insert(tunnel_address(5), peer);
    wrong.owners.insert(mac(1), tunnel_address(5));
    wrong.floods.insert(tunnel_address(5));
    sleeves[1].set_table(&wrong);
    assert!(hosts[1].container.ping(address(1)).is_err());
    until(
        "the frame is counted",
        || sleeves[0].drops(),
        |drops| drops.wrong_encapsulation,
    );
}

#[test]
fn frames_for_nobody_leave_nothing() {
    let (_switch, hosts, sleeves) = world(2);
    let nobody = [2, 0, 0, 0, 9, 9];
    let frame = [&nobody[..], &mac(1).0, &EXPERIMENT, &[0; 46]].concat();
    send(&hosts[0].container, "ethwe", &frame);
    until(
        "the frame is counted",
        || sleeves[0].drops(),
        |drops| drops.unknown_target,
    );
}
