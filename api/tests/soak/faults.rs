//! What breaks: replicas, Postgres and the connections between all. One fault at a
//! time, so that somebody is left to serve; what it leaves behind may meet the next.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::stats::Stats;
use crate::world::{REPLICA_TTL, Replica, World};

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Stop,
    Freeze,
    FreezeInTransaction,
    FreezeLong,
    Crash,
    CutFront,
    CutBack,
    Bells,
    Stall,
    Delay,
}

/// How often each comes, in a round of so many.
const ROUND: [(Fault, usize); 11] = [
    (Fault::Kill, 6),
    (Fault::Stop, 1),
    (Fault::Freeze, 4),
    (Fault::FreezeInTransaction, 2),
    (Fault::FreezeLong, 1),
    (Fault::Crash, 2),
    (Fault::CutFront, 2),
    (Fault::CutBack, 2),
    (Fault::Bells, 1),
    (Fault::Stall, 2),
    (Fault::Delay, 2),
];

/// How many faults come in a run of a million operations.
const FAULTS: u64 = 1000;
const LONG: u64 = 1_000_000;
/// The fewest faults of a run: one round.
const FAULTS_MIN: u64 = 25;

/// For so long a fault is not over when it is.
const AFTERMATH: Duration = Duration::from_millis(1000);

/// Breaks things, evenly over the operations of a run, until all of them are done.
pub async fn breaking(world: Arc<World>, stats: Arc<Stats>, operations: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let faults = (FAULTS * operations / LONG).max(FAULTS_MIN);
    let every = (operations / (faults + 2)).max(1);
    let mut bag: Vec<Fault> = Vec::new();
    for n in 1..=faults {
        while stats.operations() < n * every {
            if stats.failed() {
                return;
            }
            // Faults come by the count of operations, which tells nobody that it grew.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if bag.is_empty() {
            bag = ROUND
                .iter()
                .flat_map(|&(fault, times)| std::iter::repeat_n(fault, times))
                .collect();
            rng.shuffle(&mut bag);
        }
        let fault = bag.pop().expect("a round is not empty");
        let storm = world.calm.write().await;
        inflict(&world, &stats, &mut rng, fault).await;
        // Agents that lost their replica are back after this.
        tokio::time::sleep(AFTERMATH).await;
        drop(storm);
        stats.operation();
    }
    stats.broken.store(true, Ordering::SeqCst);
}

async fn inflict(world: &World, stats: &Stats, rng: &mut fastrand::Rng, fault: Fault) {
    let n = rng.usize(..world.replicas.len());
    let replica = &world.replicas[n];
    let short = Duration::from_millis(rng.u64(50..600));
    match fault {
        Fault::Kill => {
            world.end(replica, true, short).await;
            stats.count("fault: a replica is killed", 1);
        }
        Fault::Stop => {
            world.end(replica, false, short).await;
            stats.count("fault: a replica stops", 1);
        }
        Fault::Freeze => {
            world.freeze(replica).await;
            // So long it is frozen.
            tokio::time::sleep(short).await;
            world.thaw(replica).await;
            stats.count("fault: a replica freezes", 1);
        }
        Fault::FreezeInTransaction => {
            freeze_in_transaction(world, stats, n).await;
            stats.count("fault: a replica freezes", 1);
        }
        Fault::FreezeLong => {
            world.freeze(replica).await;
            // Frozen for so long that the others take it for dead.
            tokio::time::sleep(REPLICA_TTL * 2).await;
            world.thaw(replica).await;
            stats.count("fault: a replica freezes", 1);
            stats.count("fault: a replica freezes until it is swept", 1);
        }
        Fault::Crash => {
            world.postgres.crash().await;
            stats.count("fault: Postgres crashes", 1);
        }
        Fault::CutFront | Fault::CutBack | Fault::Bells | Fault::Stall | Fault::Delay => {
            disturb(replica, stats, rng, fault).await;
        }
    }
}

/// Breaks what passes between a replica and the others.
async fn disturb(replica: &Replica, stats: &Stats, rng: &mut fastrand::Rng, fault: Fault) {
    let short = Duration::from_millis(rng.u64(50..600));
    match fault {
        Fault::CutFront => {
            replica.front.cut(|| rng.bool());
            stats.count("fault: connections to a replica are cut", 1);
        }
        Fault::CutBack => {
            replica.back.cut(|| rng.u8(..4) > 0);
            stats.count("fault: connections to Postgres are cut", 1);
        }
        Fault::Bells => {
            replica.bells.stall(true);
            // So long no bell rings.
            tokio::time::sleep(short * 2).await;
            replica.bells.cut(|| true);
            replica.bells.stall(false);
            stats.count("fault: no bell rings at a replica", 1);
        }
        Fault::Stall => {
            let proxy = if rng.bool() {
                &replica.front
            } else {
                &replica.back
            };
            proxy.stall(true);
            // So long nothing passes.
            tokio::time::sleep(short * 4).await;
            if rng.bool() {
                proxy.cut(|| true);
            }
            proxy.stall(false);
            stats.count("fault: connections stall", 1);
        }
        Fault::Delay => {
            for proxy in [&replica.front, &replica.back] {
                proxy.delay(Duration::from_millis(rng.u64(1..20)));
            }
            // So long all bytes are late.
            tokio::time::sleep(short * 2).await;
            for proxy in [&replica.front, &replica.back] {
                proxy.delay(Duration::ZERO);
            }
            stats.count("fault: bytes are delayed", 1);
        }
        Fault::Kill
        | Fault::Stop
        | Fault::Freeze
        | Fault::FreezeInTransaction
        | Fault::FreezeLong
        | Fault::Crash => unreachable!("these are no connections"),
    }
}

/// Freezes a replica while it holds a transaction open, for as long as Postgres needs
/// to end that.
async fn freeze_in_transaction(world: &World, stats: &Stats, n: usize) {
    let replica = &world.replicas[n];
    let sql = world.sql().await;
    let open = "select count(*) from pg_stat_activity where client_port = any($1)
        and state = 'idle in transaction'";
    // The moment is Postgres's to see; one of some attempts meets it.
    for _ in 0..40 {
        world.freeze(replica).await;
        let inside: i64 = match sql.query_one(open, &[&replica.back.ports()]).await {
            Ok(row) => row.get(0),
            Err(_) => 0,
        };
        if inside > 0 {
            // Frozen for longer than Postgres lets a transaction idle.
            tokio::time::sleep(Duration::from_millis(1300)).await;
            world.thaw(replica).await;
            stats.count("fault: a replica freezes inside a transaction", 1);
            return;
        }
        world.thaw(replica).await;
        // It needs some time awake to begin a transaction.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
