//! The device of the encrypted path on hosts whose kernel has WireGuard: what it is
//! to be, what it is, and the messages that lead from one to the other.
//!
//! [`Device`] says what is wanted and [`Control::observe`] what there is,
//! [`changes`] is the pure difference of the two, and [`Control::change`] tells
//! the device one message of it. [`Watch`] makes of many looks how the transports to
//! peers are.
//!
//! Invariants: a peer that stays is never removed, nor is the whole list of peers
//! replaced, so its session goes on; an allowed network that moves from one key
//! to another belongs to one of them at any time; the endpoint of a peer that
//! roamed is left alone; a private key is in no `Debug` of ours.
//!
//! Absent on purpose: preshared keys, firewall marks, and allowed networks and
//! endpoints of IPv6 (those that the kernel has are seen); addresses and routes of
//! the link. The crates below us log the bytes of messages, the key among them, at
//! the level `trace`.

mod changes;
mod codec;
mod control;
mod device;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod kernel;
mod uapi;
mod watch;

#[cfg(test)]
mod changes_tests;
#[cfg(test)]
mod codec_tests;
#[cfg(test)]
pub(crate) mod model;

pub(crate) use changes::changes;
pub(crate) use control::Control;
pub(crate) use device::{Device, Observed, WgPeer};
pub(crate) use kernel::Kernel;
pub(crate) use watch::{Looked, Moment, Named, Watch, WireGuardUpdate};
