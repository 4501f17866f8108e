//! The steps that a plan is made of: each is one small change, safe to repeat.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use kontena_schema::ids::PlacementId;
use kontena_schema::mac::Mac;
use kontena_sleeve::Table;

use super::intent::Attachment;
use super::state::{
    BridgeSettings, Chain, Fence, Filter, ForwardPlace, InnerRoute, Port, PortSettings,
    SleeveIdentity, TrialIdentity, Variant,
};
use super::wireguard::{DEVICE, Retold};
use super::{BRIDGE, CONTAINER_INTERFACE, TAP, TUNNEL};

/// One change to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write our whole table of the packet filter, in one transaction.
    InstallFilter(Filter),
    /// Keep containers from others than before.
    SetFence {
        old: Fence,
        new: Fence,
    },
    AllowPeers(BTreeSet<Ipv4Addr>),
    ForbidPeers(BTreeSet<Ipv4Addr>),
    RemoveFilter,
    /// Write our whole table at the tunnel's device, in one transaction. The
    /// device must exist.
    InstallGuard(BTreeSet<Mac>),
    /// Let frames of others come out of the tunnel, in one transaction.
    ChangeGuard {
        old: BTreeSet<Mac>,
        new: BTreeSet<Mac>,
    },
    RemoveGuard,
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
    CreateTunnel {
        vni: u32,
        mtu: u32,
    },
    SetTunnel(PortSettings),
    /// End the sealed path that is there, and start one, with nobody at the other
    /// ends yet.
    StartSleeve(SleeveIdentity),
    StopSleeve,
    SetTap(PortSettings),
    /// Say who is at the other ends of the sealed path.
    SetTable(Box<Table>),
    /// Something of WireGuard's device.
    Inside(InsideStep),
    /// Hear trials on the bridge, and send them like this.
    HearTrials(TrialIdentity),
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

/// One change to WireGuard's device, or to the routes of inner addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InsideStep {
    AddRoute(InnerRoute),
    DeleteRoute(InnerRoute),
    /// It stays down.
    CreateWireGuard {
        mtu: u32,
    },
    /// Tell WireGuard what it does not know, and remember what it was told.
    Retell(Box<Retold>),
    /// Set the link up.
    SetWireGuard {
        mtu: u32,
    },
    /// Hear probes at the own inner address, and send them from there.
    HearProbes(Ipv4Addr),
}

/// One change to a table of the bridge or of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryStep {
    SetNeighbour(Ipv4Addr, Mac),
    DeleteNeighbour(Ipv4Addr),
    SetTunnelEntry(Mac, Ipv4Addr),
    DeleteTunnelEntry(Mac),
    SetBridgeEntry(Mac, Port),
    DeleteBridgeEntry(Mac, Port),
    AddFlood(Ipv4Addr),
    DeleteFlood(Ipv4Addr),
}

/// A link of ours in the host's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    Bridge,
    Tunnel,
    Tap,
    WireGuard,
    HostEnd(PlacementId),
}

impl Step {
    /// Whether frames could leave the host, or enter it, because of this step,
    /// or it needs the devices to be there. Such a step is not tried once a step
    /// that guards it has failed.
    pub(crate) fn opens_a_path(&self) -> bool {
        matches!(
            self,
            Step::CreateTunnel { .. }
                | Step::SetTunnel(_)
                | Step::Inside(
                    InsideStep::CreateWireGuard { .. } | InsideStep::SetWireGuard { .. }
                )
                | Step::Entry(
                    EntryStep::SetTunnelEntry(..)
                        | EntryStep::SetBridgeEntry(_, Port::Tunnel)
                        | EntryStep::SetNeighbour(..)
                        | EntryStep::AddFlood(_)
                )
        )
    }

    /// Whether paths may be opened only if this step succeeded.
    pub(crate) fn guards_paths(&self) -> bool {
        matches!(
            self,
            Step::InstallFilter(_)
                | Step::Inside(InsideStep::AddRoute(InnerRoute::Unreachable(_)))
                | Step::AllowPeers(_)
                | Step::InstallGuard(_)
                | Step::ChangeGuard { .. }
                | Step::CreateBridge { .. }
                | Step::DeleteLink(Link::Tunnel)
                | Step::CreateTunnel { .. }
        )
    }

    /// Whether the step is of WireGuard's device.
    pub(crate) fn is_inside(&self) -> bool {
        match self {
            Step::AddAddress(link, _) | Step::RemoveAddress(link, _) => *link == Link::WireGuard,
            Step::Inside(InsideStep::AddRoute(route) | InsideStep::DeleteRoute(route)) => {
                matches!(route, InnerRoute::Through(_))
            }
            Step::Inside(_) => true,
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

/// What the names of host ends begin with.
const HOST_END_PREFIX: &str = "vethwe";
/// Hexadecimal digits that fit behind the prefix into an interface's name
/// (15 bytes, `IFNAMSIZ` less the final zero).
const HOST_END_DIGITS: usize = 9;

impl Link {
    /// The interface's name. Placements are counted from 1 in a database's
    /// sequence; the 2^36 that fit into a name are not reached.
    pub(crate) fn name(self) -> String {
        match self {
            Link::Bridge => BRIDGE.to_owned(),
            Link::Tunnel => TUNNEL.to_owned(),
            Link::Tap => TAP.to_owned(),
            Link::WireGuard => DEVICE.to_owned(),
            Link::HostEnd(placement) => format!("{HOST_END_PREFIX}{:x}", placement.0),
        }
    }

    /// The link of ours that has this name. Others may use names with our
    /// prefix (`vethwe-bridge` of Weave), so all of the name must fit.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            BRIDGE => return Some(Link::Bridge),
            TUNNEL => return Some(Link::Tunnel),
            TAP => return Some(Link::Tap),
            DEVICE => return Some(Link::WireGuard),
            _ => {}
        }
        let digits = name.strip_prefix(HOST_END_PREFIX)?;
        let placement = i64::from_str_radix(digits, 16).ok()?;
        let link = Link::HostEnd(PlacementId(placement));
        (digits.len() <= HOST_END_DIGITS && link.name() == name).then_some(link)
    }
}

impl EntryStep {
    /// The link whose table it is of.
    pub(crate) fn link(self) -> Link {
        match self {
            Self::SetNeighbour(..) | Self::DeleteNeighbour(_) => Link::Bridge,
            Self::SetBridgeEntry(_, port) | Self::DeleteBridgeEntry(_, port) => port.link(),
            Self::SetTunnelEntry(..)
            | Self::DeleteTunnelEntry(_)
            | Self::AddFlood(_)
            | Self::DeleteFlood(_) => Link::Tunnel,
        }
    }
}

impl Port {
    /// The link that is this port.
    pub(crate) fn link(self) -> Link {
        match self {
            Port::Tunnel => Link::Tunnel,
            Port::Tap => Link::Tap,
        }
    }
}

impl fmt::Display for ForwardPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.chain.name(), self.variant.program())
    }
}

impl fmt::Display for InnerRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InnerRoute::Unreachable(inner) => write!(f, "the route of {inner} to nowhere"),
            InnerRoute::Through(inner) => write!(f, "the route of {inner} through {DEVICE}"),
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
            Step::SetFence { new, .. } => {
                let Fence { masters, bridges } = new;
                write!(
                    f,
                    "keep containers behind {bridges:?} from the Master at {masters:?}"
                )
            }
            Step::AllowPeers(peers) => write!(f, "let clear packets pass for {peers:?}"),
            Step::ForbidPeers(peers) => write!(f, "let no more clear packets pass for {peers:?}"),
            Step::RemoveFilter => write!(f, "remove the packet filter"),
            Step::InstallGuard(of) => write!(f, "guard {TUNNEL} for {} senders", of.len()),
            Step::ChangeGuard { old, new } => {
                write!(
                    f,
                    "let nothing of {old:?} in through {TUNNEL}, but of {new:?}"
                )
            }
            Step::RemoveGuard => write!(f, "remove the guard of {TUNNEL}"),
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
            Step::CreateTunnel { vni, .. } => write!(f, "create {TUNNEL} with VNI {vni}"),
            Step::SetTunnel(_) => write!(f, "set up {TUNNEL}"),
            Step::StartSleeve(_) => write!(f, "start the sealed path"),
            Step::StopSleeve => write!(f, "end the sealed path"),
            Step::SetTap(_) => write!(f, "set up {TAP}"),
            Step::SetTable(table) => write!(f, "seal for {} peers", table.peers.len()),
            Step::Inside(step) => step.fmt(f),
            Step::HearTrials(_) => write!(f, "hear trials on {BRIDGE}"),
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

impl fmt::Display for InsideStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRoute(route) => write!(f, "add {route}"),
            Self::DeleteRoute(route) => write!(f, "delete {route}"),
            Self::CreateWireGuard { .. } => write!(f, "create {DEVICE}"),
            Self::Retell(retold) => write!(f, "tell {DEVICE} of {} keys", retold.named.len()),
            Self::SetWireGuard { .. } => write!(f, "set up {DEVICE}"),
            Self::HearProbes(inner) => write!(f, "hear probes at {inner}"),
        }
    }
}

impl fmt::Display for EntryStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetNeighbour(address, mac) => write!(f, "set the neighbour {address} to {mac}"),
            Self::DeleteNeighbour(address) => write!(f, "delete the neighbour {address}"),
            Self::SetTunnelEntry(mac, to) => write!(f, "send frames for {mac} to {to}"),
            Self::DeleteTunnelEntry(mac) => write!(f, "send frames for {mac} nowhere"),
            Self::SetBridgeEntry(mac, port) => write!(f, "pin {mac} to {}", port.link().name()),
            Self::DeleteBridgeEntry(mac, port) => {
                write!(f, "unpin {mac} from {}", port.link().name())
            }
            Self::AddFlood(to) => write!(f, "flood to {to}"),
            Self::DeleteFlood(to) => write!(f, "flood no more to {to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_fit_and_lead_back_to_them() {
        for link in [Link::Bridge, Link::Tunnel, Link::Tap, Link::WireGuard]
            .into_iter()
            .chain([1, 0x1f, (1 << 36) - 1].map(|id| Link::HostEnd(PlacementId(id))))
        {
            assert!(link.name().len() <= 15, "{}", link.name());
            assert_eq!(Link::named(&link.name()), Some(link));
        }
    }

    #[test]
    fn names_of_others_are_left_alone() {
        for name in [
            "vethwe",
            "vethwe-bridge",
            "vethwepl12",
            "vethwe01",
            "vethwe+1",
            "vethweA",
            "eth0",
        ] {
            assert_eq!(Link::named(name), None, "{name}");
        }
    }
}
