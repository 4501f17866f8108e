//! What is known of a peer and what the directory says of it: the words that the state
//! machine of a peer, the plan and the packet filter share.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use kontena_schema::ids::NodeId;
use kontena_schema::key::PublicKey;
use kontena_schema::mac::Mac;

use crate::model::reachability::CheckOutcomes;

/// What is known of each peer and matters to the plan.
pub type PeerStates = BTreeMap<NodeId, PeerState>;

/// How long a pair stays clear without a heartbeat: an agent that is restarted comes
/// back sooner, and a host that took a dead one's address gets nothing afterwards.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);

/// How far a pair may use clear packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clear {
    /// All is encrypted.
    #[default]
    No,
    /// Clear packets of the peer are taken; what is sent is encrypted.
    Accept,
    /// They are sent, too.
    Send,
}

/// What the directory says of a pair.
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
    /// The peer's address for this node.
    pub peer: Ipv4Addr,
    /// This node's address for the peer.
    pub own: Ipv4Addr,
}

/// What the plan needs of a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// How far it may be clear.
    pub clear: Clear,
    /// Between which addresses that was proven; none where all is encrypted.
    pub ends: Option<Ends>,
    /// Where the peer is tried.
    pub candidate: Option<Ipv4Addr>,
    /// Whether the peer was heard lately.
    pub alive: bool,
    /// Whether it was ever heard where it is tried now.
    pub met: bool,
    /// Where it was heard last.
    pub heard_at: Option<Ipv4Addr>,
    /// The key that it uses.
    pub key: Option<PublicKey>,
    /// Both ends take clear packets, and for a while none of this one's has arrived.
    pub lost: bool,
    /// What was found where it is tried in vain.
    pub reachability: CheckOutcomes,
}
