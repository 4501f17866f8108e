//! What containers reach of hosts by way of the overlay, and through them.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use kontena_overlay_lab::{
    BOUND, Host, Netns, converge, dropped, eventually, intent, remove_filter, trusting, underlay,
    world,
};

use crate::isolation::dockers_network;

const PORT: u16 = 8080;
/// As long as somebody waits for an answer that is not to come.
const IN_VAIN: Duration = Duration::from_millis(700);
/// What is on the bridge of [`dockers_network`].
const DOCKER_BRIDGE: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const PLAIN: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 3);

fn listen(netns: &Netns, port: u16) -> TcpListener {
    netns
        .inside(|| TcpListener::bind(("0.0.0.0", port)))
        .unwrap()
}

fn connect(netns: &Netns, to: (Ipv4Addr, u16)) -> io::Result<TcpStream> {
    let to = SocketAddr::from(to);
    netns.inside(|| TcpStream::connect_timeout(&to, IN_VAIN))
}

fn must_connect(netns: &Netns, to: (Ipv4Addr, u16)) {
    eventually("it is answered", || {
        connect(netns, to).map(drop).map_err(|err| err.to_string())
    });
}

/// A container of Docker's alone, without the overlay.
fn plain_container(host: &Host) -> kontena_overlay_lab::Container {
    let container = kontena_overlay_lab::Container::start(99, PLAIN);
    let netns = &container.netns;
    let pid = netns.task();
    host.netns.run(&format!(
        "ip link add vplain type veth peer name eth0 netns {pid}"
    ));
    host.netns.run("ip link set vplain master docker0 up");
    netns.run(&format!("ip addr add {PLAIN}/16 dev eth0"));
    netns.run("ip link set eth0 up");
    netns.run(&format!("ip route add default via {DOCKER_BRIDGE}"));
    container
}

/// Two hosts, the first with Docker's network and a plain container on it.
fn hosts_with_docker() -> (
    kontena_overlay_lab::Switch,
    Vec<Host>,
    kontena_overlay_lab::Container,
) {
    let (switch, hosts) = world(2, &trusting());
    dockers_network(&hosts[0]);
    let plain = plain_container(&hosts[0]);
    // What is tracked is known once something was.
    hosts[0].netns.must_reach(underlay(2));
    converge(&trusting(), &hosts.iter().collect::<Vec<_>>());
    (switch, hosts, plain)
}

#[test]
fn overlay_lets_nobody_reach_what_a_host_listens_to_but_what_the_grid_put_there() {
    let (_switch, hosts, plain) = hosts_with_docker();
    let [a, b] = &hosts[..] else { unreachable!() };
    let own = a.node.address;
    let _listening = [PORT, 2379, 2380].map(|port| listen(&a.netns, port));
    must_connect(&b.netns, (underlay(1), PORT));
    let containers = [&a.containers[0].netns, &b.containers[0].netns];
    for from in containers {
        from.must_reach(own);
        for port in [PORT, 2379, 2380] {
            let before = dropped(a, "dropped_host");
            connect(from, (own, port)).unwrap_err();
            assert!(dropped(a, "dropped_host") > before, "port {port}");
        }
        // Nor at an address that is not the overlay's.
        for other in [underlay(1), DOCKER_BRIDGE] {
            from.run(&format!("ip route add {other}/32 via {own} dev ethwe"));
            connect(from, (other, PORT)).unwrap_err();
            from.run(&format!("ip route del {other}/32 dev ethwe"));
        }
    }
    // Nor by another way than the overlay: over Docker's bridge, or the host's own network.
    plain.netns.must_reach(DOCKER_BRIDGE);
    b.netns
        .run(&format!("ip route add {own}/32 via {}", underlay(1)));
    for (from, source) in [(&plain.netns, PLAIN), (&b.netns, underlay(2))] {
        for port in [PORT, 2379] {
            let before = dropped(a, "dropped_host");
            connect(from, (own, port)).unwrap_err();
            assert!(dropped(a, "dropped_host") > before, "{source}");
        }
    }
    b.netns.run(&format!("ip route del {own}/32"));
    must_connect(&a.netns, (own, PORT));

    // Nodes among each other: etcd, and nothing else.
    b.netns.must_reach(own);
    must_connect(&b.netns, (own, 2379));
    must_connect(&b.netns, (own, 2380));
    connect(&b.netns, (own, PORT)).unwrap_err();

    // What is a service answers to all.
    let all: Vec<&Host> = hosts.iter().collect();
    let mut with_service = intent(&trusting(), a, &all);
    with_service.services.tcp = BTreeSet::from([2379]);
    a.must_reconcile(&with_service);
    for from in containers {
        must_connect(from, (own, 2379));
        connect(from, (own, 2380)).unwrap_err();
    }

    // Without the filter all of it would be reached.
    remove_filter(a);
    must_connect(&a.containers[0].netns, (own, PORT));
    must_connect(&plain.netns, (own, PORT));
}

#[test]
fn overlay_lets_a_hosts_own_connections_to_containers_be() {
    let (_switch, hosts, _plain) = hosts_with_docker();
    let [a, b] = &hosts[..] else { unreachable!() };
    for to in [&a.containers[0], &b.containers[0]] {
        let _listening = listen(&to.netns, PORT);
        must_connect(&a.netns, (to.address, PORT));
        // Refused at once, and not in vain.
        let refused = connect(&a.netns, (to.address, PORT + 1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        a.netns.must_reach(to.address);
        let there = to
            .netns
            .inside(|| UdpSocket::bind((to.address, 53)))
            .unwrap();
        let asks = a.netns.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        asks.set_read_timeout(Some(BOUND)).unwrap();
        there.set_read_timeout(Some(BOUND)).unwrap();
        asks.send_to(b"?", (to.address, 53)).unwrap();
        let (_, from) = there.recv_from(&mut [0; 8]).unwrap();
        there.send_to(b"!", from).unwrap();
        asks.recv(&mut [0; 8]).expect("the answer comes");
    }
    assert_eq!(dropped(a, "dropped_host"), 0);
}

#[test]
fn overlay_routes_nothing_between_containers_and_other_networks() {
    let (_switch, hosts, plain) = hosts_with_docker();
    let [a, b] = &hosts[..] else { unreachable!() };
    a.netns.run("iptables -P FORWARD ACCEPT");
    let own = a.node.address;
    let _listening = [listen(&plain.netns, 80), listen(&b.netns, PORT)];
    let containers = [&a.containers[0].netns, &b.containers[0].netns];
    let routes = |what: &str, to: Ipv4Addr| {
        // The one on the host itself has a shorter way to Docker's network.
        for from in containers {
            from.run(&format!("ip route {what} {to}/32 via {own} dev ethwe"));
        }
    };
    // A container of Docker's, and a host on the host's own network.
    for to in [(PLAIN, 80), (underlay(2), PORT)] {
        routes("add", to.0);
        for from in containers {
            let before = dropped(a, "dropped_forward");
            connect(from, to).unwrap_err();
            assert!(dropped(a, "dropped_forward") > before, "{to:?}");
        }
        routes("del", to.0);
    }
    // Nor the other way round.
    let before = dropped(a, "dropped_forward");
    plain.netns.ping(b.containers[0].address).unwrap_err();
    assert!(dropped(a, "dropped_forward") > before);
    // Docker's own NAT is Docker's business.
    must_connect(&plain.netns, (underlay(2), PORT));

    // A published port, at the node's overlay address.
    let publish =
        format!("nft add rule ip nat pre ip daddr {own} tcp dport 8088 dnat to {PLAIN}:80");
    a.netns.run(&publish);
    let before = dropped(a, "dropped_forward");
    must_connect(&b.containers[0].netns, (own, 8088));
    assert_eq!(dropped(a, "dropped_forward"), before);

    // Without the filter the host would route: the test can tell.
    remove_filter(a);
    routes("add", PLAIN);
    a.start_agent();
    must_connect(&a.containers[0].netns, (PLAIN, 80));
}
