//! What unknown senders and misbehaving peers send is dropped.

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
fn packets_of_an_unknown_host_are_counted_and_dropped() {
    let (switch, hosts, sleeves) = world(2);
    let foreign = Host::start(&switch, 9);
    let socket = foreign
        .netns
        .inside(|| UdpSocket::bind((underlay(9), PORT)).unwrap());
    let data = [&[4, 0, 0, 0, 0, 0, 0, 0][..], &[0; 60]].concat();
    let messages: [&[u8]; 5] = [b"", b"x", &[1; 148], &data, &[0xff; 1400]];
    for message in messages {
        socket.send_to(message, (underlay(1), PORT)).unwrap();
    }
    until(
        "the packets are counted",
        || sleeves[0].drops(),
        |drops| drops.not_authenticated,
    );
    hosts[0].container.must_reach(address(2));
}

#[test]
fn a_flood_of_junk_blocks_neither_frames_nor_a_new_table() {
    let (switch, hosts, sleeves) = world(3);
    sleeves[0].set_table(&table(1, [1, 2]));
    let foreign = Host::start(&switch, 9);
    let bind = || UdpSocket::bind((underlay(9), PORT)).unwrap();
    let socket = foreign.netns.inside(bind);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // What does not fit into a queue is lost.
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
fn a_host_that_is_not_in_the_table_gets_no_session() {
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
fn a_frame_with_a_mac_of_another_peer_is_dropped() {
    let (_switch, hosts, sleeves) = world(3);
    let [a, b, _] = &hosts[..] else {
        unreachable!()
    };
    a.container.must_reach(address(2));
    b.container.must_reach(address(1));
    // From the second host, with the MAC of the third's container.
    let frame = [&mac(1).0[..], &mac(3).0, &EXPERIMENT, &[0; 46]].concat();
    send(&b.container, "ethwe", &frame);
    until(
        "the frame is counted",
        || sleeves[0].drops(),
        |drops| drops.wrong_sender,
    );
}

#[test]
fn address_resolution_stays_on_its_host() {
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
    let unused = Ipv4Addr::new(10, 81, 1, 99);
    let (broadcast, peer) = ([0xff; 6], mac(2).0);
    let requests = [
        arp(broadcast, 1, unused),
        arp(broadcast, 1, address(2)),
        arp(broadcast, 1, address(1)),
        arp(broadcast, 2, address(1)),
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
    for (sent, request) in (1..).zip(&requests) {
        send(&a.container, "ethwe", request);
        eventually("it is counted", || match sleeves[0].drops().arp_out {
            count if count == sent => Ok(()),
            count => Err(format!("{count} of {sent}")),
        });
    }
    // A container's own ARP is dropped, too.
    assert!(a.container.ping(unused).is_err());
    assert!(sleeves[0].drops().arp_out > requests.len() as u64);

    // Other multicast arrives, and so does the rest of IPv6.
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
fn frames_of_another_grid_are_dropped_though_the_key_is_known() {
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
fn a_peer_may_not_use_another_tunnel_address() {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=2).map(|number| Host::start(&switch, number)).collect();
    let sleeves: Vec<_> = hosts.iter().map(Host::sleeve).collect();
    sleeves[0].set_table(&table(1, 1..=2));
    // The second has the first's key, but a wrong tunnel address for it.
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
fn frames_for_an_unknown_mac_are_dropped() {
    let (_switch, hosts, sleeves) = world(2);
    let unknown = [2, 0, 0, 0, 9, 9];
    let frame = [&unknown[..], &mac(1).0, &EXPERIMENT, &[0; 46]].concat();
    send(&hosts[0].container, "ethwe", &frame);
    until(
        "the frame is counted",
        || sleeves[0].drops(),
        |drops| drops.unknown_target,
    );
}
