//! What the `kontena` command is made of, for programs: a typed client of the
//! Master's HTTP API, the reader of `kontena.yml`, and the file of known Masters.
//!
//! The system tests and the load generator use this client too, so that the code
//! that users run is the code that is tested. Nothing here prints, asks or ends
//! the process; that is the binary's part.

pub mod client;
pub mod config;
pub mod stackfile;

pub use client::{ApiError, Client, Error};
