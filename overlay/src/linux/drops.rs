//! What this host dropped, by reason.
//!
//! Three parts count: the packet filter in our tables, the sleeve, and the kernel in front
//! of the sleeve. WireGuard's drops are not counted. `README.md` explains each counter to
//! users.

use std::collections::BTreeMap;
use std::sync::Arc;

use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use crate::error::Cause;
use crate::linux::nft::{KONTENA, PORTS};
use crate::linux::port_filter;
use crate::model::devices::TAP;
use crate::peer::manager::PeerManager;
use crate::sys::netlink::Netlink;
use crate::sys::nfnetlink::{Nftables, in_thread};

/// Frames that came while the kernel's queue for the sleeve was full. A container that
/// floods it takes capacity from all others on the host.
const QUEUE_FULL: &str = "encrypted_queue_full";

/// Reads the counters.
pub(crate) struct Drops {
    nftables: Arc<Mutex<Nftables>>,
}

impl Drops {
    /// Those of the calling thread's network namespace.
    pub(crate) fn here() -> Result<Self, Cause> {
        let nftables = Nftables::open().map_err(Cause::io("the packet filter's socket"))?;
        let nftables = Arc::new(Mutex::new(nftables));
        Ok(Self { nftables })
    }

    /// All counters. One restarts when what counts is recreated.
    pub(crate) async fn read(
        &self,
        netlink: &Netlink,
        paths: &PeerManager,
    ) -> Result<BTreeMap<String, u64>, Cause> {
        // Their table comes with the first container.
        let of_ports = port_filter::COUNTERS.map(|name| (name.to_owned(), 0));
        let mut drops = BTreeMap::from(of_ports);
        drops.extend(self.of_packet_filter().await?);
        if let Some(encrypted) = paths.drops() {
            drops.extend(of_sleeve(&encrypted));
            let tap = netlink.link(TAP).await?;
            let full = tap.as_ref().and_then(not_taken).unwrap_or_default();
            drops.insert(QUEUE_FULL.to_owned(), full);
        }
        Ok(drops)
    }

    /// What the counters of all our tables counted.
    async fn of_packet_filter(&self) -> Result<BTreeMap<String, u64>, Cause> {
        let read = |nftables: &mut Nftables| {
            let mut counters = nftables.counters(KONTENA)?;
            counters.extend(nftables.counters(PORTS)?);
            Ok(counters)
        };
        in_thread(&Handle::current(), &self.nftables, read).await
    }
}

fn of_sleeve(encrypted: &kontena_sleeve::Drops) -> impl Iterator<Item = (String, u64)> {
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
