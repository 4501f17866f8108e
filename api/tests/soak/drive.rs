//! What is done next. The choice is the seed's, and leans to where it is narrow: grids
//! are full or nearly so most of the time, so that addresses are fought over.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;

use crate::grid::{Checked, Grid};
use crate::ops::{HOSTS_MAX, INSTANCES_MAX};

/// How many operations lie between two comparisons of the whole state.
const CHECK_EVERY: u64 = 100;
/// How many operations lie between two changes of how full the grid is to be.
const TARGET_EVERY: u64 = 60;

/// An operation, and how often it is chosen when nothing speaks for another.
#[derive(Clone, Copy, Debug)]
enum Op {
    Reserve,
    ReserveThis,
    Release,
    ReleaseWrong,
    Deploy,
    DeployMany,
    Scale,
    RemoveService,
    Apply,
    Confirm,
    ChangeSession,
    Blink,
    Copy,
    Lose,
    Return,
    Join,
    RemoveNode,
    Look,
}

const WEIGHTS: [(Op, u32); 18] = [
    (Op::Reserve, 20),
    (Op::ReserveThis, 5),
    (Op::Release, 22),
    (Op::ReleaseWrong, 2),
    (Op::Deploy, 8),
    (Op::DeployMany, 3),
    (Op::Scale, 7),
    (Op::RemoveService, 4),
    (Op::Apply, 7),
    (Op::Confirm, 8),
    (Op::ChangeSession, 1),
    (Op::Blink, 1),
    (Op::Copy, 1),
    (Op::Lose, 4),
    (Op::Return, 5),
    (Op::Join, 2),
    (Op::RemoveNode, 1),
    (Op::Look, 1),
];

/// Does a grid's part of the operations; what goes wrong ends the run.
pub async fn drive(mut grid: Grid, operations: u64) {
    let stats = std::sync::Arc::clone(&grid.stats);
    let run = async {
        for _ in 0..3 {
            grid.join().await?;
        }
        let mut n = 0;
        // The list goes on until the last fault was made.
        while n < operations || !stats.broken.load(Ordering::SeqCst) {
            n += 1;
            if stats.failed() {
                return Ok(());
            }
            step(&mut grid, n).await?;
            stats.operation();
        }
        whole(&mut grid).await
    };
    let outcome = AssertUnwindSafe(run).catch_unwind().await;
    let wrong = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(wrong)) => Some(wrong),
        Err(panic) => Some(words(panic.as_ref())),
    };
    if let Some(wrong) = wrong {
        let recent = Vec::from(grid.recent.clone()).join("\n  ");
        stats.violate(format!(
            "{}: {wrong}\n  its last operations:\n  {recent}",
            grid.name
        ));
    }
    for (row, times) in &grid.model.met {
        stats.count(row, *times);
        match *row {
            "returns: an instance has it, which moves" => {
                stats.count("conflicts", *times);
                stats.count("restores", *times);
            }
            "returns: an older lease has it" => stats.count("conflicts", *times),
            "returns: still free, restored" => stats.count("restores", *times),
            _ => {}
        }
    }
}

/// What a panic said.
pub fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic".to_owned())
}

async fn step(grid: &mut Grid, n: u64) -> Checked {
    if n % TARGET_EVERY == 1 {
        grid.target = *grid
            .rng
            .choice([0, 0, 0, 1, 2, 4, 10, 40].as_slice())
            .unwrap();
    }
    let op = choose(grid);
    run(grid, op).await?;
    grid.check_counts().await?;
    if n.is_multiple_of(CHECK_EVERY) {
        whole(grid).await?;
    }
    Ok(())
}

/// Compares everything that the Master and its agents know with the model.
async fn whole(grid: &mut Grid) -> Checked {
    grid.check().await?;
    for member in grid.present() {
        grid.check_feed(member).await?;
        grid.check_directory(member).await?;
    }
    Ok(())
}

fn choose(grid: &mut Grid) -> Op {
    let free = grid.model.free().len();
    let lost = grid.members.iter().filter(|member| member.lost).count();
    // Far from where it is to be, a grid goes there in big steps.
    if free > grid.target + 20 {
        return if grid.rng.bool() {
            Op::Reserve
        } else {
            Op::DeployMany
        };
    }
    // What is lost is fought over only where others take it before it returns.
    if lost > 0 && free > 0 && grid.rng.u8(..3) == 0 {
        let takers = [Op::Reserve, Op::Deploy, Op::Deploy, Op::Join];
        return *grid.rng.choice(takers.as_slice()).unwrap();
    }
    if grid.members.len() - lost < 2 {
        return if lost > 0 { Op::Return } else { Op::Join };
    }
    let sum: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let mut at = grid.rng.u32(..sum);
    for (op, weight) in WEIGHTS {
        if at < weight {
            return op;
        }
        at -= weight;
    }
    Op::Look
}

async fn run(grid: &mut Grid, op: Op) -> Checked {
    let free = grid.model.free().len();
    let room = INSTANCES_MAX.saturating_sub(grid.model.placements.len());
    match op {
        Op::Reserve => {
            let far = free.saturating_sub(grid.target);
            let count = if far > 20 {
                grid.rng.usize(1..=far.min(100))
            } else {
                grid.rng.usize(1..=2)
            };
            grid.reserve(count).await
        }
        Op::ReserveThis => grid.reserve_this().await,
        Op::Release => grid.release().await,
        Op::ReleaseWrong => grid.release_wrong().await,
        Op::Deploy | Op::DeployMany if room == 0 => grid.remove_service().await,
        Op::Deploy => grid.deploy_new(1).await,
        Op::DeployMany => {
            let most = if free > grid.target + 20 { 40 } else { 6 };
            let instances = grid.rng.usize(2..=most).min(room);
            grid.deploy_new(instances).await
        }
        Op::Scale => grid.scale().await,
        Op::RemoveService => grid.remove_service().await,
        Op::Apply => grid.apply().await,
        Op::Confirm => grid.confirm().await,
        Op::ChangeSession => grid.change_session().await,
        Op::Blink => grid.blink().await,
        Op::Copy => grid.copy().await,
        Op::Lose => grid.lose().await,
        Op::Return => grid.returns().await,
        Op::Join if grid.members.len() >= HOSTS_MAX => grid.remove_node().await,
        Op::Join => grid.join().await,
        Op::RemoveNode => grid.remove_node().await,
        Op::Look => grid.look().await,
    }
}
