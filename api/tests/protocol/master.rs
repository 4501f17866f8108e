//! The Master's rows, and its transactions: each holds the grid's lock, so each is
//! one step.

use crate::rules::{Omit, Rule};

pub const NODES: usize = 3;
pub const PLACEMENTS: usize = 3;
pub const ADDRESSES: usize = 2;
pub const REPLICAS: usize = 2;

/// An address with the number of its lease; ordered by the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease {
    pub number: u8,
    pub address: usize,
}

/// What a placement has. The first and the last are no rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    Unplaced,
    Held(Lease),
    Lost(Lease),
    Taken(Lease),
    Waiting,
    /// It has none and is not to have one now.
    Nothing,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placement {
    pub node: usize,
    pub right: Right,
    /// It is to end.
    pub leaving: bool,
    /// Its names answer.
    pub ready: bool,
}

impl Placement {
    /// What it holds or held.
    pub fn lease(&self) -> Option<Lease> {
        match self.right {
            Right::Held(lease) | Right::Lost(lease) | Right::Taken(lease) => Some(lease),
            Right::Unplaced | Right::Waiting | Right::Nothing | Right::Ended => None,
        }
    }

    pub fn held(&self) -> Option<Lease> {
        self.lease()
            .filter(|lease| self.right == Right::Held(*lease))
    }

    pub fn is_row(&self) -> bool {
        !matches!(self.right, Right::Unplaced | Right::Ended)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    Placement(usize),
    Reservation,
    Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Open,
    Closed,
    /// Closed, and `lose_at` passed.
    Due,
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    pub epoch: u8,
    pub phase: Phase,
    pub replica: usize,
    /// The run of the agent that has it,
    pub run: u8,
    /// and those, as bits, that later ones took over from.
    pub superseded: u8,
}

impl Session {
    /// Whether a run was taken over from by the one that is connected.
    pub fn is_duplicate(&self, run: u8) -> bool {
        self.phase == Phase::Open && self.superseded & (1 << run) != 0
    }
}

/// The containers of a node, by placement, with the leases that they were created
/// under.
pub type Inventory = [Option<Lease>; PLACEMENTS];

/// What an agent says of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    Nothing,
    Runs(Lease),
    /// It was to end and is gone.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Master {
    pub addresses: [Option<(Holder, Lease)>; ADDRESSES],
    /// In the order of their release.
    pub free: Vec<usize>,
    pub last_number: u8,
    pub placements: [Placement; PLACEMENTS],
    /// In the order in which they began to wait.
    pub waiting: Vec<usize>,
    pub sessions: [Session; NODES],
    /// Which replicas have rows.
    pub registered: [bool; REPLICAS],
    pub omit: Omit,
}

impl Master {
    pub fn is_current(&self, node: usize, epoch: u8) -> bool {
        let session = &self.sessions[node];
        session.epoch == epoch && session.phase == Phase::Open
    }

    /// Whether a placement's node is not lost.
    pub fn is_there(&self, placement: usize) -> bool {
        self.sessions[self.placements[placement].node].phase != Phase::Lost
    }

    pub fn held(&self, placement: usize) -> Option<Lease> {
        self.placements[placement].held()
    }

    // What users ask for.

    pub fn place(&mut self, placement: usize) {
        let lease = self.pick();
        self.hold(Holder::Placement(placement), lease);
    }

    pub fn remove(&mut self, placement: usize) {
        if self.is_there(placement) {
            self.unwait(placement);
            self.placements[placement].leaving = true;
        } else {
            // Nobody is there to say that its container is gone.
            self.end(placement);
        }
    }

    pub fn reserve(&mut self) {
        let lease = self.pick();
        self.hold(Holder::Reservation, lease);
    }

    pub fn release(&mut self, address: usize) {
        self.vacate(address);
        self.serve();
    }

    /// A node joins with the lowest number whose address nobody holds, else with the
    /// lowest that an instance holds.
    pub fn join(&mut self) {
        let is_lent = |at: &usize| matches!(self.addresses[*at], Some((Holder::Placement(_), _)));
        let lent = (0..ADDRESSES).find(is_lent);
        if let Some(address) = self.free.iter().copied().min().or(lent) {
            self.evict(address);
            let number = self.next_number();
            self.hold(Holder::Node, Lease { number, address });
            self.serve();
        }
    }

    // What agents and replicas tell.

    /// Opens a session and gives the node back what it can have. Answers the epoch;
    /// none if it is refused.
    pub fn hello(
        &mut self,
        node: usize,
        replica: usize,
        run: u8,
        inventory: &Inventory,
    ) -> Option<u8> {
        let session = &mut self.sessions[node];
        if session.is_duplicate(run) && self.omit.obeys(Rule::Duplicates)
            || !self.registered[replica] && self.omit.obeys(Rule::Registered)
        {
            return None;
        }
        let epoch = session.epoch + 1;
        let superseded = (session.superseded | 1 << session.run) & !(1 << run);
        *session = Session {
            epoch,
            phase: Phase::Open,
            replica,
            run,
            superseded,
        };
        self.give_back(node, inventory);
        Some(epoch)
    }

    fn give_back(&mut self, node: usize, inventory: &Inventory) {
        let returning = |id: &usize| {
            let row = &self.placements[*id];
            let lost = matches!(row.right, Right::Lost(_) | Right::Taken(_) | Right::Nothing);
            row.node == node && lost && !row.leaving
        };
        let mut back: Vec<usize> = (0..PLACEMENTS).filter(returning).collect();
        // Those that had nothing go last.
        back.sort_by_key(|id| self.placements[*id].lease().map_or(u8::MAX, |l| l.number));
        for id in back {
            match self.placements[id].lease() {
                Some(lease) if self.may_have(lease, inventory[id]) => self.restore(id, lease),
                _ => self.wait(id),
            }
            if !self.omit.obeys(Rule::KeepersFirst) {
                self.serve();
            }
        }
        self.serve();
    }

    /// Whether a placement that returned gets what it had.
    fn may_have(&self, lease: Lease, found: Option<Lease>) -> bool {
        let obeys = |rule| self.omit.obeys(rule);
        match self.addresses[lease.address] {
            None => true,
            Some((Holder::Placement(_), other)) => {
                (found.is_some() || !obeys(Rule::Inventory))
                    && (found.is_none_or(|found| found == lease) || !obeys(Rule::SameLease))
                    && (lease.number < other.number || !obeys(Rule::LowerLease))
            }
            Some((Holder::Reservation | Holder::Node, _)) => !obeys(Rule::ReservationsStay),
        }
    }

    fn restore(&mut self, placement: usize, mut lease: Lease) {
        if self.omit.obeys(Rule::OneHolder) {
            self.evict(lease.address);
        }
        if !self.omit.obeys(Rule::SameNumber) {
            lease.number = self.next_number();
        }
        self.hold(Holder::Placement(placement), lease);
    }

    pub fn report(&mut self, node: usize, epoch: u8, seen: &[Seen; PLACEMENTS]) {
        if self.omit.obeys(Rule::ReportEpoch) && !self.is_current(node, epoch) {
            return;
        }
        for (id, seen) in seen.iter().enumerate() {
            let row = self.placements[id];
            let other = matches!(seen, Seen::Runs(lease) if row.lease() != Some(*lease));
            if row.node != node || !row.is_row() {
                continue;
            } else if row.leaving {
                if *seen == Seen::Gone || !self.omit.obeys(Rule::Confirmed) {
                    self.end(id);
                }
            } else if !other || !self.omit.obeys(Rule::ReportLease) {
                self.placements[id].ready = matches!(seen, Seen::Runs(_));
            }
        }
        self.serve();
    }

    /// The end of a connection, told by its replica or by one that swept that.
    pub fn close(&mut self, node: usize, epoch: u8) {
        if self.is_current(node, epoch) || !self.omit.obeys(Rule::CloseEpoch) {
            self.sessions[node].phase = Phase::Closed;
        }
    }

    /// A replica saw that a node is due, and has the grid's lock now.
    pub fn lose(&mut self, node: usize) {
        if self.omit.obeys(Rule::LookAgain) && self.sessions[node].phase != Phase::Due {
            return;
        }
        self.sessions[node].phase = Phase::Lost;
        let its = (0..PLACEMENTS).filter(|id| self.placements[*id].node == node);
        let mut its: Vec<_> = its.map(|id| (self.held(id), id)).collect();
        // Addresses are released in rising order.
        its.sort_by_key(|(lease, _)| lease.map_or(ADDRESSES, |lease| lease.address));
        for (lease, id) in its {
            if self.placements[id].leaving {
                self.end(id);
            } else if let Some(lease) = lease {
                let row = &mut self.placements[id];
                (row.right, row.ready) = (Right::Lost(lease), false);
                self.vacate(lease.address);
            } else if self.omit.obeys(Rule::ServePresent) {
                self.unwait(id);
            }
            if !self.omit.obeys(Rule::LossIsWhole) {
                self.serve();
            }
        }
        self.serve();
    }

    // Steps that these share.

    fn next_number(&mut self) -> u8 {
        self.last_number += u8::from(self.omit.obeys(Rule::NewNumber) || self.last_number == 0);
        self.last_number
    }

    /// The longest free address, under a new number.
    fn pick(&mut self) -> Lease {
        let (number, address) = (self.next_number(), self.free[0]);
        Lease { number, address }
    }

    /// Gives a free address to a holder. Who lost it before may find it held from
    /// now on.
    fn hold(&mut self, holder: Holder, lease: Lease) {
        self.free.retain(|address| *address != lease.address);
        self.addresses[lease.address] = Some((holder, lease));
        for row in &mut self.placements {
            if let Right::Lost(lost) = row.right
                && lost.address == lease.address
            {
                row.right = Right::Taken(lost);
            }
        }
        if let Holder::Placement(id) = holder {
            let row = &mut self.placements[id];
            (row.right, row.ready) = (Right::Held(lease), false);
        }
    }

    fn vacate(&mut self, address: usize) {
        self.addresses[address] = None;
        self.free.push(address);
    }

    /// Takes an address from the instance that holds it, if one does. One that is to
    /// end gets no other.
    fn evict(&mut self, address: usize) {
        let Some((Holder::Placement(id), _)) = self.addresses[address] else {
            return;
        };
        self.vacate(address);
        self.wait(id);
        if self.placements[id].leaving {
            self.unwait(id);
        }
    }

    fn wait(&mut self, placement: usize) {
        let row = &mut self.placements[placement];
        (row.right, row.ready) = (Right::Waiting, false);
        self.waiting.push(placement);
    }

    fn unwait(&mut self, placement: usize) {
        if self.placements[placement].right == Right::Waiting {
            self.placements[placement].right = Right::Nothing;
            self.waiting.retain(|other| *other != placement);
        }
    }

    fn end(&mut self, placement: usize) {
        if let Some(lease) = self.held(placement) {
            self.vacate(lease.address);
        }
        self.unwait(placement);
        let row = &mut self.placements[placement];
        (row.right, row.leaving, row.ready) = (Right::Ended, false, false);
    }

    /// Gives what is free to those who wait.
    fn serve(&mut self) {
        let mut queue = self.waiting.clone();
        if !self.omit.obeys(Rule::ServeInOrder) {
            queue.reverse();
        }
        for id in queue {
            if !self.free.is_empty() && self.omit.obeys(Rule::ServeAtOnce) {
                self.waiting.retain(|other| *other != id);
                self.place(id);
            }
        }
    }
}
