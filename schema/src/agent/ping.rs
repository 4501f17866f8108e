//! Pings: what shows, at the moment of asking, whether a node's frames reach another.
//!
//! The Master asks with a row of the feed, the agent sends echoes over the overlay, and
//! what came of it is told like everything else. Nothing of the host changes with it.

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, PingId};
use crate::path::Path;

/// Another node that is to be pinged, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// The ping; a node starts its pings in rising order.
    pub id: PingId,
    /// The node whose overlay address is pinged.
    pub peer: NodeId,
    /// How many echoes, at most [`crate::limits::PING_COUNT_MAX`].
    pub count: u16,
}

/// How far a ping is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingReport {
    /// The ping.
    pub ping: PingId,
    /// Its state.
    #[serde(flatten)]
    pub state: PingState,
}

/// The states of a ping that an agent can report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum PingState {
    /// It was begun.
    Started,
    /// All echoes were sent and waited for, whether they were answered or not.
    Done {
        /// What came of them.
        result: PingResult,
    },
    /// No echo could be sent.
    Failed {
        /// Why.
        error: String,
    },
    /// The agent ended before or while it ran.
    Interrupted {
        /// What is known of it.
        error: String,
    },
}

/// What came of the echoes of a ping. They leave from the node's own overlay address, as
/// frames of its containers do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingResult {
    /// The path on which the node's frames left when it began.
    pub path: Path,
    /// How many echoes were sent: packets of 84 bytes, 200 ms apart.
    pub sent: u16,
    /// How many were answered, each within a second.
    pub received: u16,
    /// How long they took there and back; none if no answer came.
    pub round_trips: Option<RoundTrips>,
    /// The longest IP packet in bytes that is to pass in one piece.
    pub mtu: u32,
    /// Whether an echo of that length, and its answer, passed.
    pub full_size_passes: bool,
}

/// How long echoes took there and back, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrips {
    /// The shortest.
    pub min_us: u64,
    /// The mean of all that were answered.
    pub avg_us: u64,
    /// The longest.
    pub max_us: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::Own;

    #[test]
    fn a_report_names_its_state_beside_the_ping() {
        let error = "no address".to_owned();
        for (state, told) in [
            (PingState::Started, json!({"ping": 7, "state": "started"})),
            (
                PingState::Failed { error },
                json!({"ping": 7, "state": "failed", "error": "no address"}),
            ),
        ] {
            let ping = PingId(7);
            let report = PingReport { ping, state };
            assert_eq!(serde_json::to_value(&report).unwrap(), told);
            let read: PingReport = serde_json::from_value(told).unwrap();
            assert_eq!(read, report);
        }
    }

    #[test]
    fn a_master_of_the_version_before_sends_no_pings() {
        let own: Own = serde_json::from_value(json!({"commands": []})).unwrap();
        assert_eq!(own, Own::default());
    }

    #[test]
    fn an_agent_of_the_version_before_leaves_pings_unread() {
        /// `Own` as it was in protocol 2, as far as it matters here.
        #[derive(Deserialize)]
        struct Before {
            commands: Vec<crate::agent::Command>,
        }
        let ping = Ping {
            id: PingId(7),
            peer: NodeId(2),
            count: 5,
        };
        let own = Own {
            pings: vec![ping],
            ..Own::default()
        };
        let text = serde_json::to_string(&own).unwrap();
        let before: Before = serde_json::from_str(&text).unwrap();
        assert!(before.commands.is_empty());
    }
}
