//! The world around the rows: hosts, connections and replicas, what can happen to
//! them, and how often.

use stateright::{Model, Property};

use crate::compact::compact;
use crate::laws::{self, Step, Tally};
use crate::master::{
    ADDRESSES, Holder, Inventory, Lease, Master, NODES, PLACEMENTS, Phase, Placement, REPLICAS,
    Right, Seen, Session,
};
use crate::rules::{Omit, Rule};
pub use crate::state::{Action, Bounds, Health, Link, Stage, State, Wanted};

/// The replica that may fail; the other never does.
const WEAK: usize = 0;
/// A bound that is none.
pub const EVER: u8 = u8::MAX;

/// One size of the world.
#[derive(Clone, Debug)]
pub struct World {
    pub nodes: usize,
    pub addresses: usize,
    /// The nodes of the placements.
    pub homes: &'static [usize],
    /// How many of them run at the start.
    pub running: usize,
    /// The nodes that may use the replica that fails.
    pub weakly: &'static [usize],
    /// Whether agents report.
    pub reports: bool,
    pub bounds: Bounds,
    pub omit: Omit,
    pub tally: Tally,
}

/// How many connections of one node can be there at once, one of them in use.
const LINKS: usize = 2;

impl State {
    pub fn link_up(&self, node: usize) -> Option<&Link> {
        self.links.iter().find(|link| link.node == node && link.up)
    }

    fn awake(&self, link: &Link) -> bool {
        link.replica != WEAK || self.weak == Health::Alive
    }

    /// Whether a connection is its node's latest and open.
    pub fn counts(&self, link: &Link) -> bool {
        matches!(link.stage, Stage::Open(epoch) if self.master.is_current(link.node, epoch))
    }

    fn of(&self, node: usize) -> impl Iterator<Item = usize> {
        (0..PLACEMENTS).filter(move |id| self.master.placements[*id].node == node)
    }

    /// What the rows say to the agent of a placement.
    fn order(&self, placement: usize) -> Wanted {
        let row = &self.master.placements[placement];
        match row.lease() {
            _ if row.leaving => Wanted::Remove,
            Some(lease) => Wanted::Run(lease),
            None => Wanted::Nothing,
        }
    }

    fn knows(&self, node: usize) -> bool {
        self.of(node).all(|id| self.wanted[id] == self.order(id))
    }

    /// What a placement's container is to become, if that is not what it is. The old
    /// one goes before the new one comes.
    fn step(&self, placement: usize) -> Option<Option<Lease>> {
        let replaces = self.master.omit.obeys(Rule::Replace);
        match (self.containers[placement], self.wanted[placement]) {
            (Some(lease), Wanted::Run(wanted)) if lease == wanted || !replaces => None,
            (Some(_), _) => Some(None),
            (None, Wanted::Run(lease)) => Some(Some(lease)),
            (None, Wanted::Nothing | Wanted::Remove) => None,
        }
    }

    /// Whether a node's agent is connected and has done all that the rows say.
    pub fn is_in_step(&self, node: usize) -> bool {
        let connected = self.link_up(node).is_some_and(|link| self.counts(link));
        connected && self.knows(node) && self.of(node).all(|id| self.step(id).is_none())
    }

    fn found(&self, node: usize) -> Inventory {
        let mine = |id: usize| self.master.placements[id].node == node;
        std::array::from_fn(|id| self.containers[id].filter(|_| mine(id)))
    }

    /// What a node would report now.
    pub fn seen(&self, node: usize) -> [Seen; PLACEMENTS] {
        let found = self.found(node);
        std::array::from_fn(|id| match (found[id], self.wanted[id]) {
            (Some(lease), _) => Seen::Runs(lease),
            (None, Wanted::Remove) => Seen::Gone,
            (None, Wanted::Nothing | Wanted::Run(_)) => Seen::Nothing,
        })
    }

    fn connect(&mut self, node: usize, replica: usize) {
        let stage = Stage::Hello(self.runs[node], self.found(node));
        let link = Link {
            node,
            replica,
            up: true,
            stage,
            told: None,
            telling: false,
            late: false,
        };
        let after = self.links.partition_point(|other| other.node <= node);
        self.links.insert(after, link);
    }

    fn hello(&mut self, index: usize) {
        let Link {
            node,
            replica,
            stage,
            late,
            ..
        } = self.links[index];
        let Stage::Hello(run, inventory) = stage else {
            return;
        };
        let refused = late && self.master.omit.obeys(Rule::Late);
        let opened = (!refused).then(|| self.master.hello(node, replica, run, &inventory));
        match opened.flatten() {
            Some(epoch) => {
                self.links[index].stage = Stage::Open(epoch);
                // A node's connections are in the order in which they began.
                for before in &mut self.links[..index] {
                    let same = before.node == node
                        && matches!(before.stage, Stage::Hello(other, _) if other == run);
                    before.late |= same;
                }
            }
            None => drop(self.links.remove(index)),
        }
    }

    fn report(&mut self, index: usize, again: bool) {
        let Link {
            node, stage, told, ..
        } = self.links[index];
        if let (Stage::Open(epoch), Some(seen)) = (stage, told) {
            self.master.report(node, epoch, &seen);
        }
        self.links[index].telling = again;
    }

    fn close(&mut self, index: usize) {
        let Link { node, stage, .. } = self.links.remove(index);
        if let Stage::Open(epoch) = stage {
            self.master.close(node, epoch);
        }
    }

    fn restart(&mut self, node: usize) {
        self.runs[node] += 1;
        for link in self.links.iter_mut().filter(|link| link.node == node) {
            link.up = false;
        }
    }

    fn sweep(&mut self) {
        self.master.registered[WEAK] = false;
        for (node, session) in self.master.sessions.iter().enumerate() {
            let session = (session.replica == WEAK && session.phase == Phase::Open)
                .then_some((node, session.epoch));
            self.sweeping
                .extend(session.filter(|session| !self.sweeping.contains(session)));
        }
    }
}

fn spend(left: &mut u8) {
    if *left != EVER {
        *left -= 1;
    }
}

impl World {
    /// What could ever happen.
    fn all(&self, state: &State) -> Vec<Action> {
        let mut all = vec![Action::Reserve, Action::Join, Action::Crash, Action::Freeze];
        all.extend([Action::Wake, Action::Renew, Action::Sweep]);
        all.extend((0..self.addresses).map(Action::Release));
        for id in 0..self.homes.len() {
            all.extend([Action::Place(id), Action::Remove(id), Action::Apply(id)]);
        }
        for node in 0..self.nodes {
            all.extend((0..REPLICAS).map(|replica| Action::Connect { node, replica }));
            all.extend([Action::Restart(node), Action::Due(node)]);
            all.extend([Action::Look(node), Action::Lose(node)]);
        }
        for link in 0..state.links.len() {
            all.extend([Action::Hello(link), Action::Learn(link), Action::Tell(link)]);
            all.extend([false, true].map(|again| Action::Report { link, again }));
            all.extend([Action::Cut(link), Action::Close(link)]);
        }
        all.extend((0..state.sweeping.len()).map(Action::SweepSession));
        all
    }

    /// Whether it can happen now.
    fn can(&self, state: &State, action: Action) -> bool {
        let (master, left) = (&state.master, &state.left);
        let phase = |node: usize| master.sessions[node].phase;
        let link = |index: usize| &state.links[index];
        let open = |link: &Link| matches!(link.stage, Stage::Open(_));
        let registered = master.registered[WEAK];
        match action {
            Action::Place(id) => {
                // Otherwise the user is told why not.
                let there = phase(self.homes[id]) == Phase::Open;
                let there = there || !self.omit.obeys(Rule::PlacePresent);
                let new = master.placements[id].right == Right::Unplaced;
                new && there && !master.free.is_empty()
            }
            Action::Remove(id) => {
                let row = &master.placements[id];
                left.removals > 0 && row.is_row() && !row.leaving
            }
            Action::Reserve => left.reservations > 0 && !master.free.is_empty(),
            Action::Release(at) => matches!(master.addresses[at], Some((Holder::Reservation, _))),
            Action::Join => left.joins > 0,
            Action::Connect { node, replica } => {
                let known = state.links.iter().filter(|link| link.node == node).count();
                let weakly = self.weakly.contains(&node) && state.weak != Health::Dead;
                state.link_up(node).is_none() && known < LINKS && (replica != WEAK || weakly)
            }
            Action::Hello(index) => state.awake(link(index)) && !open(link(index)),
            Action::Learn(index) => {
                let link = link(index);
                state.awake(link) && link.up && open(link) && !state.knows(link.node)
            }
            Action::Apply(id) => state.step(id).is_some(),
            Action::Tell(index) => {
                let link = link(index);
                let new = self.reports && link.told != Some(state.seen(link.node));
                new && link.up && open(link)
            }
            Action::Report { link: index, .. } => state.awake(link(index)) && link(index).telling,
            Action::Cut(index) => left.cuts > 0 && link(index).up,
            Action::Close(index) => {
                let link = link(index);
                let old = open(link) && !state.counts(link) && self.omit.obeys(Rule::DropOld);
                state.awake(link) && (!link.up || old)
            }
            Action::Restart(_) => left.restarts > 0,
            Action::Crash => left.crashes > 0 && state.weak == Health::Alive,
            Action::Freeze => left.freezes > 0 && state.weak == Health::Alive,
            Action::Wake => state.weak == Health::Frozen,
            Action::Renew => state.weak == Health::Alive && !registered,
            Action::Sweep => state.weak != Health::Alive && registered,
            Action::SweepSession(_) => true,
            Action::Due(node) => phase(node) == Phase::Closed,
            Action::Look(node) => phase(node) == Phase::Due && !state.looked[node],
            Action::Lose(node) => state.looked[node],
        }
    }
}

fn act(state: &mut State, action: Action) {
    let (master, left) = (&mut state.master, &mut state.left);
    match action {
        Action::Place(id) => master.place(id),
        Action::Remove(id) => {
            spend(&mut left.removals);
            master.remove(id);
        }
        Action::Reserve => {
            spend(&mut left.reservations);
            master.reserve();
        }
        Action::Release(address) => master.release(address),
        Action::Join => {
            spend(&mut left.joins);
            master.join();
        }
        Action::Connect { node, replica } => state.connect(node, replica),
        Action::Hello(link) => state.hello(link),
        Action::Learn(link) => {
            let ids: Vec<usize> = state.of(state.links[link].node).collect();
            ids.iter()
                .for_each(|id| state.wanted[*id] = state.order(*id));
        }
        Action::Apply(id) => state.containers[id] = state.step(id).flatten(),
        Action::Tell(link) => {
            let seen = state.seen(state.links[link].node);
            (state.links[link].told, state.links[link].telling) = (Some(seen), true);
        }
        Action::Report { link, again } => state.report(link, again),
        Action::Cut(link) => {
            spend(&mut left.cuts);
            state.links[link].up = false;
        }
        Action::Close(link) => state.close(link),
        Action::Restart(node) => {
            spend(&mut left.restarts);
            state.restart(node);
        }
        Action::Crash => {
            spend(&mut left.crashes);
            state.weak = Health::Dead;
            state.links.retain(|link| link.replica != WEAK);
        }
        Action::Freeze => {
            spend(&mut left.freezes);
            state.weak = Health::Frozen;
        }
        Action::Wake => state.weak = Health::Alive,
        Action::Renew => master.registered[WEAK] = true,
        Action::Sweep => state.sweep(),
        Action::SweepSession(index) => {
            let (node, epoch) = state.sweeping.remove(index);
            master.close(node, epoch);
        }
        Action::Due(node) => master.sessions[node].phase = Phase::Due,
        Action::Look(node) => state.looked[node] = true,
        Action::Lose(node) => {
            state.looked[node] = false;
            master.lose(node);
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    /// All nodes are connected, some placements run, nothing is under way.
    fn init_states(&self) -> Vec<State> {
        let replica = |node| usize::from(!self.weakly.contains(&node));
        let session = |node| {
            let (epoch, phase, replica) = (1, Phase::Open, replica(node));
            Session {
                epoch,
                phase,
                replica,
                run: 0,
                superseded: 0,
            }
        };
        let placement = |id| {
            let node = self.homes.get(id).copied().unwrap_or(NODES);
            Placement {
                node,
                right: Right::Unplaced,
                leaving: false,
                ready: false,
            }
        };
        let mut master = Master {
            addresses: [None; ADDRESSES],
            free: (0..self.addresses).collect(),
            last_number: 0,
            placements: std::array::from_fn(placement),
            waiting: vec![],
            sessions: std::array::from_fn(session),
            registered: [true; REPLICAS],
            omit: self.omit,
        };
        for id in 0..self.running {
            master.place(id);
            master.placements[id].ready = self.reports;
        }
        let mut state = State {
            wanted: [Wanted::Nothing; PLACEMENTS],
            containers: std::array::from_fn(|id| master.held(id)),
            master,
            runs: [0; NODES],
            links: vec![],
            weak: Health::Alive,
            sweeping: vec![],
            looked: [false; NODES],
            left: self.bounds,
            broken: 0,
        };
        state.wanted = std::array::from_fn(|id| state.order(id));
        for node in 0..self.nodes {
            let told = self.reports.then(|| state.seen(node));
            let (replica, stage) = (replica(node), Stage::Open(1));
            state.links.push(Link {
                node,
                replica,
                up: true,
                stage,
                told,
                telling: false,
                late: false,
            });
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let all = self.all(state).into_iter();
        actions.extend(all.filter(|action| self.can(state, *action)));
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut after = before.clone();
        act(&mut after, action);
        let step = Step {
            before,
            action,
            after: &after,
        };
        let broken = laws::judge(&step);
        self.tally.count(&step);
        after.broken = broken;
        compact(&mut after);
        (after != *before).then_some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        laws::properties()
    }
}
