//! Grids: `/v1/grids`.

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::lenient;
use crate::address::InnerSubnet;
use crate::overlap::{HostNetwork, Overlap};

/// Body of `POST /v1/grids`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridCreate {
    /// A DNS label.
    pub name: String,
    /// Members of the grid's etcd cluster, 1..=7; default 1.
    #[serde(default, deserialize_with = "lenient::option")]
    pub initial_size: Option<u16>,
    /// What may be allocated; default 10.81.0.0/19.
    #[serde(default)]
    pub subnet: Option<String>,
    /// The on-link prefix of overlay interfaces; default 10.81.0.0/17.
    #[serde(default)]
    pub supernet: Option<String>,
    /// The addresses of nodes inside encrypted paths; default 100.127.81.0/24.
    #[serde(default)]
    pub inner_subnet: Option<String>,
    /// Where the overlay may run in clear; default nowhere.
    #[serde(default)]
    pub trusted_subnets: Option<Vec<String>>,
    /// Seconds between the end of a node's session and the release of its
    /// addresses; default 10.
    #[serde(default, deserialize_with = "lenient::option")]
    pub grace_s: Option<u32>,
}

/// Body of `PUT /v1/grids/:grid`; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridUpdate {
    /// Where the overlay may run in clear.
    #[serde(default)]
    pub trusted_subnets: Option<Vec<String>>,
}

/// Body of `POST /v1/grids/:grid/trusted_subnets`: one change of the list, whatever
/// else is in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustChange {
    /// Networks in which the overlay may run in clear from now on.
    #[serde(default)]
    pub add: Vec<String>,
    /// Networks in which it may no longer.
    #[serde(default)]
    pub remove: Vec<String>,
    /// Only tell what would come of it.
    #[serde(default)]
    pub dry_run: bool,
}

/// Where the overlay of a grid may run in clear, and what comes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// The networks.
    pub trusted_subnets: Vec<Ipv4Network>,
    /// Pairs of nodes whose path is in clear.
    pub fast_pairs: u32,
    /// Pairs of nodes whose path is encrypted.
    pub sealed_pairs: u32,
    /// Pairs of nodes that know no address of each other.
    pub unknown_pairs: u32,
    /// Pairs that the change turned from encrypted to clear.
    pub to_fast: u32,
    /// Pairs that the change turned from clear to encrypted.
    pub to_sealed: u32,
}

/// A grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// The name, which identifies it.
    pub id: String,
    /// The name.
    pub name: String,
    /// The token with which a host joins; only where one grid is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Members of the grid's etcd cluster.
    pub initial_size: u16,
    /// What may be allocated.
    pub subnet: Ipv4Network,
    /// The on-link prefix of overlay interfaces.
    pub supernet: Ipv4Network,
    /// The addresses of nodes inside encrypted paths; a Master of the version before says
    /// none and has the default.
    #[serde(default)]
    pub inner_subnet: InnerSubnet,
    /// Where the overlay may run in clear.
    pub trusted_subnets: Vec<Ipv4Network>,
    /// Seconds between the end of a node's session and the release of its
    /// addresses.
    pub grace_s: u32,
    /// The revision of everything that the grid's agents must know.
    pub revision: i64,
    /// Nodes, connected or not.
    pub node_count: i64,
    /// Services.
    pub service_count: i64,
    /// Instances placed.
    pub container_count: i64,
    /// Nodes that the grid's networks would hit; only where a grid is created.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<GridWarning>,
}

/// A node of another grid whose host could not be in this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GridWarning {
    /// The node, `grid/name`.
    pub node: String,
    /// Its network.
    #[serde(flatten)]
    pub host: HostNetwork,
    /// Which of the grid's networks overlaps it: `supernet` or `inner_subnet`.
    pub field: String,
    /// The same in a sentence.
    pub text: String,
}

impl GridWarning {
    /// What is said of a node.
    pub fn new(node: String, overlap: Overlap) -> Self {
        Self {
            text: format!("node {node}: its {overlap}; {}", overlap.advice()),
            field: overlap.field.to_owned(),
            host: overlap.host,
            node,
        }
    }
}

/// Answer of `GET /v1/grids`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grids {
    /// All grids, by name.
    pub grids: Vec<Grid>,
}
