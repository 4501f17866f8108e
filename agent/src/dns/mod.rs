//! The name server for this host's containers, on the address of Docker's
//! bridge, port 53, UDP and TCP.
//!
//! [`zone`] is what is known, [`answer`] turns a query into its answer, both
//! without IO; [`server`] has the sockets, of which each client gets its share ([`shares`]).
//!
//! Foreign names are the business of the host's resolvers. [`upstream`] knows who they are
//! ([`resolv_conf`], [`host_file`]) and which of them are dead ([`health`]), [`forward`] asks them in
//! turn, [`exchange`] one of them. The agent's own lookups ([`lookup`]) go the same way.
//!
//! Invariants: answering needs neither the Master nor the Docker engine; nothing is
//! denied that may exist ([`startup`]).
//!
//! Absent on purpose: a cache. The host's resolvers have one, and our own names
//! are right within a quarter of a second because nothing keeps them.

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
