//! The rules of our ordinary table of the packet filter, for [`filter`](super::filter),
//! which says what they are for.
//!
//! Every packet of a host and of its containers passes the first rules of each hook, so
//! those are short: each expression of a rule costs time. What they match is sorted in
//! chains of its own; packets that return from those go on to the next rules.

use kontena_schema::address::InnerSubnet;
use kontena_schema::limits::{PROBE_PORT, VXLAN_PORT, WIREGUARD_PORT};
use serde_json::{Value, json};

use crate::linux::live_table::{FAST_PEERS, OPEN};
use crate::linux::nft::{
    Family, KONTENA, Table, count_and_drop, differs, equals, field, is_in, meta,
};
use crate::model::devices::{BRIDGE, WIREGUARD};

pub(super) const TABLE: Table = Table {
    family: Family::Inet,
    name: KONTENA,
};
/// This host's own addresses on the overlay and inside tunnels.
pub(super) const OWN: &str = "own";
/// The overlay addresses of other nodes.
pub(super) const NODES: &str = "nodes";
/// The ports at which this host answers the whole overlay.
pub(super) const TCP_SERVICES: &str = "tcp_services";
pub(super) const UDP_SERVICES: &str = "udp_services";
/// Where the Master is: address and port.
pub(super) const MASTERS: &str = "masters";
pub(super) const MASTERS_IPV6: &str = "masters_ipv6";
/// The bridges that containers are behind.
pub(super) const BRIDGES: &str = "container_bridges";

/// Before connection tracking (-200), so that drops cost nothing. The input and forward
/// hooks come after it in any case.
const PRIORITY: i64 = -300;
/// Matches the names of all overlay devices.
const OVERLAY_DEVICES: &str = "kontena*";
/// etcd's client port and peer port.
const ETCD_PORTS: [u16; 2] = [2379, 2380];
/// What pings and the host's own connections need, in the order of their numbers.
const ICMP_TYPES: [&str; 5] = [
    "echo-reply",
    "destination-unreachable",
    "echo-request",
    "time-exceeded",
    "parameter-problem",
];

const DROPPED_IN: &str = "dropped_in";
const DROPPED_OUT: &str = "dropped_out";
const DROPPED_HOST: &str = "dropped_host";
const DROPPED_FORWARD: &str = "dropped_forward";
const DROPPED_MASTER: &str = "dropped_master";

/// Everything in the table but the elements of its sets.
pub(super) fn frame(tunnel_subnet: InnerSubnet, tracked: bool) -> Vec<Value> {
    let counters = [
        DROPPED_IN,
        DROPPED_OUT,
        DROPPED_HOST,
        DROPPED_FORWARD,
        DROPPED_MASTER,
    ];
    let counters = counters.map(|name| TABLE.object("counter", json!({"name": name})));
    [
        sets(),
        counters.into(),
        prerouting(),
        input(tunnel_subnet, tracked),
        forward(tracked),
        output(tunnel_subnet),
    ]
    .concat()
}

fn sets() -> Vec<Value> {
    let sets = [
        json!({"name": OPEN, "type": "inet_proto", "flags": ["timeout"]}),
        json!({"name": FAST_PEERS, "type": "ipv4_addr"}),
        json!({"name": OWN, "type": "ipv4_addr"}),
        json!({"name": NODES, "type": "ipv4_addr"}),
        json!({"name": TCP_SERVICES, "type": "inet_service"}),
        json!({"name": UDP_SERVICES, "type": "inet_service"}),
        json!({"name": MASTERS, "type": ["ipv4_addr", "inet_service"]}),
        json!({"name": MASTERS_IPV6, "type": ["ipv6_addr", "inet_service"]}),
        json!({"name": BRIDGES, "type": "ifname"}),
    ];
    sets.map(|set| TABLE.object("set", set)).into()
}

/// Before Docker's DNAT (-100), so that a Master behind a published port is matched by
/// the address that containers know.
fn prerouting() -> Vec<Value> {
    let rule = |(protocol, masters): (&str, &str)| {
        let to = json!({"concat": [field(protocol, "daddr"), field("tcp", "dport")]});
        // The rarest match comes first.
        let of_containers = vec![equals(&to, &set(masters)), from_containers()];
        [of_containers, drop(DROPPED_MASTER)].concat()
    };
    let masters = [("ip", MASTERS), ("ip6", MASTERS_IPV6)].map(rule);
    // The frames of the overlay are UDP, and pass here on their way through the bridge, too.
    let tcp = equals(&meta("l4proto"), &json!("tcp"));
    [
        branch("prerouting_tcp", &masters),
        hook(
            "prerouting",
            &[[vec![tcp], jump("prerouting_tcp")].concat()],
        ),
    ]
    .concat()
}

fn input(tunnel_subnet: InnerSubnet, tracked: bool) -> Vec<Value> {
    let route = json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}});
    let no_way_back = [vec![equals(&route, &json!(false))], drop(DROPPED_IN)].concat();
    let vxlan = vec![no_way_back, fast("saddr"), drop(DROPPED_IN)];
    let own = [
        [vec![from(WIREGUARD)], jump("input_inside")].concat(),
        [vec![from(BRIDGE)], jump("input_overlay")].concat(),
    ];
    [
        branch("input_inside", &inside("saddr", tunnel_subnet, DROPPED_IN)),
        branch("input_overlay", &to_host(tracked)),
        branch("input_vxlan", &vxlan),
        branch("input_own", &own),
        branch("input_elsewhere", &from_elsewhere()),
        hook(
            "input",
            &[
                [vec![from(OVERLAY_DEVICES)], jump("input_own")].concat(),
                [vec![for_vxlan()], jump("input_vxlan")].concat(),
                [
                    vec![equals(&field("ip", "daddr"), &set(OWN))],
                    jump("input_elsewhere"),
                ]
                .concat(),
            ],
        ),
    ]
    .concat()
}

/// What comes to the host's addresses on the overlay, but not from there: from itself only.
fn from_elsewhere() -> Vec<Vec<Value>> {
    let passes = |device| vec![from(device), json!({"return": null})];
    vec![passes(OVERLAY_DEVICES), passes("lo"), drop(DROPPED_HOST)]
}

/// What comes from containers and other nodes through the overlay's bridge. A packet that
/// opens no connection belongs to one of this host's own, or the kernel itself rejects it.
fn to_host(tracked: bool) -> Vec<Vec<Value>> {
    let flags = is_in(&field("tcp", "flags"), &json!(["rst", "ack"]));
    let tracked = tracked.then(|| is_in(&ct("state"), &json!(["established", "related"])));
    let icmp = equals(&field("icmp", "type"), &json!({"set": ICMP_TYPES}));
    let tcp = equals(&field("tcp", "dport"), &set(TCP_SERVICES));
    let udp = equals(&field("udp", "dport"), &set(UDP_SERVICES));
    let etcd = vec![
        equals(&field("tcp", "dport"), &json!({"set": ETCD_PORTS})),
        equals(&field("ip", "saddr"), &set(NODES)),
    ];
    let single = [Some(flags), tracked, Some(icmp), Some(tcp), Some(udp)];
    let answered = single.into_iter().flatten().map(|what| vec![what]);
    let answered = answered.chain([etcd]);
    let ipv6 = vec![equals(&meta("nfproto"), &json!("ipv6"))];
    let mut rules = vec![[ipv6, drop(DROPPED_HOST)].concat()];
    rules.extend(answered.map(|what| [what, vec![json!({"return": null})]].concat()));
    rules.push(drop(DROPPED_HOST));
    rules
}

fn output(tunnel_subnet: InnerSubnet) -> Vec<Value> {
    let vxlan = vec![fast("daddr"), drop(DROPPED_OUT)];
    [
        branch(
            "output_inside",
            &inside("daddr", tunnel_subnet, DROPPED_OUT),
        ),
        branch("output_vxlan", &vxlan),
        hook(
            "output",
            &[
                [vec![to(WIREGUARD)], jump("output_inside")].concat(),
                [vec![for_vxlan()], jump("output_vxlan")].concat(),
            ],
        ),
    ]
    .concat()
}

fn forward(tracked: bool) -> Vec<Value> {
    // What Docker's NAT sends to a published port, and the replies.
    let published = tracked.then(|| is_in(&ct("status"), &json!("dnat")));
    let published = published.map(|what| vec![what, json!({"return": null})]);
    let dropped = |what: Value| [vec![what], drop(DROPPED_FORWARD)].concat();
    let branch_of = |name, tunnel: Value, overlay: Value| {
        let rules = [
            Some(dropped(tunnel)),
            published.clone(),
            Some(dropped(overlay)),
        ];
        branch(name, &rules.into_iter().flatten().collect::<Vec<_>>())
    };
    // Where Docker has the bridges' frames filtered, nearly all are these.
    let inside = vec![from(BRIDGE), to(BRIDGE), json!({"accept": null})];
    [
        branch_of("forward_from", from(WIREGUARD), from(BRIDGE)),
        branch_of("forward_to", to(WIREGUARD), to(BRIDGE)),
        hook(
            "forward",
            &[
                inside,
                [vec![from(OVERLAY_DEVICES)], jump("forward_from")].concat(),
                [vec![to(OVERLAY_DEVICES)], jump("forward_to")].concat(),
                dropped(for_vxlan()),
                initiation(),
            ],
        ),
    ]
    .concat()
}

/// What a container sends to the encrypted path of another host. It would come from this
/// host's address, and each address may initiate few handshakes. Between containers the port
/// is like any other.
fn initiation() -> Vec<Value> {
    let encrypted = equals(&field("udp", "dport"), &json!(WIREGUARD_PORT));
    let leaves = differs(&meta("oifname"), &set(BRIDGES));
    let what = vec![encrypted, from_containers(), leaves];
    [what, drop(DROPPED_FORWARD)].concat()
}

/// What passes through WireGuard's device.
fn inside(peer: &str, tunnel_subnet: InnerSubnet, counter: &str) -> Vec<Vec<Value>> {
    let subnet = tunnel_subnet.network();
    let subnet = json!({"prefix": {"addr": subnet.ip(), "len": subnet.prefix()}});
    let with_peer = equals(&field("ip", peer), &subnet);
    let port = |which, port| equals(&field("udp", which), &json!(port));
    let frame = vec![port("dport", VXLAN_PORT)];
    let heartbeat = vec![port("sport", PROBE_PORT), port("dport", PROBE_PORT)];
    let passes = [frame, heartbeat]
        .map(|what| [vec![with_peer.clone()], what, vec![json!({"accept": null})]].concat());
    passes.into_iter().chain([drop(counter)]).collect()
}

/// Clear packets of a fast peer pass while the filter is open.
fn fast(peer: &str) -> Vec<Value> {
    let open = equals(&meta("l4proto"), &set(OPEN));
    let with_peer = equals(&field("ip", peer), &set(FAST_PEERS));
    vec![open, with_peer, json!({"accept": null})]
}

fn hook(name: &str, rules: &[Vec<Value>]) -> Vec<Value> {
    let chain = json!({
        "name": name, "type": "filter", "hook": name, "prio": PRIORITY, "policy": "accept",
    });
    with_rules(name, chain, rules)
}

/// A chain reached only by a jump.
fn branch(name: &str, rules: &[Vec<Value>]) -> Vec<Value> {
    with_rules(name, json!({"name": name}), rules)
}

fn with_rules(name: &str, chain: Value, rules: &[Vec<Value>]) -> Vec<Value> {
    let rule = |expr: &Vec<Value>| TABLE.object("rule", json!({"chain": name, "expr": expr}));
    let chain = [TABLE.object("chain", chain)];
    chain.into_iter().chain(rules.iter().map(rule)).collect()
}

fn jump(chain: &str) -> Vec<Value> {
    vec![json!({"jump": {"target": chain}})]
}

fn drop(counter: &str) -> Vec<Value> {
    count_and_drop(counter).into()
}

fn set(name: &str) -> Value {
    json!(format!("@{name}"))
}

fn from(device: &str) -> Value {
    equals(&meta("iifname"), &json!(device))
}

fn to(device: &str) -> Value {
    equals(&meta("oifname"), &json!(device))
}

fn from_containers() -> Value {
    equals(&meta("iifname"), &set(BRIDGES))
}

fn for_vxlan() -> Value {
    equals(&field("udp", "dport"), &json!(VXLAN_PORT))
}

/// A property of the connection of a packet.
fn ct(key: &str) -> Value {
    json!({"ct": {"key": key}})
}
