//! The device of the encrypted path on hosts whose kernel has WireGuard: its wanted and actual
//! state, and the messages between the two.
//!
//! [`Device`] is the wanted state and [`Control::observe`] reads the actual one, [`changes`] is
//! the pure difference of the two, and [`Control::change`] sends one message of it to the device.
//! [`Watch`] derives the state of each tunnel from repeated observations.
//!
//! Invariants: a peer that stays is never removed, nor is the whole list of peers replaced, so its
//! session continues; an allowed network that moves from one key to another belongs to one of them
//! at any time; the endpoint of a peer that roamed is left alone; no `Debug` of ours shows a
//! private key.
//!
//! Absent on purpose: preshared keys, firewall marks, and IPv6 networks and endpoints (those in the
//! kernel are read); addresses and routes of the link. The crates below log the bytes of messages,
//! including the private key, at level `trace`.

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

/// The name of the WireGuard device.
pub const WIREGUARD: &str = "kontena-wg";
