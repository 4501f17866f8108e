//! What an agent measured. No agent must know it, so it has no revision, and the
//! Master keeps only the last of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// What an agent measured since it was started, told every ten seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// The ways to its peers.
    #[serde(default)]
    pub paths: Vec<PathMeasure>,
    /// How many packets and frames its host dropped, by reason.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
}

/// What was measured of the way to one peer, in the sealed path; what is clear takes
/// the same way without the seal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathMeasure {
    /// The peer.
    pub node: NodeId,
    /// Where it was last heard from, or is looked for: address and UDP port.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake.
    pub last_handshake_s: Option<u64>,
    /// Microseconds that a probe takes there and back.
    pub round_trip_us: Option<u64>,
    /// The share of the peer's last probes (64 at most) that did not come, 0 to 1.
    pub loss: Option<f32>,
    /// The longest IP packet in bytes that takes this way in one piece.
    pub mtu: u32,
    /// Bytes of sealed packets that were sent.
    pub sent_bytes: u64,
    /// Bytes of sealed packets that were received.
    pub received_bytes: u64,
}
