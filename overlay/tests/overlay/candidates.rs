//! Hosts that are not where everybody can reach them.

use std::net::Ipv4Addr;
use std::time::Duration;

use kontena_lab::Keeper;
use kontena_schema::path::{Path, Site};

use crate::reach::everyone_reaches_everyone;
use kontena_overlay_lab::{
    Host, Netns, Switch, eventually, grid, intent, pass, trusting, underlay, within,
};

/// The address of a nat on the switch.
const TRANSLATOR: u8 = 50;

/// A router between the switch, where it is `at`, and a network behind it, which hides who
/// is there.
fn nat(switch: &Switch, at: u8) -> (Keeper, Netns) {
    let (keeper, router) = Keeper::start();
    switch.plug(&router, at);
    router.run("sysctl -qw net.ipv4.ip_forward=1");
    router.run("nft add table ip hide");
    router.run("nft add chain ip hide post { type nat hook postrouting priority 100 ; }");
    router.run("nft add rule ip hide post oifname eth0 masquerade random");
    (keeper, router)
}

/// A host behind the nat that is `at` that netns of the switch.
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

/// The address of a hidden host in its own network.
fn home(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 7, number)
}

#[test]
fn overlay_reaches_a_host_behind_a_translator_of_addresses() {
    let switch = Switch::start();
    let (_keeper, router) = nat(&switch, TRANSLATOR);
    let mut open = Host::start(&switch, 1);
    open.node.site.public_ip = Some(underlay(1));
    let mut hosts = vec![open, hidden(&router, TRANSLATOR, 2)];
    for (host, id) in hosts.iter_mut().zip([1, 2]) {
        host.add_container(id);
    }
    let all: Vec<&Host> = hosts.iter().collect();
    // Even where everything is trusted: the peer is not where it says.
    for grid in [grid(7, &[]), trusting()] {
        eventually("the encrypted path", || {
            for host in &all {
                pass(&grid, host, &all);
            }
            let pairs = all.iter().flat_map(|host| host.peers().into_values());
            let pairs: Vec<_> = pairs.collect();
            let alive = pairs.iter().all(|pair| pair.alive);
            alive.then_some(()).ok_or(format!("{pairs:?}"))
        });
        everyone_reaches_everyone(&hosts);
        let report = all[0].must_reconcile(&intent(&grid, all[0], &all));
        let to = underlay(TRANSLATOR);
        assert_eq!(report.peers[0].path, Path::Sealed { to });
        assert_eq!(report.peers[0].unreachable, None);
    }
    let heard = all[0]
        .health()
        .remove(&all[1].node.id)
        .unwrap()
        .tunnel
        .endpoint;
    assert_ne!(
        heard,
        Some((underlay(TRANSLATOR), 6783).into()),
        "its port is another"
    );
}

#[test]
fn overlay_tells_why_two_hidden_hosts_do_not_find_each_other() {
    const PORT: &str = "iifname eth0 udp dport 6783";
    let switch = Switch::start();
    let namespaces = [TRANSLATOR, TRANSLATOR + 1];
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
        let why = report(all[host]).unreachable.expect("there is no way");
        let to = format!("no handshake with {}", underlay(namespaces[other]));
        assert!(why.starts_with(&to), "{why}");
        assert!(why.contains("both nodes seem to be behind NAT"), "{why}");
    }
    // What it advises helps, one nat is enough, and it is told no more. Each netns
    // has its turn of 15 s, and each netns its pauses.
    let (_, router) = &routers[0];
    router.run("nft add chain ip hide pre { type nat hook prerouting priority -100 ; }");
    router.run(&format!(
        "nft add rule ip hide pre {PORT} dnat to {}",
        home(1)
    ));
    within(Duration::from_secs(90), "both find each other", || {
        let reports = [report(all[0]), report(all[1])];
        let found = reports.iter().all(|report| report.unreachable.is_none());
        found.then_some(()).ok_or(format!("{reports:?}"))
    });
}
