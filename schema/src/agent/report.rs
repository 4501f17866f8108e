//! What an agent tells of its host.

use serde::{Deserialize, Serialize};

use crate::ids::{CommandId, LeaseNumber, NodeId, PlacementId, Revision, ServiceRevision};
use crate::key::PublicKey;
use crate::path::Path;

/// What changed on the host since the last report of this connection; the first
/// report of a connection holds everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The revision that the host was last made to agree with.
    pub applied: Revision,
    /// Placements whose state changed.
    #[serde(default)]
    pub placements: Vec<PlacementReport>,
    /// Commands that moved on.
    #[serde(default)]
    pub commands: Vec<CommandReport>,
    /// Peers whose path changed.
    #[serde(default)]
    pub peers: Vec<PeerReport>,
}

/// The state of one placement on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementReport {
    /// The placement.
    pub placement: PlacementId,
    /// The version of the service that the container was created from; where it
    /// failed, the version that was tried.
    pub service_revision: ServiceRevision,
    /// The lease that the container holds.
    pub lease: Option<LeaseNumber>,
    /// How far it is.
    pub state: InstanceState,
    /// Whether it does its work.
    pub health: Health,
    /// Docker's id of the container.
    pub container_id: Option<String>,
    /// Docker's name of the container.
    pub container_name: Option<String>,
    /// Why it is not running, in words for the user.
    pub error: Option<String>,
}

/// How far an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// The agent has not looked at it yet.
    Pending,
    /// Its image is being pulled.
    Pulling,
    /// The container is being created, started and attached.
    Starting,
    /// The container runs.
    Running,
    /// The container exists and does not run.
    Stopped,
    /// It cannot run; `error` says why. It is tried again.
    Failed,
    /// There is no container any more.
    Removed,
}

/// Whether an instance does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It has no health check, or none has run yet.
    Unknown,
    /// The last health check passed.
    Healthy,
    /// The last health check failed.
    Unhealthy,
}

/// How far a command is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandReport {
    /// The command.
    pub command: CommandId,
    /// Its state.
    pub state: CommandState,
    /// Why it failed.
    pub error: Option<String>,
}

/// The states of a command that an agent can report. `started` is written to
/// disk before the command is, so that none is started twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// It was begun.
    Started,
    /// It succeeded.
    Done,
    /// It failed.
    Failed,
    /// The agent ended while it ran; whether it took effect is not known.
    Interrupted,
}

/// The path to one peer as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// The peer.
    pub node: NodeId,
    /// The path that the settings ask for.
    pub path: Path,
    /// Why frames cannot travel on it; none if they can.
    pub unreachable: Option<String>,
    /// Why frames are sealed though they are to travel in clear, once that lasts.
    #[serde(default)]
    pub sealed_because: Option<String>,
    /// The next key of the peer for which this node is ready.
    #[serde(default)]
    pub next_key: Option<PublicKey>,
}
