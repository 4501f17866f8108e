//! Ids, counters and the few values that several tables and messages share.
//!
//! Each is a type of its own, so that a node cannot be passed where a grid is
//! meant. All are parsed once, at the rim.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "sql", derive(postgres_types::FromSql, postgres_types::ToSql))]
        #[cfg_attr(feature = "sql", postgres(transparent))]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A grid.
    GridId
);
id!(
    /// A host node; a node that leaves and joins again gets a new one.
    NodeId
);
id!(
    /// A stack of services.
    StackId
);
id!(
    /// A service.
    ServiceId
);
id!(
    /// One instance of a service on one node, the holder of an overlay address.
    PlacementId
);
id!(
    /// One roll-out of a service.
    DeployId
);
id!(
    /// A command to a node, started at most once.
    CommandId
);
id!(
    /// A ping that a node is asked for, started at most once.
    PingId
);
id!(
    /// The number of a lease, unique and rising within its grid.
    LeaseNumber
);
id!(
    /// The version of a service's description, from 1.
    ServiceRevision
);
id!(
    /// Counts the connections of a node; a session under an older epoch can
    /// change nothing.
    Epoch
);
id!(
    /// The version of everything that a grid's agents must know. It rises by
    /// one with each transaction that changes any of it.
    Revision
);

id!(
    /// Counts how often a change of a node's key was asked for.
    #[derive(Default)]
    KeyTurn
);

impl Revision {
    /// Before everything: an agent here knows nothing.
    pub const ZERO: Revision = Revision(0);
}

/// A replica of the Master, from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(
    feature = "sql",
    derive(postgres_types::FromSql, postgres_types::ToSql)
)]
#[cfg_attr(feature = "sql", postgres(transparent))]
#[serde(transparent)]
pub struct ReplicaId(pub uuid::Uuid);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a node within its grid, 1..=254.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct NodeNumber(u8);

impl NodeNumber {
    /// The highest number, and so the most nodes of one grid.
    pub const MAX: u8 = 254;

    /// The number itself.
    pub fn get(self) -> u8 {
        self.0
    }
}

/// A node number outside 1..=254.
#[derive(Debug, thiserror::Error)]
#[error("a node number is between 1 and 254, not {0}")]
pub struct NodeNumberError(i64);

impl TryFrom<u8> for NodeNumber {
    type Error = NodeNumberError;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        Self::try_from(i64::from(number))
    }
}

impl TryFrom<i64> for NodeNumber {
    type Error = NodeNumberError;

    fn try_from(number: i64) -> Result<Self, Self::Error> {
        match u8::try_from(number) {
            Ok(small @ 1..=Self::MAX) => Ok(Self(small)),
            _ => Err(NodeNumberError(number)),
        }
    }
}

impl From<NodeNumber> for u8 {
    fn from(number: NodeNumber) -> u8 {
        number.0
    }
}

impl fmt::Display for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
