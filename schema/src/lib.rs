//! Every contract between the processes of a Kontena master and its nodes.
//!
//! What two processes must agree on is written here once: ids, limits, the
//! address plan, DNS names, the bodies of the HTTP API, the agent protocol and,
//! for the Master alone, the SQL. The other crates point here; this one points
//! at nothing of ours. Everything in it is pure: no IO, no clock, no async.

pub mod address;
pub mod agent;
pub mod http;
pub mod ids;
pub mod key;
pub mod limits;
pub mod mac;
pub mod name;
pub mod overlap;
pub mod path;
#[cfg(feature = "sql")]
pub mod query;
