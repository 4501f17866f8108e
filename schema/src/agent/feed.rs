//! The feed: everything that an agent must know is a row with a revision.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::address::InnerSubnet;
use crate::http::services::ServiceSpec;
use crate::ids::{
    CommandId, GridId, KeyTurn, LeaseNumber, NodeId, NodeNumber, PlacementId, Revision,
    ServiceRevision,
};
use crate::key::PublicKeys;
use crate::mac::Mac;
use crate::path::Site;

use super::Ping;

/// What changed between two revisions. An agent at `from` merges it and is at
/// `to`; `from` 0 replaces everything that the agent knew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// The history that the revisions count in.
    pub timeline: String,
    /// The revision that the agent must be at, or 0.
    pub from: Revision,
    /// The revision that the agent is at afterwards.
    pub to: Revision,
    /// What every agent of the grid learns.
    pub shared: Shared,
    /// What this node alone learns.
    pub own: Own,
}

/// The rows for every agent of the grid.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    /// The grid's settings, if they changed.
    pub grid: Option<GridSettings>,
    /// New or changed nodes.
    #[serde(default)]
    pub nodes: Vec<NodeEntry>,
    /// New or changed endpoints.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// Nodes that are no more.
    #[serde(default)]
    pub gone_nodes: Vec<NodeId>,
    /// Endpoints that are no more, by their placement.
    #[serde(default)]
    pub gone_endpoints: Vec<PlacementId>,
}

/// The rows for one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Own {
    /// New or changed placements.
    #[serde(default)]
    pub placements: Vec<Placement>,
    /// New commands, in the order in which they are to be started.
    #[serde(default)]
    pub commands: Vec<Command>,
    /// New pings, in rising order. They are no commands, so that an agent of the version
    /// before leaves them unread, and none waits for a container.
    #[serde(default)]
    pub pings: Vec<Ping>,
    /// Placements that are no more.
    #[serde(default)]
    pub gone_placements: Vec<PlacementId>,
}

/// A grid's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GridSettings {
    /// The grid.
    pub id: GridId,
    /// Its name, a label of its DNS names.
    pub name: String,
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
    /// The VXLAN network identifier, unique among the Master's grids.
    pub vni: u32,
}

/// A node of the grid, this one included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: NodeNumber,
    /// Its overlay address.
    pub address: Ipv4Addr,
    /// Where it is.
    #[serde(flatten)]
    pub site: Site,
    /// Whether it is behind a translator of addresses, if that is known. It explains; no
    /// path depends on it.
    #[serde(default)]
    pub behind_nat: Option<bool>,
    /// Its keys for encrypted paths, once it told them.
    #[serde(default)]
    pub keys: Option<PublicKeys>,
    /// Every peer that is connected is ready for its next key.
    #[serde(default)]
    pub next_key_known: bool,
    /// How often a change of its key was asked for.
    #[serde(default)]
    pub key_turn: KeyTurn,
}

/// A container's place on the overlay, from the moment that its address is
/// leased until the lease ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The placement that holds the lease.
    pub placement: PlacementId,
    /// The node that it is on.
    pub node: NodeId,
    /// Its address.
    pub address: Ipv4Addr,
    /// The number of the lease.
    pub lease: LeaseNumber,
    /// The stack, for the names.
    pub stack: Option<String>,
    /// The service, for the names.
    pub service: String,
    /// The instance's number, from 1.
    pub instance: u32,
    /// Whether its names answer: it runs and is not unhealthy.
    pub ready: bool,
}

impl Endpoint {
    /// The MAC of its interface.
    pub fn mac(&self) -> Mac {
        Mac::of_lease(self.address, self.lease)
    }
}

/// What a node is to do about one placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// A container of the described revision runs.
    Running,
    /// The container exists and does not run.
    Stopped,
    /// There is no container; the agent says so, and the placement ends.
    Removed,
}

/// An instance of a service that this node is to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// The placement.
    pub id: PlacementId,
    /// What to do about it.
    pub desired: Desired,
    /// The stack of the service.
    pub stack: Option<String>,
    /// The service.
    pub service: String,
    /// The instance's number, from 1.
    pub instance: u32,
    /// Which version of the service `spec` is.
    pub service_revision: ServiceRevision,
    /// The overlay address; none for a service in the host's network, and while
    /// no address is free.
    pub address: Option<Ipv4Addr>,
    /// The number of the address's lease; there with `address`.
    pub lease: Option<LeaseNumber>,
    /// Why it has this address and not the one that it had before, in words for
    /// the user.
    #[serde(default)]
    pub lease_reason: Option<String>,
    /// How to run it.
    pub spec: ServiceSpec,
    /// What the platform tells the container (`KONTENA_SERVICE_NAME` and such).
    #[serde(default)]
    pub platform_env: BTreeMap<String, String>,
}

/// Something to be done once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The command; a node starts its commands in rising order.
    pub id: CommandId,
    /// The placement that it concerns.
    pub placement: PlacementId,
    /// What to do.
    pub kind: CommandKind,
}

/// The kinds of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandKind {
    /// Restart the placement's container.
    Restart,
}
