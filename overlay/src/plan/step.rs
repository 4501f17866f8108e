//! The steps of a plan. Each is one small change, safe to repeat.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use kontena_schema::ids::PlacementId;
use kontena_schema::mac::Mac;
use kontena_sleeve::Table;

use crate::model::devices::{BRIDGE, CONTAINER_INTERFACE, Link, TAP, VXLAN, WIREGUARD};
use crate::model::intent::Attachment;
use crate::model::state::{
    Access, BridgeSettings, Chain, EgressPolicy, Filter, ForwardPlace, PathProbeIdentity, Port,
    PortFilter, PortSettings, SleeveIdentity, TunnelRoute, Variant,
};
use crate::wireguard::WireGuardUpdate;

/// One change to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Filter(FilterStep),
    /// Write our whole table at the VXLAN device's device, in one transaction. The
    /// device must exist.
    InstallAntiSpoofing(BTreeSet<Mac>),
    /// Change which source MACs the VXLAN device accepts, in one transaction.
    ChangeAntiSpoofing {
        old: BTreeSet<Mac>,
        new: BTreeSet<Mac>,
    },
    RemoveAntiSpoofing,
    /// Let these ports take what their containers send as their own, and nothing else.
    SetPortFilters(BTreeMap<PlacementId, PortFilter>),
    /// Forget the filters of ports that are gone.
    DiscardPortFilters(BTreeSet<PlacementId>),
    RemovePortFilters,
    AllowForwarding(ForwardPlace),
    ForgetForwarding(ForwardPlace),
    CreateBridge {
        mac: Mac,
        mtu: u32,
    },
    /// The kernel then deletes the bridge's neighbours.
    SetBridgeMac(Mac),
    SetBridge(BridgeSettings),
    AddAddress(Link, Ipv4Network),
    RemoveAddress(Link, Ipv4Network),
    CreateVxlan {
        vni: u32,
        mtu: u32,
    },
    SetVxlan(PortSettings),
    /// Stop the sleeve if there is one, and start one without peers.
    StartSleeve(SleeveIdentity),
    StopSleeve,
    SetTap(PortSettings),
    /// Set the sleeve's table.
    SetTable(Box<Table>),
    /// A change of the WireGuard device.
    WireGuard(WireGuardStep),
    /// Receive path probes on the bridge, and send them with this identity.
    ListenForPathProbes(PathProbeIdentity),
    DeleteLink(Link),
    /// Create a veth pair whose far end is in the container from the start; both ends stay down.
    Attach {
        placement: PlacementId,
        to: Attachment,
        mtu: u32,
    },
    /// Make the host end a port of the bridge and set it up.
    SetHostEnd {
        placement: PlacementId,
        mac: Mac,
        port: PortSettings,
    },
    /// Give the container's end its MTU, route and address, the address last: the container's
    /// command waits for it.
    Configure {
        placement: PlacementId,
        to: Attachment,
        address: Ipv4Network,
        mtu: u32,
    },
    /// A table entry. There are many, so consecutive ones are sent together.
    Entry(EntryStep),
    /// Announce new holders of addresses to this host's containers.
    Announce(BTreeMap<Ipv4Addr, Mac>),
}

/// One change to the packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FilterStep {
    /// Write our whole table, in one transaction.
    Install(Filter),
    /// Change what containers must not reach.
    SetEgressPolicy {
        old: EgressPolicy,
        new: EgressPolicy,
    },
    /// Let others of the overlay reach other ports of this host than before.
    SetAccess {
        old: Access,
        new: Access,
    },
    AllowPeers(BTreeSet<Ipv4Addr>),
    ForbidPeers(BTreeSet<Ipv4Addr>),
    Remove,
    /// Write the table that nobody else can take away, for these peers.
    StartLive(BTreeSet<Ipv4Addr>),
    StopLive,
}

/// One change to the WireGuard device, or to the routes of tunnel addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WireGuardStep {
    AddRoute(TunnelRoute),
    DeleteRoute(TunnelRoute),
    /// It stays down.
    CreateWireGuard {
        mtu: u32,
    },
    /// Send WireGuard what it does not have yet, and remember it.
    UpdateWireGuard(Box<WireGuardUpdate>),
    /// Set the link up.
    SetWireGuard {
        mtu: u32,
    },
    /// Receive heartbeats at the own tunnel address, and send them from there.
    ListenForHeartbeats(Ipv4Addr),
}

/// One change to a table of the bridge or of the VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryStep {
    SetNeighbour(Ipv4Addr, Mac),
    DeleteNeighbour(Ipv4Addr),
    SetVxlanEntry(Mac, Ipv4Addr),
    DeleteVxlanEntry(Mac),
    SetBridgeEntry(Mac, Port),
    DeleteBridgeEntry(Mac, Port),
    AddFlood(Ipv4Addr),
    DeleteFlood(Ipv4Addr),
}

impl Step {
    /// Whether frames can leave or enter the host because of this step, or it needs the devices.
    /// Such a step is skipped once a step that protects paths has failed.
    pub(crate) fn opens_a_path(&self) -> bool {
        matches!(
            self,
            Step::CreateVxlan { .. }
                | Step::SetVxlan(_)
                | Step::WireGuard(
                    WireGuardStep::CreateWireGuard { .. } | WireGuardStep::SetWireGuard { .. }
                )
                | Step::Entry(
                    EntryStep::SetVxlanEntry(..)
                        | EntryStep::SetBridgeEntry(_, Port::Vxlan)
                        | EntryStep::SetNeighbour(..)
                        | EntryStep::AddFlood(_)
                )
        )
    }

    /// Whether paths may be opened only if this step succeeded.
    pub(crate) fn protects_paths(&self) -> bool {
        matches!(
            self,
            Step::Filter(FilterStep::Install(_) | FilterStep::AllowPeers(_))
                | Step::WireGuard(WireGuardStep::AddRoute(TunnelRoute::Unreachable(_)))
                | Step::InstallAntiSpoofing(_)
                | Step::ChangeAntiSpoofing { .. }
                | Step::CreateBridge { .. }
                | Step::DeleteLink(Link::Vxlan)
                | Step::CreateVxlan { .. }
        )
    }

    /// Whether the step is for the WireGuard device.
    pub(crate) fn is_wireguard(&self) -> bool {
        match self {
            Step::AddAddress(link, _) | Step::RemoveAddress(link, _) => *link == Link::WireGuard,
            Step::WireGuard(WireGuardStep::AddRoute(route) | WireGuardStep::DeleteRoute(route)) => {
                matches!(route, TunnelRoute::Through(_))
            }
            Step::WireGuard(_) => true,
            _ => false,
        }
    }

    /// The placement whose container the step is for.
    pub(crate) fn placement(&self) -> Option<PlacementId> {
        match self {
            Step::Attach { placement, .. }
            | Step::SetHostEnd { placement, .. }
            | Step::Configure { placement, .. }
            | Step::DeleteLink(Link::HostEnd(placement)) => Some(*placement),
            Step::SetPortFilters(filters) if filters.len() == 1 => filters.keys().next().copied(),
            _ => None,
        }
    }
}

impl EntryStep {
    /// The link whose table it changes.
    pub(crate) fn link(self) -> Link {
        match self {
            Self::SetNeighbour(..) | Self::DeleteNeighbour(_) => Link::Bridge,
            Self::SetBridgeEntry(_, port) | Self::DeleteBridgeEntry(_, port) => port.link(),
            Self::SetVxlanEntry(..)
            | Self::DeleteVxlanEntry(_)
            | Self::AddFlood(_)
            | Self::DeleteFlood(_) => Link::Vxlan,
        }
    }
}

impl Port {
    /// The link that is this port.
    pub(crate) fn link(self) -> Link {
        match self {
            Port::Vxlan => Link::Vxlan,
            Port::Tap => Link::Tap,
        }
    }
}

impl fmt::Display for ForwardPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.chain.name(), self.variant.program())
    }
}

impl fmt::Display for TunnelRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TunnelRoute::Unreachable(subnet) => {
                write!(f, "the unreachable route of {subnet}")
            }
            TunnelRoute::Through(subnet) => {
                write!(f, "the route of {subnet} through {WIREGUARD}")
            }
        }
    }
}

impl Variant {
    /// The program that reads and writes its rules.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Variant::Nft => "iptables-nft",
            Variant::Legacy => "iptables-legacy",
        }
    }
}

impl Chain {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Chain::Forward => "FORWARD",
            Chain::DockerUser => "DOCKER-USER",
        }
    }
}

/// The names of containers' ports.
fn names<'a>(ports: impl IntoIterator<Item = &'a PlacementId>) -> String {
    let names = ports.into_iter().map(|&id| Link::HostEnd(id).name());
    names.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Filter(step) => step.fmt(f),
            Step::InstallAntiSpoofing(of) => {
                write!(
                    f,
                    "install the anti-spoofing filter of {VXLAN} for {} senders",
                    of.len()
                )
            }
            Step::ChangeAntiSpoofing { old, new } => {
                write!(
                    f,
                    "remove {old:?} from the anti-spoofing filter of {VXLAN}, and add {new:?}"
                )
            }
            Step::RemoveAntiSpoofing => write!(f, "remove the anti-spoofing filter of {VXLAN}"),
            Step::SetPortFilters(filters) => {
                write!(f, "set the filters of {}", names(filters.keys()))
            }
            Step::DiscardPortFilters(ports) => {
                write!(f, "discard the filters of {}", names(ports))
            }
            Step::RemovePortFilters => write!(f, "remove the filters of containers' ports"),
            Step::AllowForwarding(place) => write!(f, "allow forwarding in {place}"),
            Step::ForgetForwarding(place) => write!(f, "remove the forwarding rule from {place}"),
            Step::CreateBridge { .. } => write!(f, "create {BRIDGE}"),
            Step::SetBridgeMac(mac) => write!(f, "give {BRIDGE} the MAC {mac}"),
            Step::SetBridge(_) => write!(f, "set up {BRIDGE}"),
            Step::AddAddress(link, address) => {
                write!(f, "give {} the address {address}", link.name())
            }
            Step::RemoveAddress(link, address) => {
                write!(f, "remove the address {address} from {}", link.name())
            }
            Step::CreateVxlan { vni, .. } => write!(f, "create {VXLAN} with VNI {vni}"),
            Step::SetVxlan(_) => write!(f, "set up {VXLAN}"),
            Step::StartSleeve(_) => write!(f, "start the encrypted path"),
            Step::StopSleeve => write!(f, "stop the encrypted path"),
            Step::SetTap(_) => write!(f, "set up {TAP}"),
            Step::SetTable(table) => {
                write!(f, "configure {} encrypted peers", table.peers.len())
            }
            Step::WireGuard(step) => step.fmt(f),
            Step::ListenForPathProbes(_) => write!(f, "receive path probes on {BRIDGE}"),
            Step::DeleteLink(link) => write!(f, "delete {}", link.name()),
            Step::Attach { placement, to, .. } => {
                write!(
                    f,
                    "create {CONTAINER_INTERFACE} of placement {placement} in {to}"
                )
            }
            Step::SetHostEnd { placement, .. } => {
                write!(f, "set up {}", Link::HostEnd(*placement).name())
            }
            Step::Configure { to, address, .. } => {
                write!(f, "set up {CONTAINER_INTERFACE} with {address} in {to}")
            }
            Step::Entry(step) => step.fmt(f),
            Step::Announce(holders) => {
                write!(f, "send gratuitous ARP for {} addresses", holders.len())
            }
        }
    }
}

impl fmt::Display for FilterStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Install(filter) => {
                write!(f, "install the packet filter for {:?}", filter.peers)
            }
            Self::SetEgressPolicy { new, .. } => {
                let EgressPolicy { masters, bridges } = new;
                write!(
                    f,
                    "set the egress policy: {bridges:?} must not reach {masters:?}"
                )
            }
            Self::SetAccess { new, .. } => {
                let services = &new.services;
                write!(
                    f,
                    "set the overlay's access to this host: {} nodes, {services:?}",
                    new.nodes.len()
                )
            }
            Self::StartLive(peers) => {
                write!(f, "install the live packet filter for {peers:?}")
            }
            Self::StopLive => write!(f, "remove the live packet filter"),
            Self::AllowPeers(peers) => write!(f, "allow unencrypted packets for {peers:?}"),
            Self::ForbidPeers(peers) => write!(f, "block unencrypted packets for {peers:?}"),
            Self::Remove => write!(f, "remove the packet filter"),
        }
    }
}

impl fmt::Display for WireGuardStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRoute(route) => write!(f, "add {route}"),
            Self::DeleteRoute(route) => write!(f, "delete {route}"),
            Self::CreateWireGuard { .. } => write!(f, "create {WIREGUARD}"),
            Self::UpdateWireGuard(update) => {
                write!(f, "configure {WIREGUARD} with {} keys", update.named.len())
            }
            Self::SetWireGuard { .. } => write!(f, "set up {WIREGUARD}"),
            Self::ListenForHeartbeats(tunnel_address) => {
                write!(f, "receive heartbeats at {tunnel_address}")
            }
        }
    }
}

impl fmt::Display for EntryStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetNeighbour(address, mac) => write!(f, "set the neighbour {address} to {mac}"),
            Self::DeleteNeighbour(address) => write!(f, "delete the neighbour {address}"),
            Self::SetVxlanEntry(mac, to) => write!(f, "send frames for {mac} to {to}"),
            Self::DeleteVxlanEntry(mac) => write!(f, "stop sending frames for {mac}"),
            Self::SetBridgeEntry(mac, port) => write!(f, "pin {mac} to {}", port.link().name()),
            Self::DeleteBridgeEntry(mac, port) => {
                write!(f, "unpin {mac} from {}", port.link().name())
            }
            Self::AddFlood(to) => write!(f, "flood to {to}"),
            Self::DeleteFlood(to) => write!(f, "stop flooding to {to}"),
        }
    }
}
