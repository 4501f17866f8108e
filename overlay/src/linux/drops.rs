//! What this host dropped, by reason.
//!
//! Three parts count: the packet filter in our tables, the sleeve, and the kernel in front
//! of the sleeve. WireGuard's drops are not counted. `README.md` explains each counter to
//! users.

use std::collections::BTreeMap;

use kontena_sleeve::Drops;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use crate::error::Cause;
use crate::linux::{nft, port_filter};
use crate::model::devices::TAP;
use crate::peer::manager::PeerManager;
use crate::sys::netlink::Netlink;

/// Frames that came while the kernel's queue for the sleeve was full. A container that
/// floods it takes capacity from all others on the host.
const QUEUE_FULL: &str = "encrypted_queue_full";

/// All counters. One restarts when what counts is recreated.
pub(crate) async fn read(
    netlink: &Netlink,
    paths: &PeerManager,
) -> Result<BTreeMap<String, u64>, Cause> {
    // Their table comes with the first container.
    let of_ports = port_filter::COUNTERS.map(|name| (name.to_owned(), 0));
    let mut drops = BTreeMap::from(of_ports);
    drops.extend(nft::counters().await?);
    if let Some(encrypted) = paths.drops() {
        drops.extend(of_sleeve(&encrypted));
        let tap = netlink.link(TAP).await?;
        let full = tap.as_ref().and_then(not_taken).unwrap_or_default();
        drops.insert(QUEUE_FULL.to_owned(), full);
    }
    Ok(drops)
}

fn of_sleeve(encrypted: &Drops) -> impl Iterator<Item = (String, u64)> {
    let named = encrypted.named();
    named.map(|(name, count)| (format!("encrypted_{name}"), count))
}

/// How many frames for a link the kernel dropped.
fn not_taken(link: &LinkMessage) -> Option<u64> {
    let mut attributes = link.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        LinkAttribute::Stats64(counted) => Some(counted.tx_dropped),
        _ => None,
    })
}
