//! The kernel's state of the overlay, as far as a plan depends on it.
//!
//! Interface indexes stay out: they differ from boot to boot, and a plan that uses only names
//! can be tested against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

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
    pub(crate) live_table: LiveTable,
    /// Whether the kernel tracks connections in this namespace, as it does for Docker's NAT.
    pub(crate) tracked: bool,
    pub(crate) anti_spoofing: AntiSpoofingState,
    /// None if the forwarding rules could not be read.
    pub(crate) forwarding: Option<Forwarding>,
    pub(crate) bridge: Option<Bridge>,
    pub(crate) vxlan: Option<Vxlan>,
    /// The sleeve, if it is running, and its port of the bridge.
    pub(crate) sleeve: Option<SleeveState>,
    pub(crate) tap: Option<PortSettings>,
    /// The encrypted path under the VXLAN device.
    pub(crate) inside: WireGuardState,
    /// The identity that path probes are sent with, if they are received on this very bridge.
    pub(crate) path_probes: Option<PathProbeIdentity>,
    /// The bridge's entries for MACs of other hosts.
    pub(crate) remote: BTreeMap<Mac, RemoteEntry>,
    /// The host ends of veth pairs, by the placement in their name.
    pub(crate) host_ends: BTreeMap<PlacementId, HostEnd>,
    /// The ports that have a filter and are not there; none where no port has one.
    pub(crate) stale_port_filters: Option<BTreeSet<PlacementId>>,
    /// The containers of the intent that could be inspected, with their end of the veth pair; the
    /// state of all others is unknown.
    pub(crate) containers: BTreeMap<PlacementId, Option<ContainerEnd>>,
}

/// One of our nftables tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TableState<T> {
    Missing,
    /// It exists, but not as we would write it.
    Broken,
    /// It is as we would write it for this content.
    Sound(T),
}

/// The state of the filter.
pub(crate) type FilterState = TableState<Filter>;

/// The content of the packet filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Packets inside WireGuard are between these addresses only.
    pub(crate) tunnel_subnet: InnerSubnet,
    /// Whether it goes by connections. Rules that do make the kernel track them all.
    pub(crate) tracked: bool,
    /// Clear packets of the VXLAN device pass to and from these addresses only.
    pub(crate) peers: BTreeSet<Ipv4Addr>,
    pub(crate) access: Access,
    pub(crate) egress: EgressPolicy,
}

/// The part of the packet filter that nobody else can take away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LiveTable {
    #[default]
    Missing = 0,
    Present = 1,
    /// The kernel has no such tables.
    Unsupported = 2,
}

/// Who on the overlay reaches what of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// This host's own addresses, on the overlay and inside tunnels: they answer to nothing
    /// that came another way.
    pub(crate) own: BTreeSet<Ipv4Addr>,
    /// The overlay addresses of the other nodes.
    pub(crate) nodes: BTreeSet<Ipv4Addr>,
    pub(crate) services: HostServices,
}

/// How much of what a container sends to all or to a group passes. A frame of it is copied,
/// and encrypted, once for each other node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MulticastLimit {
    /// In packets a second, at least 1.
    pub rate: u32,
    /// In packets at once, at least 1.
    pub burst: u32,
}

impl Default for MulticastLimit {
    fn default() -> Self {
        Self {
            rate: 50,
            burst: 200,
        }
    }
}

/// What answers at this host's overlay address, beside pings, published ports, and etcd
/// to other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostServices {
    /// TCP ports.
    pub tcp: BTreeSet<u16>,
    /// UDP ports.
    pub udp: BTreeSet<u16>,
}

/// What containers do not reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    /// Where the Master is; while that is not known, it stays where it was.
    pub masters: Option<BTreeSet<SocketAddr>>,
    /// The bridges that containers are behind; while they are not known, they stay what
    /// they were.
    pub bridges: Option<BTreeSet<String>>,
}

/// The anti-spoofing filter of the VXLAN device: frames with these source MACs are accepted, and
/// no others.
pub(crate) type AntiSpoofingState = TableState<BTreeSet<Mac>>;

/// The forwarding rules of iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forwarding {
    /// The chain that our rule belongs to, next to Docker's own.
    pub(crate) place: ForwardPlace,
    /// The chains that have it, and how often.
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

/// The chains that our rule can be in.
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

/// The settings of a bridge that can be changed while it is in use.
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
    /// Its FDB: where it sends frames for a MAC.
    pub(crate) entries: BTreeMap<Mac, BTreeSet<Ipv4Addr>>,
    /// Its all-zero entries: where it sends frames for unknown MACs.
    pub(crate) floods: BTreeSet<Ipv4Addr>,
}

/// The ports of the bridge towards other hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Port {
    /// In clear, or through WireGuard under it.
    Vxlan,
    /// The sleeve's.
    Tap,
}

/// An entry of the bridge's FDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RemoteEntry {
    pub(crate) port: Port,
    /// Whether it is permanent, so that no frame with that source MAC can move it.
    pub(crate) pinned: bool,
}

/// How a host encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// With the sleeve, whose device is a port of the bridge beside the VXLAN device.
    #[default]
    Sleeve,
    /// With WireGuard under the VXLAN device: frames for an encrypted peer are sent to its tunnel
    /// address.
    WireGuard,
}

/// The WireGuard device, and the routes of tunnel subnets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WireGuardState {
    pub(crate) link: Option<WireGuardLink>,
    /// The device's configuration; none if there is no device to read.
    pub(crate) device: Option<Looked>,
    /// The tunnel address at which heartbeats are received on this very link.
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

/// A route of a tunnel subnet, of this grid or of a former one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TunnelRoute {
    /// Unreachable. It applies while there is no other, so that packets for tunnel addresses never
    /// take the default route.
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

/// A change of any of this requires a new sleeve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SleeveIdentity {
    pub(crate) vni: u32,
    /// This host's tunnel address.
    pub(crate) tunnel_address: Ipv4Addr,
}

/// The identity with which path probes are sent in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathProbeIdentity {
    pub(crate) vni: u32,
    /// The MAC of the bridge.
    pub(crate) mac: Mac,
    /// The longest packet in a frame, in bytes.
    pub(crate) mtu: u32,
}

/// A change of any of this requires a new VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VxlanIdentity {
    pub(crate) vni: u32,
    pub(crate) udp_port: u16,
    pub(crate) learning: bool,
    /// Whether it answers ARP for its neighbours, of which it has none, and sends no ARP: the
    /// bridge answers for all addresses of the directory.
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
    /// Frames for unknown MACs are flooded to it.
    pub(crate) flood: bool,
    /// No frame passes between two isolated ports.
    pub(crate) isolated: bool,
    /// Frames are accepted only from source MACs with a permanent entry for this port.
    pub(crate) locked: bool,
    /// The bridge answers ARP for its permanent neighbours behind this port, instead of flooding
    /// the request.
    pub(crate) neigh_suppress: bool,
}

/// The host's end of a container's veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostEnd {
    pub(crate) port: PortSettings,
    /// The MACs with permanent entries for it.
    pub(crate) pinned: BTreeSet<Mac>,
    /// None if there is no filter on this very device, or not as we would write it.
    pub(crate) filter: Option<PortFilter>,
}

/// As whom a container sends, and how much to all; nothing else of it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortFilter {
    pub(crate) mac: Mac,
    pub(crate) address: Ipv4Addr,
    pub(crate) multicast: MulticastLimit,
}

/// The container's end of its veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerEnd {
    /// Whether the other end is the host end of the placement.
    pub(crate) paired: bool,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) addresses: BTreeSet<Ipv4Network>,
    pub(crate) multicast_route: bool,
}
