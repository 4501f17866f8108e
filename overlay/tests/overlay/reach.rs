//! Who reaches whom, and what a container sees of it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use kontena_schema::agent::GridSettings;

use kontena_overlay_lab::{
    BOUND, Host, Netns, Start, count, counted, grid, settle, trusting, world, world_of,
};

/// Sends text over TCP and back; tells the address that the server saw.
fn tcp(client: &Netns, server: &Netns, address: Ipv4Addr) -> SocketAddr {
    let listener = server
        .inside(|| TcpListener::bind((address, 0)))
        .expect("the server has the address");
    let to = listener.local_addr().unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        let mut text = [0_u8; 5];
        stream.read_exact(&mut text).unwrap();
        stream.write_all(&text).unwrap();
        from
    });
    let mut stream = client
        .inside(|| TcpStream::connect_timeout(&to, BOUND))
        .unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut text = [0_u8; 5];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
    echo.join().unwrap()
}

pub fn everyone_reaches_everyone(hosts: &[Host]) {
    for from in hosts.iter().flat_map(|host| &host.containers) {
        for host in hosts {
            from.netns.must_reach(host.node.address);
            for to in &host.containers {
                from.netns.must_reach(to.address);
                if from.placement != to.placement {
                    let seen = tcp(&from.netns, &to.netns, to.address);
                    assert_eq!(
                        seen.ip(),
                        from.address,
                        "the source must not be masqueraded"
                    );
                }
            }
        }
    }
}

#[test]
fn overlay_reaches_every_container_and_node_and_a_second_pass_changes_nothing() {
    let (_switch, mut hosts) = world(3, &trusting());
    hosts[0].add_container(11);
    hosts[1].add_container(12);
    let all: Vec<&Host> = hosts.iter().collect();
    settle(&trusting(), &all);
    everyone_reaches_everyone(&hosts);
    for host in &hosts {
        for other in &hosts {
            host.netns.must_reach(other.node.address);
        }
    }
    assert_eq!(
        settle(&trusting(), &all),
        0,
        "a second pass changes nothing"
    );
}

#[test]
fn overlay_interface_of_a_container_is_as_the_model_says() {
    let (_switch, hosts) = world(1, &trusting());
    let container = &hosts[0].containers[0];
    let link = container.netns.run("ip -o link show ethwe");
    let mac = container.attachment().mac.to_string();
    assert!(link.contains(&mac) && link.contains("mtu 1370"), "{link}");
    assert!(link.contains("LOWER_UP"), "{link}");
    let addresses = container.netns.run("ip -o -4 addr show ethwe");
    assert!(addresses.contains("10.81.1.1/17"), "{addresses}");
    let of_ipv6 = container.netns.run("ip -o -6 addr show ethwe");
    assert_eq!(of_ipv6, "");
    let routes = container.netns.run("ip route show");
    let routes: Vec<&str> = routes.lines().map(str::trim).collect();
    assert_eq!(
        routes,
        [
            "10.81.0.0/17 dev ethwe proto kernel scope link src 10.81.1.1",
            "224.0.0.0/4 dev ethwe proto static scope link"
        ],
        "and no default route of ours"
    );
    let bridge = hosts[0].netns.run("ip -o -4 addr show kontena");
    assert!(bridge.contains("10.81.0.1/17"), "{bridge}");
}

/// A host whose engine closed the FORWARD chain of this implementation.
fn passes_a_closed_chain(iptables: &str) {
    let (_switch, hosts) = world(2, &trusting());
    for host in &hosts {
        // What an engine leaves when it starts.
        for line in [
            "-P FORWARD DROP",
            "-N DOCKER",
            "-N DOCKER-USER",
            "-A DOCKER-USER -j RETURN",
            "-I FORWARD -j DOCKER-USER",
            "-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        ] {
            host.netns.run(&format!("{iptables} {line}"));
        }
        host.netns
            .run("iptables-nft -D FORWARD -i kontena -o kontena -j ACCEPT");
    }
    let [a, b] = &hosts[..] else { unreachable!() };
    let (from, to) = (&a.containers[0], &b.containers[0]);
    assert!(
        from.netns.ping(to.address).is_err(),
        "the policy must bite, or this shows nothing"
    );

    let all: Vec<&Host> = hosts.iter().collect();
    assert_eq!(settle(&trusting(), &all), 2, "one rule on each host");
    everyone_reaches_everyone(&hosts);
    let rules = a.netns.run(&format!("{iptables} -S DOCKER-USER"));
    let first = rules.lines().nth(1);
    assert_eq!(
        first,
        Some("-A DOCKER-USER -i kontena -o kontena -j ACCEPT"),
        "{rules}"
    );
    assert_eq!(settle(&trusting(), &all), 0);
    assert!(a.remove_all().is_empty());
    assert!(!a.netns.run(&format!("{iptables} -S")).contains("kontena"));
}

#[test]
fn overlay_passes_a_host_whose_docker_forwards_nothing() {
    passes_a_closed_chain("iptables-nft");
}

#[test]
fn overlay_passes_a_host_whose_docker_uses_the_old_iptables() {
    passes_a_closed_chain("iptables-legacy");
}

#[test]
fn overlay_answers_arp_for_remote_addresses_on_the_local_bridge() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    // Without the tunnel only the bridge itself can answer.
    a.netns.run("ip link set eth0 down");
    let _ = a.containers[0].netns.ping(b.containers[0].address);
    let known = a.containers[0].netns.run("ip neigh show dev ethwe");
    let mac = b.containers[0].attachment().mac.to_string();
    assert!(
        known.contains(&format!("{} lladdr {mac}", b.containers[0].address)),
        "{known}"
    );
}

/// Whoever looks for an address that the directory does not have asks on its own host.
fn nobody_else_is_asked(all: [Start; 2], grid: &GridSettings) {
    let nobody = |number| Ipv4Addr::new(10, 81, 9, number);
    let (_switch, mut hosts) = world_of(&all, grid);
    hosts[0].add_container(11);
    settle(grid, &hosts.iter().collect::<Vec<_>>());
    let [a, b] = &hosts[..] else { unreachable!() };
    everyone_reaches_everyone(&hosts);
    let [from, beside] = &a.containers[..] else {
        unreachable!()
    };
    let elsewhere = &b.containers[0];
    for (asker, netns) in [(1, &from.netns), (2, &a.netns)] {
        let asked = format!("arp daddr ip {}", nobody(asker));
        count(&beside.netns, "ethwe", &asked);
        count(&elsewhere.netns, "ethwe", &asked);
        assert!(netns.ping(nobody(asker)).is_err());
        netns.must_reach(b.node.address);
        assert!(counted(&beside.netns) > 0, "it asked");
        assert_eq!(counted(&elsewhere.netns), 0);
        for container in [beside, elsewhere] {
            container.netns.run("nft delete table netdev probe");
        }
    }
}

#[test]
fn overlay_asks_no_other_host_who_has_an_address() {
    nobody_else_is_asked([Host::start; 2], &trusting());
    nobody_else_is_asked([Host::start; 2], &grid(7, &[]));
    nobody_else_is_asked([Host::start_with_wireguard; 2], &grid(7, &[]));
}

#[test]
fn overlay_carries_full_packets_and_refuses_larger_ones() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    let to = b.containers[0].address;
    a.containers[0].netns.must_reach(to);
    a.containers[0]
        .netns
        .run(&format!("ping -n -c 1 -W 5 -M do -s 1342 {to}"));
    let larger = a.containers[0]
        .netns
        .output(&format!("ping -n -c 1 -W 1 -M do -s 1343 {to}"));
    assert!(!larger.status.success());
}
