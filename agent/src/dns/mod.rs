//! The name server for this host's containers, on the address of Docker's
//! bridge, port 53, UDP and TCP.
//!
//! [`zone`] holds the names, [`answer`] turns a query into its answer, both without IO;
//! [`server`] owns the sockets, which clients share fairly ([`shares`]).
//!
//! External names go to the host's resolvers. [`upstream`] knows which they are
//! ([`resolv_conf`], [`host_file`]) and which are dead ([`health`]), [`forward`] asks them in
//! turn, [`exchange`] asks one. The agent's own lookups ([`lookup`]) take the same path.
//!
//! Invariants: answering needs neither the Master nor the Docker engine; no name that
//! may exist is denied ([`startup`]).
//!
//! Absent on purpose: a cache. The host's resolvers have one, and our own names
//! are right within a quarter of a second because nothing caches them.

pub mod answer;
mod exchange;
pub mod forward;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod health;
mod host_file;
pub mod lookup;
mod resolv_conf;
pub mod server;
mod shares;
pub mod startup;
mod stream;
pub mod upstream;
pub mod zone;

#[cfg(test)]
mod forward_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
