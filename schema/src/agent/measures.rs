//! What an agent measured. No agent must know it, so it has no revision, and the
//! Master keeps only the last of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, PlacementId};

/// What an agent measured, told every ten seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostMeasures {
    /// What it measured of the overlay.
    #[serde(flatten)]
    pub overlay: Measures,
    /// What its placements keep in volumes, those that keep anything; an agent of the
    /// version before does not tell.
    #[serde(default)]
    pub data: Option<Vec<DataMeasure>>,
}

/// What a placement keeps in the volumes that its images declare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataMeasure {
    /// The placement.
    pub placement: PlacementId,
    /// How many volumes.
    pub volumes: u32,
    /// Bytes on the host's disk; none while they are not all measured.
    pub bytes: Option<u64>,
    /// Seconds since the oldest of its volumes was measured; there with `bytes`.
    pub age_s: Option<u64>,
}

/// What an agent measured of the overlay since it was started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// The ways to its peers.
    #[serde(default)]
    pub paths: Vec<PathMeasure>,
    /// How many packets and frames its host dropped, by reason.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
}

/// What was measured of the way to one peer, in the encrypted path; what is clear takes
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
