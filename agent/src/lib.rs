//! What a node does to make the Master's decisions true on its host.

pub mod apply;
pub mod config;
pub mod directory;
pub mod dns;
pub mod docker;
pub mod facts;
pub mod keys;
pub mod link;
pub mod measures;
pub mod overlay;
pub mod pings;
pub mod plan;
pub mod reconcile;
pub mod report;
pub mod run;
pub mod task;

#[cfg(test)]
mod testing;
