//! What the overlay of this host is to look like.
//!
//! Everything here is derived from the grid's directory and from the containers
//! that run on this host; nothing from the kernel. Which peer may get frames at
//! all is decided in one place, [`OverlayIntent::reach`]: whoever is not fast
//! gets neither an FDB entry nor a neighbour nor a place in the filter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use kontena_schema::agent::PeerReport;
use kontena_schema::agent::{Endpoint, GridSettings, NodeEntry};
use kontena_schema::ids::{NodeId, PlacementId};
use kontena_schema::limits::OVERLAY_MTU;
use kontena_schema::mac::Mac;
use kontena_schema::path::{Path, path};

/// Everything that decides how this host's overlay looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayIntent {
    /// The VXLAN network identifier of the grid.
    pub vni: u32,
    /// The on-link prefix of overlay interfaces.
    pub supernet: Ipv4Network,
    /// This node.
    pub own: OwnNode,
    /// The MTU of overlay interfaces in bytes; one for the whole grid.
    pub mtu: u32,
    /// The other nodes of the grid, and how each is reached.
    pub peers: BTreeMap<NodeId, PeerIntent>,
    /// The endpoints on other nodes.
    pub endpoints: Vec<RemoteEndpoint>,
    /// The containers of this host that are to have an `ethwe`. It is complete:
    /// what is not in it loses its interface.
    pub attachments: BTreeMap<PlacementId, Attachment>,
}

/// This node's place on the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnNode {
    /// Its overlay address.
    pub address: Ipv4Addr,
    /// The MAC of its bridge.
    pub mac: Mac,
    /// Its addresses on the underlay; a peer at one of them is this host under
    /// a former id, and gets no frames.
    pub underlay: BTreeSet<Ipv4Addr>,
}

/// Another node of the grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIntent {
    /// Its overlay address.
    pub overlay_address: Ipv4Addr,
    /// How it is reached.
    pub path: Path,
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
    /// The container's first process, as this host numbers it.
    pub pid: i32,
    /// Docker's id of the container, for messages.
    pub container_id: String,
    /// The leased address.
    pub address: Ipv4Addr,
    /// The MAC of the lease.
    pub mac: Mac,
}

/// Whether frames may be sent to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// In clear, to this underlay address.
    Fast(Ipv4Addr),
    /// Not at all, and why.
    None(String),
}

impl OverlayIntent {
    /// What the directory and the running containers ask for on node `own`.
    pub fn from_directory<'a>(
        grid: &GridSettings,
        own: &NodeEntry,
        nodes: impl IntoIterator<Item = &'a NodeEntry>,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
        attachments: BTreeMap<PlacementId, Attachment>,
    ) -> Self {
        let peer = |node: &NodeEntry| PeerIntent {
            overlay_address: node.address,
            path: path(&own.site, &node.site, &grid.trusted_subnets),
        };
        let remote = |e: &Endpoint| RemoteEndpoint {
            address: e.address,
            mac: e.mac(),
            node: e.node,
        };
        Self {
            vni: grid.vni,
            supernet: grid.supernet,
            own: OwnNode {
                address: own.address,
                mac: Mac::of_node(own.address),
                underlay: [own.site.public_ip, own.site.private_ip]
                    .into_iter()
                    .flatten()
                    .collect(),
            },
            mtu: OVERLAY_MTU,
            peers: nodes
                .into_iter()
                .filter(|node| node.id != own.id)
                .map(|node| (node.id, peer(node)))
                .collect(),
            endpoints: endpoints
                .into_iter()
                .filter(|e| e.node != own.id)
                .map(remote)
                .collect(),
            attachments,
        }
    }

    /// Whether frames may be sent to this peer.
    pub(crate) fn reach(&self, peer: &PeerIntent) -> Reach {
        match peer.path {
            Path::Fast { to } if self.own.underlay.contains(&to) => {
                Reach::None(format!("its address {to} is this node's own"))
            }
            Path::Fast { to } => Reach::Fast(to),
            Path::Sealed { to } => Reach::None(format!(
                "no sealed path to {} yet: its address {to} is outside the grid's trusted subnets",
                peer.overlay_address
            )),
            Path::Unknown => Reach::None("its address on the underlay is not known".to_owned()),
        }
    }

    /// What is to be told of each peer.
    pub fn peer_reports(&self) -> Vec<PeerReport> {
        let report = |(&node, peer): (&NodeId, &PeerIntent)| PeerReport {
            node,
            path: peer.path,
            unreachable: match self.reach(peer) {
                Reach::Fast(_) => None,
                Reach::None(why) => Some(why),
            },
            next_key: None,
        };
        self.peers.iter().map(report).collect()
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {} (pid {})", self.container_id, self.pid)
    }
}
