//! What passes a container's port of the bridge, and what does not.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

use kontena_lab::{Netns, send_all};
use kontena_overlay::MulticastLimit;

use kontena_schema::mac::Mac;
use kontena_sleeve::internet_checksum;
use nix::sys::socket::{setsockopt, sockopt};

use kontena_overlay_lab::{
    BOUND, Container, Host, Switch, converge, count, counted, dropped, eventually, grid, send,
    trusting, world,
};

/// Frames for the MAC of somebody else, as the receiver's kernel sees them.
const FOR_ANOTHER: &str = "meta pkttype other";
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const EVERYBODY: Mac = Mac([0xff; 6]);
const NOBODY: Mac = Mac([0x02, 0, 0, 0, 0, 0x66]);

fn mac(container: &Container) -> Mac {
    container.attachment().mac
}

/// A UDP datagram in a frame (RFC 791; a checksum of 0 is none, RFC 768).
pub fn datagram(ethernet: [Mac; 2], addresses: [Ipv4Addr; 2], data: &[u8]) -> Vec<u8> {
    let [from, to] = ethernet;
    let length = |headers: usize| ((headers + data.len()) as u16).to_be_bytes();
    let [of_ip, of_udp] = [length(28), length(8)];
    let mut ip = [0x45, 0, of_ip[0], of_ip[1], 0, 0, 0, 0, 64, 17, 0, 0].to_vec();
    ip.extend(addresses.iter().flat_map(Ipv4Addr::octets));
    let checksum = internet_checksum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let udp = [0, 9, 0, 9, of_udp[0], of_udp[1], 0, 0];
    let mut frame = [&to.0[..], &from.0, &[8, 0], &ip, &udp, data].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// What a container would send to this MAC.
fn honest(from: &Container, to: Mac) -> Vec<u8> {
    let nobody = Ipv4Addr::new(10, 81, 99, 9);
    datagram([mac(from), to], [from.address, nobody], &[])
}

/// Also not while its agent restarts, when the device through which others are reached
/// is missing and the bridge knows nobody's MAC there.
#[test]
fn overlay_container_gets_no_frame_that_is_for_another() {
    let encrypting = grid(7, &[]);
    let (_switch, mut hosts) = world(2, &encrypting);
    hosts[0].add_container(11);
    let all: Vec<&Host> = hosts.iter().collect();
    converge(&encrypting, &all);
    let [a, b] = &hosts[..] else { unreachable!() };
    let [from, beside] = &a.containers[..] else {
        unreachable!()
    };
    let remote = &b.containers[0];
    from.netns.must_reach(remote.address);
    count(&beside.netns, "ethwe", FOR_ANOTHER);
    let to_others = || {
        for to in [NOBODY, mac(remote), Mac::of_node(b.node.address)] {
            send(&from.netns, "ethwe", &honest(from, to));
        }
        // An answer comes after what was sent before on the same way.
        from.netns.must_reach(beside.address);
    };
    to_others();
    a.stop_agent();
    to_others();
    b.stop_agent();
    a.start_agent();
    to_others();
    b.start_agent();
    converge(&encrypting, &all);
    to_others();
    from.netns.must_reach(remote.address);
    assert_eq!(counted(&beside.netns), 0);
    // Were it flooded, the counter would see it.
    a.netns
        .run("ip link set vethweb type bridge_slave flood on");
    to_others();
    assert_eq!(counted(&beside.netns), 1, "the one for nobody");
}

#[test]
fn overlay_carries_multicast_between_containers_of_one_host_and_of_two() {
    for grid in [trusting(), grid(7, &[])] {
        let (_switch, mut hosts) = world(2, &grid);
        hosts[0].add_container(11);
        converge(&grid, &hosts.iter().collect::<Vec<_>>());
        let [a, b] = &hosts[..] else { unreachable!() };
        let [from, beside] = &a.containers[..] else {
            unreachable!()
        };
        let listen = |container: &Container| {
            let bind = || UdpSocket::bind((GROUP, 7000));
            let socket = container.netns.inside(bind).unwrap();
            socket
                .join_multicast_v4(&GROUP, &container.address)
                .unwrap();
            socket.set_read_timeout(Some(BOUND)).unwrap();
            socket
        };
        let listeners = [beside, &b.containers[0]].map(listen);
        let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
        let sender = from.netns.inside(bind).unwrap();
        sender.send_to(b"to all", (GROUP, 7000)).unwrap();
        for listener in &listeners {
            let mut text = [0; 16];
            let (length, by) = listener.recv_from(&mut text).unwrap();
            assert_eq!(
                (&text[..length], by.ip()),
                (&b"to all"[..], from.address.into())
            );
        }
    }
}

/// An ARP request with these addresses of the sender (RFC 826).
fn arp(ethernet: [Mac; 2], sender: (Mac, Ipv4Addr), asked: Ipv4Addr) -> Vec<u8> {
    let [from, to] = ethernet;
    let request = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    let addresses = [
        &sender.0.0[..],
        &sender.1.octets(),
        &[0; 6],
        &asked.octets(),
    ];
    [&to.0[..], &from.0, &request, &addresses.concat(), &[0; 18]].concat()
}

/// A frame of this Ethertype, from its true sender.
fn other(from: &Container, to: Mac, ethertype: &[u8]) -> Vec<u8> {
    [&to.0[..], &mac(from).0, ethertype, &[0; 60]].concat()
}

/// Two hosts; the last container of the first one is the thief.
fn with_a_thief() -> (Switch, Vec<Host>) {
    let (switch, mut hosts) = world(2, &trusting());
    hosts[0].add_container(11);
    converge(&trusting(), &hosts.iter().collect::<Vec<_>>());
    (switch, hosts)
}

/// Sends frames from the thief, which nobody must get, neighbours, other hosts and its own
/// host's bridge; each is counted. Without the filter of its port they would get `what`.
fn nobody_gets(hosts: &[Host], what: &str, counter: &str, frames: &[Vec<u8>]) {
    let [a, b] = hosts else { unreachable!() };
    let [beside, thief] = &a.containers[..] else {
        unreachable!()
    };
    let receivers: [(&Netns, &str); 3] = [
        (&beside.netns, "ethwe"),
        (&b.containers[0].netns, "ethwe"),
        (&a.netns, "kontena"),
    ];
    for (netns, device) in receivers {
        count(netns, device, &format!("ether saddr {} {what}", mac(thief)));
    }
    let seen = || receivers.map(|(netns, _)| counted(netns));
    let send_all = || {
        frames
            .iter()
            .for_each(|frame| send(&thief.netns, "ethwe", frame));
        // An answer comes after what was sent before on the same way.
        let containers = [beside, &b.containers[0]].map(|container| container.address);
        for to in [a.node.address].into_iter().chain(containers) {
            thief.netns.must_reach(to);
        }
    };
    let before = dropped(a, counter);
    send_all();
    assert_eq!(seen(), [0; 3], "{what}");
    assert_eq!(dropped(a, counter) - before, frames.len() as u64, "{what}");
    // Without the filter, and the kernel's lock that is beside it where MACs are concerned.
    a.netns.run("nft delete chain netdev kontena_ports vethweb");
    a.netns
        .run("ip link set vethweb type bridge_slave locked off");
    send_all();
    let all = seen();
    assert!(all[0] > 0, "{what}: {all:?}");
    // The next pass mends both.
    let steps = converge(&trusting(), &hosts.iter().collect::<Vec<_>>());
    assert_eq!(steps, 2, "{what}");
    send_all();
    assert_eq!(seen(), all, "{what}");
    for (netns, _) in receivers {
        netns.run("nft delete table netdev probe");
    }
}

#[test]
fn overlay_container_sends_with_no_address_but_its_own() {
    let (_switch, hosts) = with_a_thief();
    let [a, b] = &hosts[..] else { unreachable!() };
    let [beside, thief] = &a.containers[..] else {
        unreachable!()
    };
    let remote = &b.containers[0];
    let to = [
        mac(beside),
        mac(remote),
        Mac::of_node(a.node.address),
        EVERYBODY,
    ];
    let stranger = Ipv4Addr::new(10, 81, 99, 9);
    let others = [
        beside.address,
        remote.address,
        a.node.address,
        stranger,
        Ipv4Addr::UNSPECIFIED,
    ];
    let frames = |frame: &dyn Fn(Mac, Ipv4Addr) -> Vec<u8>| -> Vec<_> {
        let all = to.iter().flat_map(|&to| others.map(|of| frame(to, of)));
        all.collect()
    };
    let own = (mac(thief), thief.address);

    let packets = frames(&|to, of| datagram([own.0, to], [of, stranger], &[]));
    let what = format!("ip saddr != {}", own.1);
    nobody_gets(&hosts, &what, "dropped_source", &packets);

    let addresses = frames(&|to, of| arp([own.0, to], (own.0, of), stranger));
    let what = format!("arp saddr ip != {}", own.1);
    nobody_gets(&hosts, &what, "dropped_source", &addresses);

    let macs = frames(&|to, of| arp([own.0, to], (NOBODY, own.1), of));
    let what = format!("arp saddr ether != {}", own.0);
    nobody_gets(&hosts, &what, "dropped_source", &macs);
}

/// Not even what looks like a path probe of its host, which hears them on the bridge.
#[test]
fn overlay_container_sends_ipv4_and_arp_only() {
    let (_switch, hosts) = with_a_thief();
    let a = &hosts[0];
    let [beside, thief] = &a.containers[..] else {
        unreachable!()
    };
    let to = [mac(beside), Mac::of_node(a.node.address), EVERYBODY];
    let frames = |ethertype: &[u8]| to.map(|to| other(thief, to, ethertype));
    for (what, ethertype) in [
        ("ether type 0x88b5", &[0x88, 0xb5][..]),
        ("ether type ip6", &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 64]),
        ("ether type 8021q", &[0x81, 0, 0, 0, 8, 6]),
        ("ether type 8021q", &[0x81, 0, 0, 5, 8, 0]),
        ("ether type 0x22f0", &[0x22, 0xf0]),
        // A length, of IEEE 802.3.
        ("ether type 60", &[0, 60]),
    ] {
        nobody_gets(&hosts, what, "dropped_ethertype", &frames(ethertype));
    }
}

/// A frame for all is encrypted once for each peer, so a container sends them at a rate only.
/// What it sends to one does not count.
#[test]
fn overlay_container_sends_to_all_at_a_rate() {
    for grid in [trusting(), grid(7, &[])] {
        let (_switch, mut hosts) = world(2, &grid);
        let limit = MulticastLimit { rate: 1, burst: 20 };
        hosts[0].multicast = limit;
        converge(&grid, &hosts.iter().collect::<Vec<_>>());
        let (from, to) = (&hosts[0].containers[0], &hosts[1].containers[0]);
        let mut all = 0;
        let of_group = Mac([0x01, 0, 0x5e, 1, 2, 3]);
        for (what, target, address) in [
            ("pkttype broadcast", EVERYBODY, Ipv4Addr::BROADCAST),
            ("pkttype multicast", of_group, GROUP),
        ] {
            let what = format!("meta {what} ip saddr {}", from.address);
            count(&to.netns, "ethwe", &what);
            let frame = datagram([mac(from), target], [from.address, address], &[]);
            let (began, before) = (Instant::now(), dropped(&hosts[0], "dropped_multicast"));
            send_all(&from.netns, "ethwe", &vec![frame; 500]);
            // An answer comes after what was sent before on the same way.
            from.netns.must_reach(to.address);
            let most = u64::from(limit.burst) + began.elapsed().as_secs() + 1;
            let (passed, dropped) = (
                counted(&to.netns),
                dropped(&hosts[0], "dropped_multicast") - before,
            );
            assert_eq!(passed + dropped, 500, "{what}");
            assert!(passed <= most, "{what}: {passed}");
            all += passed;
            to.netns.run("nft delete table netdev probe");
        }
        assert!(all >= limit.burst.into(), "{all}");

        // A port that has a filter gets another rate at the next pass.
        hosts[0].multicast = MulticastLimit {
            rate: 1_000_000,
            burst: 1_000_000,
        };
        let steps = converge(&grid, &hosts.iter().collect::<Vec<_>>());
        assert_eq!(steps, 1);
        let (from, to) = (&hosts[0].containers[0], &hosts[1].containers[0]);
        count(&to.netns, "ethwe", "meta pkttype broadcast");
        let frame = honest(from, EVERYBODY);
        // No more than the queue of the sleeve's device holds.
        send_all(&from.netns, "ethwe", &vec![frame; 200]);
        from.netns.must_reach(to.address);
        assert_eq!(counted(&to.netns), 200);
    }
}

/// ARP has a limit of its own, so that who asks too much still sends.
#[test]
fn overlay_container_asks_for_addresses_at_a_rate() {
    let (_switch, hosts) = with_a_thief();
    let [beside, from] = &hosts[0].containers[..] else {
        unreachable!()
    };
    count(&beside.netns, "ethwe", "arp operation request");
    let own = (mac(from), from.address);
    let request = arp([own.0, EVERYBODY], own, Ipv4Addr::new(10, 81, 99, 9));
    let (began, before) = (Instant::now(), dropped(&hosts[0], "dropped_multicast"));
    send_all(&from.netns, "ethwe", &vec![request; 20_000]);
    from.netns.must_reach(beside.address);
    let most = 1000 * (began.elapsed().as_secs() + 2);
    let passed = counted(&beside.netns);
    assert!((1000..=most).contains(&passed), "{passed}");
    assert!(dropped(&hosts[0], "dropped_multicast") > before);
}

/// What the kernel cuts into packets only later is many of them.
#[test]
fn overlay_container_sends_no_long_frames_to_all() {
    let (_switch, hosts) = with_a_thief();
    let (from, to) = (&hosts[0].containers[1], &hosts[1].containers[0]);
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let sender = from.netns.inside(bind).unwrap();
    setsockopt(&sender, sockopt::UdpGsoSegment, &1000).unwrap();
    count(&to.netns, "ethwe", &format!("ip saddr {}", from.address));
    let before = dropped(&hosts[0], "dropped_multicast");
    assert_eq!(sender.send_to(&[7; 30_000], (GROUP, 7000)).unwrap(), 30_000);
    assert_eq!(dropped(&hosts[0], "dropped_multicast") - before, 1);
    assert_eq!(counted(&to.netns), 0);
    // To one it may.
    sender.send_to(&[7; 30_000], (to.address, 7000)).unwrap();
    eventually("it arrives", || match counted(&to.netns) {
        0 => Err("nothing".to_owned()),
        _ => Ok(()),
    });
}

/// A filter that was made for a former device of that name is none; a port that is gone
/// leaves none behind.
#[test]
fn overlay_filter_of_a_port_goes_and_comes_with_it() {
    let (_switch, mut hosts) = with_a_thief();
    let chains = |host: &Host| {
        let listing = host.netns.run("nft list table netdev kontena_ports");
        let chain = |line: &str| {
            Some(
                line.trim()
                    .strip_prefix("chain ")?
                    .trim_end_matches(" {")
                    .to_owned(),
            )
        };
        listing.lines().filter_map(chain).collect::<Vec<_>>()
    };
    let settle_all = |hosts: &[Host]| converge(&trusting(), &hosts.iter().collect::<Vec<_>>());
    let mut ports = chains(&hosts[0]);
    ports.sort();
    assert_eq!(ports, ["vethwe1", "vethweb"]);
    // As when a container restarts.
    hosts[0].netns.run("ip link del vethweb");
    settle_all(&hosts);
    let [beside, thief] = &hosts[0].containers[..] else {
        unreachable!()
    };
    thief.netns.must_reach(beside.address);
    let before = dropped(&hosts[0], "dropped_source");
    send(
        &thief.netns,
        "ethwe",
        &datagram([NOBODY, mac(beside)], [thief.address; 2], &[]),
    );
    eventually("the drop is counted", || {
        match dropped(&hosts[0], "dropped_source") - before {
            1 => Ok(()),
            count => Err(count.to_string()),
        }
    });
    assert_eq!(settle_all(&hosts), 0);

    hosts[0].containers.pop();
    settle_all(&hosts);
    assert_eq!(chains(&hosts[0]), ["vethwe1"]);
    assert!(hosts[0].remove_all().is_empty());
    assert!(!hosts[0].netns.run("nft list tables").contains("kontena"));
}
