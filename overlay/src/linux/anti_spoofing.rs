//! The anti-spoofing filter of the VXLAN device: only frames from MACs in the directory
//! come out of it, and neither ARP nor frames with a VLAN tag.
//!
//! A host that is cut off from the Master, but not from its peers, does not know
//! that its containers lost their leases. They go on sending, with addresses that
//! belong to others by now. The MAC of the old lease gives them away: a frame comes
//! in only if its source MAC is in the directory. Only the directory says who has an
//! address, so ARP from other hosts is dropped (`infra/adr/0008-arp.md`), and so are
//! tagged frames, from which a kernel may strip the tag to find ARP. No container here
//! can answer what never came in, and no other host can poison its ARP cache.
//!
//! It is a table of the packet filter with one chain on the VXLAN device, which is
//! hooked in before the device comes up. It outlives the agent. Drops are counted in
//! `dropped_sender` and `dropped_arp`.
//!
//! Absent on purpose: a check of the source address of IP packets. The host that sent
//! the frame has checked it already (`port_filter.rs`), and a MAC is of one lease.

use std::collections::BTreeSet;

use kontena_schema::mac::Mac;
use serde_json::{Value, json};

use crate::error::Cause;
use crate::linux::nft::{
    Elements, Family, KONTENA, Present, Table, count_and_drop, differs, equals, field,
};
use crate::model::devices::VXLAN;
use crate::model::state::AntiSpoofingState;

const TABLE: Table = Table {
    family: Family::Netdev,
    name: KONTENA,
};
const CHAIN: &str = "ingress";
/// The MACs that may send.
const SENDERS: &str = "senders";
const DROPPED_SENDER: &str = "dropped_sender";
const DROPPED_ARP: &str = "dropped_arp";
/// As the filter's, for no other reason; nothing else hooks this device.
const PRIORITY: i64 = -300;

/// Reads our table.
pub(crate) async fn observe(present: &Present) -> Result<AntiSpoofingState, Cause> {
    TABLE.observe(present, &frame(), senders).await
}

/// Writes our whole table, for these senders. The VXLAN device must exist.
pub(crate) async fn install(senders: &BTreeSet<Mac>) -> Result<(), Cause> {
    // Older versions of `nft` do not list the device, so it is not part of the frame
    // that is compared.
    let mut frame = frame();
    for object in &mut frame {
        if let Some(chain) = object.get_mut("chain") {
            chain["dev"] = json!(VXLAN);
        }
    }
    TABLE.install(&frame, elements(senders)).await
}

/// Changes who may send, in one transaction.
pub(crate) async fn change(old: &BTreeSet<Mac>, new: &BTreeSet<Mac>) -> Result<(), Cause> {
    TABLE.change(elements(old), elements(new)).await
}

/// Removes our table.
pub(crate) async fn remove() -> Result<(), Cause> {
    TABLE.remove().await
}

fn elements(senders: &BTreeSet<Mac>) -> Vec<Value> {
    let macs = senders.iter().map(|mac| json!(mac));
    TABLE.elements(SENDERS, macs).into_iter().collect()
}

/// Who may send.
fn senders(elements: &Elements) -> Option<BTreeSet<Mac>> {
    elements.of(SENDERS, |mac| mac.as_str()?.parse().ok())
}

/// Everything in the table but the senders.
fn frame() -> Vec<Value> {
    let set = TABLE.object("set", json!({"name": SENDERS, "type": "ether_addr"}));
    let counters = [DROPPED_SENDER, DROPPED_ARP]
        .map(|counter| TABLE.object("counter", json!({"name": counter})));
    // Without its rules the chain lets nothing in.
    let chain = json!({
        "name": CHAIN, "type": "filter", "hook": "ingress", "prio": PRIORITY, "policy": "drop",
    });
    let chain = TABLE.object("chain", chain);
    let rules = rules().map(|expr| TABLE.object("rule", json!({"chain": CHAIN, "expr": expr})));
    [set]
        .into_iter()
        .chain(counters)
        .chain([chain])
        .chain(rules)
        .collect()
}

fn rules() -> [Vec<Value>; 3] {
    let stranger = differs(&field("ether", "saddr"), &json!(format!("@{SENDERS}")));
    let kinds = json!({"set": ["arp", "8021q", "8021ad"]});
    let arp = equals(&field("ether", "type"), &kinds);
    [
        [vec![stranger], count_and_drop(DROPPED_SENDER).to_vec()].concat(),
        [vec![arp], count_and_drop(DROPPED_ARP).to_vec()].concat(),
        vec![json!({"accept": null})],
    ]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use kontena_schema::ids::LeaseNumber;

    use super::*;
    use crate::linux::nft::listing;

    fn some_senders() -> BTreeSet<Mac> {
        let node = Ipv4Addr::new(10, 81, 0, 2);
        let container = Ipv4Addr::new(10, 81, 1, 2);
        BTreeSet::from([Mac::of_node(node), Mac::of_lease(container, LeaseNumber(7))])
    }

    fn listed(senders: &BTreeSet<Mac>) -> Vec<Value> {
        listing::of(TABLE, &frame(), elements(senders))
    }

    fn state(objects: &[Value]) -> AntiSpoofingState {
        listing::state(TABLE, objects, &frame(), super::senders)
    }

    #[test]
    fn our_own_table_is_sound_whatever_it_counted_and_shows_of_the_device() {
        for senders in [BTreeSet::new(), some_senders()] {
            let mut objects = listed(&senders);
            listing::count(&mut objects);
            for object in &mut objects {
                if let Some(chain) = object.get_mut("chain") {
                    chain["dev"] = json!(VXLAN);
                }
            }
            assert_eq!(state(&objects), AntiSpoofingState::Sound(senders));
        }
    }

    #[test]
    fn a_table_that_lacks_anything_is_broken() {
        let whole = listed(&some_senders());
        for missing in 1..whole.len() {
            let mut objects = whole.clone();
            let removed = objects.remove(missing);
            assert_eq!(state(&objects), AntiSpoofingState::Broken, "{removed}");
        }
    }

    #[test]
    fn a_sender_that_is_no_mac_is_broken() {
        let mut objects = listed(&some_senders());
        let set = objects.iter_mut().find(|o| o["set"]["name"] == SENDERS);
        let held = set.unwrap()["set"]["elem"].as_array_mut().unwrap();
        held.push(json!("10.81.1.9"));
        assert_eq!(state(&objects), AntiSpoofingState::Broken);
    }
}
