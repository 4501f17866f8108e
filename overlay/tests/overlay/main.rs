//! The overlay on the real kernel: hosts and containers are network namespaces that a test creates
//! and that vanish with it. Tests need root; a test that lacks a privilege fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod candidates;
mod clear_path;
mod drops;
mod encrypted;
mod every_packet;
mod filter;
mod grids;
mod host_access;
mod ipv6;
mod isolation;
mod lease;
mod life;
mod ping;
mod ports;
mod reach;
mod reachability;
mod task;
mod wireguard;
