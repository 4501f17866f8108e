//! What the overlay is asked for, and what it says of itself: the two slots through which
//! the rest of the agent knows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use kontena_schema::agent::PeerReport;
use kontena_schema::ids::{PlacementId, Revision};
use kontena_sleeve::PrivateKey;

use super::intent::{Attachment, OverlayIntent};
use super::state::EgressPolicy;

/// What the overlay of this host is to be.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The grid, as the Master has it.
    pub grid: Membership,
    /// The containers of this host that are to have an `ethwe`; none while nobody has
    /// looked at the containers yet.
    pub attachments: Option<BTreeMap<PlacementId, Attachment>>,
    /// This host's keys for encrypted paths; it begins with the first.
    pub keys: Vec<PrivateKey>,
    /// What containers do not reach.
    pub egress: EgressPolicy,
}

/// Whether this host is in a grid.
#[derive(Clone, Debug, Default)]
pub enum Membership {
    /// That is not known: everything stays as it is.
    #[default]
    Unknown,
    /// It is a node of this grid.
    Member {
        /// The revision of the directory that this is of.
        revision: Revision,
        /// What the directory asks for, with nothing of this host's own state.
        grid: Arc<OverlayIntent>,
    },
    /// It was removed from its grid, and its containers are gone: nothing is to stay.
    Left,
}

/// What became of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayState {
    /// The revision that the host was last made to agree with.
    pub applied: Revision,
    /// For each placement that was asked for: whether its container is attached, or why
    /// not.
    pub attached: BTreeMap<PlacementId, Result<(), String>>,
    /// Every peer, and why frames cannot travel to it.
    pub peers: Vec<PeerReport>,
    /// Nothing of the overlay is left on this host.
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
