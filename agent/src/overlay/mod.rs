//! The data plane of this host: the bridge, the tunnel and the containers'
//! interfaces.
//!
//! [`OverlayIntent`] says what is to be, `observe` reads what the kernel has,
//! `plan` is the pure difference of the two, and `apply` executes one step of
//! it. Nothing is remembered between two passes, so a restarted agent adopts
//! what is right and changes only what differs.
//!
//! Invariants: no frame leaves for a peer that is not fast; the packet filter
//! is there before the tunnel is and goes after it; what has no reason in the
//! intent has no veth, FDB entry or neighbour.
//!
//! Absent on purpose: learning from frames (the directory is the authority),
//! and the sealed path.

use std::collections::BTreeMap;

use kontena_schema::agent::PeerReport;
use kontena_schema::ids::PlacementId;

mod intent;

pub use intent::{Attachment, OverlayIntent, OwnNode, PeerIntent, RemoteEndpoint};

/// The name of the bridge that carries the overlay.
pub const BRIDGE: &str = "kontena";
/// The name of the VXLAN device.
pub const TUNNEL: &str = "kontena-vx";
/// The name of a container's overlay interface.
pub const CONTAINER_INTERFACE: &str = "ethwe";

/// The hands on this host's overlay.
///
/// They work in the network namespace of the thread that called [`Overlay::new`].
pub struct Overlay {}

/// What one pass did.
#[derive(Debug, Default)]
pub struct OverlayReport {
    /// For each placement of the intent: whether its container is attached, or
    /// why not.
    pub attached: BTreeMap<PlacementId, Result<(), String>>,
    /// Every peer, and why frames cannot travel to it.
    pub peers: Vec<PeerReport>,
    /// How many steps changed something; 0 if everything was right.
    pub steps_applied: usize,
    /// Everything that went wrong; the pass went on after each.
    pub errors: Vec<OverlayError>,
}

/// What can go wrong on the data plane.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Not built yet.
    #[error("not built yet")]
    Stub,
}

impl Overlay {
    /// Opens the kernel's interface in the network namespace of the calling
    /// thread; must be called inside a tokio runtime.
    pub async fn new() -> Result<Self, OverlayError> {
        Ok(Self {})
    }

    /// Makes the host agree with `intent`. It goes on after an error and tells
    /// all of them. Calls must not overlap.
    pub async fn reconcile(&self, intent: &OverlayIntent) -> OverlayReport {
        OverlayReport {
            peers: intent.peer_reports(),
            errors: vec![OverlayError::Stub],
            ..OverlayReport::default()
        }
    }

    /// Leaves the grid: removes every interface, entry and filter of ours.
    pub async fn remove_all(&self) -> Vec<OverlayError> {
        vec![OverlayError::Stub]
    }
}
