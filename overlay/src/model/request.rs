//! What the agent asks of the overlay, and what the overlay reports back: the two watch slots
//! between them.

use std::collections::BTreeMap;
use std::sync::Arc;

use kontena_schema::agent::PeerReport;
use kontena_schema::ids::{PlacementId, Revision};
use kontena_sleeve::PrivateKey;

use super::intent::{Attachment, OverlayIntent};
use super::state::{EgressPolicy, HostServices, MulticastLimit};

/// The overlay that this host is to have.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The grid, as the Master has it.
    pub grid: Membership,
    /// The containers of this host that are to have an `ethwe`; none until the containers have
    /// been observed.
    pub attachments: Option<BTreeMap<PlacementId, Attachment>>,
    /// This host's keys for encrypted paths; it initiates with the first.
    pub keys: Vec<PrivateKey>,
    /// What answers at this node's overlay address.
    pub services: HostServices,
    /// What containers do not reach.
    pub egress: EgressPolicy,
    /// How much each container may send to all.
    pub multicast: MulticastLimit,
}

/// Whether this host is in a grid.
#[derive(Clone, Debug, Default)]
pub enum Membership {
    /// Not known yet: everything stays as it is.
    #[default]
    Unknown,
    /// It is a node of this grid.
    Member {
        /// The revision of the directory that `grid` is derived from.
        revision: Revision,
        /// What the directory asks for, without this host's own state.
        grid: Arc<OverlayIntent>,
    },
    /// It was removed from its grid and its containers are gone: nothing is to stay.
    Left,
}

/// The state of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayState {
    /// The last revision that was applied.
    pub applied: Revision,
    /// For each requested placement: whether its container is attached, or why not.
    pub attached: BTreeMap<PlacementId, Result<(), String>>,
    /// Every peer, and why frames cannot be sent to it.
    pub peers: Vec<PeerReport>,
    /// Whether nothing of the overlay is left on this host.
    pub left: bool,
}

impl Default for OverlayState {
    fn default() -> Self {
        Self {
            applied: Revision::ZERO,
            attached: BTreeMap::new(),
            peers: Vec::new(),
            left: false,
        }
    }
}
