//! The overlay on the real kernel: hosts and containers are network namespaces
//! that a test makes and that end with it. Root is needed; a test that lacks a
//! right fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod clear_way;
mod door;
mod drops;
mod echo;
mod every_packet;
mod grids;
mod inside;
mod isolation;
mod lab;
mod lease;
mod life;
mod pings;
mod places;
mod reach;
mod sealed;
mod wireguard_go;
