//! The system on the stack of `make test`: real engines, real kernels, a real
//! Master. Each file is a theme of what the project promises.
//!
//! `.config/nextest.toml` says which of them may run side by side.
#![allow(clippy::unwrap_used, missing_docs)]

mod change;
mod join;
mod leave;
mod log;
mod lost;
mod model;
mod names;
mod outage;
mod overlap;
mod reach;
mod removal;
mod restart;
mod second;
mod starts;
