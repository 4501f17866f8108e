//! What this node knows of its grid.
//!
//! [`Directory`] is the feed's rows merged: settings, nodes, endpoints, and the
//! node's own placements and commands. It is immutable once published (an `Arc`
//! in a watch slot), so whoever reads it sees one revision.
//!
//! Invariants: a change is merged whole or not at all; its `from` is the
//! directory's own revision, or 0, which replaces everything. Nothing is
//! published that is not on disk, so a restarted agent never removes a container
//! that it was told to run. A full disk is the one exception: the agent goes on from
//! memory, and what is on disk is marked as outdated.
//!
//! Absent on purpose: any state of the host. That is observed, never remembered.

pub mod keep;
mod store;

use std::collections::BTreeMap;

use kontena_schema::agent::{
    Changes, Command, Endpoint, GridSettings, NodeEntry, PROTOCOL, Ping, Placement, Position,
    Welcome,
};
use kontena_schema::ids::{
    CommandId, Epoch, GridId, NodeId, NodeNumber, PingId, PlacementId, Revision,
};
use kontena_schema::limits::PINGS_MAX;
use serde::{Deserialize, Serialize};

pub use store::{InstallError, Store, StoreError, write_atomically};

/// Who this host is in which grid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: NodeNumber,
    /// Its grid.
    pub grid: GridId,
    /// The grid's name.
    pub grid_name: String,
    /// The number of the connection that said so.
    pub epoch: Epoch,
    /// The protocol that is spoken on it, which tells what rows may hold.
    #[serde(default)]
    pub protocol: u32,
}

impl From<&Welcome> for Identity {
    fn from(welcome: &Welcome) -> Self {
        Self {
            node: welcome.node,
            name: welcome.name.clone(),
            number: welcome.number,
            grid: welcome.grid,
            grid_name: welcome.grid_name.clone(),
            epoch: welcome.epoch,
            protocol: welcome.protocol.min(PROTOCOL),
        }
    }
}

/// Up to where the feed was merged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The history that `revision` counts in.
    pub timeline: String,
    /// The last merged revision.
    pub revision: Revision,
    /// The oldest protocol in which any of it was told: what a newer one adds to rows is
    /// missing until all are told again.
    #[serde(default)]
    pub protocol: u32,
}

/// Where the ids of commands and pings count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    grid: GridId,
    node: NodeId,
    timeline: String,
}

/// The rows of the feed, merged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Directory {
    /// Who this host is; none before the first welcome.
    pub me: Option<Identity>,
    /// Up to where; none before the first changes. Until then the rest is empty
    /// for want of knowledge, and nothing may be removed for its sake.
    pub reached: Option<Reached>,
    /// The grid's settings.
    pub grid: Option<GridSettings>,
    /// Every node, this one included.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// Every endpoint, this node's included.
    pub endpoints: BTreeMap<PlacementId, Endpoint>,
    /// This node's placements.
    pub placements: BTreeMap<PlacementId, Placement>,
    /// This node's commands.
    pub commands: BTreeMap<CommandId, Command>,
    /// The pings that this node was asked for last.
    #[serde(default)]
    pub pings: BTreeMap<PingId, Ping>,
    /// The node was removed from its grid: nothing of it may stay on the host.
    #[serde(default)]
    pub removed: bool,
    /// The Master has spoken to this run of the agent; what is only on disk may be old.
    #[serde(skip)]
    pub confirmed: bool,
    /// It comes from disk, and a run of the agent before this one acted on something newer
    /// that could not be written down. It tells where others are, and no more: by it
    /// nothing is started, attached, removed or trusted.
    #[serde(skip)]
    pub outdated: bool,
}

/// Changes that do not fit what the agent knows.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// They build on something else.
    #[error("the changes begin at revision {from}, the agent is at {at}")]
    Gap {
        /// Where the changes begin.
        from: Revision,
        /// Where the agent is.
        at: Revision,
    },
    /// They count in another history.
    #[error("the changes are from another Postgres timeline")]
    Timeline,
    /// They lead backwards.
    #[error("the changes lead back from revision {from} to {to}")]
    Backwards {
        /// Where the changes begin.
        from: Revision,
        /// Where they end.
        to: Revision,
    },
    /// They replace everything and lack the grid's settings.
    #[error("the grid's settings are missing")]
    NoSettings,
}

/// Most commands kept: those that the Master waits for are far fewer.
const COMMANDS_MAX: usize = 256;

/// Most pings kept: those that are open at the Master, and as many that ended.
pub const PINGS_KEPT: usize = 2 * PINGS_MAX;

impl Directory {
    /// The position to name in `hello`; none if all is to be told again.
    pub fn position(&self) -> Option<Position> {
        let (me, reached) = (self.me.as_ref()?, self.reached.as_ref()?);
        (reached.protocol >= PROTOCOL).then(|| Position {
            grid: me.grid,
            timeline: reached.timeline.clone(),
            revision: reached.revision,
        })
    }

    /// The last merged revision, 0 before any.
    pub fn revision(&self) -> Revision {
        self.reached
            .as_ref()
            .map_or(Revision::ZERO, |reached| reached.revision)
    }

    /// Where ids count now; none before the first changes.
    pub fn scope(&self) -> Option<Scope> {
        let (me, reached) = (self.me.as_ref()?, self.reached.as_ref()?);
        Some(Scope {
            grid: me.grid,
            node: me.node,
            timeline: reached.timeline.clone(),
        })
    }

    /// This node's own entry.
    pub fn own(&self) -> Option<&NodeEntry> {
        self.nodes.get(&self.me.as_ref()?.node)
    }

    /// Takes in who this host is. As another node, or in another grid, it knows
    /// nothing yet.
    pub fn welcome(&mut self, welcome: &Welcome) {
        let me = Identity::from(welcome);
        let same = |known: &Identity| known.node == me.node && known.grid == me.grid;
        if !self.me.as_ref().is_some_and(same) || self.removed {
            *self = Self::default();
        }
        self.me = Some(me);
    }

    /// Merges changes; after an error nothing was.
    pub fn merge(&mut self, changes: Changes) -> Result<(), MergeError> {
        self.check(&changes)?;
        let protocol = self.protocol_after(&changes);
        if changes.from == Revision::ZERO {
            *self = Self {
                me: self.me.take(),
                ..Self::default()
            };
        }
        let Changes {
            timeline,
            to,
            shared,
            own,
            ..
        } = changes;
        self.confirmed = true;
        self.outdated = false;
        self.reached = Some(Reached {
            timeline,
            revision: to,
            protocol,
        });
        if let Some(grid) = shared.grid {
            self.grid = Some(grid);
        }
        // Gone first: a row that is in both was made again.
        remove(&mut self.nodes, &shared.gone_nodes);
        remove(&mut self.endpoints, &shared.gone_endpoints);
        remove(&mut self.placements, &own.gone_placements);
        self.nodes
            .extend(shared.nodes.into_iter().map(|node| (node.id, node)));
        self.endpoints
            .extend(shared.endpoints.into_iter().map(|e| (e.placement, e)));
        self.placements
            .extend(own.placements.into_iter().map(|p| (p.id, p)));
        self.commands.extend(
            own.commands
                .into_iter()
                .map(|command| (command.id, command)),
        );
        while self.commands.len() > COMMANDS_MAX {
            self.commands.pop_first();
        }
        self.pings
            .extend(own.pings.into_iter().map(|ping| (ping.id, ping)));
        while self.pings.len() > PINGS_KEPT {
            self.pings.pop_first();
        }
        Ok(())
    }

    /// The oldest protocol in which anything was told, with these changes.
    fn protocol_after(&self, changes: &Changes) -> u32 {
        let spoken = self.me.as_ref().map_or(0, |me| me.protocol);
        match &self.reached {
            Some(known) if changes.from > Revision::ZERO => known.protocol.min(spoken),
            _ => spoken,
        }
    }

    fn check(&self, changes: &Changes) -> Result<(), MergeError> {
        if changes.to < changes.from {
            return Err(MergeError::Backwards {
                from: changes.from,
                to: changes.to,
            });
        }
        if changes.from == Revision::ZERO {
            return changes
                .shared
                .grid
                .is_some()
                .then_some(())
                .ok_or(MergeError::NoSettings);
        }
        match &self.reached {
            Some(reached) if reached.timeline != changes.timeline => Err(MergeError::Timeline),
            Some(reached) if reached.revision == changes.from => Ok(()),
            _ => Err(MergeError::Gap {
                from: changes.from,
                at: self.revision(),
            }),
        }
    }
}

fn remove<K: Ord, V>(map: &mut BTreeMap<K, V>, gone: &[K]) {
    for key in gone {
        map.remove(key);
    }
}

#[cfg(test)]
pub(crate) mod tests;
