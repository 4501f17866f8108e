//! Hosts that are not where everybody can reach them.

use std::net::Ipv4Addr;

use kontena_lab::Keeper;
use kontena_schema::path::{Path, Site};

use crate::lab::{Host, Place, Switch, eventually, grid, intent, pass, trusting, underlay};
use crate::reach::everyone_reaches_everyone;

/// The address of the translator on the switch.
const TRANSLATOR: u8 = 50;

/// A router between the switch and a network behind it, which hides who is there.
fn translator(switch: &Switch) -> (Keeper, Place) {
    let (keeper, router) = Keeper::start();
    switch.plug(&router, TRANSLATOR);
    router.run("sysctl -qw net.ipv4.ip_forward=1");
    router.run("nft add table ip hide");
    router.run("nft add chain ip hide post { type nat hook postrouting priority 100 ; }");
    router.run("nft add rule ip hide post oifname eth0 masquerade random");
    (keeper, router)
}

/// A host behind the translator.
fn hidden(router: &Place, number: u8) -> Host {
    let own = Ipv4Addr::new(192, 168, 7, number);
    let site = Site {
        region: "home".into(),
        public_ip: Some(underlay(TRANSLATOR)),
        private_ip: Some(own),
    };
    Host::start_at(number, site, |place| {
        let task = place.task();
        router.run(&format!(
            "ip link add in{number} type veth peer name eth0 netns {task}"
        ));
        router.run(&format!("ip addr add 192.168.7.254/32 dev in{number}"));
        router.run(&format!("ip link set in{number} up"));
        router.run(&format!("ip route add {own}/32 dev in{number}"));
        place.run(&format!("ip addr add {own}/24 dev eth0"));
        place.run("ip link set eth0 up");
        place.run("ip route add default via 192.168.7.254");
    })
}

#[test]
fn overlay_reaches_a_host_behind_a_translator_of_addresses() {
    let switch = Switch::start();
    let (_keeper, router) = translator(&switch);
    let mut open = Host::start(&switch, 1);
    open.node.site.public_ip = Some(underlay(1));
    let mut hosts = vec![open, hidden(&router, 2)];
    for (host, id) in hosts.iter_mut().zip([1, 2]) {
        host.add_container(id);
    }
    let all: Vec<&Host> = hosts.iter().collect();
    // Even where everything is trusted: the peer is not where it says.
    for grid in [grid(7, &[]), trusting()] {
        eventually("the sealed path", || {
            for host in &all {
                pass(&grid, host, &all);
            }
            let pairs = all.iter().flat_map(|host| host.pairs().into_values());
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
    let switch = Switch::start();
    let routers = [translator(&switch)];
    let (_, router) = &routers[0];
    let mut hosts = [hidden(router, 1), hidden(router, 2)];
    // Behind translators of their own, in regions of their own.
    hosts[1].node.site.region = "office".into();
    hosts[1].node.site.public_ip = Some(underlay(TRANSLATOR + 1));
    let all: Vec<&Host> = hosts.iter().collect();
    for host in &all {
        let report = host.must_reconcile(&intent(&grid(7, &[]), host, &all));
        let why = report.peers[0]
            .unreachable
            .clone()
            .expect("there is no way");
        assert!(why.contains("no handshake with 198.51.100.5"), "{why}");
    }
}
