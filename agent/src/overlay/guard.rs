//! The guard of the tunnel: out of it come only frames of those whom the
//! directory has.
//!
//! A host that is cut off from the Master, but not from its peers, does not know
//! that its containers lost their leases. They go on sending, with addresses that
//! belong to others by now. What gives them away is the MAC of the old lease: so
//! a frame comes in only if its sender's MAC is in the directory, and ARP only if
//! the directory says the same of the address and the MAC that it tells. Nobody
//! here can answer what never came in, and no container's memory is led astray.
//!
//! It is a table of the packet filter with one chain on the tunnel's device,
//! which is hooked in before the device comes up. It stays when the agent dies.
//! What it drops is counted in `dropped_sender` and `dropped_arp`.
//!
//! Absent on purpose: a look at the source address of IP packets. A container
//! may route for others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use kontena_schema::mac::Mac;
use serde_json::{Value, json};

use super::TUNNEL;
use super::error::Cause;
use super::nft::{Elements, Table, count_and_drop, differs, equals, field};
use super::state::GuardState;

const TABLE: Table = Table { family: "netdev" };
const CHAIN: &str = "ingress";
/// The MACs that may send.
const SENDERS: &str = "senders";
/// The MACs with the addresses that they hold.
const HOLDERS: &str = "holders";
const DROPPED_SENDER: &str = "dropped_sender";
const DROPPED_ARP: &str = "dropped_arp";
/// As the filter's, for no other reason; nobody else is at this device.
const PRIORITY: i64 = -300;

/// Reads our table.
pub(crate) async fn observe() -> Result<GuardState, Cause> {
    TABLE.observe(&frame(), holders).await
}

/// Writes our whole table, for these holders of addresses. The tunnel must exist.
pub(crate) async fn install(holders: &BTreeMap<Ipv4Addr, Mac>) -> Result<(), Cause> {
    // Listings of older versions do not show the device, so it is no part of the
    // frame that is compared.
    let mut frame = frame();
    for object in &mut frame {
        if let Some(chain) = object.get_mut("chain") {
            chain["dev"] = json!(TUNNEL);
        }
    }
    TABLE.install(&frame, elements(holders)).await
}

/// Lets frames of others in, in one transaction.
pub(crate) async fn change(
    old: &BTreeMap<Ipv4Addr, Mac>,
    new: &BTreeMap<Ipv4Addr, Mac>,
) -> Result<(), Cause> {
    TABLE.change(elements(old), elements(new)).await
}

/// Removes our table.
pub(crate) async fn remove() -> Result<(), Cause> {
    TABLE.remove().await
}

fn elements(holders: &BTreeMap<Ipv4Addr, Mac>) -> Vec<Value> {
    let macs: BTreeSet<_> = holders.values().collect();
    let macs = macs.into_iter().map(|mac| json!(mac));
    let pairs = holders.iter().map(|(ip, mac)| json!({"concat": [mac, ip]}));
    let both = [
        TABLE.elements(SENDERS, macs),
        TABLE.elements(HOLDERS, pairs),
    ];
    both.into_iter().flatten().collect()
}

/// Who holds which address. The two sets must agree, and no address may have two
/// holders.
fn holders(elements: &Elements) -> Option<BTreeMap<Ipv4Addr, Mac>> {
    let pair = |element: &Value| {
        let [mac, ip] = element["concat"].as_array()?.as_slice() else {
            return None;
        };
        Some((ip.as_str()?.parse().ok()?, mac.as_str()?.parse().ok()?))
    };
    let pairs: Vec<(Ipv4Addr, Mac)> = elements.of(HOLDERS, pair)?;
    let senders: BTreeSet<Mac> = elements.of(SENDERS, |mac| mac.as_str()?.parse().ok())?;
    let holders: BTreeMap<_, _> = pairs.iter().copied().collect();
    let agree = holders.len() == pairs.len() && senders == holders.values().copied().collect();
    agree.then_some(holders)
}

/// Everything in the table but the holders.
fn frame() -> Vec<Value> {
    let sets = [
        (SENDERS, json!("ether_addr")),
        (HOLDERS, json!(["ether_addr", "ipv4_addr"])),
    ];
    let sets = sets.map(|(name, kind)| TABLE.object("set", json!({"name": name, "type": kind})));
    let counters = [DROPPED_SENDER, DROPPED_ARP]
        .map(|counter| TABLE.object("counter", json!({"name": counter})));
    // Without its rules it lets nothing in.
    let chain = json!({
        "name": CHAIN, "type": "filter", "hook": "ingress", "prio": PRIORITY, "policy": "drop",
    });
    let chain = TABLE.object("chain", chain);
    let rules = rules().map(|expr| TABLE.object("rule", json!({"chain": CHAIN, "expr": expr})));
    sets.into_iter()
        .chain(counters)
        .chain([chain])
        .chain(rules)
        .collect()
}

fn rules() -> [Vec<Value>; 4] {
    let accept = json!({"accept": null});
    let stranger = differs(&field("ether", "saddr"), &json!(format!("@{SENDERS}")));
    let no_arp = differs(&field("ether", "type"), &json!("arp"));
    // Of an ARP message, what it says of its sender is what caches take.
    let told = json!({"concat": [field("arp", "saddr ether"), field("arp", "saddr ip")]});
    let true_arp = equals(&told, &json!(format!("@{HOLDERS}")));
    [
        [vec![stranger], count_and_drop(DROPPED_SENDER).to_vec()].concat(),
        vec![no_arp, accept.clone()],
        vec![true_arp, accept],
        count_and_drop(DROPPED_ARP).to_vec(),
    ]
}

#[cfg(test)]
mod tests {
    use kontena_schema::ids::LeaseNumber;

    use super::super::nft::listing;
    use super::*;

    fn some_holders() -> BTreeMap<Ipv4Addr, Mac> {
        let node = Ipv4Addr::new(10, 81, 0, 2);
        let container = Ipv4Addr::new(10, 81, 1, 2);
        BTreeMap::from([
            (node, Mac::of_node(node)),
            (container, Mac::of_lease(container, LeaseNumber(7))),
        ])
    }

    fn listed(holders: &BTreeMap<Ipv4Addr, Mac>) -> Vec<Value> {
        listing::of(TABLE, &frame(), elements(holders))
    }

    fn state(objects: &[Value]) -> GuardState {
        listing::state(TABLE, objects, &frame(), super::holders)
    }

    #[test]
    fn our_own_table_is_sound_whatever_it_counted_and_shows_of_the_device() {
        for holders in [BTreeMap::new(), some_holders()] {
            let mut objects = listed(&holders);
            listing::count(&mut objects);
            for object in &mut objects {
                if let Some(chain) = object.get_mut("chain") {
                    chain["dev"] = json!(TUNNEL);
                }
            }
            assert_eq!(state(&objects), GuardState::Sound(holders));
        }
    }

    #[test]
    fn a_table_that_lacks_anything_is_broken() {
        let whole = listed(&some_holders());
        for missing in 1..whole.len() {
            let mut objects = whole.clone();
            let removed = objects.remove(missing);
            assert_eq!(state(&objects), GuardState::Broken, "{removed}");
        }
    }

    #[test]
    fn sets_that_do_not_agree_are_broken() {
        let set = |objects: &mut Vec<Value>, name: &str| {
            let at = objects.iter().position(|o| o["set"]["name"] == name);
            at.unwrap()
        };
        let extra = Mac([2, 0, 0, 0, 0, 9]);
        for (name, element) in [
            (SENDERS, json!(extra)),
            (HOLDERS, json!({"concat": [extra, "10.81.1.9"]})),
            (HOLDERS, json!({"concat": [extra, "10.81.1.2"]})),
            (HOLDERS, json!("10.81.1.9")),
        ] {
            let mut objects = listed(&some_holders());
            let at = set(&mut objects, name);
            let held = objects[at]["set"]["elem"].as_array_mut().unwrap();
            held.push(element.clone());
            assert_eq!(state(&objects), GuardState::Broken, "{element}");
        }
    }
}
