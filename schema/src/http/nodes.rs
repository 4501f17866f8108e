//! Nodes: `/v1/grids/:grid/nodes` and `/v1/nodes/:grid/:node`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::agent::{PathMeasure, PeerReport};
use crate::key::PublicKey;
use crate::overlap::HostNetworks;
use crate::path::Path;

/// A host node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// `grid/name`.
    pub id: String,
    /// The id of its Docker engine.
    pub node_id: String,
    /// Its name.
    pub name: String,
    /// Whether its agent has a session.
    pub connected: bool,
    /// `online` or `offline`.
    pub status: String,
    /// Its number.
    pub node_number: u8,
    /// Whether it is a member of the grid's etcd cluster.
    pub initial_member: bool,
    /// Its address on the overlay.
    pub overlay_ip: Ipv4Addr,
    /// Its address on the public network.
    pub public_ip: Option<Ipv4Addr>,
    /// Its address on the region's private network.
    pub private_ip: Option<Ipv4Addr>,
    /// Whether its public address is that of a translator of addresses, if that is known.
    #[serde(default)]
    pub behind_nat: Option<bool>,
    /// Its region.
    pub region: String,
    /// The labels of its Docker engine, `key=value`.
    pub labels: Vec<String>,
    /// The version of its agent.
    pub agent_version: String,
    /// The version of its Docker engine.
    pub docker_version: String,
    /// Its kernel.
    pub kernel_version: String,
    /// Its operating system.
    pub os: String,
    /// Number of processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub mem_total: u64,
    /// When it joined, ISO 8601 with milliseconds.
    pub created_at: String,
    /// When its session began.
    pub connected_at: Option<String>,
    /// When its last session ended; none while one lasts.
    pub disconnected_at: Option<String>,
    /// The public key of its encrypted paths, in base64.
    #[serde(default)]
    pub public_key: Option<PublicKey>,
    /// The connected nodes that are not ready for its next key yet, by name; while there
    /// is one, the key stays. Empty where no change is under way, and in lists of nodes.
    #[serde(default)]
    pub next_key_waits_for: Vec<String>,
    /// Its paths to its peers, as it last reported them. Empty in lists of nodes.
    #[serde(default)]
    pub peers: Vec<PeerReport>,
    /// How many packets and frames the host dropped since its agent was started, by
    /// reason, as last measured.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// When the agent last told what it measured.
    #[serde(default)]
    pub measured_at: Option<String>,
    /// Its host's networks that a grid could overlap. Empty in lists of nodes.
    #[serde(default)]
    pub networks: HostNetworks,
    /// Which of them overlaps one of the grid, since it joined: one of the two is not reached
    /// from the host. None in lists of nodes.
    #[serde(default)]
    pub network_overlap: Option<String>,
}

/// How a node reaches another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodePeer {
    /// The other node's name.
    pub node: String,
    /// Its number.
    pub node_number: u8,
    /// Its address on the overlay.
    pub overlay_ip: Ipv4Addr,
    /// Whether its agent has a session.
    pub connected: bool,
    /// The path that frames take; none before the first report.
    pub path: Option<Path>,
    /// Why frames do not arrive; none if they do.
    pub unreachable: Option<String>,
    /// Why frames are sealed though they are to travel in clear, once that lasts.
    #[serde(default)]
    pub sealed_because: Option<String>,
    /// When the way was last measured.
    pub measured_at: Option<String>,
    /// What was measured.
    pub measure: Option<PathMeasure>,
}

/// Answer of `GET /v1/nodes/:grid/:node/peers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodePeers {
    /// All other nodes of the grid, by number.
    pub peers: Vec<NodePeer>,
}

/// Answer of `GET /v1/grids/:grid/nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nodes {
    /// All nodes of the grid, by number.
    pub nodes: Vec<Node>,
}
