//! What a node does to apply the Master's decisions to its host.

pub mod apply;
pub mod config;
pub mod directory;
pub mod dns;
pub mod docker;
pub mod facts;
// For this crate's tests and for the fuzzer, which reaches the parsers only through this.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod keys;
pub mod link;
pub mod measures;
mod net;
pub mod overlay;
pub mod pings;
pub mod plan;
pub mod reconcile;
pub mod report;
pub mod run;

#[cfg(test)]
mod testing;
