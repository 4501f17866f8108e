//! Addresses: `/v1/grids/:grid/addresses` and their history.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::lenient;
use crate::ids::{LeaseNumber, Revision};

/// Body of `POST /v1/grids/:grid/addresses`: addresses for what is no container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressTake {
    /// Who will hold them, in words of the caller's own; several reservations may
    /// have the same name.
    pub name: String,
    /// How many, 1..=8190; default 1. All or none are taken.
    #[serde(default, deserialize_with = "lenient::option")]
    pub count: Option<u32>,
    /// One certain address instead of the next free one.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
}

/// What can hold an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HolderKind {
    /// An instance of a service.
    Placement,
    /// A reservation over HTTP.
    Reservation,
    /// A node, by its number.
    Node,
}

impl HolderKind {
    /// As it is written in JSON, in queries and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placement => "placement",
            Self::Reservation => "reservation",
            Self::Node => "node",
        }
    }
}

/// An address and who holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub address: Ipv4Addr,
    /// In which order addresses are given out: 1 before 2 before 3.
    pub class: u8,
    /// What kind of holder it has; none while it is free.
    pub kind: Option<HolderKind>,
    /// `stack/service-n` of an instance, the name of a reservation or of a node.
    pub holder: Option<String>,
    /// The node of an instance, or the node itself.
    pub node: Option<String>,
    /// The number of the lease.
    pub lease: Option<LeaseNumber>,
    /// Since when it is held, ISO 8601 with milliseconds.
    pub leased_at: Option<String>,
}

/// Answer of `POST` and `GET` of `/v1/grids/:grid/addresses`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Addresses {
    /// The addresses in rising order.
    pub addresses: Vec<Address>,
    /// Where the next page begins (`?after=`); none on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Ipv4Addr>,
}

/// A step in the life of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseEvent {
    /// It began.
    Leased,
    /// It ended.
    Released,
    /// It was ended by the loss of its node, and goes on.
    Restored,
    /// It was in force when a new part of the ledger began.
    Opened,
}

/// One row of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// The address.
    pub address: Ipv4Addr,
    /// What happened.
    pub event: LeaseEvent,
    /// The number of the lease.
    pub lease: LeaseNumber,
    /// What kind of holder.
    pub kind: HolderKind,
    /// Who held it.
    pub holder: String,
    /// On which node.
    pub node: Option<String>,
    /// Who did it: `admin`, a node, or the Master itself.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, ISO 8601 with milliseconds.
    pub at: String,
    /// The grid's revision then.
    pub revision: Revision,
}

/// Answer of `GET /v1/grids/:grid/addresses/:address/history`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The steps, the latest first; with `?at=` the one in force then, if any.
    pub history: Vec<LedgerEntry>,
    /// Where the next page begins (`?before=`); none on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<i64>,
}

/// Figures in the error `grid_full_addresses`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressUsage {
    /// Addresses that can be held.
    pub size: i64,
    /// Of these, held by nodes.
    pub nodes: i64,
    /// Held by instances and reservations.
    pub leased: i64,
    /// Who holds the most, at most five.
    pub biggest_holders: Vec<HolderUsage>,
}

/// How much one holder has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderUsage {
    /// What kind of holder.
    pub kind: HolderKind,
    /// `stack/service` of instances, or the name of reservations.
    pub holder: String,
    /// How many addresses it holds.
    pub addresses: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_written_as_in_json() {
        for kind in [
            HolderKind::Placement,
            HolderKind::Reservation,
            HolderKind::Node,
        ] {
            let json = serde_json::to_value(kind).unwrap();
            assert_eq!(json, kind.as_str());
        }
    }
}
