//! Our table of the packet filter: clear packets of the VXLAN device pass only from
//! and to fast peers.
//!
//! The VXLAN device's UDP socket takes packets from anyone, and a packet for it says
//! nothing that proves its sender; so this table is what keeps strangers out,
//! and what keeps clear packets in. It is written in one transaction before the
//! VXLAN device exists, and it stays when the agent dies; but whose packets pass is known
//! for 40 s only, and an agent that lives says so again and again: nobody is there any
//! more to hear that a network is trusted no longer. What it drops is counted in
//! `dropped_in`, `dropped_out` and `dropped_forward`. Whose frames the packets
//! may carry is the anti_spoofing's business (`anti_spoofing.rs`).
//!
//! A container is a stranger too. What it sends to a peer would leave with this
//! host's address, so nothing for the VXLAN device is forwarded, and nothing of a container for
//! the encrypted path; what it sends to this host with a peer's address comes in where no
//! way leads to that peer. And it has no business with the Master, whose port is closed to
//! it; what was tried is counted in `dropped_master`.
//!
//! Where WireGuard is a device (`wireguard/`), packets of the VXLAN device and the agents'
//! heartbeats pass through it, between tunnel addresses, and nothing else does: neither what
//! a peer's host may have for this one, nor what a container would send as this host. An
//! tunnel address through any other device is nobody's.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnetwork::Ipv4Network;
use kontena_schema::address::InnerSubnet;
use kontena_schema::limits::{PROBE_PORT, VXLAN_PORT, WIREGUARD_PORT};
use serde_json::{Value, json};

use crate::error::Cause;
use crate::linux::nft::{Elements, Table, count_and_drop, differs, equals, field};
use crate::model::devices::WIREGUARD;
use crate::model::peer::SILENCE;
use crate::model::state::{EgressPolicy, Filter, FilterState};

const TABLE: Table = Table { family: "inet" };
const PEERS: &str = "fast_peers";
/// Where the Master is: address and port.
const MASTERS: &str = "masters";
/// The bridges that containers are behind.
const BRIDGES: &str = "container_bridges";
const DROPPED_MASTER: &str = "dropped_master";
/// Before connection tracking (-200), so that what is dropped costs nothing.
const PRIORITY: i64 = -300;

/// A direction: its chain and hook, the devices and the address that decide, its counter.
struct Direction {
    hook: &'static str,
    /// Which of a packet's devices count.
    devices: &'static [&'static str],
    /// None where no peer's packet has to pass.
    peer: Option<&'static str>,
    /// Whether a packet must come from where packets to its sender go.
    way_back: bool,
    counter: &'static str,
}

const DIRECTIONS: [Direction; 3] = [
    Direction {
        hook: "input",
        devices: &["iifname"],
        peer: Some("saddr"),
        way_back: true,
        counter: "dropped_in",
    },
    Direction {
        hook: "output",
        devices: &["oifname"],
        peer: Some("daddr"),
        way_back: false,
        counter: "dropped_out",
    },
    Direction {
        hook: "forward",
        devices: &["iifname", "oifname"],
        peer: None,
        way_back: false,
        counter: "dropped_forward",
    },
];

/// How long a peer's packets pass without word of the agent, a little longer than
/// the peer itself believes in a silent one.
const LIFE_S: u64 = SILENCE.as_secs() + 10;

/// Reads our table.
pub(crate) async fn observe() -> Result<FilterState, Cause> {
    let listing = TABLE.list().await?;
    Ok(listing.map_or(FilterState::Missing, |listing| state(&listing)))
}

/// The table as it should be, where it is for the tunnel subnet that its rules have.
fn state(listing: &Value) -> FilterState {
    let tunnel_address = tunnel_subnet(listing);
    TABLE.state(listing, &frame(tunnel_address), |elements| {
        contents(tunnel_address, elements)
    })
}

/// The first tunnel subnet in any rule. A table without one is none of ours.
fn tunnel_subnet(listing: &Value) -> InnerSubnet {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let parts = objects.flat_map(|object| object["rule"]["expr"].as_array().into_iter().flatten());
    let network = |part: &Value| {
        let prefix = &part["match"]["right"]["prefix"];
        let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
        let network = Ipv4Network::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()?;
        InnerSubnet::try_from(network).ok()
    };
    parts.into_iter().find_map(network).unwrap_or_default()
}

/// Writes our whole table in the place of whatever had its name.
pub(crate) async fn install(filter: &Filter) -> Result<(), Cause> {
    let contents = [living(&filter.peers), egress_elements(&filter.egress)].concat();
    TABLE.install(&frame(filter.tunnel_subnet), contents).await
}

/// Keeps containers from others than before.
pub(crate) async fn egress(old: &EgressPolicy, new: &EgressPolicy) -> Result<(), Cause> {
    TABLE
        .change(egress_elements(old), egress_elements(new))
        .await
}

/// Lets clear packets of more peers pass.
pub(crate) async fn allow(peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
    TABLE.change(Vec::new(), living(peers)).await
}

/// Says that the agent lives: those whose packets pass go on passing. Nobody else is
/// let in, and none of them whose packets pass no more.
pub(crate) async fn refresh(passing: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
    async fn renew(peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
        TABLE.change(elements(peers), living(peers)).await
    }
    // Who is not there cannot be taken out, and then nobody is put in.
    let Err(err) = renew(passing).await else {
        return Ok(());
    };
    tracing::debug!(%err, "not all are in the packet filter");
    let FilterState::Sound(filter) = observe().await? else {
        return Ok(());
    };
    let there: BTreeSet<_> = filter.peers.intersection(passing).copied().collect();
    if there.is_empty() {
        return Ok(());
    }
    renew(&there).await
}

/// Lets clear packets of these peers pass no more.
pub(crate) async fn forbid(peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
    TABLE.change(elements(peers), Vec::new()).await
}

/// Removes our table.
pub(crate) async fn remove() -> Result<(), Cause> {
    TABLE.remove().await
}

fn elements(peers: &BTreeSet<Ipv4Addr>) -> Vec<Value> {
    let peers = peers.iter().map(|peer| json!(peer));
    TABLE.elements(PEERS, peers).into_iter().collect()
}

/// The same, for as long as an agent lives and a while.
fn living(peers: &BTreeSet<Ipv4Addr>) -> Vec<Value> {
    let living = |peer| json!({"elem": {"val": peer, "timeout": LIFE_S}});
    let peers = TABLE.elements(PEERS, peers.iter().map(living));
    peers.into_iter().collect()
}

fn egress_elements(egress: &EgressPolicy) -> Vec<Value> {
    let masters = egress.masters.iter().flatten();
    let masters = masters.map(|at| json!({"concat": [at.ip(), at.port()]}));
    let bridges = egress.bridges.iter().flatten();
    let bridges = bridges.map(|name| json!(name));
    let both = [
        TABLE.elements(MASTERS, masters),
        TABLE.elements(BRIDGES, bridges),
    ];
    both.into_iter().flatten().collect()
}

fn contents(tunnel_subnet: InnerSubnet, elements: &Elements) -> Option<Filter> {
    let master = |element: &Value| {
        let [ip, port] = element["concat"].as_array()?.as_slice() else {
            return None;
        };
        let port = u16::try_from(port.as_u64()?).ok()?;
        Some(SocketAddrV4::new(ip.as_str()?.parse().ok()?, port))
    };
    let egress = EgressPolicy {
        masters: Some(elements.of(MASTERS, master)?),
        bridges: Some(elements.of(BRIDGES, |name| Some(name.as_str()?.to_owned()))?),
    };
    let peers = elements.of(PEERS, |element| {
        element["elem"]["val"].as_str()?.parse().ok()
    })?;
    Some(Filter {
        tunnel_subnet,
        peers,
        egress,
    })
}

/// Everything in the table but what its sets hold.
fn frame(tunnel_address: InnerSubnet) -> Vec<Value> {
    let sets = [
        json!({"name": PEERS, "type": "ipv4_addr", "flags": ["timeout"]}),
        json!({"name": MASTERS, "type": ["ipv4_addr", "inet_service"]}),
        json!({"name": BRIDGES, "type": "ifname"}),
    ];
    let mut objects: Vec<Value> = sets.map(|set| TABLE.object("set", set)).into();
    objects.extend(egress_frame());
    for direction in &DIRECTIONS {
        let counter = json!({"name": direction.counter});
        objects.push(TABLE.object("counter", counter));
        objects.extend(chains(direction, tunnel_address));
    }
    objects
}

/// Before Docker rewrites targets (-100), so that a Master behind a published port is
/// told by the address that containers know.
fn egress_frame() -> [Value; 3] {
    const HOOK: &str = "prerouting";
    let chain = json!({
        "name": HOOK, "type": "filter", "hook": HOOK, "prio": PRIORITY, "policy": "accept",
    });
    let from = equals(
        &json!({"meta": {"key": "iifname"}}),
        &json!(format!("@{BRIDGES}")),
    );
    let to = json!({"concat": [field("ip", "daddr"), field("tcp", "dport")]});
    let to = equals(&to, &json!(format!("@{MASTERS}")));
    // What most packets are not is asked first.
    let expr = [vec![to, from], count_and_drop(DROPPED_MASTER).to_vec()].concat();
    [
        TABLE.object("counter", json!({"name": DROPPED_MASTER})),
        TABLE.object("chain", chain),
        TABLE.object("rule", json!({"chain": HOOK, "expr": expr})),
    ]
}

/// The chains of a direction and what is in them. Every packet of a host and of its
/// containers passes the first, so that one asks little: each expression of a rule costs
/// time.
fn chains(direction: &Direction, tunnel_address: InnerSubnet) -> Vec<Value> {
    let Direction { hook, counter, .. } = direction;
    let (inside, vxlan) = (format!("{hook}_inside"), format!("{hook}_vxlan"));
    let jump = |chain: &str| vec![json!({"jump": {"target": chain}})];
    let drop = count_and_drop(counter).to_vec();
    let (mut objects, then_inside, then_vxlan) = match direction.peer {
        Some(peer) => {
            let of_inside = [inside_rules(peer, tunnel_address), vec![drop.clone()]].concat();
            let of_vxlan = [vxlan_rules(direction, peer), vec![drop]].concat();
            let objects = [branch(&inside, &of_inside), branch(&vxlan, &of_vxlan)].concat();
            (objects, jump(&inside), jump(&vxlan))
        }
        None => (Vec::new(), drop.clone(), drop),
    };
    let chain = json!({
        "name": hook, "type": "filter", "hook": hook, "prio": PRIORITY, "policy": "accept",
    });
    objects.push(TABLE.object("chain", chain));
    for device in direction.devices {
        let here = equals(&json!({"meta": {"key": device}}), &json!(WIREGUARD));
        objects.push(rule(hook, &[&[here][..], &then_inside].concat()));
    }
    let for_vxlan = equals(&field("udp", "dport"), &json!(VXLAN_PORT));
    objects.push(rule(hook, &[&[for_vxlan][..], &then_vxlan].concat()));
    if direction.peer.is_none() {
        objects.push(rule(hook, &greeting(counter)));
    }
    objects
}

/// What a container sends to the encrypted path of another host. It would come from this
/// host's address, and each address may begin few handshakes. Between containers the port is
/// like any other.
fn greeting(counter: &str) -> Vec<Value> {
    let device = |key| json!({"meta": {"key": key}});
    let bridges = json!(format!("@{BRIDGES}"));
    let encrypted = equals(&field("udp", "dport"), &json!(WIREGUARD_PORT));
    let from = equals(&device("iifname"), &bridges);
    let leaves = differs(&device("oifname"), &bridges);
    [&[encrypted, from, leaves][..], &count_and_drop(counter)].concat()
}

/// A chain that only others jump to.
fn branch(name: &str, rules: &[Vec<Value>]) -> Vec<Value> {
    let chain = TABLE.object("chain", json!({"name": name}));
    let rules = rules.iter().map(|expr| rule(name, expr));
    [chain].into_iter().chain(rules).collect()
}

fn rule(chain: &str, expr: &[Value]) -> Value {
    TABLE.object("rule", json!({"chain": chain, "expr": expr}))
}

/// What passes through WireGuard's device.
fn inside_rules(peer: &str, tunnel_address: InnerSubnet) -> Vec<Vec<Value>> {
    let tunnel_address = tunnel_address.network();
    let tunnel_address =
        json!({"prefix": {"addr": tunnel_address.ip(), "len": tunnel_address.prefix()}});
    let with_peer = equals(&field("ip", peer), &tunnel_address);
    let port = |which, port| equals(&field("udp", which), &json!(port));
    let frame = vec![port("dport", VXLAN_PORT)];
    let heartbeat = vec![port("sport", PROBE_PORT), port("dport", PROBE_PORT)];
    [frame, heartbeat]
        .map(|what| [vec![with_peer.clone()], what, vec![json!({"accept": null})]].concat())
        .into()
}

/// Which packets of the VXLAN device pass.
fn vxlan_rules(direction: &Direction, peer: &str) -> Vec<Vec<Value>> {
    let mut rules = Vec::new();
    if direction.way_back {
        let route = json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}});
        let missing = vec![equals(&route, &json!(false))];
        rules.push([missing, count_and_drop(direction.counter).to_vec()].concat());
    }
    let with_peer = equals(&field("ip", peer), &json!(format!("@{PEERS}")));
    rules.push(vec![with_peer, json!({"accept": null})]);
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::nft::listing;

    fn listed(filter: &Filter) -> Vec<Value> {
        let contents = [living(&filter.peers), egress_elements(&filter.egress)].concat();
        listing::of(TABLE, &frame(filter.tunnel_subnet), contents)
    }

    fn subnet(text: &str) -> InnerSubnet {
        text.parse::<Ipv4Network>().unwrap().try_into().unwrap()
    }

    fn state(objects: &[Value]) -> FilterState {
        super::state(&json!({"nftables": objects}))
    }

    fn filter(peers: &[u8]) -> Filter {
        let peer = |host: &u8| Ipv4Addr::new(198, 51, 100, *host);
        Filter {
            tunnel_subnet: InnerSubnet::default(),
            peers: peers.iter().map(peer).collect(),
            egress: EgressPolicy {
                masters: Some(BTreeSet::from(["203.0.113.5:443".parse().unwrap()])),
                bridges: Some(BTreeSet::from(["docker0".to_owned()])),
            },
        }
    }

    #[test]
    fn our_own_table_is_sound_whatever_it_counted() {
        let elsewhere = Filter {
            tunnel_subnet: subnet("10.9.9.0/24"),
            ..filter(&[2])
        };
        let of_nobody = Filter {
            tunnel_subnet: InnerSubnet::default(),
            peers: BTreeSet::new(),
            egress: EgressPolicy {
                masters: Some(BTreeSet::new()),
                bridges: Some(BTreeSet::new()),
            },
        };
        let others = [filter(&[]), filter(&[2]), filter(&[10, 2])];
        for filter in [elsewhere, of_nobody].into_iter().chain(others) {
            let mut objects = listed(&filter);
            listing::count(&mut objects);
            assert_eq!(state(&objects), FilterState::Sound(filter));
        }
    }

    #[test]
    fn a_table_that_lacks_anything_or_has_more_is_broken() {
        let whole = listed(&filter(&[2]));
        for missing in 1..whole.len() {
            let mut objects = whole.clone();
            let removed = objects.remove(missing);
            assert_eq!(state(&objects), FilterState::Broken, "{removed}");
        }
        let mut more = whole.clone();
        let accept_all = json!({"chain": "input", "expr": [{"accept": null}]});
        more.insert(1, TABLE.object("rule", accept_all));
        assert_eq!(state(&more), FilterState::Broken);
        // Rules of two tunnel subnets are of none.
        let mut both = whole.clone();
        let other = Filter {
            tunnel_subnet: subnet("10.9.9.0/24"),
            ..filter(&[2])
        };
        let of_other = listed(&other);
        let differs = (0..both.len()).rfind(|&at| both[at] != of_other[at]);
        both[differs.unwrap()] = of_other[differs.unwrap()].clone();
        assert_eq!(state(&both), FilterState::Broken);
        let mut swapped = whole;
        let of_input = |object: &Value| object["rule"]["chain"] == "input";
        let first = swapped.iter().position(of_input).unwrap();
        swapped.swap(first, first + 1);
        assert_eq!(state(&swapped), FilterState::Broken);
    }
}
