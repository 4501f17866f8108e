//! The bodies of the HTTP API under `/v1`, with the original's 1.5 field names.
//!
//! The original's CLI sends integers that a user typed as strings; [`lenient`]
//! reads both. Unknown fields of a request are refused where a typing error
//! would otherwise be lost silently.

pub mod addresses;
pub mod containers;
pub mod error;
pub mod grids;
pub mod lenient;
pub mod nodes;
pub mod pings;
pub mod services;
pub mod stacks;
