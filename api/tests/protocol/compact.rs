//! Numbers that only rise would make every state a new one. The protocol compares
//! them and goes one higher, so all that counts is their order: they are renumbered
//! from 1 after every step, and the world is finite however often a node is lost.

use crate::master::{Lease, NODES, Right, Seen};
use crate::world::{Stage, State, Wanted};

pub fn compact(state: &mut State) {
    for link in state
        .links
        .iter_mut()
        .filter(|link| !link.up && !link.telling)
    {
        // Nobody asks any more what was told.
        link.told = None;
    }
    state.master.last_number = renumber(&mut lease_numbers(state));
    for node in 0..NODES {
        renumber(&mut epochs(state, node));
    }
}

/// Replaces numbers by their ranks; answers the highest.
fn renumber(numbers: &mut [&mut u8]) -> u8 {
    numbers.sort_unstable();
    let (mut last, mut rank) = (0, 0);
    for number in numbers {
        rank += u8::from(**number != last);
        last = std::mem::replace(*number, rank);
    }
    rank
}

fn lease_numbers(state: &mut State) -> Vec<&mut u8> {
    let mut all: Vec<&mut Lease> = state.containers.iter_mut().flatten().collect();
    all.extend(
        state
            .master
            .addresses
            .iter_mut()
            .flatten()
            .map(|(_, lease)| lease),
    );
    for row in &mut state.master.placements {
        if let Right::Held(lease) | Right::Lost(lease) | Right::Taken(lease) = &mut row.right {
            all.push(lease);
        }
    }
    for wanted in &mut state.wanted {
        if let Wanted::Run(lease) = wanted {
            all.push(lease);
        }
    }
    for link in &mut state.links {
        if let Stage::Hello(_, inventory) = &mut link.stage {
            all.extend(inventory.iter_mut().flatten());
        }
        for seen in link.told.iter_mut().flatten() {
            if let Seen::Runs(lease) = seen {
                all.push(lease);
            }
        }
    }
    all.into_iter().map(|lease| &mut lease.number).collect()
}

fn epochs(state: &mut State, node: usize) -> Vec<&mut u8> {
    let mut all = vec![&mut state.master.sessions[node].epoch];
    for link in state.links.iter_mut().filter(|link| link.node == node) {
        if let Stage::Open(epoch) = &mut link.stage {
            all.push(epoch);
        }
    }
    let sweeping = state.sweeping.iter_mut().filter(|(of, _)| *of == node);
    all.extend(sweeping.map(|(_, epoch)| epoch));
    all
}
