//! Sleeves on real devices and a real network: what passes, what does not, and what an observer
//! on the underlay sees.
#![allow(clippy::unwrap_used, missing_docs)]

mod host;
mod keys;
mod path;
mod unknown_senders;
mod wireguard;
