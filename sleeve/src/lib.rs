//! The encrypted path of hosts whose kernel has no WireGuard.
//!
//! A TAP device stands on the overlay's bridge. What the bridge sends to it is cut
//! into packets, put into VXLAN and encrypted by WireGuard, and the reverse; on the
//! wire it is what kernel WireGuard with a kernel VXLAN device inside would send,
//! so that both kinds of host talk to each other.
//!
//! ```text
//! outbound  TAP --frame--> segment --packets--> vxlan --> Tunn --> udp (one call a burst)
//! inbound   udp (a burst a call) --> Tunn --> vxlan --> coalesce --frame--> TAP
//! ```
//!
//! System calls are what is dear, so the kernel executor over up to 64 KiB of a TCP
//! stream as one frame (virtio headers), and a burst of encrypted packets of one size
//! is one call too (UDP segmentation and receive offload).
//!
//! Two threads carry frames, one each way, and a third keeps the tunnels' time. Who
//! brought a lone frame carries its answer, if that is there at once.
//! There is no queue of our own: who cannot send waits, and the kernel's queues
//! before it drop what they cannot hold. While a handshake is under way, a tunnel
//! holds up to 256 packets.
//!
//! Invariants: nothing leaves but encrypted; a frame comes in only from the peer that
//! the table names for its source MAC, whoever encrypted it; no ARP comes in or leaves.

mod checksum;
mod coalesce;
mod counters;
// For this crate's tests and for the fuzzer, which sees no more of the parsers than that.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod inbound;
mod initiation;
mod key;
mod message;
mod outbound;
mod peer;
mod segment;
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
pub use sleeve::{Settings, Sleeve, SleeveError};
pub use table::{Peer, Table};
pub use vxlan::{VXLAN_HEADER, vxlan_header};
