//! What a node does to make the Master's decisions true on its host.

pub mod apply;
pub mod config;
pub mod directory;
pub mod dns;
pub mod docker;
pub mod facts;
// For this crate's tests and for the fuzzer, which sees no more of the parsers than that.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod keys;
pub mod link;
pub mod measures;
pub mod overlay;
pub mod pings;
pub mod plan;
pub mod reconcile;
pub mod report;
pub mod run;

#[cfg(test)]
mod testing;
