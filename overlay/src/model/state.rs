//! What the kernel has of the overlay, as far as a plan depends on it.
//!
//! Interface indexes stay out: they differ from boot to boot, and a plan that
//! knows only names can be tested against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnetwork::Ipv4Network;
use kontena_schema::address::InnerSubnet;
use kontena_schema::ids::PlacementId;
use kontena_schema::mac::Mac;
use kontena_sleeve::Table;

use crate::wireguard::Looked;

/// Everything of ours on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) filter: FilterState,
    pub(crate) anti_spoofing: AntiSpoofingState,
    /// None if the forwarding rules could not be read.
    pub(crate) forwarding: Option<Forwarding>,
    pub(crate) bridge: Option<Bridge>,
    pub(crate) vxlan: Option<Vxlan>,
    /// The sleeve, if it works, and the port of the bridge that leads to it.
    pub(crate) sleeve: Option<SleeveState>,
    pub(crate) tap: Option<PortSettings>,
    /// The encrypted path under the VXLAN device.
    pub(crate) inside: WireGuardState,
    /// As whom path_probes are sent, if they are heard on this very bridge.
    pub(crate) path_probes: Option<PathProbeIdentity>,
    /// The MACs of other hosts that the bridge has, and where it sends for them.
    pub(crate) remote: BTreeMap<Mac, RemoteEntry>,
    /// The host's ends of veth pairs, by the placement that their name says.
    pub(crate) host_ends: BTreeMap<PlacementId, HostEnd>,
    /// The containers of the intent that could be looked into; what is inside
    /// the others is not known.
    pub(crate) containers: BTreeMap<PlacementId, Option<ContainerEnd>>,
}

/// A table of ours in the packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TableState<T> {
    Missing,
    /// It is there, and not as we would write it.
    Broken,
    /// It is as we would write it for these.
    Sound(T),
}

/// The state of the filter.
pub(crate) type FilterState = TableState<Filter>;

/// What the packet filter is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// What passes through WireGuard is between these addresses only.
    pub(crate) tunnel_subnet: InnerSubnet,
    /// Clear packets of the VXLAN device pass to and from these addresses only.
    pub(crate) peers: BTreeSet<Ipv4Addr>,
    pub(crate) egress: EgressPolicy,
}

/// What containers do not reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    /// Where the Master is; while that is not known, it stays where it was.
    pub masters: Option<BTreeSet<SocketAddrV4>>,
    /// The bridges that containers are behind; while they are not known, they stay what
    /// they were.
    pub bridges: Option<BTreeSet<String>>,
}

/// The anti_spoofing of the VXLAN device's device: frames from these MACs come in, and no others.
pub(crate) type AntiSpoofingState = TableState<BTreeSet<Mac>>;

/// Where rules of iptables that concern us are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forwarding {
    /// Where our rule belongs, next to Docker's own.
    pub(crate) place: ForwardPlace,
    /// Where it is, and how often.
    pub(crate) present: BTreeMap<ForwardPlace, usize>,
}

/// A chain of one of the two implementations of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ForwardPlace {
    pub(crate) variant: Variant,
    pub(crate) chain: Chain,
}

/// The implementations of iptables; the kernel runs the rules of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Variant {
    Nft,
    Legacy,
}

/// The chains where our rule can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Chain {
    Forward,
    DockerUser,
}

/// The overlay's bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bridge {
    pub(crate) mac: Mac,
    pub(crate) settings: BridgeSettings,
    pub(crate) addresses: BTreeSet<Ipv4Network>,
    /// The permanent neighbours.
    pub(crate) neighbours: BTreeMap<Ipv4Addr, Mac>,
}

/// What can be changed about a bridge while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BridgeSettings {
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) stp: bool,
    pub(crate) multicast_snooping: bool,
}

/// The VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) identity: VxlanIdentity,
    pub(crate) port: PortSettings,
    /// Where its own table sends frames for a MAC.
    pub(crate) entries: BTreeMap<Mac, BTreeSet<Ipv4Addr>>,
    /// Where it sends frames for MACs that it does not know.
    pub(crate) floods: BTreeSet<Ipv4Addr>,
}

/// The ports of the bridge that lead to other hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Port {
    /// In clear, or to WireGuard under it.
    Vxlan,
    /// To the sleeve.
    Tap,
}

/// An entry of the bridge's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RemoteEntry {
    pub(crate) port: Port,
    /// Whether it is pinned there, so that no frame with that source can move it.
    pub(crate) pinned: bool,
}

/// How a host encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// With the sleeve, whose device is a port of the bridge beside the VXLAN device.
    #[default]
    Sleeve,
    /// With WireGuard, which is under the VXLAN device: what is for an encrypted peer goes to its
    /// tunnel address.
    WireGuard,
}

/// What leads to tunnel addresses: WireGuard's device and the routes of their subnets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WireGuardState {
    pub(crate) link: Option<WireGuardLink>,
    /// How WireGuard is configured; none if there is nobody to ask.
    pub(crate) device: Option<Looked>,
    /// The tunnel address at which heartbeats are heard on this very link.
    pub(crate) hears: Option<Ipv4Addr>,
    pub(crate) routes: BTreeSet<TunnelRoute>,
}

/// WireGuard's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WireGuardLink {
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) addresses: BTreeSet<Ipv4Network>,
}

/// A route of an tunnel subnet, of this grid or of one that the host was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TunnelRoute {
    /// Nowhere. It counts while there is no other, so that nothing for an tunnel address
    /// ever takes the default route.
    Unreachable(InnerSubnet),
    /// Through WireGuard.
    Through(InnerSubnet),
}

/// The sleeve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SleeveState {
    pub(crate) identity: SleeveIdentity,
    pub(crate) table: Table,
}

/// What makes a sleeve another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SleeveIdentity {
    pub(crate) vni: u32,
    /// This host's address inside the VXLAN device.
    pub(crate) tunnel_address: Ipv4Addr,
}

/// As whom path_probes of clear transports are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathProbeIdentity {
    pub(crate) vni: u32,
    /// The MAC of the bridge.
    pub(crate) mac: Mac,
    /// How long the packet in a frame may be, in bytes.
    pub(crate) mtu: u32,
}

/// What makes a VXLAN device another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VxlanIdentity {
    pub(crate) vni: u32,
    pub(crate) udp_port: u16,
    pub(crate) learning: bool,
    /// Whether it answers ARP for its neighbours, of which it has none, and sends no
    /// ARP: the bridge answers for all that the directory has.
    pub(crate) proxy: bool,
    /// Whether it is tied to a local address, a group or a lower device.
    pub(crate) bound: bool,
}

/// A port of the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortSettings {
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) on_bridge: bool,
    pub(crate) learning: bool,
    /// Frames for MACs that the bridge does not know are sent here too.
    pub(crate) flood: bool,
    /// No frame passes between two isolated ports.
    pub(crate) isolated: bool,
    /// Frames come in only from the MACs that are pinned to this port.
    pub(crate) locked: bool,
    /// The bridge itself answers ARP for its permanent neighbours behind this
    /// port, instead of flooding the question.
    pub(crate) neigh_suppress: bool,
}

/// The host's end of a container's veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostEnd {
    pub(crate) port: PortSettings,
    /// The MACs that the bridge sends to it, pinned ones only.
    pub(crate) pinned: BTreeSet<Mac>,
}

/// The container's end of its veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerEnd {
    /// Whether the other end is the host end named after the placement.
    pub(crate) paired: bool,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) addresses: BTreeSet<Ipv4Network>,
    pub(crate) multicast_route: bool,
}
