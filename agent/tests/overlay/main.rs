//! The overlay on the real kernel: hosts and containers are network namespaces
//! that a test makes and that end with it. Root is needed; a test that lacks a
//! right fails.

mod isolation;
mod lab;
mod life;
mod reach;
