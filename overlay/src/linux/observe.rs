//! Reads the host's state; changes nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use kontena_schema::address::InnerSubnet;
use kontena_schema::ids::PlacementId;
use kontena_schema::mac::Mac;
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};

use crate::error::{Cause, OverlayError};
use crate::linux::fast_peers::FastPeers;
use crate::linux::fdb;
use crate::linux::filter;
use crate::linux::port_filter::Chains;
use crate::linux::tables::TableReader;
use crate::model::devices::{CONTAINER_INTERFACE, Link};
use crate::model::intent::Attachment;
use crate::model::state::{
    Bridge, BridgeSettings, ContainerEnd, HostEnd, Observed, Port, PortSettings, RemoteEntry,
    TunnelRoute, Vxlan, VxlanIdentity, WireGuardLink, WireGuardState,
};
use crate::peer::manager::PeerManager;
use crate::sys::netlink::{LAST_METRIC, MULTICAST, Namespace, Netlink, name_of};
use crate::wireguard::Looked;

/// What this host is read through.
#[derive(Clone, Copy)]
pub(crate) struct Host<'a> {
    pub(crate) netlink: &'a Netlink,
    pub(crate) namespace: &'a Namespace,
    pub(crate) paths: &'a PeerManager,
    pub(crate) tables: &'a TableReader,
    pub(crate) fast_peers: &'a FastPeers,
}

/// Reads everything that a plan for these attachments depends on. Errors that
/// affect only a part are returned beside the rest.
pub(crate) async fn observe(
    host: Host<'_>,
    attachments: impl IntoIterator<Item = (PlacementId, &Attachment)>,
) -> Result<(Observed, Vec<Unseen>), OverlayError> {
    let Host { netlink, paths, .. } = host;
    let mut unseen = Vec::new();
    // In a large grid each takes a while.
    let (tables, links, device) = tokio::join!(
        host.tables.read(host.fast_peers),
        Links::read(netlink),
        paths.look(),
    );
    let tables = tables?;
    let links = links.map_err(OverlayError::unread("the interfaces"))?;
    let forwarding = tables.forwarding.map_err(|cause| {
        let error = OverlayError::unread("the forwarding rules")(cause);
        unseen.push(Unseen {
            placement: None,
            error,
        });
    });
    let (bridge, vxlan) = links
        .devices(netlink)
        .await
        .map_err(OverlayError::unread("the overlay"))?;
    let device = device.map_err(OverlayError::unread("WireGuard"))?;
    let inside = links.inside(netlink, (device, paths.hears())).await;
    let inside = inside.map_err(OverlayError::unread("the way to tunnel addresses"))?;
    let containers = containers(&links, host.namespace, attachments, &mut unseen).await;
    let host_ends = links.host_ends(tables.port_filters.as_ref());
    let stale_port_filters = tables.port_filters.map(|chains| {
        let gone = |id: &PlacementId| !host_ends.contains_key(id);
        chains.into_keys().filter(gone).collect()
    });
    let path_probes = paths
        .path_probes()
        .filter(|(_, on)| links.index(Link::Bridge) == Some(*on));
    let tap = links.by_link.get(&Link::Tap).map(|link| links.port(link));
    let remote = links.remote();
    let forwarding = forwarding.ok();
    Ok((
        Observed {
            filter: tables.filter,
            live_table: host.fast_peers.live(),
            tracked: filter::tracks_connections(),
            anti_spoofing: tables.anti_spoofing,
            forwarding,
            bridge,
            vxlan,
            sleeve: paths.sleeve(),
            tap,
            inside,
            path_probes: path_probes.map(|(identity, _)| identity),
            remote,
            host_ends,
            stale_port_filters,
            containers,
        },
        unseen,
    ))
}

/// Something that could not be read, while the rest could.
pub(crate) struct Unseen {
    /// Whose container it is.
    pub(crate) placement: Option<PlacementId>,
    pub(crate) error: OverlayError,
}

/// Our links and the tables that lead to them.
struct Links {
    by_link: BTreeMap<Link, LinkMessage>,
    tables: fdb::Tables,
}

impl Links {
    async fn read(netlink: &Netlink) -> Result<Self, Cause> {
        let by_link: BTreeMap<_, _> = netlink
            .links()
            .await?
            .into_iter()
            .filter_map(|link| Some((Link::named(name_of(&link)?)?, link)))
            .collect();
        let tables = fdb::Tables::read(netlink).await?;
        Ok(Self { by_link, tables })
    }

    fn index(&self, link: Link) -> Option<u32> {
        Some(self.by_link.get(&link)?.header.index)
    }

    async fn devices(&self, netlink: &Netlink) -> Result<(Option<Bridge>, Option<Vxlan>), Cause> {
        let bridge = match self.by_link.get(&Link::Bridge) {
            Some(link) if kind(link) == Some(&InfoKind::Bridge) => {
                let index = link.header.index;
                Some(Bridge {
                    mac: mac(link),
                    settings: bridge_settings(link),
                    addresses: netlink.addresses(index).await?,
                    neighbours: fdb::permanent_neighbours(netlink, index).await?,
                })
            }
            _ => None,
        };
        Ok((bridge, self.vxlan()))
    }

    fn vxlan(&self) -> Option<Vxlan> {
        let link = self.by_link.get(&Link::Vxlan)?;
        if kind(link) != Some(&InfoKind::Vxlan) {
            return None;
        }
        let (entries, floods) = self.tables.of_vxlan(link.header.index);
        Some(Vxlan {
            identity: vxlan_identity(link),
            port: self.port(link),
            entries,
            floods,
        })
    }

    async fn inside(
        &self,
        netlink: &Netlink,
        (device, hears): (Option<Looked>, Option<(Ipv4Addr, u32)>),
    ) -> Result<WireGuardState, Cause> {
        let index = self.index(Link::WireGuard);
        let routes = netlink.routes().await?;
        let routes = routes.iter().filter_map(|route| tunnel_route(route, index));
        let link = match self.by_link.get(&Link::WireGuard) {
            Some(link) => Some(WireGuardLink {
                mtu: mtu(link),
                up: is_up(link),
                addresses: netlink.addresses(link.header.index).await?,
            }),
            None => None,
        };
        let here = |(_, on): &(Ipv4Addr, u32)| index == Some(*on);
        Ok(WireGuardState {
            link,
            device,
            hears: hears.filter(here).map(|(tunnel_address, _)| tunnel_address),
            routes: routes.collect(),
        })
    }

    /// The bridge's entries for other hosts, on either port.
    fn remote(&self) -> BTreeMap<Mac, RemoteEntry> {
        let of = |port: Port| {
            let index = self.index(port.link());
            let entries = index.map(|index| self.tables.of_port(index));
            let entries = entries.unwrap_or_default().into_iter();
            entries.map(move |(mac, pinned)| (mac, RemoteEntry { port, pinned }))
        };
        of(Port::Vxlan).chain(of(Port::Tap)).collect()
    }

    fn host_ends(&self, filters: Option<&Chains>) -> BTreeMap<PlacementId, HostEnd> {
        let host_end = |(link, message): (&Link, &LinkMessage)| {
            let Link::HostEnd(placement) = *link else {
                return None;
            };
            let entries = self.tables.of_port(message.header.index);
            let pinned = entries
                .into_iter()
                .filter_map(|(mac, pinned)| pinned.then_some(mac));
            let mut port = self.port(message);
            // Kernels before 5.18 have no lock and do not report one: that is the best they
            // can do.
            port.locked = lock(port_infos(message)).unwrap_or(true);
            // One of an earlier device of that name does not count.
            let hooked = filters.and_then(|chains| *chains.get(&placement)?);
            let hooked = hooked.filter(|hooked| hooked.index == message.header.index);
            let host_end = HostEnd {
                port,
                pinned: pinned.collect(),
                filter: hooked.map(|hooked| hooked.filter),
            };
            Some((placement, host_end))
        };
        self.by_link.iter().filter_map(host_end).collect()
    }

    fn port(&self, link: &LinkMessage) -> PortSettings {
        let bridge = self.index(Link::Bridge);
        let controller = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Controller(index) => Some(*index),
                _ => None,
            });
        // A link on no bridge has the kernel's defaults for a port.
        let mut port = PortSettings {
            mtu: mtu(link),
            up: is_up(link),
            on_bridge: bridge.is_some() && controller == bridge,
            learning: true,
            flood: true,
            isolated: false,
            locked: false,
            neigh_suppress: false,
        };
        for info in port_infos(link) {
            match info {
                InfoBridgePort::Learning(on) => port.learning = *on,
                InfoBridgePort::UnicastFlood(on) => port.flood = *on,
                InfoBridgePort::Isolated(on) => port.isolated = *on,
                InfoBridgePort::NeighSupress(on) => port.neigh_suppress = *on,
                _ => {}
            }
        }
        port.locked = lock(port_infos(link)).unwrap_or_default();
        port
    }
}

/// Whether a port is locked, if the kernel supports it.
fn lock<'a>(mut port: impl Iterator<Item = &'a InfoBridgePort>) -> Option<bool> {
    port.find_map(|info| match info {
        InfoBridgePort::Locked(on) => Some(*on),
        _ => None,
    })
}

/// Looks into each container; two that share a namespace would fight over one
/// interface, so only the first gets it.
async fn containers(
    links: &Links,
    own_namespace: &Namespace,
    attachments: impl IntoIterator<Item = (PlacementId, &Attachment)>,
    unseen: &mut Vec<Unseen>,
) -> BTreeMap<PlacementId, Option<ContainerEnd>> {
    let mut seen = BTreeMap::from([(own_namespace.id, "the host".to_owned())]);
    let mut containers = BTreeMap::new();
    for (placement, attachment) in attachments {
        let host_end = links.index(Link::HostEnd(placement));
        match container_end(attachment, host_end, &mut seen).await {
            Ok(end) => {
                containers.insert(placement, end);
            }
            Err(cause) => {
                let error = OverlayError::unread(&attachment.to_string())(cause);
                unseen.push(Unseen {
                    placement: Some(placement),
                    error,
                });
            }
        }
    }
    containers
}

async fn container_end(
    attachment: &Attachment,
    host_end: Option<u32>,
    seen: &mut BTreeMap<(u64, u64), String>,
) -> Result<Option<ContainerEnd>, Cause> {
    let namespace = Namespace::of(attachment.process)?;
    if let Some(other) = seen.get(&namespace.id) {
        return Err(Cause::SharedNamespace(other.clone()));
    }
    seen.insert(namespace.id, attachment.to_string());
    let inside = Netlink::inside(&namespace).await?;
    let Some(link) = inside.link(CONTAINER_INTERFACE).await? else {
        return Ok(None);
    };
    let index = link.header.index;
    let peer = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Link(index) => Some(*index),
            _ => None,
        });
    Ok(Some(ContainerEnd {
        paired: host_end.is_some() && peer == host_end && kind(&link) == Some(&InfoKind::Veth),
        mac: mac(&link),
        mtu: mtu(&link),
        up: is_up(&link),
        addresses: inside.addresses(index).await?,
        multicast_route: has_multicast_route(&inside, index).await?,
    }))
}

async fn has_multicast_route(inside: &Netlink, index: u32) -> Result<bool, Cause> {
    let routes = inside.routes().await?;
    let (group, prefix) = MULTICAST;
    let group = Ipv4Network::new(group, prefix).ok();
    Ok(routes.iter().any(|route| {
        destination(route) == group && route.attributes.contains(&RouteAttribute::Oif(index))
    }))
}

/// Which of our routes to a tunnel subnet this is, whichever grid's: an unreachable one
/// has a metric that only we use, any other leads through WireGuard's `link`.
fn tunnel_route(route: &RouteMessage, link: Option<u32>) -> Option<TunnelRoute> {
    let through = |index| RouteAttribute::Oif(index);
    let has = |attribute| route.attributes.contains(&attribute);
    if route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let tunnel_address = InnerSubnet::try_from(destination(route)?).ok()?;
    match route.header.kind {
        RouteType::Unreachable if has(RouteAttribute::Priority(LAST_METRIC)) => {
            Some(TunnelRoute::Unreachable(tunnel_address))
        }
        RouteType::Unicast if link.is_some_and(|link| has(through(link))) => {
            Some(TunnelRoute::Through(tunnel_address))
        }
        _ => None,
    }
}

fn destination(route: &RouteMessage) -> Option<Ipv4Network> {
    let attributes = route.attributes.iter();
    let to = attributes
        .filter_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(*to),
            _ => None,
        })
        .next()?;
    Ipv4Network::new(to, route.header.destination_prefix_length).ok()
}

fn bridge_settings(link: &LinkMessage) -> BridgeSettings {
    let mut settings = BridgeSettings {
        mtu: mtu(link),
        up: is_up(link),
        stp: true,
        multicast_snooping: true,
    };
    let Some(InfoData::Bridge(infos)) = data(link) else {
        return settings;
    };
    for info in infos {
        match info {
            InfoBridge::StpState(state) => settings.stp = *state != BridgeStpState::Disabled,
            InfoBridge::MulticastSnooping(on) => settings.multicast_snooping = *on,
            _ => {}
        }
    }
    settings
}

fn vxlan_identity(link: &LinkMessage) -> VxlanIdentity {
    let mut identity = VxlanIdentity {
        vni: 0,
        udp_port: 0,
        learning: true,
        proxy: false,
        bound: false,
    };
    let Some(InfoData::Vxlan(infos)) = data(link) else {
        return identity;
    };
    for info in infos {
        match info {
            InfoVxlan::Id(vni) => identity.vni = *vni,
            InfoVxlan::Port(port) => identity.udp_port = *port,
            InfoVxlan::Learning(on) => identity.learning = *on,
            InfoVxlan::Proxy(on) => identity.proxy = *on,
            InfoVxlan::Local(_)
            | InfoVxlan::Local6(_)
            | InfoVxlan::Group(_)
            | InfoVxlan::Group6(_)
            | InfoVxlan::Link(_)
            | InfoVxlan::CollectMetadata(true) => identity.bound = true,
            _ => {}
        }
    }
    identity
}

fn infos(link: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    link.attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })
        .flatten()
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    infos(link).find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn data(link: &LinkMessage) -> Option<&InfoData> {
    infos(link).find_map(|info| match info {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    })
}

fn port_infos(link: &LinkMessage) -> impl Iterator<Item = &InfoBridgePort> {
    infos(link)
        .filter_map(|info| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(infos)) => Some(infos),
            _ => None,
        })
        .flatten()
}

fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

fn mtu(link: &LinkMessage) -> u32 {
    let found = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
    found.unwrap_or_default()
}

fn mac(link: &LinkMessage) -> Mac {
    let found = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(octets) => octets.as_slice().try_into().ok().map(Mac),
            _ => None,
        });
    found.unwrap_or(Mac([0; 6]))
}
