//! The networks that this host has or reaches, as far as a grid could overlap them.
//!
//! They are the networks of the addresses on its interfaces, and the destinations of its routes,
//! in every routing table: policy rules can select a table before the main one, so an overlap
//! there takes packets of the overlay, too. Docker's networks count like all others: their
//! bridges are on-link on the host, and a container that is both behind one of them and on the
//! overlay would reach only one of the two.
//!
//! Left out are the overlay's own interfaces; routes that lead nowhere (`blackhole`,
//! `unreachable`), which a longer prefix takes nothing from; and catch-all routes, which do not
//! mean that a network exists. These are the default route, its pieces as VPNs install them
//! (0.0.0.0/1), and a whole block of private address space through a gateway, which is the
//! default route of hosts with two networks.
//!
//! Absent on purpose: networks that only containers are in (macvlan, Swarm's own overlay); the
//! host neither has nor reaches them. Networks inside a VRF are treated as if outside it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use ipnetwork::Ipv4Network;
use kontena_schema::address::{is_of_grids, is_private_block};
use kontena_schema::overlap::{HostNetwork, HostNetworks};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::Handle;
use tokio::time::timeout;
use tracing::warn;

use kontena_overlay::BRIDGE;

/// The kernel answers at once unless something has hung.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// The prefix length of the widest real network, 10.0.0.0/8. A wider one is a piece of a default
/// route.
const PREFIX_MIN: u8 = 8;

/// Interface names by index.
type Names = BTreeMap<u32, String>;

/// The networks of the calling thread's namespace.
pub async fn look() -> Result<HostNetworks, String> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|err| err.to_string())?;
    let found = async {
        tokio::select! {
            found = read(&handle) => found.map_err(|err| err.to_string()),
            () = connection => Err("the netlink connection ended".to_owned()),
        }
    };
    let found = timeout(LOOK_WITHIN, found).await;
    let found = found.unwrap_or_else(|_| Err("the kernel does not answer".to_owned()))?;
    let (networks, more) = HostNetworks::of(found);
    if more > 0 {
        warn!(
            more,
            "this host has more networks than can be reported to the Master"
        );
    }
    Ok(networks)
}

/// Addresses first: of equal networks the first is kept.
async fn read(handle: &Handle) -> Result<Vec<HostNetwork>, rtnetlink::Error> {
    let names = names(handle).await?;
    let mut found = Vec::new();
    let mut addresses = handle.address().get().execute();
    while let Some(address) = addresses.try_next().await? {
        found.extend(of_address(&address, &names));
    }
    let mut all = RouteMessage::default();
    all.header.address_family = AddressFamily::Inet;
    let mut routes = handle.route().get(all).execute();
    // Of a router's hundreds of thousands of routes only some are kept.
    while let Some(route) = routes.try_next().await? {
        found.extend(of_route(&route, &names));
    }
    Ok(found)
}

async fn names(handle: &Handle) -> Result<Names, rtnetlink::Error> {
    let mut names = Names::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        let name = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
        names.extend(name.map(|name| (link.header.index, name)));
    }
    Ok(names)
}

/// The network of an address; where the address is not in it, as on a point-to-point link, the
/// address too.
fn of_address(message: &AddressMessage, names: &Names) -> Vec<HostNetwork> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => local = Some(*ip),
            AddressAttribute::Address(IpAddr::V4(ip)) => address = Some(*ip),
            _ => {}
        }
    }
    let prefix = message.header.prefix_len;
    let own = local.map(|ip| (ip, 32));
    let network = address.or(local).map(|ip| (ip, prefix.max(PREFIX_MIN)));
    let both = network.into_iter().chain(own);
    both.filter_map(|(ip, prefix)| network_on(ip, prefix, Some(message.header.index), names))
        .collect()
}

/// The destination of a route.
fn of_route(route: &RouteMessage, names: &Names) -> Option<HostNetwork> {
    if !matches!(route.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    let (mut to, mut interface, mut gateway) = (None, None, false);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = Some(*ip),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = true,
            RouteAttribute::MultiPath(hops) => {
                gateway = true;
                interface = interface.or(hops.first().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    let prefix = route.header.destination_prefix_length;
    let found = network_on(to?, prefix, interface, names)?;
    let default = prefix < PREFIX_MIN || gateway && is_private_block(found.network);
    (!default).then_some(found)
}

/// A relevant network, on an interface that is not the overlay's.
fn network_on(ip: Ipv4Addr, prefix: u8, index: Option<u32>, names: &Names) -> Option<HostNetwork> {
    let interface = index.and_then(|index| names.get(&index));
    if interface.is_some_and(|name| is_of_overlay(name)) {
        return None;
    }
    let network = Ipv4Network::new(ip, prefix).ok()?;
    let network = Ipv4Network::new(network.network(), prefix).ok()?;
    is_of_grids(network).then(|| HostNetwork {
        network,
        interface: interface.cloned(),
    })
}

/// Whether an interface is the overlay's bridge or one of its devices (`kontena-wg`).
fn is_of_overlay(name: &str) -> bool {
    let rest = name.strip_prefix(BRIDGE);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overlays_interfaces_are_told_by_their_names() {
        for (name, own) in [
            ("kontena", true),
            ("kontena-wg", true),
            ("kontena-vx", true),
            ("kontena0", false),
            ("eth0", false),
        ] {
            assert_eq!(is_of_overlay(name), own, "{name}");
        }
    }
}
