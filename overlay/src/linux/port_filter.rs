//! The filters of containers' ports: what a container sends passes only as its own.
//!
//! A container may send raw packets, so what it says of itself is not believed. Its port
//! takes IPv4 and ARP with the MAC and the address of its lease and nothing else: no
//! other source, no IPv6 (the overlay has none), no VLAN tag, and not the Ethertype of the
//! agents' own path probes. That is looked at where the frame comes out of the container
//! and before the bridge sees it, so nothing of it is flooded or encrypted. What is for all
//! or for a group passes at a rate only: a frame of it is encrypted once for each peer.
//! Dropped frames are counted in `dropped_source`, `dropped_ethertype` and
//! `dropped_multicast`.
//!
//! One chain a port, named like it, in a table of its own. A chain is written in one
//! transaction that touches no other, before the port is up. What becomes of a chain when
//! its device goes differs: up to Linux 6.3 it goes as well, later ones keep it without a
//! device, and since 6.16 it is hooked to the next device of that name. So a chain carries
//! the index of the device that it was written for, and counts for no other.
//!
//! Absent on purpose: sets shared by all ports, which cost twice as much time a packet
//! (`infra/adr/0010-container-ports.md`), and exceptions: a container routes for nobody.

use std::collections::{BTreeMap, BTreeSet};

use kontena_schema::ids::PlacementId;
use kontena_schema::limits::OVERLAY_MTU;
use serde_json::{Value, json};

use crate::error::Cause;
use crate::linux::nft::{Family, PORTS, Present, Table, count_and_drop, equals, field, objects};
use crate::model::devices::Link;
use crate::model::state::{MulticastLimit, PortFilter};

const TABLE: Table = Table {
    family: Family::Netdev,
    name: PORTS,
};
const DROPPED_SOURCE: &str = "dropped_source";
const DROPPED_ETHERTYPE: &str = "dropped_ethertype";
const DROPPED_MULTICAST: &str = "dropped_multicast";
/// What is counted here.
pub(crate) const COUNTERS: [&str; 3] = [DROPPED_SOURCE, DROPPED_ETHERTYPE, DROPPED_MULTICAST];
/// How much ARP of a container passes: more than its kernel remembers neighbours
/// (`gc_thresh3`). It stays on the host.
const ARP: MulticastLimit = MulticastLimit {
    rate: 1000,
    burst: 1000,
};
/// As the filter's, for no other reason; nobody else is at these devices.
const PRIORITY: i64 = -300;

/// The filter of one port, and the index of the device that it was written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hooked {
    pub(crate) index: u32,
    pub(crate) filter: PortFilter,
}

/// The chains of our table, by the placement that their name says; none of what is not as
/// we would write it.
pub(crate) type Chains = BTreeMap<PlacementId, Option<Hooked>>;

/// Reads our table; none where there is no table.
pub(crate) async fn observe(present: &Present) -> Result<Option<Chains>, Cause> {
    let listing = TABLE.list(present).await?;
    Ok(listing.as_ref().map(chains))
}

/// Writes the filters of these ports, in one transaction. The devices must exist.
pub(crate) async fn set(ports: &BTreeMap<PlacementId, Hooked>) -> Result<(), Cause> {
    let counters = COUNTERS.map(|name| TABLE.object("counter", json!({"name": name})));
    let whole = [TABLE.itself()].into_iter().chain(counters);
    let mut commands: Vec<Value> = whole.map(|object| json!({"add": object})).collect();
    for (&placement, hooked) in ports {
        commands.extend(discard(placement));
        let contents = contents(placement, hooked).into_iter();
        commands.extend(contents.map(|object| json!({"add": object})));
    }
    TABLE.commit(commands).await
}

/// Removes the filters of ports that are gone.
pub(crate) async fn discard_all(ports: &BTreeSet<PlacementId>) -> Result<(), Cause> {
    TABLE
        .commit(ports.iter().copied().flat_map(discard).collect())
        .await
}

/// Removes our table.
pub(crate) async fn remove() -> Result<(), Cause> {
    TABLE.remove().await
}

/// A chain must exist to be deleted.
fn discard(placement: PlacementId) -> [Value; 2] {
    let chain = TABLE.object("chain", json!({"name": name(placement)}));
    [json!({"add": chain}), json!({"delete": chain})]
}

fn name(placement: PlacementId) -> String {
    Link::HostEnd(placement).name()
}

fn contents(placement: PlacementId, hooked: &Hooked) -> Vec<Value> {
    let mut chain = hook();
    chain["name"] = json!(name(placement));
    chain["dev"] = json!(name(placement));
    let rules = rules(&hooked.filter).into_iter().enumerate();
    let rule = |(number, expr)| {
        let mut rule = json!({"chain": name(placement), "expr": expr});
        if number == 0 {
            rule["comment"] = json!(hooked.index.to_string());
        }
        TABLE.object("rule", rule)
    };
    let chain = TABLE.object("chain", chain);
    [chain].into_iter().chain(rules.map(rule)).collect()
}

/// Without its rules it lets nothing in.
fn hook() -> Value {
    json!({"type": "filter", "hook": "ingress", "prio": PRIORITY, "policy": "drop"})
}

/// What most frames are is asked first.
fn rules(filter: &PortFilter) -> Vec<Vec<Value>> {
    let (mac, address) = (json!(filter.mac), json!(filter.address));
    let ethertype = |right: &Value| equals(&field("ether", "type"), right);
    // Next to each other, MAC and Ethertype are compared at once.
    let of_kind = |kind| {
        [
            equals(&field("ether", "saddr"), &mac),
            ethertype(&json!(kind)),
        ]
    };
    let accept = [json!({"accept": null})];
    let ip = [
        &of_kind("ip")[..],
        &[equals(&field("ip", "saddr"), &address)],
    ]
    .concat();
    let of_lease = [
        equals(&field("arp", "saddr ether"), &mac),
        equals(&field("arp", "saddr ip"), &address),
    ];
    let arp = [&of_kind("arp")[..], &of_lease].concat();
    let known = ethertype(&json!({"set": ["ip", "arp"]}));
    // To the kernel, a frame for one is for another host than the port itself.
    let for_one = equals(&json!({"meta": {"key": "pkttype"}}), &json!("other"));
    // A longer one would be cut into many, each of which goes to every peer.
    let length = json!({"meta": {"key": "length"}});
    let one_packet = json!({"match": {"op": "<=", "left": length, "right": OVERLAY_MTU}});
    vec![
        [&ip[..], &[for_one], &accept].concat(),
        [&ip[..], &[one_packet, limit(filter.multicast)], &accept].concat(),
        [&arp[..], &[limit(ARP)], &accept].concat(),
        [&ip[..], &count_and_drop(DROPPED_MULTICAST)].concat(),
        [&arp[..], &count_and_drop(DROPPED_MULTICAST)].concat(),
        [&[known][..], &count_and_drop(DROPPED_SOURCE)].concat(),
        count_and_drop(DROPPED_ETHERTYPE).to_vec(),
    ]
}

fn limit(limit: MulticastLimit) -> Value {
    json!({"limit": {"rate": limit.rate, "per": "second", "burst": limit.burst}})
}

fn limit_of(rule: &Value) -> Option<MulticastLimit> {
    let mut exprs = rule["expr"].as_array()?.iter();
    let limit = exprs.find_map(|expr| expr.get("limit"))?;
    let of = |field: &str| limit[field].as_u64()?.try_into().ok();
    Some(MulticastLimit {
        rate: of("rate")?,
        burst: of("burst")?,
    })
}

fn chains(listing: &Value) -> Chains {
    let mut found: BTreeMap<PlacementId, (Option<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (kind, body) in objects(listing) {
        let named = match kind {
            "chain" => &body["name"],
            "rule" => &body["chain"],
            _ => continue,
        };
        let Some(Link::HostEnd(placement)) = named.as_str().and_then(Link::named) else {
            continue;
        };
        let (chain, rules) = found.entry(placement).or_default();
        match kind {
            "chain" => *chain = Some(body),
            _ => rules.push(body),
        }
    }
    let read = |(chain, rules): (Option<&Value>, Vec<&Value>)| hooked(chain?, &rules);
    found
        .into_iter()
        .map(|(id, chain)| (id, read(chain)))
        .collect()
}

/// What a chain is for, if it is exactly as we would write it for that.
fn hooked(chain: &Value, rules: &[&Value]) -> Option<Hooked> {
    let first = rules.first()?;
    let index = first["comment"].as_str()?.parse().ok()?;
    let right = |of: Value| {
        let exprs = first["expr"].as_array()?.iter();
        let matches = exprs.map(|expr| &expr["match"]);
        let mut of = matches
            .filter(|m| m["left"] == of)
            .map(|m| m["right"].as_str());
        of.next()?
    };
    let filter = PortFilter {
        mac: right(field("ether", "saddr"))?.parse().ok()?,
        address: right(field("ip", "saddr"))?.parse().ok()?,
        multicast: rules.iter().find_map(|rule| limit_of(rule))?,
    };
    let written = self::rules(&filter);
    let same = |(rule, wanted): (&&Value, &Vec<Value>)| {
        let found = rule["expr"].as_array();
        found.is_some_and(|found| shown(found) == shown(wanted))
    };
    let whole = rules.len() == written.len() && rules.iter().zip(&written).all(same);
    let hook = hook();
    let mut fields = hook.as_object()?.iter();
    let is_hooked = fields.all(|(field, wanted)| chain[field] == *wanted);
    (whole && is_hooked).then_some(Hooked { index, filter })
}

/// A rule without the Ethertypes that `nft` does not show, because a field of the packet
/// says the same.
fn shown(expr: &[Value]) -> Vec<&Value> {
    let says = |part: &&Value| {
        let part = &part["match"];
        part["left"] == field("ether", "type") && part["right"].is_string()
    };
    expr.iter().filter(|part| !says(part)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use kontena_schema::ids::LeaseNumber;
    use kontena_schema::mac::Mac;

    use super::*;

    fn some() -> Hooked {
        let address = Ipv4Addr::new(10, 81, 1, 2);
        let filter = PortFilter {
            mac: Mac::of_lease(address, LeaseNumber(7)),
            address,
            multicast: MulticastLimit::default(),
        };
        Hooked { index: 17, filter }
    }

    /// What is listed after a filter was set.
    fn listed(placement: PlacementId, hooked: &Hooked) -> Vec<Value> {
        let mut objects = contents(placement, hooked);
        for object in &mut objects {
            if let Some(expr) = object["rule"]["expr"].as_array_mut() {
                *expr = shown(expr).into_iter().cloned().collect();
            }
        }
        objects
    }

    fn read(objects: &[Value]) -> Chains {
        chains(&json!({"nftables": objects}))
    }

    #[test]
    fn our_own_chains_are_sound_whoever_stands_beside_them() {
        let (one, other) = (PlacementId(0x1f), PlacementId(2));
        let mut objects = [listed(one, &some()), listed(other, &some())].concat();
        for (handle, object) in objects.iter_mut().enumerate() {
            let body = object.as_object_mut().unwrap().values_mut().next().unwrap();
            body["handle"] = json!(handle);
            body.as_object_mut().unwrap().remove("dev");
        }
        objects.push(TABLE.object("chain", json!({"name": "somebody's"})));
        let wanted = [(one, Some(some())), (other, Some(some()))];
        assert_eq!(read(&objects), wanted.into());
    }

    #[test]
    fn a_chain_that_lacks_anything_or_has_more_is_not_sound() {
        let id = PlacementId(3);
        let whole = listed(id, &some());
        for missing in 0..whole.len() {
            let mut objects = whole.clone();
            let removed = objects.remove(missing);
            assert_eq!(read(&objects), [(id, None)].into(), "{removed}");
        }
        let accept_all = json!({"chain": name(id), "expr": [{"accept": null}]});
        let mut more = whole.clone();
        more.push(TABLE.object("rule", accept_all));
        assert_eq!(read(&more), [(id, None)].into());
        let mut open = whole;
        open[0]["chain"]["policy"] = json!("accept");
        assert_eq!(read(&open), [(id, None)].into());
    }
}
