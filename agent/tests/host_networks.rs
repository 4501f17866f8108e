//! What networks a host has, asked of the kernel in a network namespace.
//!
//! It needs root.
#![allow(clippy::unwrap_used)]

use ipnetwork::Ipv4Network;
use kontena_agent::facts::networks;
use kontena_agent::facts::overlap::{Refusal, refusal};
use kontena_lab::{Keeper, Place};
use kontena_schema::address::{DEFAULT_SUBNET, DEFAULT_SUPERNET, InnerSubnet};
use kontena_schema::agent::GridSettings;
use kontena_schema::ids::GridId;

/// A host with an `eth0` and an `eth1`.
fn host() -> (Keeper, Place) {
    let (keeper, place) = Keeper::start();
    place.run("ip link add eth0 type veth peer name eth1");
    for device in ["eth0", "eth1"] {
        place.run(&format!("ip link set {device} up"));
    }
    place.run("ip addr add 192.168.7.2/24 dev eth0");
    (keeper, place)
}

fn grid() -> GridSettings {
    GridSettings {
        id: GridId(1),
        name: "demo".to_owned(),
        vni: 1,
        subnet: DEFAULT_SUBNET.parse().unwrap(),
        supernet: DEFAULT_SUPERNET.parse().unwrap(),
        inner_subnet: InnerSubnet::default(),
        trusted_subnets: Vec::new(),
    }
}

fn inside<T: Send + 'static>(
    keeper: &Keeper,
    asked: impl Future<Output = T> + Send + 'static,
) -> T {
    keeper.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(asked)
    })
}

/// The networks of a host as it tells them, with their interfaces.
fn told(keeper: &Keeper) -> Vec<(String, Option<String>)> {
    let found = inside(keeper, networks::look()).unwrap();
    let pair = |one: &kontena_schema::overlap::HostNetwork| {
        (one.network.to_string(), one.interface.clone())
    };
    let mut found: Vec<_> = found.iter().map(pair).collect();
    found.sort();
    found
}

fn on(all: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
    let pair = |(network, interface): &(&str, &str)| {
        ((*network).to_owned(), Some((*interface).to_owned()))
    };
    let mut all: Vec<_> = all.iter().map(pair).collect();
    all.sort();
    all
}

#[test]
fn networks_of_interfaces_and_of_routes_in_every_table_are_told() {
    let (keeper, place) = host();
    for line in [
        "ip addr add 10.1.2.3/32 dev eth1",
        "ip addr add 10.3.0.1 peer 10.4.0.1/24 dev eth1",
        "ip route add 10.81.5.0/24 via 192.168.7.1",
        "ip route add 10.5.0.0/16 dev eth1 table 220",
        "ip route add 10.6.0.0/16 nexthop via 192.168.7.1 nexthop via 192.168.7.9",
        "ip route add local 10.7.0.0/24 dev lo",
        // Inside another of them.
        "ip route add 10.5.9.0/24 dev eth1",
        "ip route add 192.168.7.128/25 via 192.168.7.1",
        // None that a grid could overlap.
        "ip addr add 198.51.100.1/24 dev eth1",
    ] {
        place.run(line);
    }
    let all = on(&[
        ("10.1.2.3/32", "eth1"),
        ("10.3.0.1/32", "eth1"),
        ("10.4.0.0/24", "eth1"),
        ("10.5.0.0/16", "eth1"),
        ("10.6.0.0/16", "eth0"),
        ("10.7.0.0/24", "lo"),
        ("10.81.5.0/24", "eth0"),
        ("192.168.7.0/24", "eth0"),
    ]);
    assert_eq!(told(&keeper), all);
}

#[test]
fn default_routes_and_the_overlays_own_networks_are_left_out() {
    let (keeper, place) = host();
    for line in [
        "ip route add default via 192.168.7.1",
        "ip route add 0.0.0.0/1 via 192.168.7.1",
        "ip route add 0.0.0.0/5 dev eth1",
        "ip route add 10.0.0.0/8 via 192.168.7.1",
        "ip route add 172.16.0.0/12 via 192.168.7.1 table 100",
        "ip route add blackhole 10.81.0.0/16",
        "ip route add unreachable 100.127.81.0/24 metric 4278191104",
        "ip link add kontena type bridge",
        "ip link set kontena up",
        "ip addr add 10.81.0.1/17 dev kontena",
        "ip link add kontena-wg type bridge",
        "ip link set kontena-wg up",
        "ip addr add 100.127.81.1/32 dev kontena-wg",
        "ip route add 100.127.81.0/24 dev kontena-wg",
    ] {
        place.run(line);
    }
    assert_eq!(told(&keeper), on(&[("192.168.7.0/24", "eth0")]));
    // Without a gateway it is a network.
    place.run("ip route add 10.0.0.0/8 dev eth1 metric 7");
    let both = [("10.0.0.0/8", "eth1"), ("192.168.7.0/24", "eth0")];
    assert_eq!(told(&keeper), on(&both));
}

#[test]
fn the_overlay_is_not_brought_up_over_the_hosts_network_and_not_given_up_for_it() {
    let (keeper, place) = host();
    let ask = || inside(&keeper, async { refusal(&grid(), None).await });
    assert_eq!(ask(), None);
    // As a container's network is, of which the host has the bridge.
    place.run("ip link add br-0123456789ab type bridge");
    place.run("ip addr add 10.81.96.1/20 dev br-0123456789ab");
    let Some(Refusal::Network(found)) = ask() else {
        panic!("{:?}", ask())
    };
    let network: Ipv4Network = "10.81.96.0/20".parse().unwrap();
    assert_eq!((found.host.network, found.grid), (network, grid().supernet));
    assert_eq!(found.host.interface.as_deref(), Some("br-0123456789ab"));

    place.run("ip link add kontena type bridge");
    assert!(ask().is_some(), "a bridge without its address is not up");
    place.run("ip addr add 10.81.0.1/17 dev kontena");
    assert_eq!(ask(), None);
}
