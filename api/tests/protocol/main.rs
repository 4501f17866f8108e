//! The protocol of lease, epoch, loss and return (`infra/adr/0004-leases.md`), explored
//! exhaustively for small sizes.
//!
//! `master` has the Master's rows and transactions, `world` what is around them: hosts
//! with containers, connections whose messages are late, a replica that freezes, wakes or
//! dies. `laws` says what must hold, `rules` which rules bring that about; without any
//! one of them the checker finds a law broken.
//!
//! It knows no code of the Master: it is the specification in another form. Time is
//! deliberately absent: what has a deadline may happen at any moment after its cause,
//! so nothing here shows that nobody is lost in a rush. Absent too are the classes of
//! addresses, the ledger, batches, and what is on the wire between containers.
#![allow(missing_docs)]

mod compact;
mod laws;
mod master;
mod rules;
mod state;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::rules::{Omit, Rule};
use crate::world::{Bounds, EVER, World};

const NONE: Bounds = Bounds {
    cuts: 0,
    crashes: 0,
    freezes: 0,
    restarts: 0,
    reservations: 0,
    joins: 0,
    removals: 0,
};

/// Two nodes with an instance each and one address, of which one instance has it.
fn pair(bounds: Bounds) -> World {
    World {
        nodes: 2,
        addresses: 1,
        homes: &[0, 1],
        running: 1,
        weakly: &[],
        reports: true,
        bounds,
        omit: Omit::default(),
        tally: laws::Tally::default(),
    }
}

/// Any number of losses and returns.
fn lasting() -> World {
    World {
        reports: false,
        ..pair(Bounds { cuts: EVER, ..NONE })
    }
}

fn reporting() -> World {
    pair(Bounds { cuts: 3, ..NONE })
}

fn freezing() -> World {
    World {
        weakly: &[0],
        ..pair(Bounds {
            cuts: 2,
            freezes: 1,
            ..NONE
        })
    }
}

/// As before, but it is the younger lease whose replica freezes.
fn freezing_younger() -> World {
    World {
        weakly: &[1],
        ..freezing()
    }
}

fn crashing() -> World {
    let bounds = Bounds {
        cuts: 1,
        freezes: 2,
        crashes: 1,
        ..NONE
    };
    World {
        weakly: &[0],
        reports: false,
        ..pair(bounds)
    }
}

fn restarting() -> World {
    let bounds = Bounds {
        cuts: 1,
        freezes: 1,
        restarts: 1,
        ..NONE
    };
    World {
        weakly: &[0],
        reports: false,
        ..pair(bounds)
    }
}

/// Users want the one address for something else.
fn full() -> World {
    pair(Bounds {
        cuts: 2,
        reservations: 1,
        removals: 1,
        ..NONE
    })
}

fn joining() -> World {
    let bounds = Bounds {
        cuts: 1,
        reservations: 1,
        removals: 1,
        joins: 1,
        ..NONE
    };
    World {
        addresses: 2,
        ..pair(bounds)
    }
}

fn queueing() -> World {
    let bounds = Bounds {
        cuts: 2,
        reservations: 2,
        ..NONE
    };
    World {
        addresses: 2,
        running: 2,
        reports: false,
        ..pair(bounds)
    }
}

/// Two instances on one node,
fn siblings() -> World {
    let bounds = Bounds {
        cuts: 2,
        reservations: 1,
        removals: 1,
        ..NONE
    };
    World {
        addresses: 2,
        homes: &[0, 0],
        running: 2,
        ..pair(bounds)
    }
}

/// and a third on another.
fn siblings_robbed() -> World {
    let bounds = Bounds {
        cuts: 2,
        reservations: 1,
        ..NONE
    };
    World {
        homes: &[0, 0, 1],
        running: 1,
        reports: false,
        ..World {
            bounds,
            ..siblings()
        }
    }
}

/// Three nodes and one address.
fn three() -> World {
    World {
        nodes: 3,
        homes: &[0, 1, 2],
        reports: false,
        ..reporting()
    }
}

fn three_for_two() -> World {
    World {
        addresses: 2,
        running: 2,
        ..three()
    }
}

#[test]
fn the_laws_hold_in_every_state() {
    let worlds = [
        ("lasting", lasting()),
        ("reporting", reporting()),
        ("freezing", freezing()),
        ("freezing, younger", freezing_younger()),
        ("crashing", crashing()),
        ("restarting", restarting()),
        ("full", full()),
        ("joining", joining()),
        ("queueing", queueing()),
        ("siblings", siblings()),
        ("siblings, robbed", siblings_robbed()),
        ("three", three()),
        ("three for two", three_for_two()),
    ];
    let mut sights = BTreeMap::<&str, usize>::new();
    for (name, world) in worlds {
        let (tally, begun) = (world.tally.clone(), Instant::now());
        let finish = HasDiscoveries::AnyFailures;
        let checker = world
            .checker()
            .threads(2)
            .finish_when(finish)
            .spawn_bfs()
            .join();
        checker.assert_properties();
        println!(
            "{name}: {} states, {} steps, depth {}, {:.1?}",
            checker.unique_state_count(),
            checker.state_count(),
            checker.max_depth(),
            begun.elapsed()
        );
        for (sight, count) in tally.counts() {
            *sights.entry(sight).or_default() += count;
        }
    }
    println!("{sights:#?}");
    assert!(
        sights.values().all(|count| *count > 0),
        "something never happened"
    );
}

/// A rule, a world in which its absence shows, and the laws that break then.
type Need = (Rule, fn() -> World, &'static [&'static str]);

const NEEDED: [Need; 23] = [
    (
        Rule::ReportEpoch,
        freezing,
        &[
            "a write under an old epoch changes nothing",
            "names answer for who holds and runs",
        ],
    ),
    (
        Rule::CloseEpoch,
        lasting,
        &[
            "a write under an old epoch changes nothing",
            "a lost node holds nothing, another lacks nothing",
        ],
    ),
    (
        Rule::ReportLease,
        full,
        &["names answer for who holds and runs"],
    ),
    (Rule::Confirmed, full, &["a lease ends only for a reason"]),
    (
        Rule::LookAgain,
        lasting,
        &["a lease ends only for a reason"],
    ),
    (
        Rule::ServePresent,
        full,
        &["a lost node holds nothing, another lacks nothing"],
    ),
    (
        Rule::PlacePresent,
        lasting,
        &["a lost node holds nothing, another lacks nothing"],
    ),
    (
        Rule::ServeAtOnce,
        full,
        &["while somebody waits nothing is free"],
    ),
    (
        Rule::ServeInOrder,
        queueing,
        &["nobody overtakes who waits"],
    ),
    (
        Rule::LowerLease,
        lasting,
        &["the lower lease number keeps the address"],
    ),
    (
        Rule::Inventory,
        siblings_robbed,
        &["one side of a conflict moves"],
    ),
    (
        Rule::SameLease,
        siblings_robbed,
        &["one side of a conflict moves"],
    ),
    (
        Rule::OneHolder,
        lasting,
        &[
            "an address has one holder, whose row agrees",
            "no two nodes in step run one address",
        ],
    ),
    (Rule::ReservationsStay, full, &["a reservation never moves"]),
    (
        Rule::SameNumber,
        lasting,
        &["what is free is restored under its number"],
    ),
    (
        Rule::NewNumber,
        lasting,
        &[
            "a new lease has a new number",
            "no two containers share a lease",
        ],
    ),
    (
        Rule::LossIsWhole,
        siblings,
        &["a lost node holds nothing, another lacks nothing"],
    ),
    (
        Rule::KeepersFirst,
        siblings_robbed,
        &["what is free is restored under its number"],
    ),
    (
        Rule::Duplicates,
        restarting,
        &["a run that was taken over from stays away"],
    ),
    (
        Rule::Late,
        freezing,
        &["a hello that was given up ends no connection of its run"],
    ),
    (
        Rule::Registered,
        crashing,
        &["the end of an open session will be noticed"],
    ),
    (Rule::DropOld, freezing, &["everything comes to rest"]),
    (Rule::Replace, queueing, &["at rest everything agrees"]),
];

#[test]
fn no_rule_can_be_left_out() {
    let mut broken = BTreeSet::new();
    for (rule, world, laws) in NEEDED {
        let world = World {
            omit: Omit(Some(rule)),
            ..world()
        };
        let laws: BTreeSet<&'static str> = laws.iter().copied().collect();
        let finish = HasDiscoveries::AllOf(laws.clone());
        // With one thread the first trace that is found is among the shortest.
        let checker = world
            .checker()
            .threads(1)
            .finish_when(finish)
            .spawn_bfs()
            .join();
        let found = checker.discoveries();
        for law in laws {
            let path = found
                .get(law)
                .unwrap_or_else(|| panic!("without {rule:?}: {law}"));
            println!(
                "without {rule:?} broken: {law}\n    {:?}",
                path.clone().into_actions()
            );
            broken.insert(law);
        }
    }
    let all = pair(NONE).properties().into_iter();
    let all: BTreeSet<&str> = all.map(|law: Property<World>| law.name).collect();
    assert_eq!(broken, all, "a law that nothing breaks says nothing");
}
