//! The encrypted path of hosts whose kernel has no WireGuard.
//!
//! A TAP device is a port of the overlay's bridge. Frames from the bridge are segmented,
//! encapsulated in VXLAN and encrypted by WireGuard, and the reverse. On the wire it is what
//! kernel WireGuard with a kernel VXLAN device inside sends, so both kinds of host talk to each
//! other.
//!
//! ```text
//! outbound  TAP --frame--> segment --packets--> vxlan --> Tunn --> udp (one call a burst)
//! inbound   udp (a burst a call) --> Tunn --> vxlan --> coalesce --frame--> TAP
//! ```
//!
//! System calls are the main cost. So the kernel passes up to 64 KiB of a TCP stream as one frame
//! (virtio headers), and a burst of encrypted packets of equal size takes one call (UDP
//! segmentation and receive offload).
//!
//! Two threads carry frames, one in each direction, and a third runs the tunnels' timers. The
//! inbound thread, after a lone frame, also sends an answer that is there at once.
//! There are no queues of our own: a thread that cannot send blocks, and the kernel's queues
//! before it drop what exceeds them. During a handshake, a tunnel queues up to 256 packets.
//!
//! Invariants: nothing leaves unencrypted; a frame is accepted only from the peer that owns its
//! source MAC according to the table; no ARP enters or leaves.

mod bursts;
mod checksum;
mod coalesce;
mod counters;
// For this crate's tests and for the fuzzer, which has no other access to the parsers.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod inbound;
mod initiation;
mod key;
mod message;
mod outbound;
mod outgoing;
mod peer;
mod segment;
mod shared;
mod sleeve;
mod snapshot;
mod table;
mod tap;
mod udp;
mod virtio;
mod vxlan;

pub use checksum::internet_checksum;
pub use counters::Drops;
pub use key::PrivateKey;
pub use message::Message;
pub use peer::{PeerStatus, SILENT_AFTER};
pub use shared::Settings;
pub use sleeve::{Sleeve, SleeveError};
pub use table::{Peer, Table};
pub use vxlan::{VXLAN_HEADER, vxlan_header};
