//! The replica on a real Postgres and a real Redis: a database per test, cloned
//! from a migrated template, and a Redis prefix per test.
#![allow(clippy::unwrap_used, missing_docs)]

mod addresses;
mod agents;
mod deploys;
mod facts;
mod grids;
mod http;
mod keys;
mod leases;
mod ledger;
mod measures;
mod overlap;
mod pings;
mod queries;
mod ready;
mod sessions;
mod support;
