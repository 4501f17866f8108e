//! The overlay of one host: the bridge, the VXLAN device, the encrypted path and the
//! containers' interfaces.
//!
//! ```text
//! model   intent, state, entries: values
//! plan    the pure difference of intent and state, as ordered steps
//! linux   observe the kernel, apply one step
//! peer    how each other node is reached: state machines, and the IO that feeds them
//! wireguard   the kernel's encrypted path; the sleeve is a crate of its own
//! ```
//!
//! Frames to other hosts leave encrypted, through the sleeve or WireGuard; to a peer whose
//! state machine has seen the fast path carry them they leave in clear, through the VXLAN
//! device. Peers are kept up also while no pass runs.
//!
//! Invariants: no clear frame leaves for a peer that is not fast, and none comes in from
//! a MAC that the directory does not have; the packet filter is there before the VXLAN
//! device is, its anti-spoofing filter before it is up, and both go after it; what has no
//! reason in the intent has no veth, FDB entry or neighbour.
//!
//! Absent on purpose: learning from frames (the directory is the authority), Docker, and
//! the Master.

mod error;
mod filter_lease;
// For this crate's tests and for the fuzzer, which sees no more of the parsers than that.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod linux;
mod model;
mod peer;
mod ping;
mod plan;
mod process;
mod reconciler;
mod statistics;
mod sys;
pub mod task;
mod wireguard;

pub use error::{Cause, OverlayError};
pub use model::devices::{BRIDGE, CONTAINER_INTERFACE, TAP, VXLAN, WIREGUARD};
pub use model::intent::{Attachment, OverlayIntent, OwnNode, OwnState, PeerIntent, RemoteEndpoint};
pub use model::pace::extra_intervals;
pub use model::peer::{Clear, Ends, PeerState, PeerStates};
pub use model::reachability::{CheckOutcome, CheckOutcomes};
pub use model::request::{Membership, OverlayState, Request};
pub use model::state::{EgressPolicy, Encryption, HostServices, MulticastLimit};
pub use peer::encryption::EncryptedBy;
pub use peer::table::Health;
pub use ping::Echoes;
pub use process::Process;
pub use reconciler::{Disturbance, Overlay, OverlayReport};
