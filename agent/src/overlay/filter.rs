//! Our table of the packet filter: clear packets of the tunnel pass only from
//! and to fast peers.
//!
//! The tunnel's UDP socket takes packets from anyone, and a packet for it says
//! nothing that proves its sender; so this table is what keeps strangers out,
//! and what keeps clear packets in. It is written in one transaction before the
//! tunnel exists, and it stays when the agent dies. What it drops is counted in
//! `dropped_in`, `dropped_out` and `dropped_forward`.
//!
//! A container is a stranger too. What it sends to a peer would leave with this
//! host's address, so nothing for the tunnel is forwarded; what it sends to this
//! host with a peer's address comes in where no way leads to that peer.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use kontena_schema::limits::VXLAN_PORT;
use serde_json::{Value, json};

use super::error::Cause;
use super::program::{refused, run, run_ok};
use super::state::FilterState;

const TABLE: &str = "kontena";
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
    let answer = run("nft", &["-j", "list", "table", "inet", TABLE], &[]).await?;
    if answer.ok {
        return Ok(parse(&answer.stdout));
    }
    if answer.stderr.contains("No such file or directory") {
        return Ok(FilterState::Missing);
    }
    Err(refused("nft", &answer))
}

/// Writes our whole table in the place of whatever had its name.
pub(crate) async fn install(peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
    // A table must exist to be deleted.
    let mut commands = vec![json!({"add": table()}), json!({"delete": table()})];
    commands.extend(
        contents(peers)
            .into_iter()
            .map(|object| json!({"add": object})),
    );
    apply(commands).await
}

/// Lets clear packets of more peers pass.
pub(crate) async fn allow(peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
    apply(vec![json!({"add": elements(peers)})]).await
}

/// Lets clear packets of these peers pass no more.
pub(crate) async fn forbid(peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
    apply(vec![json!({"delete": elements(peers)})]).await
}

/// Removes our table.
pub(crate) async fn remove() -> Result<(), Cause> {
    apply(vec![json!({"delete": table()})]).await
}

async fn apply(commands: Vec<Value>) -> Result<(), Cause> {
    let input = json!({"nftables": commands}).to_string();
    run_ok("nft", &["-j", "-f", "-"], input.as_bytes())
        .await
        .map(drop)
}

fn table() -> Value {
    json!({"table": {"family": "inet", "name": TABLE}})
}

fn elements(peers: &BTreeSet<Ipv4Addr>) -> Value {
    json!({"element": {"family": "inet", "table": TABLE, "name": PEERS, "elem": peers}})
}

/// Everything in the table, as `nft` takes it, and but for handles and counts
/// as it shows it.
fn contents(peers: &BTreeSet<Ipv4Addr>) -> Vec<Value> {
    let mut set = json!({"family": "inet", "table": TABLE, "name": PEERS, "type": "ipv4_addr"});
    if !peers.is_empty() {
        set["elem"] = json!(peers);
    }
    let mut objects = vec![table(), json!({"set": set})];
    for Direction { hook, counter, .. } in DIRECTIONS {
        objects.push(json!({"counter": {"family": "inet", "table": TABLE, "name": counter}}));
        objects.push(json!({"chain": {
            "family": "inet", "table": TABLE, "name": hook,
            "type": "filter", "hook": hook, "prio": PRIORITY, "policy": "accept",
        }}));
    }
    objects.extend(DIRECTIONS.iter().flat_map(rules));
    objects
}

fn rules(direction: &Direction) -> Vec<Value> {
    let Direction { hook, counter, .. } = direction;
    let to_tunnel = equals("udp", "dport", &json!(VXLAN_PORT));
    let drop = [json!({"counter": counter}), json!({"drop": null})];
    let mut rules = Vec::new();
    if direction.way_back {
        let route = json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}});
        let missing = json!({"match": {"op": "==", "left": route, "right": false}});
        rules.push([vec![to_tunnel.clone(), missing], drop.to_vec()].concat());
    }
    if let Some(peer) = direction.peer {
        let with_peer = equals("ip", peer, &json!(format!("@{PEERS}")));
        rules.push(vec![to_tunnel.clone(), with_peer, json!({"accept": null})]);
    }
    rules.push([vec![to_tunnel], drop.to_vec()].concat());
    let rule = |expr: Vec<Value>| json!({"rule": {"family": "inet", "table": TABLE, "chain": hook, "expr": expr}});
    rules.into_iter().map(rule).collect()
}

fn equals(protocol: &str, field: &str, right: &Value) -> Value {
    let left = json!({"payload": {"protocol": protocol, "field": field}});
    json!({"match": {"op": "==", "left": left, "right": right}})
}

/// What `nft -j list table` says about our table.
fn parse(listing: &[u8]) -> FilterState {
    let Ok(listing) = serde_json::from_slice::<Value>(listing) else {
        return FilterState::Broken;
    };
    let objects = listing["nftables"].as_array().cloned().unwrap_or_default();
    let elements = objects
        .iter()
        .find_map(|object| object["set"]["elem"].as_array());
    let peers: Option<BTreeSet<Ipv4Addr>> = elements
        .into_iter()
        .flatten()
        .map(|element| element.as_str()?.parse().ok())
        .collect();
    let Some(peers) = peers else {
        return FilterState::Broken;
    };

    let normal = |objects: &[Value]| {
        let shown: BTreeSet<String> = objects.iter().filter_map(normalised).collect();
        shown
    };
    // The order matters only among rules of one chain.
    let rules = |objects: &[Value]| -> Vec<String> {
        let of = |hook: &str| {
            let rules = objects
                .iter()
                .filter(|object| object["rule"]["chain"] == *hook);
            rules.filter_map(normalised).collect::<Vec<_>>()
        };
        DIRECTIONS
            .iter()
            .flat_map(|direction| of(direction.hook))
            .collect()
    };
    let wanted = contents(&peers);
    if normal(&objects) == normal(&wanted) && rules(&objects) == rules(&wanted) {
        FilterState::Sound(peers)
    } else {
        FilterState::Broken
    }
}

/// An object without what differs from one listing to the next.
fn normalised(object: &Value) -> Option<String> {
    let (kind, body) = object.as_object()?.iter().next()?;
    if kind == "metainfo" {
        return None;
    }
    let mut body = body.clone();
    let fields = body.as_object_mut()?;
    for changing in ["handle", "packets", "bytes"] {
        fields.remove(changing);
    }
    if let Some(elements) = fields.get_mut("elem").and_then(Value::as_array_mut) {
        elements.sort_by_key(Value::to_string);
    }
    Some(json!({kind: body}).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(peers: &BTreeSet<Ipv4Addr>) -> Vec<Value> {
        let mut objects = vec![json!({"metainfo": {"version": "1.0.6"}})];
        objects.extend(contents(peers));
        for (handle, object) in objects.iter_mut().enumerate().skip(1) {
            let body = object.as_object_mut().unwrap().values_mut().next().unwrap();
            body["handle"] = json!(handle);
        }
        objects
    }

    fn state(objects: &[Value]) -> FilterState {
        parse(json!({"nftables": objects}).to_string().as_bytes())
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
            for object in &mut objects {
                if let Some(counter) = object.get_mut("counter") {
                    counter["packets"] = json!(7);
                    counter["bytes"] = json!(700);
                }
            }
            assert_eq!(state(&objects), FilterState::Sound(peers));
        }
    }

    #[test]
    fn a_table_that_lacks_anything_or_has_more_is_broken() {
        let peers = BTreeSet::from([Ipv4Addr::new(198, 51, 100, 2)]);
        let whole = listed(&peers);
        for missing in 1..whole.len() {
            let mut objects = whole.clone();
            let removed = objects.remove(missing);
            assert_eq!(state(&objects), FilterState::Broken, "{removed}");
        }
        let mut more = whole.clone();
        let accept_all =
            json!({"family": "inet", "table": TABLE, "chain": "input", "expr": [{"accept": null}]});
        more.insert(1, json!({"rule": accept_all}));
        assert_eq!(state(&more), FilterState::Broken);
        let mut swapped = whole;
        let rules = swapped
            .iter()
            .position(|object| object.get("rule").is_some());
        let first = rules.unwrap();
        swapped.swap(first, first + 1);
        assert_eq!(state(&swapped), FilterState::Broken);
        assert_eq!(parse(b"?"), FilterState::Broken);
    }
}
