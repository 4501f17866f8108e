//! Our table of the packet filter: clear packets of the tunnel pass only from
//! and to fast peers.
//!
//! The tunnel's UDP socket takes packets from anyone, and a packet for it says
//! nothing that proves its sender; so this table is what keeps strangers out,
//! and what keeps clear packets in. It is written in one transaction before the
//! tunnel exists, and it stays when the agent dies. What it drops is counted in
//! `dropped_in`, `dropped_out` and `dropped_forward`. Whose frames the packets
//! may carry is the guard's business (`guard.rs`).
//!
//! A container is a stranger too. What it sends to a peer would leave with this
//! host's address, so nothing for the tunnel is forwarded; what it sends to this
//! host with a peer's address comes in where no way leads to that peer.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use kontena_schema::limits::VXLAN_PORT;
use serde_json::{Value, json};

use super::error::Cause;
use super::nft::{Elements, Table, count_and_drop, equals, field};
use super::state::FilterState;

const TABLE: Table = Table { family: "inet" };
const PEERS: &str = "fast_peers";
/// Before connection tracking (-200), so that what is dropped costs nothing.
const PRIORITY: i64 = -300;

/// A direction: its chain and hook, the address that decides, its counter.
struct Direction {
    hook: &'static str,
    /// None where no peer's packet has to pass.
    peer: Option<&'static str>,
    /// Whether a packet must come from where packets to its sender go.
    way_back: bool,
    counter: &'static str,
}

const DIRECTIONS: [Direction; 3] = [
    Direction {
        hook: "input",
        peer: Some("saddr"),
        way_back: true,
        counter: "dropped_in",
    },
    Direction {
        hook: "output",
        peer: Some("daddr"),
        way_back: false,
        counter: "dropped_out",
    },
    Direction {
        hook: "forward",
        peer: None,
        way_back: false,
        counter: "dropped_forward",
    },
];

/// Reads our table.
pub(crate) async fn observe() -> Result<FilterState, Cause> {
    TABLE.observe(&frame(), peers).await
}

/// Writes our whole table in the place of whatever had its name.
pub(crate) async fn install(peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
    TABLE.install(&frame(), elements(peers)).await
}

/// Lets clear packets of more peers pass.
pub(crate) async fn allow(peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
    TABLE.change(Vec::new(), elements(peers)).await
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

fn peers(elements: &Elements) -> Option<BTreeSet<Ipv4Addr>> {
    elements.of(PEERS, |element| element.as_str()?.parse().ok())
}

/// Everything in the table but the peers.
fn frame() -> Vec<Value> {
    let mut objects = vec![TABLE.object("set", json!({"name": PEERS, "type": "ipv4_addr"}))];
    for Direction { hook, counter, .. } in DIRECTIONS {
        objects.push(TABLE.object("counter", json!({"name": counter})));
        let chain = json!({
            "name": hook, "type": "filter", "hook": hook, "prio": PRIORITY, "policy": "accept",
        });
        objects.push(TABLE.object("chain", chain));
    }
    objects.extend(DIRECTIONS.iter().flat_map(rules));
    objects
}

fn rules(direction: &Direction) -> Vec<Value> {
    let Direction { hook, counter, .. } = direction;
    let to_tunnel = equals(&field("udp", "dport"), &json!(VXLAN_PORT));
    let drop = count_and_drop(counter);
    let mut rules = Vec::new();
    if direction.way_back {
        let route = json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}});
        let missing = equals(&route, &json!(false));
        rules.push([vec![to_tunnel.clone(), missing], drop.to_vec()].concat());
    }
    if let Some(peer) = direction.peer {
        let with_peer = equals(&field("ip", peer), &json!(format!("@{PEERS}")));
        rules.push(vec![to_tunnel.clone(), with_peer, json!({"accept": null})]);
    }
    rules.push([vec![to_tunnel], drop.to_vec()].concat());
    let rule = |expr: Vec<Value>| TABLE.object("rule", json!({"chain": hook, "expr": expr}));
    rules.into_iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::super::nft::listing;
    use super::*;

    fn listed(peers: &BTreeSet<Ipv4Addr>) -> Vec<Value> {
        listing::of(TABLE, &frame(), elements(peers))
    }

    fn state(objects: &[Value]) -> FilterState {
        listing::state(TABLE, objects, &frame(), super::peers)
    }

    #[test]
    fn our_own_table_is_sound_whatever_it_counted() {
        for peers in [
            vec![],
            vec![[198, 51, 100, 2]],
            vec![[198, 51, 100, 10], [198, 51, 100, 2]],
        ] {
            let peers: BTreeSet<Ipv4Addr> = peers.into_iter().map(Ipv4Addr::from).collect();
            let mut objects = listed(&peers);
            listing::count(&mut objects);
            assert_eq!(state(&objects), FilterState::Sound(peers));
        }
    }

    #[test]
    fn a_table_that_lacks_anything_or_has_more_is_broken() {
        let whole = listed(&BTreeSet::from([Ipv4Addr::new(198, 51, 100, 2)]));
        for missing in 1..whole.len() {
            let mut objects = whole.clone();
            let removed = objects.remove(missing);
            assert_eq!(state(&objects), FilterState::Broken, "{removed}");
        }
        let mut more = whole.clone();
        let accept_all = json!({"chain": "input", "expr": [{"accept": null}]});
        more.insert(1, TABLE.object("rule", accept_all));
        assert_eq!(state(&more), FilterState::Broken);
        let mut swapped = whole;
        let rules = swapped
            .iter()
            .position(|object| object.get("rule").is_some());
        let first = rules.unwrap();
        swapped.swap(first, first + 1);
        assert_eq!(state(&swapped), FilterState::Broken);
    }
}
