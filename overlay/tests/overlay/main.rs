//! The overlay on the real kernel: hosts and containers are network namespaces
//! that a test makes and that end with it. Root is needed; a test that lacks a
//! right fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod candidates;
mod clear_path;
mod drops;
mod encrypted;
mod every_packet;
mod grids;
mod isolation;
mod lease;
mod life;
mod ping;
mod reach;
mod reachability;
mod task;
mod wireguard;
