//! Sleeves on real devices and a real network: what comes through, what does not,
//! and what can be seen on the way.
#![allow(clippy::unwrap_used, missing_docs)]

mod host;
mod keys;
mod path;
mod strangers;
mod wireguard;
