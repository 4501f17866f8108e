//! The opening of a connection.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Epoch, GridId, LeaseNumber, NodeId, NodeNumber, PlacementId, Revision};
use crate::key::PublicKeys;
use crate::overlap::HostNetworks;

/// Who the agent is, what it knows and what runs on its host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::PROTOCOL`] of the agent.
    pub protocol: u32,
    /// The id of the Docker engine; it identifies the host.
    pub engine_id: String,
    /// The kernel's boot id (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// This run of the agent. One that comes back after another took over is a
    /// second host with the same engine id.
    #[serde(default)]
    pub instance: Option<Uuid>,
    /// Which of this run's connections this is, counted from 1. One that the Master
    /// learns of after a later one is given up already, and opens nothing.
    #[serde(default)]
    pub connection: u32,
    /// Up to where the agent knows the grid; none knows nothing.
    pub position: Option<Position>,
    /// The host's facts.
    pub facts: Facts,
    /// The service containers that exist on the host, running or not.
    pub inventory: Vec<InventoryEntry>,
}

/// A position in the feed of one grid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The grid that the agent knows.
    pub grid: GridId,
    /// The history of the database that `revision` counts in. After a restore
    /// from a backup the same number can mean something else.
    pub timeline: String,
    /// The last revision that was merged.
    pub revision: Revision,
}

/// What the agent found out about its host. An unknown value is none, and leaves
/// what the Master knew before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The host's name, proposed as the node's.
    pub hostname: String,
    /// The agent's version.
    pub agent_version: String,
    /// The Docker engine's version.
    pub docker_version: String,
    /// The kernel's release.
    pub kernel_version: String,
    /// The operating system's name.
    pub os: String,
    /// Labels of the Docker engine, `key=value`.
    pub labels: Vec<String>,
    /// Value of the `region` label, `default` without one.
    pub region: String,
    /// Address on the public network.
    pub public_ip: Option<Ipv4Addr>,
    /// Address on the region's private network.
    pub private_ip: Option<Ipv4Addr>,
    /// Whether the public address is on none of its interfaces, so that others may reach
    /// it only where a translator of addresses lets them; none if that is not known.
    #[serde(default)]
    pub behind_nat: Option<bool>,
    /// Number of processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub mem_total_bytes: u64,
    /// Its keys for encrypted paths; an agent of the version before has none.
    #[serde(default)]
    pub keys: Option<PublicKeys>,
    /// Its networks that a grid could overlap; none if they are not known, as an agent of the
    /// version before does not know them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<HostNetworks>,
}

/// A service container that the agent found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryEntry {
    /// The placement that it belongs to.
    pub placement: PlacementId,
    /// The node that created it.
    pub node: NodeId,
    /// The lease under which it was created.
    pub lease: LeaseNumber,
    /// The overlay address of that lease.
    pub address: Ipv4Addr,
}

/// Accepts an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`super::PROTOCOL`] of the Master.
    pub protocol: u32,
    /// The node that this host is.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: NodeNumber,
    /// Its grid.
    pub grid: GridId,
    /// The grid's name.
    pub grid_name: String,
    /// The number of this connection among the node's connections.
    pub epoch: Epoch,
    /// The token that the agent keeps and uses from now on.
    pub node_token: Option<String>,
}
