//! What a control function can answer besides success.

use std::collections::BTreeMap;

use kontena_schema::overlap::Overlap;

use crate::db::{DbError, Retryable};

/// A refusal or a failure. HTTP statuses are chosen at the rim.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such thing.
    #[error("{kind} {name:?} not found")]
    NotFound {
        /// What was looked for.
        kind: &'static str,
        /// Under which name.
        name: String,
    },
    /// Fields of the request that cannot be taken, each with its reason.
    #[error("invalid: {0:?}")]
    Invalid(BTreeMap<String, String>),
    /// The request is right but something stands in its way.
    #[error("{message}")]
    Conflict {
        /// A stable word for what it is.
        code: &'static str,
        /// A sentence for the user.
        message: String,
    },
    /// All 254 node numbers of the grid are taken.
    #[error("grid {grid:?} is full: all 254 node numbers are taken")]
    GridFullNodes {
        /// The grid.
        grid: String,
    },
    /// The grid has fewer free addresses than were asked for.
    #[error("grid {grid:?} has no {wanted} addresses left")]
    GridFullAddresses {
        /// The grid.
        grid: String,
        /// How many were asked for.
        wanted: i64,
        /// Its size, its use and its biggest holders.
        usage: serde_json::Value,
    },
    /// Too many requests for one grid wait already.
    #[error("too many requests for grid {grid:?} are waiting")]
    Busy {
        /// The grid.
        grid: String,
    },
    /// Another host with the same engine id is connected.
    #[error("another host with the engine id of node {node:?} is connected")]
    NodeDuplicate {
        /// The node.
        node: String,
    },
    /// The agent has no idea of its grid's inner subnet.
    #[error("this agent is too old for the inner subnet of grid {grid:?}")]
    AgentTooOld {
        /// The grid.
        grid: String,
    },
    /// A network of the host that would join overlaps one of the grid.
    #[error("this host's {0}")]
    NetworkOverlap(Overlap),
    /// Another node of the grid has the key.
    #[error("another node of the grid has this public key")]
    KeyTaken,
    /// What was asked for may or may not have happened.
    #[error("the outcome is not known")]
    Unavailable,
    /// The others take this replica for dead.
    #[error("this replica lost its place among the others")]
    ReplicaLost,
    /// The caller's session is over: a newer one took its place.
    #[error("the session is not the node's latest")]
    StaleSession,
    /// The token is unknown or revoked.
    #[error("the token is not valid")]
    BadToken,
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl ControlError {
    /// One field and its reason.
    pub fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid(BTreeMap::from([(field.into(), reason.into())]))
    }

    /// Whether the database, not the request, is at fault for now.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Db(error) if error.is_unavailable())
    }

    /// Something that is not there.
    pub fn not_found(kind: &'static str, name: impl Into<String>) -> Self {
        Self::NotFound {
            kind,
            name: name.into(),
        }
    }
}

impl Retryable for ControlError {
    fn retryable(&self) -> bool {
        matches!(self, Self::Db(error) if error.retryable())
    }
}

/// The constraints that a client's request can violate, as the field at fault
/// and the reason. All others are guarded by our own code: a violation is a bug.
pub fn constraint_fault(constraint: &str) -> Option<(&'static str, &'static str)> {
    Some(match constraint {
        "grids_name_key" => ("name", "a grid of this name exists already"),
        "grids_initial_size_check" => ("initial_size", "must be between 1 and 7"),
        "grids_grace_check" => ("grace_s", "must be between 0 and 86400"),
        "stacks_name_key" => ("name", "a stack of this name exists already"),
        "services_label_key" => ("name", "a service with this DNS name exists already"),
        "services_instances_check" => ("instances", "must be between 0 and 8190"),
        _ => return None,
    })
}
