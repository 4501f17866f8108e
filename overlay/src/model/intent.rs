//! The overlay that this host is to have.
//!
//! Everything here is derived from the grid's directory, from this host's running containers and
//! from what is known of its peers; nothing from the kernel. Whether and how frames are sent to a
//! peer is decided in one place, [`OverlayIntent::reach`]: only a fast peer has its underlay
//! address in the VXLAN device's FDB, and only a peer that may become fast is in the packet
//! filter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use kontena_schema::address::InnerSubnet;
use kontena_schema::agent::{Endpoint, GridSettings, NodeEntry};
use kontena_schema::ids::{NodeId, PlacementId};
use kontena_schema::key::PublicKeys;
use kontena_schema::limits::OVERLAY_MTU;
use kontena_schema::mac::Mac;
use kontena_schema::path::{Path, agreement, path, peer_address};
use kontena_sleeve::PrivateKey;

use crate::model::peer::{Clear, Ends, PeerConfig, PeerState, PeerStates};
use crate::model::state::{EgressPolicy, Encryption, HostServices, MulticastLimit};
use crate::process::Process;

/// Everything that determines this host's overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayIntent {
    /// The VXLAN network identifier of the grid.
    pub vni: u32,
    /// The on-link prefix of overlay interfaces.
    pub supernet: Ipv4Network,
    /// The nodes' addresses inside encrypted paths; no other host has one of them.
    pub tunnel_subnet: InnerSubnet,
    /// This node.
    pub own: OwnNode,
    /// The MTU of overlay interfaces in bytes; one for the whole grid.
    pub mtu: u32,
    /// The other nodes of the grid, and how each is reached.
    pub peers: BTreeMap<NodeId, PeerIntent>,
    /// The endpoints on other nodes.
    pub endpoints: Vec<RemoteEndpoint>,
    /// This host's keys for encrypted paths; it initiates with the first.
    pub keys: Vec<PrivateKey>,
    /// How this host encrypts. It is not in the directory; a pass sets it.
    pub encryption: Encryption,
    /// What answers at this node's overlay address.
    pub services: HostServices,
    /// What containers do not reach.
    pub egress: EgressPolicy,
    /// How much each container may send to all.
    pub multicast: MulticastLimit,
    /// The containers of this host that are to have an `ethwe`. It is complete: all others lose
    /// theirs. While it is unknown, every interface stays as it is.
    pub attachments: Option<BTreeMap<PlacementId, Attachment>>,
}

/// This node on the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnNode {
    /// Its overlay address.
    pub address: Ipv4Addr,
    /// The MAC of its bridge.
    pub mac: Mac,
    /// Its address inside encrypted paths.
    pub tunnel_address: Ipv4Addr,
    /// Its addresses on the underlay; a peer at one of them is this host under a former id, and
    /// gets no frames.
    pub underlay: BTreeSet<Ipv4Addr>,
    /// Whether it is known to be behind NAT.
    pub behind_nat: bool,
}

/// Another node of the grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIntent {
    /// Its overlay address.
    pub overlay_address: Ipv4Addr,
    /// Its address inside encrypted paths.
    pub tunnel_address: Ipv4Addr,
    /// Its keys; without them it is not reached.
    pub keys: Option<PublicKeys>,
    /// How it is to be reached.
    pub path: Path,
    /// A number that stands for everything that its path depends on.
    pub agreement: u64,
    /// The address at which it reaches this node.
    pub back: Option<Ipv4Addr>,
    /// Where it may be found, the right address first.
    pub candidates: Vec<Ipv4Addr>,
    /// Its public address, if that is known to be a NAT's.
    pub nat: Option<Ipv4Addr>,
    /// What is known of the peer.
    pub state: PeerState,
}

/// A container on another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteEndpoint {
    /// Its overlay address.
    pub address: Ipv4Addr,
    /// The MAC of its interface.
    pub mac: Mac,
    /// The node that it is on.
    pub node: NodeId,
}

/// A running container of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The container's first process.
    pub process: Process,
    /// Docker's id of the container, for messages.
    pub container_id: String,
    /// The leased address.
    pub address: Ipv4Addr,
    /// The MAC of the lease.
    pub mac: Mac,
}

/// How frames may be sent to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// In clear, to this underlay address.
    Fast(Ipv4Addr),
    /// Encrypted; clear packets from this underlay address are accepted.
    Accepting(Ipv4Addr),
    /// Encrypted.
    Encrypted,
    /// Not at all, and why.
    None(String),
}

/// The part of an intent that is not from the directory.
#[derive(Clone, Debug, Default)]
pub struct OwnState {
    /// The containers of this host that are to have an `ethwe`; none while they are unknown.
    pub attachments: Option<BTreeMap<PlacementId, Attachment>>,
    /// This host's keys.
    pub keys: Vec<PrivateKey>,
    /// What is known of the peers.
    pub peers: PeerStates,
    /// What answers at this node's overlay address.
    pub services: HostServices,
    /// What containers do not reach.
    pub egress: EgressPolicy,
    /// How much each container may send to all.
    pub multicast: MulticastLimit,
}

impl OverlayIntent {
    /// The intent of node `own`, from the directory and this host's state.
    pub fn from_directory<'a>(
        grid: &GridSettings,
        own: &NodeEntry,
        nodes: impl IntoIterator<Item = &'a NodeEntry>,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
        state: OwnState,
    ) -> Self {
        Self::of_grid(grid, own, nodes, endpoints).with(state)
    }

    /// The intent of node `own`, from the directory alone.
    pub fn of_grid<'a>(
        grid: &GridSettings,
        own: &NodeEntry,
        nodes: impl IntoIterator<Item = &'a NodeEntry>,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
    ) -> Self {
        let remote = |e: &Endpoint| RemoteEndpoint {
            address: e.address,
            mac: e.mac(),
            node: e.node,
        };
        let peers = nodes.into_iter().filter(|node| node.id != own.id);
        let peer = |node: &NodeEntry| (node.id, PeerIntent::of(grid, own, node));
        Self {
            vni: grid.vni,
            supernet: grid.supernet,
            tunnel_subnet: grid.inner_subnet,
            own: OwnNode {
                address: own.address,
                mac: Mac::of_node(own.address),
                tunnel_address: grid.inner_subnet.address(own.number),
                underlay: [own.site.public_ip, own.site.private_ip]
                    .into_iter()
                    .flatten()
                    .collect(),
                behind_nat: own.behind_nat == Some(true),
            },
            mtu: OVERLAY_MTU,
            peers: peers.map(peer).collect(),
            endpoints: endpoints
                .into_iter()
                .filter(|e| e.node != own.id)
                .map(remote)
                .collect(),
            keys: Vec::new(),
            encryption: Encryption::default(),
            services: HostServices::default(),
            egress: EgressPolicy::default(),
            multicast: MulticastLimit::default(),
            attachments: None,
        }
    }

    /// The same, with this host's own state.
    #[must_use]
    pub fn with(mut self, state: OwnState) -> Self {
        self.set_peers(&state.peers);
        self.keys = state.keys;
        self.services = state.services;
        self.egress = state.egress;
        self.multicast = state.multicast;
        self.attachments = state.attachments;
        self
    }

    /// The containers that are to have an `ethwe`, if they are known.
    pub(crate) fn attachments(&self) -> impl Iterator<Item = (PlacementId, &Attachment)> {
        let known = self.attachments.iter().flatten();
        known.map(|(&placement, to)| (placement, to))
    }

    /// One of them.
    pub(crate) fn attachment(&self, placement: PlacementId) -> Option<&Attachment> {
        self.attachments.as_ref()?.get(&placement)
    }

    /// Whether these peers lead to the same steps: no path, candidate address or key differs.
    pub fn suits(&self, peers: &PeerStates) -> bool {
        let same = |(node, state): (&NodeId, &PeerState)| {
            let Some(peer) = self.peers.get(node) else {
                return false;
            };
            (state.clear, state.ends) == (peer.state.clear, peer.state.ends)
                && peer.candidate_in(state) == peer.candidate()
                && peer.uses_next_in(state) == peer.uses_next()
        };
        peers.iter().all(same)
    }

    /// Whether these peers require a pass at once: one of them lost some or all of its clear
    /// path, changed its ends or its candidate address, or uses another key.
    pub fn is_urgent(&self, peers: &PeerStates) -> bool {
        let urgent = |(node, peer): (&NodeId, &PeerIntent)| {
            let now = peers.get(node).copied().unwrap_or_default();
            let moved = peer.state.ends.is_some() && now.ends != peer.state.ends;
            now.clear < peer.state.clear
                || moved
                || peer.candidate_in(&now) != peer.candidate()
                || peer.uses_next_in(&now) != peer.uses_next()
        };
        self.peers.iter().any(urgent)
    }

    /// Whether two intents differ only in what a pass adds: the state of the peers, and how this
    /// host encrypts.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        let asked = |intent: &Self| {
            let mut intent = intent.clone();
            intent.set_peers(&PeerStates::new());
            intent.encryption = Encryption::default();
            intent
        };
        asked(self) == asked(other)
    }

    /// An overlay address with the prefix that it has on an interface.
    pub(crate) fn on_link(&self, address: Ipv4Addr) -> Ipv4Network {
        Ipv4Network::new(address, self.supernet.prefix()).expect("the prefix is of a network")
    }

    /// Sets the state of the peers.
    pub fn set_peers(&mut self, peers: &PeerStates) {
        for (node, peer) in &mut self.peers {
            peer.state = peers.get(node).copied().unwrap_or_default();
        }
    }

    /// This node's underlay address that is inside the tunnel subnet, if there is one. Such a host
    /// cannot be served: tunnel addresses are routed into the tunnel.
    pub(crate) fn own_in_tunnel_subnet(&self) -> Option<Ipv4Addr> {
        let mut own = self.own.underlay.iter().copied();
        own.find(|address| self.tunnel_subnet.contains(*address))
    }

    /// Between which addresses peers may be clear.
    pub(crate) fn permitted(&self) -> BTreeMap<NodeId, Ends> {
        let ends = |(&node, peer): (&NodeId, &PeerIntent)| Some((node, peer.ends()?));
        self.peers.iter().filter_map(ends).collect()
    }

    /// How frames may be sent to this peer.
    pub(crate) fn reach(&self, peer: &PeerIntent) -> Reach {
        let subnet = self.tunnel_subnet;
        if let Some(own) = self.own_in_tunnel_subnet() {
            let why = format!("this node's own address {own} is inside the tunnel subnet {subnet}");
            return Reach::None(why);
        }
        if let Some(inside) = peer
            .candidates
            .iter()
            .find(|candidate| subnet.contains(**candidate))
        {
            let why = format!("its address {inside} is inside the tunnel subnet {subnet}");
            return Reach::None(why);
        }
        let own = |address: &Ipv4Addr| self.own.underlay.contains(address);
        if let Some(same) = peer.candidates.first().filter(|candidate| own(candidate)) {
            return Reach::None(format!("its address {same} is this node's own"));
        }
        if peer.keys.is_none() {
            return Reach::None("its key is not known".to_owned());
        }
        // The proof is for a pair of addresses, not for a peer.
        match (peer.ends(), peer.state.clear) {
            (Some(ends), Clear::Send) if peer.state.ends == Some(ends) => Reach::Fast(ends.peer),
            (Some(ends), Clear::Accept) if peer.state.ends == Some(ends) => {
                Reach::Accepting(ends.peer)
            }
            _ => Reach::Encrypted,
        }
    }

    /// The configuration of this peer; none if it cannot be reached.
    pub(crate) fn peer_config(&self, peer: &PeerIntent) -> Option<PeerConfig> {
        if matches!(self.reach(peer), Reach::None(_)) {
            return None;
        }
        Some(PeerConfig {
            tunnel_address: peer.tunnel_address,
            mac: Mac::of_node(peer.overlay_address),
            agreement: peer.agreement,
            fast: peer.ends(),
            candidates: peer.candidates.clone(),
        })
    }
}

impl PeerIntent {
    /// The addresses of a fast path; none if it is to be encrypted.
    pub(crate) fn ends(&self) -> Option<Ends> {
        match (self.path, self.back) {
            (Path::Fast { to }, Some(own)) => Some(Ends { peer: to, own }),
            _ => None,
        }
    }

    /// The candidate address that is tried.
    pub(crate) fn candidate(&self) -> Option<Ipv4Addr> {
        self.candidate_in(&self.state)
    }

    fn candidate_in(&self, state: &PeerState) -> Option<Ipv4Addr> {
        state.candidate.or(self.candidates.first().copied())
    }

    /// Whether its last handshake was with its next key. It makes none before it uses that key.
    pub(crate) fn uses_next(&self) -> bool {
        self.uses_next_in(&self.state)
    }

    fn uses_next_in(&self, state: &PeerState) -> bool {
        let next = self.keys.and_then(|keys| keys.next);
        next.is_some() && state.key == next
    }

    fn of(grid: &GridSettings, own: &NodeEntry, node: &NodeEntry) -> Self {
        let trusted = &grid.trusted_subnets;
        let right = peer_address(&own.site, &node.site);
        // If it is not found at the right address, it may be at its other one.
        let others = [node.site.private_ip, node.site.public_ip];
        // Hosts behind the same NAT have the same public address.
        let own_ips = [own.site.private_ip, own.site.public_ip];
        let others = others
            .into_iter()
            .flatten()
            .filter(|ip| Some(*ip) != right && !own_ips.contains(&Some(*ip)));
        Self {
            overlay_address: node.address,
            tunnel_address: grid.inner_subnet.address(node.number),
            keys: node.keys,
            path: path(&own.site, &node.site, trusted),
            agreement: agreement((own.id, &own.site), (node.id, &node.site), trusted),
            back: peer_address(&node.site, &own.site),
            candidates: right.into_iter().chain(others).collect(),
            nat: node
                .site
                .public_ip
                .filter(|_| node.behind_nat == Some(true)),
            state: PeerState::default(),
        }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "container {} (pid {})",
            self.container_id, self.process.pid
        )
    }
}

#[cfg(test)]
#[path = "intent_tests.rs"]
pub(crate) mod tests;
