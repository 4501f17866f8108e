//! Our table of the packet filter: clear packets of the tunnel pass only from
//! and to fast peers.
//!
//! The tunnel's UDP socket takes packets from anyone, and a packet for it says
//! nothing that proves its sender; so this table is what keeps strangers out,
//! and what keeps clear packets in. It is written in one transaction before the
//! tunnel exists, and it stays when the agent dies. What it drops is counted in
//! `dropped_in` and `dropped_out`.

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
    peer: &'static str,
    counter: &'static str,
}

const DIRECTIONS: [Direction; 2] = [
    Direction {
        hook: "input",
        peer: "saddr",
        counter: "dropped_in",
    },
    Direction {
        hook: "output",
        peer: "daddr",
        counter: "dropped_out",
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

fn rules(direction: &Direction) -> [Value; 2] {
    let Direction {
        hook,
        peer,
        counter,
    } = direction;
    let rule = |expr: Value| json!({"rule": {"family": "inet", "table": TABLE, "chain": hook, "expr": expr}});
    let to_tunnel = equals("udp", "dport", &json!(VXLAN_PORT));
    let with_peer = equals("ip", peer, &json!(format!("@{PEERS}")));
    [
        rule(json!([to_tunnel, with_peer, {"accept": null}])),
        rule(json!([to_tunnel, {"counter": counter}, {"drop": null}])),
    ]
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
        let last = swapped.len() - 1;
        swapped.swap(last, last - 1);
        assert_eq!(state(&swapped), FilterState::Broken);
        assert_eq!(parse(b"?"), FilterState::Broken);
    }
}
