//! The protocol between an agent and the Master: JSON text frames over the
//! WebSocket `/v1/agent`, one externally tagged message each
//! (`{"hello": {..}}`).
//!
//! The agent speaks first (`hello`), the Master answers `welcome` or closes with
//! one of [`close`]. From then on the Master sends `changes`, the agent
//! `report`s. There is no partial update besides [`Changes`] and no request in
//! either direction: what is lost with a connection is sent again on the next,
//! from the position that `hello` names.

mod feed;
mod hello;
mod measures;
mod ping;
mod report;

pub use feed::{
    Changes, Command, CommandKind, Desired, Endpoint, GridSettings, NodeEntry, Own, Placement,
    Shared,
};
pub use hello::{Facts, Hello, InventoryEntry, Position, Welcome};
pub use measures::{DataMeasure, HostMeasures, Measures, PathMeasure};
pub use ping::{Ping, PingReport, PingResult, PingState, RoundTrips};
pub use report::{
    CommandReport, CommandState, Health, InstanceState, PeerReport, PlacementReport, Report,
};
use serde::{Deserialize, Serialize};

/// The version of this protocol. Both sides accept their own and the one before.
pub const PROTOCOL: u32 = 3;

/// The first version whose agents know their grid's inner subnet. Older ones have the
/// default; in a grid with another one they would reach nobody.
pub const INNER_SUBNET_SINCE: u32 = 3;

/// The first protocol whose agents ping and whose Masters ask for it.
pub const PINGS_SINCE: u32 = 3;

/// What an agent sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAgent {
    /// The first frame of a connection.
    Hello(Box<Hello>),
    /// What is on the host, whenever it changed.
    Report(Box<Report>),
    /// The host's facts, whenever they changed.
    Facts(Box<Facts>),
    /// What the agent measured, every few seconds; a Master of protocol 1 does not
    /// know it.
    Measures(Box<HostMeasures>),
    /// How far pings are, whenever that changed; a Master before [`PINGS_SINCE`] does
    /// not know it.
    Pings(Vec<PingReport>),
}

/// What the Master sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAgent {
    /// The answer to `hello`.
    Welcome(Box<Welcome>),
    /// What changed since the agent's position.
    Changes(Box<Changes>),
}

/// WebSocket close codes of the Master, in the range for private use
/// (RFC 6455 section 7.4.2). Those below 4040 are worth another try.
pub mod close {
    /// The replica stops; connect again, to another.
    pub const GOING_AWAY: u16 = 1001;
    /// A frame that is no message of the protocol.
    pub const BAD_FRAME: u16 = 4000;
    /// The token is unknown, expired or revoked.
    pub const BAD_TOKEN: u16 = 4001;
    /// The protocol versions are too far apart.
    pub const VERSION: u16 = 4010;
    /// The Master cannot serve this now.
    pub const TRY_LATER: u16 = 4020;
    /// A newer connection of the same node took over.
    pub const SUPERSEDED: u16 = 4041;
    /// Another host has the same engine id and is connected.
    pub const NODE_DUPLICATE: u16 = 4043;
    /// A network of the host overlaps one of the grid: the host cannot join.
    pub const NETWORK_OVERLAP: u16 = 4044;
    /// The grid has 254 nodes already.
    pub const GRID_FULL_NODES: u16 = 4042;
    /// Another node of the grid has the same public key: make a new one.
    pub const KEY_TAKEN: u16 = 4030;
    /// The node was removed from its grid.
    pub const NODE_REMOVED: u16 = 4040;
}
