//! The configuration and the state of a peer: the types that the peer state machine, the plan
//! and the packet filter share.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use kontena_schema::ids::NodeId;
use kontena_schema::key::PublicKey;
use kontena_schema::mac::Mac;

use crate::model::reachability::CheckOutcomes;

/// The state of each peer, as far as the plan depends on it.
pub type PeerStates = BTreeMap<NodeId, PeerState>;

/// How long a peer stays clear without a heartbeat: a restarted agent is back sooner, and a host
/// that took over the address of a dead one gets nothing after that.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);

/// How far a peer may use clear packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clear {
    /// Everything is encrypted.
    #[default]
    No,
    /// Clear packets are accepted; what is sent is encrypted.
    Accept,
    /// Clear packets are sent, too.
    Send,
}

/// What the directory says of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerConfig {
    /// The peer's address inside the tunnel.
    pub(crate) tunnel_address: Ipv4Addr,
    /// The MAC of its bridge.
    pub(crate) mac: Mac,
    /// What the path depends on (`schema::path::agreement`).
    pub(crate) agreement: u64,
    /// The addresses of a fast path; none if it is to be encrypted.
    pub(crate) fast: Option<Ends>,
    /// Where the peer may be found, the right address first.
    pub(crate) candidates: Vec<Ipv4Addr>,
}

/// The addresses that the two ends use for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The peer's address, as used by this node.
    pub peer: Ipv4Addr,
    /// This node's address, as used by the peer.
    pub own: Ipv4Addr,
}

/// What the plan needs to know of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// How far it may be clear.
    pub clear: Clear,
    /// The addresses for which that was proven; none where everything is encrypted.
    pub ends: Option<Ends>,
    /// The candidate address that is tried.
    pub candidate: Option<Ipv4Addr>,
    /// Whether anything was received from it lately.
    pub alive: bool,
    /// Whether it was ever reached at the address that is tried now.
    pub met: bool,
    /// The address that its packets last came from.
    pub heard_at: Option<Ipv4Addr>,
    /// The key that it uses.
    pub key: Option<PublicKey>,
    /// Both ends accept clear packets, but those of this end have been lost for a while.
    pub lost: bool,
    /// The results of reachability checks, while it is silent.
    pub reachability: CheckOutcomes,
}
