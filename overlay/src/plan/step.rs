//! The steps that a plan is made of: each is one small change, safe to repeat.

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
    BridgeSettings, Chain, EgressPolicy, Filter, ForwardPlace, PathProbeIdentity, Port,
    PortSettings, SleeveIdentity, TunnelRoute, Variant,
};
use crate::wireguard::WireGuardUpdate;

/// One change to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write our whole table of the packet filter, in one transaction.
    InstallFilter(Filter),
    /// Keep containers from others than before.
    SetEgressPolicy {
        old: EgressPolicy,
        new: EgressPolicy,
    },
    AllowPeers(BTreeSet<Ipv4Addr>),
    ForbidPeers(BTreeSet<Ipv4Addr>),
    RemoveFilter,
    /// Write our whole table at the VXLAN device's device, in one transaction. The
    /// device must exist.
    InstallAntiSpoofing(BTreeSet<Mac>),
    /// Let frames of others come out of the VXLAN device, in one transaction.
    ChangeAntiSpoofing {
        old: BTreeSet<Mac>,
        new: BTreeSet<Mac>,
    },
    RemoveAntiSpoofing,
    AllowForwarding(ForwardPlace),
    ForgetForwarding(ForwardPlace),
    CreateBridge {
        mac: Mac,
        mtu: u32,
    },
    /// The kernel then forgets the bridge's neighbours.
    SetBridgeMac(Mac),
    SetBridge(BridgeSettings),
    AddAddress(Link, Ipv4Network),
    RemoveAddress(Link, Ipv4Network),
    CreateVxlan {
        vni: u32,
        mtu: u32,
    },
    SetVxlan(PortSettings),
    /// End the encrypted path that is there, and start one, with nobody at the other
    /// ends yet.
    StartSleeve(SleeveIdentity),
    StopSleeve,
    SetTap(PortSettings),
    /// Say who is at the other ends of the encrypted path.
    SetTable(Box<Table>),
    /// Something of WireGuard's device.
    WireGuard(WireGuardStep),
    /// Hear path_probes on the bridge, and send them like this.
    ListenForPathProbes(PathProbeIdentity),
    DeleteLink(Link),
    /// Make a veth pair whose far end is in the container from the start; both
    /// ends stay down.
    Attach {
        placement: PlacementId,
        to: Attachment,
        mtu: u32,
    },
    /// Make the host's end a port of the bridge and set it up.
    SetHostEnd {
        placement: PlacementId,
        mac: Mac,
        port: PortSettings,
    },
    /// Give the container's end its MTU, route and address, the address last:
    /// that is what the container's command waits for.
    Configure {
        placement: PlacementId,
        to: Attachment,
        address: Ipv4Network,
        mtu: u32,
    },
    /// An entry of a table. There are many, so those that follow each other go together.
    Entry(EntryStep),
    /// Tell the containers of this host who has an address now.
    Announce(BTreeMap<Ipv4Addr, Mac>),
}

/// One change to WireGuard's device, or to the routes of tunnel addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WireGuardStep {
    AddRoute(TunnelRoute),
    DeleteRoute(TunnelRoute),
    /// It stays down.
    CreateWireGuard {
        mtu: u32,
    },
    /// Tell WireGuard what it does not know, and remember what it was told.
    UpdateWireGuard(Box<WireGuardUpdate>),
    /// Set the link up.
    SetWireGuard {
        mtu: u32,
    },
    /// Hear heartbeats at the own tunnel address, and send them from there.
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
    /// Whether frames could leave the host, or enter it, because of this step,
    /// or it needs the devices to be there. Such a step is not tried once a step
    /// that protects it has failed.
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
            Step::InstallFilter(_)
                | Step::WireGuard(WireGuardStep::AddRoute(TunnelRoute::Unreachable(_)))
                | Step::AllowPeers(_)
                | Step::InstallAntiSpoofing(_)
                | Step::ChangeAntiSpoofing { .. }
                | Step::CreateBridge { .. }
                | Step::DeleteLink(Link::Vxlan)
                | Step::CreateVxlan { .. }
        )
    }

    /// Whether the step is of WireGuard's device.
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
            _ => None,
        }
    }
}

impl EntryStep {
    /// The link whose table it is of.
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
            TunnelRoute::Unreachable(tunnel_address) => {
                write!(f, "the route of {tunnel_address} to nowhere")
            }
            TunnelRoute::Through(tunnel_address) => {
                write!(f, "the route of {tunnel_address} through {WIREGUARD}")
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

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::InstallFilter(filter) => {
                write!(f, "install the packet filter for {:?}", filter.peers)
            }
            Step::SetEgressPolicy { new, .. } => {
                let EgressPolicy { masters, bridges } = new;
                write!(
                    f,
                    "keep containers behind {bridges:?} from the Master at {masters:?}"
                )
            }
            Step::AllowPeers(peers) => write!(f, "let clear packets pass for {peers:?}"),
            Step::ForbidPeers(peers) => write!(f, "let no more clear packets pass for {peers:?}"),
            Step::RemoveFilter => write!(f, "remove the packet filter"),
            Step::InstallAntiSpoofing(of) => {
                write!(f, "anti_spoofing {VXLAN} for {} senders", of.len())
            }
            Step::ChangeAntiSpoofing { old, new } => {
                write!(
                    f,
                    "let nothing of {old:?} in through {VXLAN}, but of {new:?}"
                )
            }
            Step::RemoveAntiSpoofing => write!(f, "remove the anti_spoofing of {VXLAN}"),
            Step::AllowForwarding(place) => write!(f, "allow forwarding in {place}"),
            Step::ForgetForwarding(place) => write!(f, "forget the forwarding rule in {place}"),
            Step::CreateBridge { .. } => write!(f, "create {BRIDGE}"),
            Step::SetBridgeMac(mac) => write!(f, "give {BRIDGE} the MAC {mac}"),
            Step::SetBridge(_) => write!(f, "set up {BRIDGE}"),
            Step::AddAddress(link, address) => {
                write!(f, "give {} the address {address}", link.name())
            }
            Step::RemoveAddress(link, address) => {
                write!(f, "take the address {address} from {}", link.name())
            }
            Step::CreateVxlan { vni, .. } => write!(f, "create {VXLAN} with VNI {vni}"),
            Step::SetVxlan(_) => write!(f, "set up {VXLAN}"),
            Step::StartSleeve(_) => write!(f, "start the encrypted path"),
            Step::StopSleeve => write!(f, "end the encrypted path"),
            Step::SetTap(_) => write!(f, "set up {TAP}"),
            Step::SetTable(table) => write!(f, "encrypt for {} peers", table.peers.len()),
            Step::WireGuard(step) => step.fmt(f),
            Step::ListenForPathProbes(_) => write!(f, "hear path_probes on {BRIDGE}"),
            Step::DeleteLink(link) => write!(f, "delete {}", link.name()),
            Step::Attach { placement, to, .. } => {
                write!(
                    f,
                    "put {CONTAINER_INTERFACE} of placement {placement} into {to}"
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
                write!(f, "announce the holders of {} addresses", holders.len())
            }
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
                write!(f, "tell {WIREGUARD} of {} keys", update.named.len())
            }
            Self::SetWireGuard { .. } => write!(f, "set up {WIREGUARD}"),
            Self::ListenForHeartbeats(tunnel_address) => {
                write!(f, "hear heartbeats at {tunnel_address}")
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
            Self::DeleteVxlanEntry(mac) => write!(f, "send frames for {mac} nowhere"),
            Self::SetBridgeEntry(mac, port) => write!(f, "pin {mac} to {}", port.link().name()),
            Self::DeleteBridgeEntry(mac, port) => {
                write!(f, "unpin {mac} from {}", port.link().name())
            }
            Self::AddFlood(to) => write!(f, "flood to {to}"),
            Self::DeleteFlood(to) => write!(f, "flood no more to {to}"),
        }
    }
}
