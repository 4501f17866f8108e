//! What must hold: in every state, of every step, and when nothing is left to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stateright::{Model, Property};

use crate::master::{ADDRESSES, Holder, Lease, PLACEMENTS, Phase, Right};
use crate::world::{Action, Link, Stage, State, World};

type Law = Property<World>;

pub fn properties() -> Vec<Law> {
    vec![
        Law::always("an address has one holder, whose row agrees", |_, s| {
            rows_agree(s)
        }),
        Law::always(
            "a lost node holds nothing, another lacks nothing",
            |_, s| loss_is_whole(s),
        ),
        Law::always("while somebody waits nothing is free", |_, s| {
            s.master.free.is_empty() || s.master.waiting.is_empty()
        }),
        Law::always("names answer for who holds and runs", |w, s| {
            names_are_true(w, s)
        }),
        Law::always("the end of an open session will be noticed", |_, s| {
            ends_are_noticed(s)
        }),
        Law::always("no two containers share a lease", |_, s| {
            are_unique(leases(s))
        }),
        Law::always("no two nodes in step run one address", |w, s| {
            are_unique(addresses(w, s))
        }),
        Law::always("at rest everything agrees", |w, s| {
            !is_at_rest(w, s) || is_in_order(s)
        }),
        Law::always("everything comes to rest", |w, s| {
            let mut actions = vec![];
            w.actions(s, &mut actions);
            !actions.is_empty() || is_at_rest(w, s)
        }),
        Law::always(STEPS[0].0, keeps::<0>),
        Law::always(STEPS[1].0, keeps::<1>),
        Law::always(STEPS[2].0, keeps::<2>),
        Law::always(STEPS[3].0, keeps::<3>),
        Law::always(STEPS[4].0, keeps::<4>),
        Law::always(STEPS[5].0, keeps::<5>),
        Law::always(STEPS[6].0, keeps::<6>),
        Law::always(STEPS[7].0, keeps::<7>),
        Law::always(STEPS[8].0, keeps::<8>),
        Law::always(STEPS[9].0, keeps::<9>),
    ]
}

/// A step of the world, before its numbers are compacted.
pub struct Step<'a> {
    pub before: &'a State,
    pub action: Action,
    pub after: &'a State,
}

type Check = fn(&Step<'_>) -> bool;

const STEPS: [(&str, Check); 10] = [
    (
        "a write under an old epoch changes nothing",
        old_epochs_change_nothing,
    ),
    ("a lease ends only for a reason", leases_end_for_a_reason),
    (
        "what is free is restored under its number",
        what_is_free_is_restored,
    ),
    (
        "the lower lease number keeps the address",
        the_lower_number_keeps,
    ),
    ("one side of a conflict moves", one_side_moves),
    ("a reservation never moves", reservations_stay),
    ("a new lease has a new number", numbers_rise),
    ("nobody overtakes who waits", nobody_overtakes),
    (
        "a run that was taken over from stays away",
        the_connected_stays,
    ),
    (
        "a hello that was given up ends no connection of its run",
        late_hellos_open_nothing,
    ),
];

/// The laws that a step breaks, as bits.
pub fn judge(step: &Step<'_>) -> u16 {
    let bit = |(index, (_, check)): (usize, &(&str, Check))| u16::from(!check(step)) << index;
    STEPS.iter().enumerate().map(bit).sum()
}

fn keeps<const LAW: usize>(_: &World, state: &State) -> bool {
    state.broken & 1 << LAW == 0
}

// In every state.

fn rows_agree(state: &State) -> bool {
    let master = &state.master;
    let holder = |address: usize| master.addresses[address];
    let rows = (0..PLACEMENTS).all(|id| match master.placements[id].right {
        Right::Held(lease) => holder(lease.address) == Some((Holder::Placement(id), lease)),
        Right::Lost(lease) => master.free.contains(&lease.address),
        Right::Waiting => master.waiting.contains(&id),
        Right::Unplaced | Right::Taken(_) | Right::Nothing | Right::Ended => true,
    });
    let holders = (0..ADDRESSES).all(|address| match holder(address) {
        Some((Holder::Placement(id), lease)) => master.held(id) == Some(lease),
        Some((Holder::Reservation | Holder::Node, lease)) => lease.address == address,
        None => true,
    });
    let free = master.free.iter().all(|address| holder(*address).is_none());
    rows && holders && free
}

fn loss_is_whole(state: &State) -> bool {
    (0..PLACEMENTS).all(|id| match state.master.placements[id].right {
        Right::Held(_) | Right::Waiting => state.master.is_there(id),
        Right::Lost(_) | Right::Taken(_) => !state.master.is_there(id),
        Right::Nothing => !state.master.is_there(id) || state.master.placements[id].leaving,
        Right::Unplaced | Right::Ended => true,
    })
}

/// Ready is who holds its address, and once a node's last report arrived, who runs
/// under it.
fn names_are_true(world: &World, state: &State) -> bool {
    (0..world.homes.len()).all(|id| {
        let row = &state.master.placements[id];
        let runs = row.held().is_some() && row.held() == state.containers[id];
        let told = state
            .link_up(row.node)
            .is_some_and(|link| has_told(state, link));
        let known = told && state.is_in_step(row.node) && !row.leaving;
        (!row.ready || row.held().is_some()) && (!known || row.ready == runs)
    })
}

fn has_told(state: &State, link: &Link) -> bool {
    !link.telling && link.told == Some(state.seen(link.node))
}

fn ends_are_noticed(state: &State) -> bool {
    state
        .master
        .sessions
        .iter()
        .enumerate()
        .all(|(node, session)| {
            session.phase != Phase::Open
                || state.master.registered[session.replica]
                || state.sweeping.contains(&(node, session.epoch))
        })
}

fn leases(state: &State) -> Vec<Lease> {
    state.containers.into_iter().flatten().collect()
}

/// What runs on the nodes that are in step.
fn addresses(world: &World, state: &State) -> Vec<usize> {
    let ids = 0..world.homes.len();
    let in_step = ids.filter(|id| state.is_in_step(world.homes[*id]));
    in_step
        .filter_map(|id| Some(state.containers[id]?.address))
        .collect()
}

fn are_unique<T: Ord + Clone>(mut all: Vec<T>) -> bool {
    all.sort_unstable();
    all.windows(2).all(|two| two[0] != two[1])
}

/// Nothing is on its way and no agent has anything to do.
fn is_at_rest(world: &World, state: &State) -> bool {
    state.links.len() == world.nodes
        && (0..world.nodes).all(|node| state.is_in_step(node))
        && (!world.reports || state.links.iter().all(|link| has_told(state, link)))
        && state.sweeping.is_empty()
}

/// Every placement has an address and a container with it, or waits without.
fn is_in_order(state: &State) -> bool {
    let in_order = |id: usize| {
        let row = &state.master.placements[id];
        state.containers[id] == row.held() && row.lease() == row.held() && !row.leaving
    };
    (0..PLACEMENTS).all(in_order)
}

// Of every step.

impl Step<'_> {
    /// Whether it is a write under an epoch that is not its node's latest.
    fn is_old(&self) -> bool {
        let (node, epoch) = match self.action {
            Action::Report { link: index, .. } | Action::Close(index) => {
                let link = &self.before.links[index];
                match link.stage {
                    Stage::Open(epoch) => (link.node, epoch),
                    Stage::Hello(..) => return false,
                }
            }
            Action::SweepSession(index) => self.before.sweeping[index],
            _ => return false,
        };
        !self.before.master.is_current(node, epoch)
    }

    /// The leases that it ends, with their placements.
    fn ended(&self) -> impl Iterator<Item = (usize, Lease)> {
        let ends = |id| Some((id, self.before.master.held(id)?));
        let ended = (0..PLACEMENTS).filter_map(ends);
        ended.filter(|(id, lease)| self.after.master.held(*id) != Some(*lease))
    }

    /// The connection of an accepted `hello`, and what it names.
    fn hello(&self) -> Option<(&Link, u8, &[Option<Lease>; PLACEMENTS])> {
        let Action::Hello(index) = self.action else {
            return None;
        };
        let link = &self.before.links[index];
        match &link.stage {
            Stage::Hello(run, inventory) => Some((link, *run, inventory)),
            Stage::Open(_) => None,
        }
        .filter(|_| self.before.master.sessions != self.after.master.sessions)
    }

    /// The placements that return, with what they lost and what was found of them.
    fn returning(&self) -> impl Iterator<Item = (usize, Lease, Option<Lease>)> {
        let rows = self.before.master.placements.into_iter().enumerate();
        rows.filter_map(|(id, row)| {
            let (link, _, inventory) = self.hello()?;
            let lost = row
                .lease()
                .filter(|_| row.held().is_none() && row.node == link.node)?;
            Some((id, lost, inventory[id]))
        })
    }

    /// Of what returns, what finds its address with another instance and shows its
    /// container; with the other's lease.
    fn conflicts(&self) -> impl Iterator<Item = (usize, Lease, Lease)> {
        self.returning().filter_map(|(id, lost, found)| {
            match self.before.master.addresses[lost.address] {
                Some((Holder::Placement(_), other)) if found == Some(lost) => {
                    Some((id, lost, other))
                }
                _ => None,
            }
        })
    }

    fn keeps(&self, placement: usize, lease: Lease) -> bool {
        self.after.master.held(placement) == Some(lease)
    }
}

fn old_epochs_change_nothing(step: &Step<'_>) -> bool {
    !step.is_old() || step.before.master == step.after.master
}

/// Its node is lost: its session was over and its time too; or an older lease came
/// back, or a node took the number; or it was to end, and on the host it has.
fn leases_end_for_a_reason(step: &Step<'_>) -> bool {
    let (before, master) = (step.before, &step.before.master);
    step.ended().all(|(id, lease)| match step.action {
        Action::Lose(node) => {
            master.placements[id].node == node && master.sessions[node].phase == Phase::Due
        }
        Action::Hello(_) => step
            .conflicts()
            .any(|(_, lost, other)| other == lease && lost < lease),
        Action::Join => true,
        Action::Report { .. } => master.placements[id].leaving && before.containers[id].is_none(),
        _ => false,
    })
}

fn what_is_free_is_restored(step: &Step<'_>) -> bool {
    step.returning().all(|(id, lost, _)| {
        step.before.master.addresses[lost.address].is_some() || step.keeps(id, lost)
    })
}

fn the_lower_number_keeps(step: &Step<'_>) -> bool {
    let holder = |address: usize| step.after.master.addresses[address].map(|(_, lease)| lease);
    step.conflicts()
        .all(|(_, lost, other)| holder(lost.address) == Some(lost.min(other)))
}

/// Who is moved is moved for a container that runs as it is and does not move.
fn one_side_moves(step: &Step<'_>) -> bool {
    let mut ended = step.ended();
    step.hello().is_none()
        || ended.all(|(_, ended)| {
            let mut conflicts = step.conflicts();
            conflicts.any(|(id, lost, other)| other == ended && step.keeps(id, lost))
        })
}

fn reservations_stay(step: &Step<'_>) -> bool {
    let addresses = |state: &State| state.master.addresses;
    (0..ADDRESSES).all(|at| match addresses(step.before)[at] {
        Some((Holder::Reservation | Holder::Node, _)) => {
            step.action == Action::Release(at)
                || addresses(step.before)[at] == addresses(step.after)[at]
        }
        _ => true,
    })
}

fn numbers_rise(step: &Step<'_>) -> bool {
    let known = |holder, lease| match holder {
        Holder::Placement(id) => step.before.master.placements[id].lease() == Some(lease),
        Holder::Reservation | Holder::Node => {
            step.before.master.addresses[lease.address] == Some((holder, lease))
        }
    };
    let held = step.after.master.addresses.into_iter().flatten();
    held.into_iter().all(|(holder, lease)| {
        known(holder, lease) || lease.number > step.before.master.last_number
    })
}

/// Who got a new lease stood before all who still wait.
fn nobody_overtakes(step: &Step<'_>) -> bool {
    let (before, after) = (&step.before.master, &step.after.master);
    let place = |id: usize| before.waiting.iter().position(|other| *other == id);
    let first = after.waiting.iter().filter_map(|id| place(*id)).min();
    let is_new = |id: &usize| {
        after
            .held(*id)
            .is_some_and(|l| l.number > before.last_number)
    };
    let mut new = (0..PLACEMENTS).filter(is_new);
    first.is_none_or(|first| new.all(|id| place(id).is_some_and(|place| place < first)))
}

fn late_hellos_open_nothing(step: &Step<'_>) -> bool {
    step.hello().is_none_or(|(link, run, _)| {
        let session = step.before.master.sessions[link.node];
        let used = step.before.link_up(link.node);
        link.up || session.run != run || !used.is_some_and(|link| step.before.counts(link))
    })
}

fn the_connected_stays(step: &Step<'_>) -> bool {
    let duplicate = |link: &Link, run| step.before.master.sessions[link.node].is_duplicate(run);
    step.hello()
        .is_none_or(|(link, run, _)| !duplicate(link, run))
}

/// How often something happened, so that a test can say that it did.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<[AtomicUsize; SIGHTS.len()]>);

const SIGHTS: [(&str, Check); 11] = [
    ("a node is lost", |s| {
        matches!(s.action, Action::Lose(_)) && s.ended().next().is_some()
    }),
    ("a node resumed before it was lost", |s| match s.action {
        Action::Lose(node) => s.before.master.sessions[node].phase == Phase::Open,
        _ => false,
    }),
    ("a lease is restored", |s| {
        s.returning().any(|(id, lost, _)| s.keeps(id, lost))
    }),
    ("a conflict is won by who returned", |s| {
        s.conflicts().any(|(_, lost, other)| lost < other)
    }),
    ("a conflict is won by who was there", |s| {
        s.conflicts().any(|(_, lost, other)| lost > other)
    }),
    ("a placement returns without its container", |s| {
        let taken = |lost: Lease| s.before.master.addresses[lost.address].is_some();
        s.returning()
            .any(|(_, lost, found)| found != Some(lost) && taken(lost))
    }),
    ("a container runs on without its lease", |s| {
        let lost = |id: usize| s.after.containers[id] != s.after.master.held(id);
        (0..PLACEMENTS).any(|id| s.after.containers[id].is_some() && lost(id))
    }),
    ("somebody waits", |s| !s.after.master.waiting.is_empty()),
    ("who waited is served", |s| {
        s.before
            .master
            .waiting
            .iter()
            .any(|id| s.after.master.held(*id).is_some())
    }),
    ("a stale report is refused", |s| {
        matches!(s.action, Action::Report { .. }) && s.is_old()
    }),
    ("a late end is ignored", |s| {
        !matches!(s.action, Action::Report { .. }) && s.is_old()
    }),
];

impl Tally {
    pub fn count(&self, step: &Step<'_>) {
        for ((_, check), count) in SIGHTS.iter().zip(self.0.iter()) {
            count.fetch_add(usize::from(check(step)), Ordering::Relaxed);
        }
    }

    pub fn counts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        SIGHTS
            .iter()
            .zip(self.0.iter())
            .map(move |((name, _), of)| (*name, count(of)))
    }
}
