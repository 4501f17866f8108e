//! What the overlay is to be and what it is, as values: no IO, no clock.
//!
//! [`intent`] is derived from the directory, [`state`] is read from the kernel, and
//! [`entries`] are the table entries that an intent asks for. [`peer`] and
//! [`reachability`] are what is known of other nodes.

pub(crate) mod devices;
pub(crate) mod entries;
pub(crate) mod intent;
pub(crate) mod pace;
pub(crate) mod peer;
pub(crate) mod reachability;
pub(crate) mod request;
pub(crate) mod state;
