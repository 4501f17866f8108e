//! Hosts with a WireGuard device under the VXLAN device, with each other and with hosts that have
//! the sleeve.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use kontena_lab::{Keeper, capture};
use kontena_schema::address::InnerSubnet;
use kontena_schema::agent::GridSettings;
use kontena_schema::limits::{PROBE_PORT, VXLAN_PORT};
use kontena_sleeve::PrivateKey;

use crate::encrypted::{change_under_traffic, clear_packets, count_clear, encryption};
use crate::every_packet::{MARKER, send};
use crate::life::traces;
use crate::reach::everyone_reaches_everyone;
use kontena_overlay_lab::{
    BOUND, Host, Start, Switch, converge, dropped, eventually, grid, intent, pass, public_keys,
    trusting, underlay, world_of,
};

const SLEEVE: Start = Host::start;
const DEVICE: Start = Host::start_with_wireguard;

fn tunnel_address(host: &Host) -> Ipv4Addr {
    InnerSubnet::default().address(host.node.number)
}

fn hex(octets: &[u8; 32]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// A grid without trusted subnets, with another VNI and tunnel subnet.
fn elsewhere() -> GridSettings {
    let subnet: Ipv4Network = "10.9.9.0/24".parse().unwrap();
    GridSettings {
        inner_subnet: subnet.try_into().unwrap(),
        ..grid(8, &[])
    }
}

/// Pings and streams arrive in both directions, and none is seen in clear.
fn is_encrypted_and_complete(all: &[Start; 2], grid: &GridSettings) {
    const DATAGRAMS: u64 = 20_000;
    let (switch, hosts) = world_of(all, grid);
    let [a, b] = &hosts[..] else { unreachable!() };
    count_clear(&hosts);
    everyone_reaches_everyone(&hosts);
    for pair in [[a, b], [b, a]] {
        let seen = send(&switch, pair, DATAGRAMS);
        assert_eq!(seen.lost, 0, "the capture missed packets");
        assert!(seen.marked.is_empty(), "{seen:?}");
        assert!(seen.packets > 100, "{seen:?}");
    }
    assert_eq!(clear_packets(&hosts), 0);
    for host in &hosts {
        let drops = host.statistics().drops;
        let of_tunnel = |(name, _): &(&String, &u64)| name.starts_with("dropped_");
        for (name, count) in drops.iter().filter(of_tunnel) {
            assert_eq!(*count, 0, "{name}");
        }
    }
    assert_eq!(converge(grid, &[a, b]), 0, "a second pass changes nothing");
}

#[test]
fn overlay_encrypts_between_a_device_and_a_sleeve() {
    is_encrypted_and_complete(&[DEVICE, SLEEVE], &encryption());
}

#[test]
fn overlay_encrypts_between_two_devices() {
    is_encrypted_and_complete(&[DEVICE, DEVICE], &encryption());
}

#[test]
fn overlay_encrypts_in_a_grid_with_its_own_tunnel_subnet() {
    for all in [[SLEEVE, SLEEVE], [DEVICE, SLEEVE], [DEVICE, DEVICE]] {
        is_encrypted_and_complete(&all, &elsewhere());
    }
}

#[test]
fn overlay_changes_to_the_tunnel_subnet_of_another_grid() {
    let (switch, hosts) = world_of(&[DEVICE, SLEEVE], &encryption());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    let (old, new) = ("100.127.81.", "10.9.9.");
    let shown = || format!("{}{}", traces(a), a.netns.run("nft list ruleset"));
    for (grid, is, was) in [(elsewhere(), new, old), (encryption(), old, new)] {
        converge(&grid, &all);
        everyone_reaches_everyone(&hosts);
        let shown = shown();
        assert!(!shown.contains(was), "{shown}");
        for there in [
            format!("unreachable {is}0/24"),
            format!("{is}0/24 dev kontena-wg"),
            format!("inet {is}1/32"),
            format!("dst {is}2 "),
            format!("ip daddr {is}0/24"),
        ] {
            assert!(shown.contains(&there), "{there} in {shown}");
        }
        // The protection is for the new addresses, too.
        a.netns.run("ip link set kontena-wg down");
        nothing_passes(&switch, [a, b]);
        let route = format!("ip route del unreachable {is}0/24 metric 4278191104");
        a.netns.run(&route);
        nothing_passes(&switch, [a, b]);
        converge(&grid, &all);
    }
}

#[test]
fn overlay_leaves_a_host_alone_whose_own_network_is_the_tunnel_subnet() {
    let (_switch, mut hosts) = world_of(&[DEVICE, SLEEVE], &elsewhere());
    let own = Ipv4Addr::new(100, 127, 81, 50);
    hosts[0]
        .netns
        .run(&format!("ip addr add {own}/24 dev eth0"));
    hosts[0].node.site.private_ip = Some(own);
    let all: Vec<&Host> = hosts.iter().collect();
    let inside = "is inside the tunnel subnet 100.127.81.0/24";
    for (host, whose) in all.iter().zip(["this node's own", "its"]) {
        let report = host.must_reconcile(&intent(&encryption(), host, &all));
        let why = report.peers[0].unreachable.clone();
        assert_eq!(why, Some(format!("{whose} address {own} {inside}")));
        assert_eq!(pass(&encryption(), host, &all), 0);
    }
    let links = hosts[0].netns.run("ip -o link");
    assert!(!links.contains("kontena-wg"), "{links}");
    let routes = hosts[0].netns.run("ip route show 100.127.81.0/24");
    assert!(
        routes.contains("dev eth0") && routes.lines().count() == 1,
        "{routes}"
    );
    // With another tunnel subnet it is an address like any other.
    let routes = hosts[0].netns.run("ip route show 10.9.9.0/24");
    assert!(routes.is_empty(), "{routes}");
    drop(all);

    // An address that is not in the directory is kept, too, and the error names the route.
    hosts[0].node.site.private_ip = Some(underlay(1));
    let host = &hosts[0];
    host.wireguard.as_ref().unwrap().restart();
    let all: Vec<&Host> = hosts.iter().collect();
    let errors = host.reconcile(&intent(&encryption(), host, &all)).errors;
    let first = errors.first().expect("an error").to_string();
    let what = "add the route of 100.127.81.0/24 through kontena-wg";
    assert!(first.contains(what), "{errors:?}");
    let routes = host.netns.run("ip route show 100.127.81.0/24 dev eth0");
    assert_eq!(routes.lines().count(), 1, "{routes}");
    host.netns.run(&format!("ip addr del {own}/24 dev eth0"));
    converge(&encryption(), &all);
    everyone_reaches_everyone(&hosts);
}

#[test]
fn overlay_has_encrypted_and_clear_peers_on_one_device() {
    let narrow = grid(7, &["198.51.100.1/32", "198.51.100.2/32"]);
    let (switch, hosts) = world_of(&[DEVICE, SLEEVE, DEVICE], &narrow);
    let [a, b, outside] = &hosts[..] else {
        unreachable!()
    };
    everyone_reaches_everyone(&hosts);
    let seen = send(&switch, [a, b], 1000);
    assert_eq!(seen.marked, [(VXLAN_PORT, 1000)].into());
    let seen = send(&switch, [a, outside], 1000);
    assert!(seen.marked.is_empty(), "{seen:?}");
}

#[test]
fn overlay_changes_between_a_device_and_clear_under_traffic() {
    for all in [[DEVICE, SLEEVE], [SLEEVE, DEVICE]] {
        let (_switch, hosts) = world_of(&all, &encryption());
        change_under_traffic(&hosts, 30);
    }
}

/// Containers send packets to each other, none of which arrives.
fn nothing_passes(switch: &Switch, [a, b]: [&Host; 2]) {
    let (from, to) = (&a.containers[0], &b.containers[0]);
    let seen = capture(&switch.netns, "port1", MARKER, || {
        let socket = from.netns.inside(|| UdpSocket::bind((from.address, 0)));
        let socket = socket.unwrap();
        for _ in 0..100 {
            // The container's kernel may have marked the neighbour as failed.
            let _ = socket.send_to(MARKER, (to.address, 7000));
        }
        assert!(from.netns.ping(to.address).is_err());
    });
    assert!(seen.marked.is_empty(), "{seen:?}");
    assert_eq!(seen.lost, 0);
}

#[test]
fn overlay_without_its_device_sends_nothing() {
    let (switch, hosts) = world_of(&[DEVICE, SLEEVE], &encryption());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    let reach = || a.containers[0].netns.must_reach(b.containers[0].address);
    let wireguard = a.wireguard.as_ref().unwrap();
    // Whatever has no other route goes to the peer's host.
    a.netns.run("ip route add default via 198.51.100.2");
    reach();
    count_clear(&hosts);

    a.netns.run("ip link set kontena-wg down");
    nothing_passes(&switch, [a, b]);
    assert_eq!(dropped(a, "dropped_out"), 0, "nothing was routed");
    // The filter drops it where the unreachable route is gone too.
    a.netns
        .run("ip route del unreachable 100.127.81.0/24 metric 4278191104");
    nothing_passes(&switch, [a, b]);
    assert!(dropped(a, "dropped_out") > 0, "the filter was needed");
    converge(&encryption(), &all);
    reach();

    let before = dropped(a, "dropped_out");
    wireguard.kill();
    nothing_passes(&switch, [a, b]);
    let errors = a.reconcile(&intent(&encryption(), a, &all)).errors;
    assert!(errors[0].to_string().contains("kontena-wg"), "{errors:?}");
    nothing_passes(&switch, [a, b]);
    wireguard.restart();
    converge(&encryption(), &all);
    reach();

    a.netns.run("ip link del kontena-wg");
    nothing_passes(&switch, [a, b]);
    wireguard.restart();
    converge(&encryption(), &all);
    reach();
    assert_eq!(dropped(a, "dropped_out"), before, "nothing was routed");
    assert_eq!(clear_packets(&hosts), 0);
}

#[test]
fn overlay_repairs_its_device_and_touches_nothing_else() {
    let (_switch, hosts) = world_of(&[DEVICE, SLEEVE], &encryption());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    let wireguard = a.wireguard.as_ref().unwrap();
    let key = |host: &Host| hex(&host.keys[0].public().0);
    let repair = |damage: &str| {
        let steps = converge(&encryption(), &all);
        assert!((1..=4).contains(&steps), "{damage}: {steps} steps");
        assert_eq!(converge(&encryption(), &all), 0, "{damage}");
        a.containers[0].netns.must_reach(b.containers[0].address);
    };
    for damage in [
        "listen_port=6799".to_owned(),
        format!("public_key={}\nremove=true", key(b)),
        format!("public_key={}\nreplace_allowed_ips=true", key(b)),
        format!("public_key={}", hex(&[9; 32])),
        format!("private_key={}", hex(&[9; 32])),
    ] {
        wireguard.set(&damage);
        repair(&damage);
    }
    for damage in [
        "ip link set kontena-wg down",
        "ip link set kontena-wg mtu 1300",
        "ip addr add 100.127.81.99/32 dev kontena-wg",
        "ip addr del 100.127.81.1/32 dev kontena-wg",
        "ip route del 100.127.81.0/24 dev kontena-wg",
        "ip route del unreachable 100.127.81.0/24 metric 4278191104",
        "bridge fdb append 00:00:00:00:00:00 dev kontena-vx dst 100.127.81.77",
        "bridge fdb del 00:00:00:00:00:00 dev kontena-vx dst 100.127.81.2",
        "nft flush chain inet kontena output",
    ] {
        a.netns.run(damage);
        repair(damage);
    }
}

#[test]
fn overlay_is_adopted_with_its_device_and_works_meanwhile() {
    for grid in [encryption(), trusting()] {
        let (_switch, hosts) = world_of(&[DEVICE, DEVICE], &grid);
        let all: Vec<&Host> = hosts.iter().collect();
        let [a, b] = &hosts[..] else { unreachable!() };
        let shown = |host: &Host| {
            let device = ["ip -o link show kontena-wg", "ip route", "bridge fdb"];
            device.map(|line| host.netns.run(line))
        };
        let before = all.iter().map(|host| shown(host)).collect::<Vec<_>>();
        let line = format!("ping -n -q -i 0.02 -c 150 -W 1 {}", b.containers[0].address);
        let mut pings = a.containers[0].netns.command(&line);
        let pings = pings.stdout(Stdio::piped()).spawn().unwrap();
        hosts.iter().for_each(Host::stop_agent);
        hosts.iter().for_each(Host::start_agent);
        let steps: usize = all.iter().map(|host| pass(&grid, host, &all)).sum();
        assert_eq!(
            steps,
            4 * 2,
            "the agent remembers whose keys they are, listens for heartbeats and path_probes, \
             and has its live table"
        );
        assert_eq!(converge(&grid, &all), 0);
        assert_eq!(
            all.iter().map(|host| shown(host)).collect::<Vec<_>>(),
            before
        );
        let output = pings.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        // wireguard-go may lose one when it changes sessions; recreating a path costs many.
        let few = ["150", "149", "148"].map(|few| format!(" {few} received"));
        assert!(few.iter().any(|few| text.contains(few)), "{text}");
    }
}

#[test]
fn overlay_leaves_nothing_of_its_device() {
    let (_switch, hosts) = world_of(&[DEVICE, SLEEVE], &encryption());
    let of_inside = |host: &Host| traces(host).contains("100.127.81.0/24");
    assert!(of_inside(&hosts[0]) && !of_inside(&hosts[1]));
    assert!(hosts[0].remove_all().is_empty());
    let left = traces(&hosts[0]);
    assert!(
        !left.contains("kontena") && !left.contains("100.127.81"),
        "{left}"
    );
    assert!(
        hosts[0].remove_all().is_empty(),
        "removing nothing is not an error"
    );
}

#[test]
fn overlay_changes_to_the_sleeve_where_the_device_is_no_longer_wanted() {
    let (_switch, mut hosts) = world_of(&[DEVICE, DEVICE], &encryption());
    hosts[0].stop_agent();
    let program = hosts[0].wireguard.take();
    hosts[0].start_agent();
    let all: Vec<&Host> = hosts.iter().collect();
    eventually("the program releases the port", || {
        let errors = all[0]
            .reconcile(&intent(&encryption(), all[0], &all))
            .errors;
        errors.is_empty().then_some(()).ok_or(format!("{errors:?}"))
    });
    converge(&encryption(), &all);
    everyone_reaches_everyone(&hosts);
    let left = traces(&hosts[0]);
    assert!(
        !left.contains("kontena-wg") && !left.contains("100.127.81.0/24"),
        "{left}"
    );
    let entries = hosts[0].netns.run("bridge fdb show dev kontena-vx");
    assert!(!entries.contains("100.127.81"), "{entries}");
    drop(program);
}

#[test]
fn overlay_passes_only_frames_and_heartbeats_through_the_device() {
    let (_switch, hosts) = world_of(&[DEVICE, DEVICE], &encryption());
    let [a, b] = &hosts[..] else { unreachable!() };
    // Another program of the host.
    let socket = a.netns.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let before = dropped(a, "dropped_out");
    for port in [PROBE_PORT, 9] {
        let _ = socket.send_to(b"?", (tunnel_address(b), port));
    }
    assert_eq!(dropped(a, "dropped_out") - before, 2);

    // A container behind an engine's bridge, which leaves with the host's address.
    let (_keeper, container) = Keeper::start();
    let task = container.task();
    for line in [
        "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
        format!("ip link add engine0 type veth peer name eth0 netns {task}"),
        "ip addr add 172.30.0.1/24 dev engine0".to_owned(),
        "ip link set engine0 up".to_owned(),
        "nft add table ip hide".to_owned(),
        "nft add chain ip hide post { type nat hook postrouting priority 100 ; }".to_owned(),
        "nft add rule ip hide post ip saddr 172.30.0.0/24 masquerade".to_owned(),
    ] {
        a.netns.run(&line);
    }
    container.run("ip addr add 172.30.0.2/24 dev eth0");
    container.run("ip link set eth0 up");
    container.run("ip route add default via 172.30.0.1");
    let forged = container
        .inside(|| UdpSocket::bind(("0.0.0.0", PROBE_PORT)))
        .unwrap();
    forged
        .send_to(b"?", (tunnel_address(b), PROBE_PORT))
        .unwrap();
    eventually("it is dropped", || match dropped(a, "dropped_forward") {
        1 => Ok(()),
        other => Err(other.to_string()),
    });

    // What a peer sends all the same is dropped where it comes in. The live table has no
    // rule for the device.
    a.netns.run("nft delete table inet kontena");
    let listener = b.netns.inside(|| TcpListener::bind("0.0.0.0:0")).unwrap();
    let at = (tunnel_address(b), listener.local_addr().unwrap().port()).into();
    let before = dropped(b, "dropped_in");
    let pause = Duration::from_millis(500);
    assert!(
        a.netns
            .inside(|| TcpStream::connect_timeout(&at, pause))
            .is_err()
    );
    assert!(dropped(b, "dropped_in") > before);
}

/// The first host rotates its key; its peer follows, whatever it encrypts with.
fn rotates_a_key(all: &[Start; 2]) {
    let (_switch, mut hosts) = world_of(all, &encryption());
    let old = hosts[0].keys[0].clone();
    let new = PrivateKey::from_octets([77; 32]);
    let look = |hosts: &[Host]| {
        let all: Vec<&Host> = hosts.iter().collect();
        pass(&encryption(), all[0], &all);
        pass(&encryption(), all[1], &all);
        let report = all[1].must_reconcile(&intent(&encryption(), all[1], &all));
        report.peers[0].next_key
    };
    hosts[0].node.keys = public_keys(&old, Some(&new));
    assert_eq!(look(&hosts), Some(new.public()));
    everyone_reaches_everyone(&hosts);
    hosts[0].keys = vec![new.clone(), old.clone()];
    look(&hosts);
    eventually("the new key is in use on both sides", || {
        // The agent runs a pass when a peer's state has changed.
        look(&hosts);
        let health = [hosts[0].health(), hosts[1].health()];
        let mut own = health[0].values().map(|health| health.tunnel.own);
        let mut peer = health[1].values().map(|health| health.tunnel.key);
        let used = own.all(|key| key == new.public()) && peer.all(|key| key == new.public());
        let all: Vec<&Host> = hosts.iter().collect();
        pass(&encryption(), all[1], &all);
        used.then_some(()).ok_or(format!("{health:?}"))
    });
    everyone_reaches_everyone(&hosts);
    hosts[0].node.keys = public_keys(&new, None);
    hosts[0].keys = vec![new];
    assert_eq!(look(&hosts), None);
    everyone_reaches_everyone(&hosts);
    converge(&encryption(), &hosts.iter().collect::<Vec<_>>());
}

#[test]
fn overlay_rotates_the_key_of_a_device() {
    rotates_a_key(&[DEVICE, SLEEVE]);
    rotates_a_key(&[DEVICE, DEVICE]);
}

#[test]
fn overlay_device_follows_the_key_of_a_sleeve() {
    rotates_a_key(&[SLEEVE, DEVICE]);
}

#[test]
fn overlay_measures_the_path_through_a_device() {
    let (_switch, hosts) = world_of(&[DEVICE, SLEEVE], &encryption());
    for (own, other) in [(0, 1), (1, 0)] {
        let health = eventually("a round trip was measured", || {
            let health = hosts[own].health().remove(&hosts[other].node.id).unwrap();
            let measured = health.round_trip.is_some() && health.tunnel.last_handshake.is_some();
            measured
                .then_some(health.clone())
                .ok_or(format!("{health:?}"))
        });
        assert!(health.round_trip > Some(Duration::ZERO));
        assert_eq!(health.loss, Some(0.0));
        assert!(health.tunnel.last_handshake.unwrap() < BOUND);
        let number = hosts[other].node.number.get();
        let at = (kontena_lab::underlay(number), 6783).into();
        assert_eq!(health.tunnel.endpoint, Some(at));
        assert!(health.tunnel.received_bytes > 0 && health.tunnel.sent_bytes > 0);
    }
}
