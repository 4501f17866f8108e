//! A host that no agent runs: its tunnel is made by hand, with `ip`, `bridge` and `wg`, as the format on the wire says.

use std::net::Ipv4Addr;
use std::sync::Arc;

use kontena_lab::Switch;
use kontena_schema::address::InnerSubnet;
use kontena_schema::key::PublicKey;
use kontena_schema::mac::Mac;

use super::host::{Host, Kind, finally, pass, reaches};
use super::stream::{ends, nothing_in_clear, streaming};
use kontena_overlay_lab::{Container, grid, underlay};

fn tunnel_address(host: &Host) -> Ipv4Addr {
    InnerSubnet::default().address(host.node.number)
}

/// Makes of a host without an agent the peer of another.
fn make(own: &Host, peer: &Host) {
    // The octets of a private key are written as those of a public one.
    let key = PublicKey(own.keys[0].to_octets());
    own.netns
        .feed(&format!("dd of={KEY} status=none"), &key.to_string());
    let (inner, inner_of_peer) = (tunnel_address(own), tunnel_address(peer));
    let (key_of_peer, at) = (peer.keys[0].public(), underlay(peer.node.number.get()));
    for line in [
        "ip link add wg0 mtu 1420 type wireguard".to_owned(),
        format!("wg set wg0 private-key {KEY} listen-port 6783"),
        format!(
            "wg set wg0 peer {key_of_peer} endpoint {at}:6783 allowed-ips {inner_of_peer}/32 persistent-keepalive 5"
        ),
        format!("ip addr add {inner}/32 dev wg0"),
        "ip link set wg0 up".to_owned(),
        format!("ip route add {inner_of_peer}/32 dev wg0"),
        "ip link add br0 mtu 1370 type bridge mcast_snooping 0".to_owned(),
        "ip link set br0 up".to_owned(),
        "ip link add vx0 mtu 1370 type vxlan id 7 dstport 6784 nolearning".to_owned(),
        "ip link set vx0 master br0 up".to_owned(),
    ] {
        own.netns.run(&line);
    }
    for mac in macs(peer) {
        own.netns.run(&format!(
            "bridge fdb append {mac} dev vx0 dst {inner_of_peer}"
        ));
    }
}

/// Where a private key is handed over.
const KEY: &str = "/run/hand-made-key";

/// The MACs on a host.
fn macs(host: &Host) -> [Mac; 2] {
    [
        Mac::of_node(host.node.address),
        host.containers[0].attachment().mac,
    ]
}

/// Gives a container its place on the bridge, and the neighbours that it is to reach.
fn plug(own: &Host, container: &Container, peer: &Host) {
    let (task, mac, address) = (
        container.netns.task(),
        container.attachment().mac,
        container.address,
    );
    own.netns.run(&format!(
        "ip link add port0 type veth peer name ethwe address {mac} mtu 1370 netns {task}"
    ));
    own.netns.run("ip link set port0 master br0 up");
    container
        .netns
        .run(&format!("ip addr add {address}/17 dev ethwe"));
    container.netns.run("ip link set ethwe up");
    let addresses = [peer.node.address, peer.containers[0].address];
    for (to, mac) in addresses.into_iter().zip(macs(peer)) {
        container.netns.run(&format!(
            "ip neigh add {to} lladdr {mac} dev ethwe nud permanent"
        ));
    }
}

#[test]
fn a_host_made_by_hand_with_wg_is_a_peer_like_any_other() {
    for kind in [Kind::Kernel, Kind::Sleeve] {
        let closed = grid(7, &[]);
        let switch = Switch::start();
        let ours = Host::start(&switch, 1, kind);
        let mut other = Host::idle(&switch, 2, Kind::Kernel);
        let container = Arc::new(Container::start(2, Ipv4Addr::new(10, 81, 1, 2)));
        make(&other, &ours);
        plug(&other, &container, &ours);
        other.containers.push(container);
        finally("a handshake is made", || {
            pass(&closed, &ours, &[&ours, &other]);
            let shook = other.netns.run("wg show wg0 latest-handshakes");
            let when = shook.split_whitespace().last().unwrap_or_default();
            (when != "0").then_some(()).ok_or(shook)
        });
        let hosts = [ours, other];
        let [from, to] = ends(&hosts);
        for [from, to] in [[&from, &to], [&to, &from]] {
            reaches(&from.netns, to.address);
            from.netns
                .run(&format!("ping -n -c 1 -W 60 -M do -s 1342 {}", to.address));
            nothing_in_clear(&switch, || streaming(from, to, |stream| stream.goes_on()));
        }
        reaches(&to.netns, hosts[0].node.address);
    }
}
