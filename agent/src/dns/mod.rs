//! The name server for this host's containers, on the address of Docker's
//! bridge, port 53, UDP and TCP.
//!
//! [`zone`] is what is known, [`answer`] turns a query into its answer, both
//! without IO; [`server`] has the sockets and [`forward`] asks the host's
//! resolvers about foreign names.
//!
//! Invariant: answering needs neither the Master nor the Docker engine.
//!
//! Absent on purpose: a cache. The host's resolvers have one, and our own names
//! are right within a quarter of a second because nothing keeps them.

pub mod answer;
pub mod forward;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod server;
mod stream;
pub mod zone;

#[cfg(test)]
mod tests;
