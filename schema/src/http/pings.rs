//! Pings between nodes: `/v1/nodes/:grid/:node/pings`.

use serde::{Deserialize, Serialize};

use super::lenient;
use crate::agent::PingResult;
use crate::ids::PingId;

/// Body of `POST /v1/nodes/:grid/:node/pings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PingCreate {
    /// The name of the node that is to answer.
    pub to: String,
    /// How many echoes, 1 to 20; default 5.
    #[serde(default, deserialize_with = "lenient::option")]
    pub count: Option<u32>,
}

/// A ping. It is kept for an hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Its id.
    pub id: PingId,
    /// The name of the node that sends the echoes.
    pub from: String,
    /// The name of the node that answers them.
    pub to: String,
    /// How many echoes were asked for.
    pub count: u16,
    /// `queued`, `started`, `done`, `failed`, `interrupted` or `expired`; `done` says
    /// nothing of whether any echo was answered.
    pub state: String,
    /// Why there is no result.
    pub error: Option<String>,
    /// What came of it, once it is done.
    pub result: Option<PingResult>,
    /// When it was asked for, ISO 8601 with milliseconds.
    pub created_at: String,
    /// When it ended; none before.
    pub finished_at: Option<String>,
}
