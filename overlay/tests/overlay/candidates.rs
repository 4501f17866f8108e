//! Hosts that not every peer can reach.

use std::net::Ipv4Addr;
use std::time::Duration;

use kontena_lab::Keeper;
use kontena_schema::path::{Path, Site};

use crate::reach::everyone_reaches_everyone;
use kontena_overlay_lab::{
    Host, Netns, Switch, eventually, grid, intent, pass, trusting, underlay, within,
};

/// The host number of a NAT on the switch.
const NAT: u8 = 50;

/// A NAT router between the switch, on which it has number `at`, and a network behind it.
fn nat(switch: &Switch, at: u8) -> (Keeper, Netns) {
    let (keeper, router) = Keeper::start();
    switch.plug(&router, at);
    router.run("sysctl -qw net.ipv4.ip_forward=1");
    router.run("nft add table ip hide");
    router.run("nft add chain ip hide post { type nat hook postrouting priority 100 ; }");
    router.run("nft add rule ip hide post oifname eth0 masquerade random");
    (keeper, router)
}

/// A host behind the NAT with number `at` on the switch.
fn hidden(router: &Netns, at: u8, number: u8) -> Host {
    let own = home(number);
    let site = Site {
        region: format!("home-{at}"),
        public_ip: Some(underlay(at)),
        private_ip: Some(own),
    };
    let mut host = Host::start_at(number, site, |netns| {
        let task = netns.task();
        router.run(&format!(
            "ip link add in{number} type veth peer name eth0 netns {task}"
        ));
        router.run(&format!("ip addr add 192.168.7.254/32 dev in{number}"));
        router.run(&format!("ip link set in{number} up"));
        router.run(&format!("ip route add {own}/32 dev in{number}"));
        netns.run(&format!("ip addr add {own}/24 dev eth0"));
        netns.run("ip link set eth0 up");
        netns.run("ip route add default via 192.168.7.254");
    });
    host.node.behind_nat = Some(true);
    host
}

/// The address of a host behind a NAT, in its own network.
fn home(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 7, number)
}

#[test]
fn overlay_reaches_a_host_behind_nat() {
    let switch = Switch::start();
    let (_keeper, router) = nat(&switch, NAT);
    let mut open = Host::start(&switch, 1);
    open.node.site.public_ip = Some(underlay(1));
    let mut hosts = vec![open, hidden(&router, NAT, 2)];
    for (host, id) in hosts.iter_mut().zip([1, 2]) {
        host.add_container(id);
    }
    let all: Vec<&Host> = hosts.iter().collect();
    // Even where everything is trusted: the peer is not at its announced address.
    for grid in [grid(7, &[]), trusting()] {
        eventually("the encrypted path", || {
            for host in &all {
                pass(&grid, host, &all);
            }
            let peers = all.iter().flat_map(|host| host.peers().into_values());
            let peers: Vec<_> = peers.collect();
            let alive = peers.iter().all(|peer| peer.alive);
            alive.then_some(()).ok_or(format!("{peers:?}"))
        });
        everyone_reaches_everyone(&hosts);
        let report = all[0].must_reconcile(&intent(&grid, all[0], &all));
        let to = underlay(NAT);
        assert_eq!(report.peers[0].path, Path::Sealed { to });
        assert_eq!(report.peers[0].unreachable, None);
    }
    let endpoint = all[0]
        .health()
        .remove(&all[1].node.id)
        .unwrap()
        .tunnel
        .endpoint;
    assert_ne!(
        endpoint,
        Some((underlay(NAT), 6783).into()),
        "NAT changes the port"
    );
}

#[test]
fn overlay_reports_why_two_hosts_behind_nat_do_not_reach_each_other() {
    const PORT: &str = "iifname eth0 udp dport 6783";
    let switch = Switch::start();
    let namespaces = [NAT, NAT + 1];
    let routers = namespaces.map(|at| nat(&switch, at));
    let hosts = [1, 2].map(|number| {
        let at = usize::from(number) - 1;
        hidden(&routers[at].1, namespaces[at], number)
    });
    let all: Vec<&Host> = hosts.iter().collect();
    let report = |host: &Host| {
        let intent = intent(&grid(7, &[]), host, &all);
        host.must_reconcile(&intent).peers.remove(0)
    };
    for (host, other) in [(0, 1), (1, 0)] {
        let why = report(all[host]).unreachable.expect("it is not reached");
        let to = format!("no handshake with {}", underlay(namespaces[other]));
        assert!(why.starts_with(&to), "{why}");
        assert!(why.contains("both nodes seem to be behind NAT"), "{why}");
    }
    // Forwarding the port of one NAT, as the hint says, is enough, and the reasons disappear. Each
    // candidate address is tried for 15 s, and each side pauses between handshakes.
    let (_, router) = &routers[0];
    router.run("nft add chain ip hide pre { type nat hook prerouting priority -100 ; }");
    router.run(&format!(
        "nft add rule ip hide pre {PORT} dnat to {}",
        home(1)
    ));
    within(Duration::from_secs(90), "both reach each other", || {
        let reports = [report(all[0]), report(all[1])];
        let found = reports.iter().all(|report| report.unreachable.is_none());
        found.then_some(()).ok_or(format!("{reports:?}"))
    });
}
