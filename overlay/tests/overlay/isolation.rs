//! Packets that must not pass.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use kontena_overlay::Clear;
use kontena_schema::agent::PeerReport;
use kontena_schema::ids::NodeId;
use kontena_schema::limits::{VXLAN_PORT, WIREGUARD_PORT};
use kontena_schema::mac::Mac;
use kontena_schema::path::Path;

use crate::ports::datagram;
use kontena_overlay_lab::{
    BOUND, Host, MASTER, Netns, Switch, converge, count, counted, dropped, eventually, grid,
    in_clear, intent, pass, remove_filter, trusting, underlay, world,
};

const CLEAR: &str = "udp dport 6784";
/// A [`forged`] frame in clear, by its inner source MAC: the overlay itself may send at any time.
/// 22 bytes are the UDP and VXLAN headers and the inner destination MAC.
const FORGED: &str = "udp dport 6784 @th,176,48 0x020000000066";
/// A type of frame for local experiments (IEEE 802).
pub const MARKER: &str = "ether type 0x88b5";

/// A broadcast frame from a MAC that is in no directory.
pub fn foreign_frame() -> Vec<u8> {
    let marker = b"a marker that nobody must see, padded to a frame's least size";
    let foreign = [0x02, 0, 0, 0, 0, 0x66];
    [&[0xff; 6], &foreign, &[0x88, 0xb5][..], marker].concat()
}

/// The same, as sent to the VXLAN port.
fn forged(vni: u32) -> Vec<u8> {
    in_clear(vni, &foreign_frame())
}

#[test]
fn overlay_sends_no_clear_packet_to_an_untrusted_peer_and_accepts_none_from_it() {
    let narrow = grid(7, &["198.51.100.1/32", "198.51.100.2/32"]);
    let (_switch, hosts) = world(3, &narrow);
    let [a, b, outside] = &hosts[..] else {
        unreachable!()
    };
    count(&outside.netns, "eth0", CLEAR);
    count(&b.netns, "eth0", CLEAR);

    let report = a.must_reconcile(&intent(&narrow, a, &[a, b, outside]));
    let path_to = |host: &Host| {
        let of = |peer: &&PeerReport| peer.node == host.node.id;
        let peer = report.peers.iter().find(of).unwrap();
        assert_eq!(peer.unreachable, None);
        peer.path
    };
    assert_eq!(path_to(b), Path::Fast { to: underlay(2) });
    assert_eq!(path_to(outside), Path::Sealed { to: underlay(3) });

    let from = &a.containers[0].netns;
    from.must_reach(b.containers[0].address);
    for to in [outside.containers[0].address, outside.node.address] {
        from.must_reach(to);
        a.netns.must_reach(to);
    }
    assert!(from.ping(Ipv4Addr::new(10, 81, 99, 9)).is_err());
    assert!(counted(&b.netns) > 0, "the counter counts");
    assert_eq!(counted(&outside.netns), 0);

    // The untrusted host sends in clear all the same.
    count(from, "ethwe", MARKER);
    let socket = outside
        .netns
        .inside(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap();
    // Its own filter would stop it.
    remove_filter(outside);
    for _ in 0..10 {
        socket
            .send_to(&forged(7), (underlay(1), VXLAN_PORT))
            .unwrap();
    }
    eventually("the drops are counted", || match dropped(a, "dropped_in") {
        10 => Ok(()),
        count => Err(count.to_string()),
    });
    assert_eq!(counted(from), 0, "a frame was accepted");

    // Without the packet filter, the anti-spoofing filter drops it: its sender is unknown.
    let send = || socket.send_to(&forged(7), (underlay(1), VXLAN_PORT));
    remove_filter(a);
    let before = dropped(a, "dropped_sender");
    send().unwrap();
    eventually("the drop is counted", || {
        match dropped(a, "dropped_sender") - before {
            1 => Ok(()),
            count => Err(count.to_string()),
        }
    });
    assert_eq!(counted(from), 0, "a frame was accepted");

    // Without either it is accepted: the counter would see it.
    a.netns.run("nft delete table netdev kontena");
    send().unwrap();
    eventually("the marker is seen", || match counted(from) {
        0 => Err("not seen".to_owned()),
        _ => Ok(()),
    });
}

#[test]
fn overlay_filter_drops_packets_that_the_fdb_would_send() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    a.netns
        .run("nft delete element inet kontena fast_peers { 198.51.100.2 }");
    count(&b.netns, "eth0", CLEAR);
    assert!(a.containers[0].netns.ping(b.containers[0].address).is_err());
    assert_eq!(counted(&b.netns), 0);
    assert!(dropped(a, "dropped_out") > 0);
    converge(&trusting(), &[a, b]);
    a.containers[0].netns.must_reach(b.containers[0].address);
}

#[test]
fn overlay_grids_with_the_same_addresses_do_not_cross() {
    let switch = Switch::start();
    // Numbers 1 and 3 are one grid's, 2 and 4 the other's, and each has all four in its
    // directory: only the VNI keeps them apart.
    let mut hosts: Vec<Host> = (1..=4).map(|number| Host::start(&switch, number)).collect();
    for (host, id) in hosts.iter_mut().zip([1, 2, 3, 4]) {
        host.add_container(id);
    }
    let all: Vec<&Host> = hosts.iter().collect();
    let grids = [grid(7, &["198.51.100.0/24"]), grid(8, &["198.51.100.0/24"])];
    let of = |host: &Host| &grids[usize::from(host.node.id.0 % 2 == 0)];
    let one_grid = |a: NodeId, b: NodeId| a.0 % 2 == b.0 % 2;
    eventually("each peer is as clear as it can be", || {
        let steps: usize = all.iter().map(|host| pass(of(host), host, &all)).sum();
        for host in &all {
            for (other, peer) in host.peers() {
                let own = one_grid(host.node.id, other);
                // All agree on everything else, but path probes do not cross either.
                let wanted = if own { Clear::Send } else { Clear::Accept };
                if peer.clear != wanted {
                    return Err(format!("{} to {other}: {peer:?}", host.node.name));
                }
            }
        }
        (steps == 0).then_some(()).ok_or(format!("{steps} steps"))
    });
    let check = |from: &Host| {
        for to in &all {
            let netns = &from.containers[0].netns;
            if one_grid(from.node.id, to.node.id) {
                netns.must_reach(to.containers[0].address);
                netns.must_reach(to.node.address);
            } else {
                assert!(netns.ping(to.containers[0].address).is_err());
                assert!(netns.ping(to.node.address).is_err());
            }
        }
    };
    // Timeouts take time, so all hosts wait at once.
    std::thread::scope(|scope| {
        for from in &all {
            scope.spawn(|| check(from));
        }
    });
}

/// A frame with another MAC is not forwarded at all: not to other hosts, on either path, nor to
/// containers of the same host.
#[test]
fn overlay_container_can_send_only_with_its_own_mac() {
    let mixed = grid(7, &["198.51.100.1/32", "198.51.100.2/32"]);
    let (_switch, mut hosts) = world(3, &mixed);
    hosts[0].add_container(11);
    let all: Vec<&Host> = hosts.iter().collect();
    converge(&mixed, &all);
    let [a, clear, encrypted] = &hosts[..] else {
        unreachable!()
    };
    let attacker = &a.containers[1];
    let others = [a, clear, encrypted].map(|host| &host.containers[0]);
    for container in others {
        count(&container.netns, "ethwe", "udp dport 9");
    }
    let seen = || others.map(|container| counted(&container.netns));
    let send = |mac: Mac| {
        let everybody = Mac([0xff; 6]);
        let frame = datagram(
            [mac, everybody],
            [attacker.address, Ipv4Addr::BROADCAST],
            &[],
        );
        kontena_lab::send(&attacker.netns, "ethwe", &frame);
    };
    for victim in others {
        send(victim.attachment().mac);
    }
    send(Mac::of_node(a.node.address));
    send(Mac([2, 0, 0, 0, 0, 0x66]));
    send(attacker.attachment().mac);
    // An answer arrives after what was sent before on the same path.
    for container in others {
        attacker.netns.must_reach(container.address);
    }
    assert_eq!(seen(), [1, 1, 1], "its own frame, and no other");
    // Nor without the lock, which kernels before 5.18 do not have.
    a.netns
        .run("ip link set vethweb type bridge_slave locked off");
    send(Mac([2, 0, 0, 0, 0, 0x66]));
    attacker.netns.must_reach(others[0].address);
    assert_eq!(seen(), [1, 1, 1]);
    assert_eq!(dropped(a, "dropped_source"), 6);
    // Without the filter they would have come to some: the counters can see them.
    a.netns.run("nft delete chain netdev kontena_ports vethweb");
    send(Mac([2, 0, 0, 0, 0, 0x66]));
    eventually("the stranger's frame", || match seen() {
        [2, ..] => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
}

#[test]
fn overlay_container_cannot_take_over_a_remote_mac() {
    let (_switch, mut hosts) = world(2, &trusting());
    hosts[0].add_container(11);
    let all: Vec<&Host> = hosts.iter().collect();
    converge(&trusting(), &all);
    let [a, b] = &hosts[..] else { unreachable!() };
    let victim = b.containers[0].attachment().mac;
    let attacker = &a.containers[1].netns;
    // The container sends with the victim's MAC, whose entry is permanent on another port.
    attacker.run(&format!("ip link set ethwe address {victim}"));
    assert!(
        attacker.ping(a.containers[0].address).is_err(),
        "the answer goes to the victim's host"
    );
    a.containers[0].netns.must_reach(b.containers[0].address);
    let entries = a.netns.run("bridge fdb show br kontena");
    let of_victim: Vec<&str> = entries
        .lines()
        .filter(|line| line.starts_with(&victim.to_string()))
        .collect();
    assert!(
        of_victim.iter().all(|line| line.contains("dev kontena-vx")),
        "{of_victim:?}"
    );
}

/// A network as Docker's, masqueraded: the container's packets leave with the host's
/// own address, which the peer trusts.
pub fn dockers_network(host: &Host) {
    let container = &host.containers[0].netns;
    let pid = container.task();
    host.netns.run("ip link add docker0 type bridge");
    host.netns.run("ip addr add 172.17.0.1/16 dev docker0");
    host.netns.run("ip link set docker0 up");
    host.netns.run(&format!(
        "ip link add vdocker type veth peer name eth0 netns {pid}"
    ));
    host.netns.run("ip link set vdocker master docker0 up");
    container.run("ip addr add 172.17.0.2/16 dev eth0");
    container.run("ip link set eth0 up");
    container.run("ip route add default via 172.17.0.1");
    host.netns.run("sysctl -qw net.ipv4.ip_forward=1");
    host.netns.run("nft add table ip nat");
    for line in [
        "post { type nat hook postrouting priority 100 ; }",
        "pre { type nat hook prerouting priority -100 ; }",
    ] {
        host.netns.run(&format!("nft add chain ip nat {line}"));
    }
    host.netns
        .run("nft add rule ip nat post ip saddr 172.17.0.0/16 masquerade");
}

#[test]
fn overlay_closes_the_master_to_containers() {
    let (switch, hosts) = world(1, &trusting());
    let host = &hosts[0];
    dockers_network(host);
    let container = &host.containers[0].netns;
    let master = Host::start(&switch, 250);
    let listen = |port| {
        let at = (std::net::Ipv4Addr::UNSPECIFIED, port);
        master.netns.inside(|| TcpListener::bind(at)).unwrap()
    };
    let _listening = [listen(443), listen(80)];
    let connect = |netns: &Netns, to: (Ipv4Addr, u16)| {
        netns.inside(|| TcpStream::connect_timeout(&to.into(), Duration::from_secs(1)))
    };
    // Other ports of that host are open, once the new links are up.
    eventually("it is answered", || {
        let answered = connect(container, (MASTER, 80));
        answered.map(drop).map_err(|err| err.to_string())
    });
    connect(&host.netns, (MASTER, 443)).unwrap();
    connect(container, (MASTER, 443)).unwrap_err();
    assert!(dropped(host, "dropped_master") > 0);
    // Nor through the overlay's bridge.
    container.run("ip route replace default via 10.81.0.1 dev ethwe");
    let before = dropped(host, "dropped_master");
    connect(container, (MASTER, 443)).unwrap_err();
    assert!(dropped(host, "dropped_master") > before);
    container.run("ip route replace default via 172.17.0.1");
    // Nor where the Master is a container whose port this host publishes.
    let rule =
        format!("nft add rule ip nat pre ip daddr 198.51.100.1 tcp dport 8443 dnat to {MASTER}:80");
    host.netns.run(&rule);
    connect(container, (underlay(1), 8443)).unwrap();
    let mut published = intent(&trusting(), host, &[host]);
    published.egress.masters = Some(BTreeSet::from([(underlay(1), 8443).into()]));
    host.must_reconcile(&published);
    connect(container, (underlay(1), 8443)).unwrap_err();
    connect(container, (MASTER, 443)).unwrap();
}

#[test]
fn overlay_accepts_no_clear_packet_that_a_container_sends() {
    let (_switch, mut hosts) = world(2, &trusting());
    hosts[0].add_container(11);
    converge(&trusting(), &hosts.iter().collect::<Vec<_>>());
    let [a, b] = &hosts[..] else { unreachable!() };
    dockers_network(a);
    let container = &a.containers[0].netns;
    // With these the kernel itself would drop the forged source.
    a.netns.run("sysctl -qw net.ipv4.conf.all.rp_filter=0");
    a.netns.run("sysctl -qw net.ipv4.conf.docker0.rp_filter=0");
    count(&b.netns, "eth0", FORGED);
    let send = |from: Ipv4Addr, to: Ipv4Addr, port: u16| {
        let socket = container.inside(|| UdpSocket::bind((from, 0))).unwrap();
        socket.send_to(&forged(7), (to, port)).unwrap();
    };
    let wait_for = |counter: &str, wanted: u64| {
        eventually(counter, || match dropped(a, counter) {
            count if count == wanted => Ok(()),
            count => Err(count.to_string()),
        });
    };

    let own = Ipv4Addr::new(172, 17, 0, 2);
    send(own, underlay(2), VXLAN_PORT);
    wait_for("dropped_forward", 1);
    assert_eq!(counted(&b.netns), 0);
    // Nor what would look like this host's handshakes.
    send(own, underlay(2), WIREGUARD_PORT);
    wait_for("dropped_forward", 2);
    // Other ports are open; a drop would be counted before what follows.
    send(own, underlay(2), 6799);
    // Nor are those ports closed between containers, on one host or two.
    let filtered = a.netns.run("sysctl -n net.bridge.bridge-nf-call-iptables");
    assert_eq!(
        filtered.trim(),
        "1",
        "the filter sees what passes the bridge"
    );
    let own_overlay = a.containers[0].address;
    for to in [&a.containers[1], &b.containers[0]] {
        for port in [VXLAN_PORT, WIREGUARD_PORT] {
            let at = (to.address, port);
            let there = to.netns.inside(|| UdpSocket::bind(at)).unwrap();
            there.set_read_timeout(Some(BOUND)).unwrap();
            send(own_overlay, to.address, port);
            let (_, from) = there.recv_from(&mut [0; 128]).unwrap();
            assert_eq!(from.ip(), own_overlay);
        }
    }

    count(&a.containers[0].netns, "ethwe", MARKER);
    container.run("ip addr add 198.51.100.2/32 dev eth0");
    send(underlay(2), underlay(1), VXLAN_PORT);
    wait_for("dropped_in", 1);
    assert_eq!(dropped(a, "dropped_forward"), 2);
    assert_eq!(counted(container), 0);
    container.run("ip addr del 198.51.100.2/32 dev eth0");

    // Without the filter the peer would have got it.
    remove_filter(a);
    send(own, underlay(2), VXLAN_PORT);
    eventually("the packet is seen", || match counted(&b.netns) {
        0 => Err("not seen".to_owned()),
        _ => Ok(()),
    });
}
