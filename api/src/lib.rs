//! A replica of the Master.
//!
//! Replicas are identical and keep nothing that another could not rebuild from
//! Postgres; any of them may die at any moment. A request walks from [`http`]
//! through [`control`] and [`db`] to the rows, and from there by [`notify`] and
//! [`agents`] to the nodes (ARCHITECTURE.md).

pub mod agents;
pub mod app;
pub mod config;
pub mod control;
pub mod db;
pub mod http;
pub mod notify;
pub mod serve;
pub mod tasks;
pub mod token;
