//! The proof by simulation that addresses are never wrong: a seeded list of operations and
//! faults against real replicas on a real Postgres, compared step by step with a model that
//! can be judged by reading it, and a judge of what many clients saw at once.
//!
//! `KONTENA_SOAK_OPS` and `KONTENA_SOAK_SEED` set how long the list is and which one it
//! is. `make test` runs a short one, `make soak` a long one.
#![allow(clippy::unwrap_used, missing_docs)]

mod agents;
mod checker;
mod client;
mod containers;
mod crowd;
mod drive;
mod faults;
mod grid;
mod hosts;
mod model;
mod ops;
mod proxy;
mod services;
mod session;
mod stats;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::grid::Grid;
use crate::stats::Stats;
use crate::world::World;

/// The short form: what `make test` has time for.
const SHORT: u64 = 20_000;
const REPLICAS: usize = 3;
/// Grids with a model each, and grids with many clients at once.
const MODELLED: u32 = 12;
const CROWDED: u32 = 2;
/// Of so many operations one is of the grids with many clients.
const CROWDED_SHARE: u64 = 5;
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_never_wrong() {
    let operations = setting("KONTENA_SOAK_OPS").unwrap_or(SHORT);
    let seed = setting("KONTENA_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let replay = format!("KONTENA_SOAK_SEED={seed} KONTENA_SOAK_OPS={operations} make soak");
    println!("{operations} operations with the seed {seed}; again with: {replay}");
    let world = World::start(REPLICAS).await;
    println!(
        "logs of the replicas and of Postgres: {}",
        world.logs.display()
    );
    let stats = Arc::new(Stats::default());
    let progress = tokio::spawn(progress(Arc::clone(&stats), operations));
    soak(&world, &stats, operations, seed).await;
    progress.abort();

    let failures = world.failures.lock().unwrap().clone();
    for failure in &failures {
        stats.violate(format!("the Master failed: {failure}"));
    }
    let took = world.began.elapsed().as_secs();
    println!("{}{took:>9} seconds", stats.summary(operations));
    let violations = stats.violations();
    assert!(
        violations.is_empty(),
        "{} violations; again with: {replay}\nthe first: {}",
        violations.len(),
        violations[0]
    );
    // A list that is shorter than that is a replay of its beginning.
    let missed = stats.missed(operations);
    assert!(
        operations < SHORT || missed.is_empty(),
        "met too seldom: {missed:#?}\nagain with: {replay}"
    );
    std::fs::remove_dir_all(&world.logs).unwrap();
}

async fn soak(world: &Arc<World>, stats: &Arc<Stats>, operations: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let crowded = operations / CROWDED_SHARE / u64::from(CROWDED);
    let modelled = (operations - operations / CROWDED_SHARE) / u64::from(MODELLED) + 1;
    let mut grids = JoinSet::new();
    for index in 0..MODELLED {
        let grid = Grid::create(world, stats, index, rng.u64(..)).await;
        grids.spawn(drive::drive(grid, modelled));
    }
    for index in MODELLED..MODELLED + CROWDED {
        let grid = Grid::create(world, stats, index, rng.u64(..)).await;
        grids.spawn(crowd::crowd(grid, crowded));
    }
    let breaking = faults::breaking(
        Arc::clone(world),
        Arc::clone(stats),
        operations,
        rng.u64(..),
    );
    let breaking = tokio::spawn(breaking);
    while let Some(grid) = grids.join_next().await {
        if let Err(error) = grid {
            stats.violate(format!("a grid's task failed: {error}"));
        }
    }
    if let Err(error) = breaking.await
        && error.is_panic()
    {
        stats.violate(format!(
            "a fault could not be made: {}",
            drive::words(&*error.into_panic())
        ));
    }
}

async fn progress(stats: Arc<Stats>, operations: u64) {
    let began = Instant::now();
    let mut interval = tokio::time::interval(PROGRESS_EVERY);
    interval.tick().await;
    loop {
        interval.tick().await;
        let done = stats.operations();
        let rate = done / began.elapsed().as_secs().max(1);
        println!("{done} of {operations} operations, {rate} per second");
    }
}
