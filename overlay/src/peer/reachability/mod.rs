//! Whether a silent peer's host is up and runs an agent: a listener for others, checks of
//! our own, and their schedule.

pub(crate) mod check;
pub(crate) mod listener;
pub(crate) mod schedule;
