//! The system tests' hold on the stack that `make test` brought up: its Master
//! through the typed client, its hosts and their containers through `docker exec`.
//!
//! Nothing here skips and nothing waits a fixed time: what is missing is a
//! panic that says what to do, and every wait is [`until`] a state, with a bound
//! and the last state in its message.
//!
//! Tests run in processes of their own, side by side. What they share (the grid,
//! the example, a toolbox on each host) is made by whoever comes first, under a
//! lock; what a test makes for itself bears its name and is removed before and
//! after. Tests that break hosts have hosts of their own ([`OwnGrid`]).

#![allow(clippy::unwrap_used)]

mod capture;
mod command;
mod fixtures;
mod grid;
mod host;
mod master;
mod own;
mod settings;
mod wait;

pub use capture::Capture;
pub use command::{Output, docker};
pub use fixtures::{TOOLBOX_PORT, service, toolbox};
pub use grid::{Grid, Snapshot};
pub use host::Host;
pub use master::Master;
pub use own::OwnGrid;
pub use settings::Settings;
pub use wait::until;
