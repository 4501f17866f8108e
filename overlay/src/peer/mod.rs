//! The other nodes of the grid: how each is reached, kept up also while nobody
//! reconciles.
//!
//! Pure, with time as an argument: the state machine of one peer ([`machine`]), what
//! agents say to each other ([`heartbeat`], [`path_probe`]), flap damping ([`damping`]),
//! start-up hold-down ([`hold_down`]) and the words for people ([`reason`], [`report`]).
//! With IO: the [`manager`], which owns the [`table`] of all peers and the [`transports`]
//! to them, [`encryption`], and [`reachability`].

pub(crate) mod damping;
pub(crate) mod encryption;
pub(crate) mod heartbeat;
pub(crate) mod hold_down;
pub(crate) mod keeper;
pub(crate) mod machine;
pub(crate) mod manager;
pub(crate) mod path_probe;
pub(crate) mod path_probe_socket;
pub(crate) mod reachability;
pub(crate) mod reason;
pub(crate) mod report;
pub(crate) mod shared;
pub(crate) mod table;
pub(crate) mod transports;
