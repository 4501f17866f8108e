//! The reference model: what `infra/adr/0001-addresses.md` and `0004-leases.md` say
//! about one grid, in maps and linear searches, to be judged by reading. It knows
//! no SQL, no time, no sessions and no scheduling: whether a node is lost, which node runs
//! an instance and what a host's inventory names are told to it.

use std::collections::{BTreeMap, BTreeSet};

/// An address, as its distance from the subnet's first one.
pub type Host = u32;
pub type Lease = i64;
/// A placement, by the Master's id.
pub type Id = i64;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    Placement(Id),
    Reservation(String),
    Node(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub holder: Holder,
    pub lease: Lease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Held,
    Lost,
    Taken,
    /// With its place in the queue.
    Waiting(u64),
    /// It has none and is not in the queue: it is to go, or its node was lost while it
    /// waited.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Leased,
    Released,
    Restored,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    pub node: String,
    pub label: String,
    pub state: State,
    /// What it holds, or had before its node was lost.
    pub had: Option<(Host, Lease)>,
    /// Its container is to go, after which it ends.
    pub removing: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub number: Host,
    pub lost: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    GridFull,
    Held,
    NotFound,
    NotReserved,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// How many addresses the subnet has; the first and the last are no one's.
    pub size: Host,
    pub held: BTreeMap<Host, Held>,
    pub nodes: BTreeMap<String, Node>,
    pub placements: BTreeMap<Id, Placement>,
    /// The addresses that were ever released, and the order of the last release.
    released: BTreeMap<Host, u64>,
    leases: Lease,
    releases: u64,
    waits: u64,
    /// Every step of a lease's life.
    pub ledger: Vec<(Host, Event, Lease)>,
    /// How often each row of DESIGN §5's table was met, with which kind of holder.
    pub met: BTreeMap<&'static str, u64>,
}

fn class(host: Host) -> u8 {
    match host {
        1..=254 => 3,
        _ if matches!(host % 256, 0 | 255) => 2,
        _ => 1,
    }
}

impl Model {
    pub fn new(size: Host) -> Self {
        Self {
            size,
            held: BTreeMap::new(),
            nodes: BTreeMap::new(),
            placements: BTreeMap::new(),
            released: BTreeMap::new(),
            leases: 0,
            releases: 0,
            waits: 0,
            ledger: Vec::new(),
            met: BTreeMap::new(),
        }
    }

    fn meet(&mut self, row: &'static str) {
        *self.met.entry(row).or_default() += 1;
    }

    /// The free addresses in the order in which they are given out: by class, the
    /// never used before the longest released; of the never used the lowest, in the
    /// node range the highest first.
    pub fn free(&self) -> Vec<Host> {
        let hosts = 1..=self.size - 2;
        let mut free: Vec<Host> = hosts.filter(|h| !self.held.contains_key(h)).collect();
        free.sort_by_key(|&h| {
            let rank = if class(h) == 3 { 254 - h } else { h };
            (class(h), self.released.get(&h).copied(), rank)
        });
        free
    }

    /// `holder` gets `host` with a new lease.
    fn lease(&mut self, host: Host, holder: Holder) -> Lease {
        self.leases += 1;
        let lease = self.leases;
        self.ledger.push((host, Event::Leased, lease));
        self.hold(host, Held { holder, lease });
        lease
    }

    /// Whoever remembers `host` and is not there has lost it for good.
    fn hold(&mut self, host: Host, held: Held) {
        for (&id, placement) in &mut self.placements {
            let had = placement.had.is_some_and(|(had, _)| had == host);
            if placement.state != State::Lost || !had || held.holder == Holder::Placement(id) {
                continue;
            }
            placement.state = State::Taken;
            let row = match held.holder {
                Holder::Placement(_) => "needed: a lost instance's goes to an instance",
                Holder::Reservation(_) => "needed: a lost instance's goes to a reservation",
                Holder::Node(_) => "needed: a lost instance's goes to a node",
            };
            *self.met.entry(row).or_default() += 1;
        }
        if let Holder::Placement(id) = held.holder {
            let placement = self.placements.get_mut(&id).expect("it holds an address");
            placement.state = State::Held;
            placement.had = Some((host, held.lease));
        }
        assert!(
            self.held.insert(host, held).is_none(),
            "{host} has two holders"
        );
    }

    /// Frees addresses together: the lower ones will be given out first.
    fn free_all(&mut self, mut hosts: Vec<Host>) {
        hosts.sort_unstable();
        for host in hosts {
            let ended = self
                .held
                .remove(&host)
                .expect("only a held address is freed");
            self.ledger.push((host, Event::Released, ended.lease));
            self.releases += 1;
            self.released.insert(host, self.releases);
        }
    }

    /// Those who wait get what is free, in the order in which they began to.
    fn serve(&mut self) {
        for (id, host) in self.waiting().into_iter().zip(self.free()) {
            self.lease(host, Holder::Placement(id));
            self.meet("waits: served when something is free");
        }
    }

    /// How many leases there were, and how many releases.
    pub fn counts(&self) -> (Lease, u64) {
        (self.leases, self.releases)
    }

    /// Who waits, in the order in which they began to.
    pub fn waiting(&self) -> Vec<Id> {
        let mut waiting: Vec<(u64, Id)> = Vec::new();
        for (&id, placement) in &self.placements {
            if let State::Waiting(turn) = placement.state {
                waiting.push((turn, id));
            }
        }
        waiting.sort_unstable();
        waiting.into_iter().map(|(_, id)| id).collect()
    }

    /// A placement that lost its address to another gets another one, or waits; one
    /// that is to go anyway needs none.
    fn give_way(&mut self, id: Id) {
        let free = self.free().first().copied();
        let placement = self.placements.get_mut(&id).expect("it is to move");
        placement.had = None;
        placement.state = State::None;
        if placement.removing {
            self.meet("needed: of an instance that is to go");
        } else if let Some(host) = free {
            self.lease(host, Holder::Placement(id));
        } else {
            self.waits += 1;
            placement.state = State::Waiting(self.waits);
            self.meet("waits: an instance that must move finds nothing free");
        }
    }

    pub fn reserve(&mut self, name: &str, count: usize) -> Result<Vec<(Host, Lease)>, Refusal> {
        let free = self.free();
        if free.len() < count {
            return Err(Refusal::GridFull);
        }
        let take = |&host: &Host| (host, self.lease(host, Holder::Reservation(name.to_owned())));
        let taken: Vec<_> = free[..count].iter().map(take).collect();
        self.meet("leased: a reservation");
        Ok(taken)
    }

    pub fn reserve_this(&mut self, name: &str, host: Host) -> Result<Lease, Refusal> {
        if self.held.contains_key(&host) {
            return Err(Refusal::Held);
        }
        self.meet("leased: a reservation of a certain address");
        Ok(self.lease(host, Holder::Reservation(name.to_owned())))
    }

    /// Ends a reservation; with a lease number, only that one.
    pub fn release(&mut self, host: Host, lease: Option<Lease>) -> Result<(), Refusal> {
        let held = self.held.get(&host).ok_or(Refusal::NotFound)?;
        if !matches!(held.holder, Holder::Reservation(_)) {
            return Err(Refusal::NotReserved);
        }
        if lease.is_some_and(|lease| lease != held.lease) {
            return Err(Refusal::NotFound);
        }
        self.meet("released: a reservation");
        self.free_all(vec![host]);
        self.serve();
        Ok(())
    }

    /// Instances are placed on a node, all of them or none.
    pub fn place(&mut self, node: &str, instances: &[(Id, String)]) -> Result<(), Refusal> {
        let free = self.free();
        if free.len() < instances.len() {
            return Err(Refusal::GridFull);
        }
        for ((id, label), host) in instances.iter().zip(free) {
            let placement = Placement {
                node: node.to_owned(),
                label: label.clone(),
                state: State::Held,
                had: None,
                removing: false,
            };
            self.placements.insert(*id, placement);
            self.lease(host, Holder::Placement(*id));
            self.meet("leased: an instance");
        }
        Ok(())
    }

    /// Instances are to go. Those on a node that is there keep what they hold until it
    /// says that their containers are gone; the others end at once.
    pub fn remove(&mut self, ids: &[Id]) {
        for id in ids {
            let placement = self
                .placements
                .get_mut(id)
                .expect("only what is there is removed");
            placement.removing = true;
            if let State::Waiting(_) = placement.state {
                placement.state = State::None;
            }
            if self.nodes[&placement.node].lost {
                self.placements.remove(id);
                self.meet("removed: an instance of a node that was lost before");
            }
        }
    }

    /// A node says that a container is gone. What is to run, and what another node has,
    /// does not end by that.
    pub fn removed(&mut self, node: &str, id: Id) {
        if !self
            .placements
            .get(&id)
            .is_some_and(|p| p.removing && p.node == node)
        {
            return;
        }
        let ended = self.placements.remove(&id).expect("it was found");
        self.meet("removed: an instance whose node says that it is gone");
        if let (State::Held, Some((host, _))) = (ended.state, ended.had) {
            self.free_all(vec![host]);
            self.serve();
        }
    }

    /// A node joins: with the lowest number that is nobody's, or else the lowest that
    /// it can take back from an instance.
    pub fn join(&mut self, name: &str) -> Result<Host, Refusal> {
        let mut borrowed = None;
        let number = (1..=254).find(|n| !self.held.contains_key(n)).or_else(|| {
            let is_lent = |n: &Host| matches!(self.held[n].holder, Holder::Placement(_));
            borrowed = (1..=254).find(is_lent);
            borrowed
        });
        let number = number.ok_or(Refusal::GridFull)?;
        let robbed = borrowed.map(|_| self.held[&number].holder.clone());
        if robbed.is_some() {
            self.free_all(vec![number]);
        }
        self.nodes.insert(
            name.to_owned(),
            Node {
                number,
                lost: false,
            },
        );
        self.lease(number, Holder::Node(name.to_owned()));
        self.meet("leased: a node's number");
        if let Some(Holder::Placement(id)) = robbed {
            self.meet("needed: a joining node takes its number back from an instance");
            self.give_way(id);
        }
        Ok(number)
    }

    /// Nodes are lost together: their numbers stay, what their instances hold is free.
    pub fn lose(&mut self, names: &[String]) {
        for name in names {
            let node = self.nodes.get_mut(name).expect("only a node is lost");
            assert!(
                !std::mem::replace(&mut node.lost, true),
                "{name} is lost twice"
            );
            self.meet("lost: a node keeps its number");
        }
        let mut freed = Vec::new();
        let mut ended = Vec::new();
        for (&id, placement) in &mut self.placements {
            if !names.contains(&placement.node) {
                continue;
            }
            match placement.state {
                State::Held => {
                    freed.extend(placement.had.map(|(host, _)| host));
                    placement.state = State::Lost;
                }
                State::Waiting(_) => placement.state = State::None,
                State::Lost | State::Taken | State::None => {}
            }
            if placement.removing {
                ended.push(id);
            }
        }
        for id in ended {
            self.placements.remove(&id);
            self.meet("removed: an instance whose node is lost");
        }
        for _ in &freed {
            self.meet("lost: an instance's address is released");
        }
        self.free_all(freed);
        self.serve();
    }

    /// A node that was lost returns. `inventory` are the containers that it has, by
    /// placement and lease.
    pub fn returns(&mut self, name: &str, inventory: &BTreeSet<(Id, Lease)>) {
        let node = self.nodes.get_mut(name).expect("only a node returns");
        assert!(
            std::mem::replace(&mut node.lost, false),
            "{name} was not lost"
        );
        let here = self.placements.iter().filter(|(_, p)| p.node == name);
        let mut back: Vec<(Lease, Host, Id)> = Vec::new();
        let mut waited = Vec::new();
        for (&id, placement) in here {
            match (placement.state, placement.had) {
                (State::Lost | State::Taken, Some((host, lease))) => back.push((lease, host, id)),
                _ => waited.push(id),
            }
        }
        back.sort_unstable();
        let mut movers = Vec::new();
        for (lease, host, id) in back {
            movers.extend(self.dispute(id, host, lease, inventory.contains(&(id, lease))));
        }
        for id in movers.into_iter().chain(waited) {
            self.give_way(id);
        }
    }

    fn restore(&mut self, host: Host, held: Held) {
        self.ledger.push((host, Event::Restored, held.lease));
        self.hold(host, held);
    }

    /// Who must move, now that `id` is back and wants the address that it had.
    fn dispute(&mut self, id: Id, host: Host, lease: Lease, has_container: bool) -> Option<Id> {
        let mine = Held {
            holder: Holder::Placement(id),
            lease,
        };
        let Some(held) = self.held.get(&host).cloned() else {
            self.meet("returns: still free, restored");
            self.restore(host, mine);
            return None;
        };
        match held.holder {
            Holder::Placement(other) if has_container && lease < held.lease => {
                self.meet("returns: an instance has it, which moves");
                self.free_all(vec![host]);
                self.restore(host, mine);
                return Some(other);
            }
            Holder::Placement(_) if has_container => {
                self.meet("returns: an older lease has it");
            }
            Holder::Placement(_) => {
                self.meet("returns: an instance has it, and no container is there")
            }
            Holder::Reservation(_) => self.meet("returns: a reservation has it"),
            Holder::Node(_) => self.meet("returns: a node has it"),
        }
        Some(id)
    }

    /// A node is removed, with all that it has: its instances first.
    pub fn remove_node(&mut self, name: &str) {
        let node = self.nodes.remove(name).expect("only a node is removed");
        let mut freed = Vec::new();
        for placement in self.placements.values().filter(|p| p.node == name) {
            if placement.state == State::Held {
                freed.extend(placement.had.map(|(host, _)| host));
            }
        }
        self.placements.retain(|_, p| p.node != name);
        self.meet("released: a node's number");
        self.free_all(freed);
        self.free_all(vec![node.number]);
        self.serve();
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
