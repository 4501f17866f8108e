//! What the world is made of, and what can happen in it.

use crate::master::{Inventory, Lease, Master, NODES, PLACEMENTS, Seen};

/// What an agent knows of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// There is none, or it has no address.
    Nothing,
    Run(Lease),
    /// It is to end, and the agent says when it has.
    Remove,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// `hello` is on its way, with the agent's run and what it found then.
    Hello(u8, Inventory),
    /// The Master gave it an epoch.
    Open(u8),
}

/// A connection, until its replica notices its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    pub node: usize,
    pub replica: usize,
    /// The agent uses it.
    pub up: bool,
    /// The agent's run opened a later one.
    pub late: bool,
    pub stage: Stage,
    /// The agent's last report,
    pub told: Option<[Seen; PLACEMENTS]>,
    /// which is on its way.
    pub telling: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    Alive,
    Frozen,
    Dead,
}

/// How often what would go on for ever can happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    pub cuts: u8,
    pub crashes: u8,
    pub freezes: u8,
    pub restarts: u8,
    pub reservations: u8,
    pub joins: u8,
    pub removals: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub master: Master,
    /// By placement, as its agent knows it and has it.
    pub wanted: [Wanted; PLACEMENTS],
    pub containers: Inventory,
    /// The runs of the agents.
    pub runs: [u8; NODES],
    /// By node, the oldest first.
    pub links: Vec<Link>,
    pub weak: Health,
    /// Sessions that a swept replica had, with their epochs then; still to be closed.
    pub sweeping: Vec<(usize, u8)>,
    /// Nodes that a replica saw to be due, before it has the lock.
    pub looked: [bool; NODES],
    pub left: Bounds,
    /// The laws that the step to here broke, as bits.
    pub broken: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Place(usize),
    Remove(usize),
    Reserve,
    Release(usize),
    Join,
    /// An agent without a connection tries a replica.
    Connect {
        node: usize,
        replica: usize,
    },
    /// `hello` arrives.
    Hello(usize),
    /// The agent learns what the rows say. A feed that is on its way is like one
    /// that was not sent yet: the agent takes it from the connection that it uses,
    /// in order.
    Learn(usize),
    /// The agent removes or creates a container.
    Apply(usize),
    /// The agent sends what it sees,
    Tell(usize),
    /// which arrives; `again` leaves a copy of it on its way.
    Report {
        link: usize,
        again: bool,
    },
    /// The agent loses a connection or gives it up; what it sent may arrive yet.
    Cut(usize),
    /// The replica notices that a connection ended or does not count any more.
    Close(usize),
    /// The agent starts anew.
    Restart(usize),
    Crash,
    Freeze,
    Wake,
    /// A replica that woke renews its row.
    Renew,
    Sweep,
    SweepSession(usize),
    /// `lose_at` passes.
    Due(usize),
    Look(usize),
    Lose(usize),
}
