//! The forwarding tables: whose frames go where.
//!
//! A remote MAC has an entry in the bridge's table with the port that leads to it. If that
//! is the VXLAN device, its own table has another, with the underlay or tunnel address.
//! Entries of the bridge are *sticky*: a container that spoofs another's source MAC
//! cannot pull that MAC to its own port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use kontena_schema::mac::Mac;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;

use crate::error::Cause;
use crate::sys::netlink::Netlink;

/// Stands for every MAC that the VXLAN device's table does not hold.
pub(crate) const UNKNOWN_MACS: Mac = Mac([0; 6]);

/// The tables of all bridges and VXLAN devices of the host.
pub(crate) struct Tables(Vec<NeighbourMessage>);

impl Tables {
    pub(crate) async fn read(netlink: &Netlink) -> Result<Self, Cause> {
        Ok(Self(netlink.neighbours(AddressFamily::Bridge).await?))
    }

    /// What the VXLAN device's own table says: targets by MAC, and flood targets.
    pub(crate) fn of_vxlan(
        &self,
        index: u32,
    ) -> (BTreeMap<Mac, BTreeSet<Ipv4Addr>>, BTreeSet<Ipv4Addr>) {
        let own = |entry: &&NeighbourMessage| {
            entry.header.ifindex == index && entry.header.flags.contains(NeighbourFlags::Own)
        };
        let mut entries: BTreeMap<Mac, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        for entry in self.0.iter().filter(own) {
            if let (Some(mac), Some(target)) = (mac(entry), address(entry)) {
                entries.entry(mac).or_default().insert(target);
            }
        }
        let floods = entries.remove(&UNKNOWN_MACS).unwrap_or_default();
        (entries, floods)
    }

    /// The MACs that the bridge sends to this port, and whether each is pinned.
    /// The port's own MAC, which is permanent, is not among them.
    pub(crate) fn of_port(&self, index: u32) -> BTreeMap<Mac, bool> {
        let of_bridge = |entry: &&NeighbourMessage| {
            entry.header.ifindex == index
                && !entry.header.flags.contains(NeighbourFlags::Own)
                && entry.header.state != NeighbourState::Permanent
        };
        let pinned = |entry: &NeighbourMessage| {
            entry.header.state == NeighbourState::Noarp
                && entry.header.flags.contains(NeighbourFlags::Sticky)
        };
        let found = self.0.iter().filter(of_bridge);
        found
            .filter_map(|entry| Some((mac(entry)?, pinned(entry))))
            .collect()
    }
}

/// The permanent IPv4 neighbours of a link.
pub(crate) async fn permanent_neighbours(
    netlink: &Netlink,
    index: u32,
) -> Result<BTreeMap<Ipv4Addr, Mac>, Cause> {
    let all = netlink.neighbours(AddressFamily::Inet).await?;
    let ours = all.iter().filter(|entry| {
        entry.header.ifindex == index && entry.header.state == NeighbourState::Permanent
    });
    Ok(ours
        .filter_map(|entry| Some((address(entry)?, mac(entry)?)))
        .collect())
}

/// A permanent neighbour of a link.
pub(crate) fn neighbour(index: u32, ip: Ipv4Addr, mac: Option<Mac>) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Inet;
    entry.header.ifindex = index;
    entry.header.state = NeighbourState::Permanent;
    entry.header.kind = RouteType::Unicast;
    entry
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)));
    entry.attributes.extend(mac.map(link_layer));
    entry
}

/// An entry of the VXLAN device's own table.
pub(crate) fn tunnel_entry(index: u32, mac: Mac, target: Option<Ipv4Addr>) -> NeighbourMessage {
    let mut entry = bridge_family(index, mac);
    entry.header.state = NeighbourState::Permanent;
    entry.header.flags = NeighbourFlags::Own;
    let target = target
        .map(NeighbourAddress::Inet)
        .map(NeighbourAttribute::Destination);
    entry.attributes.extend(target);
    entry
}

/// An entry of the bridge's table for a port.
pub(crate) fn port_entry(index: u32, mac: Mac) -> NeighbourMessage {
    let mut entry = bridge_family(index, mac);
    entry.header.state = NeighbourState::Noarp;
    entry.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
    entry
}

fn bridge_family(index: u32, mac: Mac) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = index;
    entry.attributes.push(link_layer(mac));
    entry
}

fn link_layer(mac: Mac) -> NeighbourAttribute {
    NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())
}

fn mac(entry: &NeighbourMessage) -> Option<Mac> {
    entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(octets) => {
                octets.as_slice().try_into().ok().map(Mac)
            }
            _ => None,
        })
}

/// The address of an entry; in the bridge family the crate leaves it as bytes.
fn address(entry: &NeighbourMessage) -> Option<Ipv4Addr> {
    entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(*ip),
            NeighbourAttribute::Destination(NeighbourAddress::Other(octets)) => {
                <[u8; 4]>::try_from(octets.as_slice())
                    .ok()
                    .map(Ipv4Addr::from)
            }
            _ => None,
        })
}
