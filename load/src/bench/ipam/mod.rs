//! How fast addresses are lent, beside what one would write by hand.
//!
//! The unit is the cycle: one lease and one release, one address a request, two
//! durable commits. Three things do cycles in turns, on the same Postgres and with
//! the same durability: pgbench on a free list (`load/pgbench/`), clients over HTTP
//! at the replicas, and clients over HTTPS at the edge. Every column runs once in
//! each round and its figure is the median of the rounds, so that what else the
//! machine does hits all of them. Every answer is checked; one address that is
//! given to two ends the run.

mod bed;
mod bulk;
mod columns;
mod cycles;
mod grid;
mod pgbench;
mod postgres;
mod wal;

use serde_json::{Map, Value, json};

use self::bed::Bed;
use self::columns::{Found, columns};
use self::pgbench::Pgbench;
use self::postgres::Postgres;
use super::BenchError;
use crate::results::{Bound, Report, median};
use crate::stack::{REPLICAS, Stack};
use crate::tree::Tree;

/// Floors: what lending addresses must be able to do beside the free list.
const BOUNDS: [(&str, Bound); 6] = [
    ("ratio_http.c64", Bound::AtLeast(2.0)),
    ("ratio_https.c64", Bound::AtLeast(1.0)),
    ("p99_ms.http.c64", Bound::Below(50.0)),
    ("full99_over_full1", Bound::AtLeast(0.8)),
    ("wal_flushes_per_cycle.c64", Bound::AtMost(0.1)),
    ("bulk8000_s", Bound::Below(0.5)),
];

/// How to run it.
#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// The stack to make
    #[arg(long, default_value = "kontena-bench")]
    project: String,
    /// How often each column runs; the result is the median
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Seconds of each run that count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Seconds of each run before those
    #[arg(long, default_value_t = 1)]
    warm_seconds: u32,
    /// How many clients; bounds are for 64
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 256])]
    clients: Vec<usize>,
    /// How many of the three replicas the clients over HTTP use; bounds are for 3
    #[arg(long, default_value_t = REPLICAS, value_parser = clap::value_parser!(u16).range(1..=i64::from(REPLICAS)))]
    http_replicas: u16,
    /// Take the stack that is there, and leave it running
    #[arg(long)]
    keep: bool,
}

/// Measures on a stack of its own.
pub(crate) fn run(tree: &Tree, settings: &Settings) -> Result<Report, BenchError> {
    let stack = Stack::new(tree, &settings.project);
    if !settings.keep {
        // What an interrupted run left has seen load already.
        stack.down()?;
    }
    stack.up()?;
    // One thread: a second one costs more in handing over than it takes off.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(measure(tree, &stack, settings));
    drop(runtime);
    if !settings.keep {
        stack.down()?;
    }
    report
}

async fn measure(tree: &Tree, stack: &Stack, settings: &Settings) -> Result<Report, BenchError> {
    let postgres = Postgres::connect(stack).await?;
    let durability = postgres.settings().await?;
    println!("\nPostgres: {}\n", json!(durability));
    postgres.database_make(pgbench::DATABASE).await?;
    let pgbench = Pgbench::new(tree, stack)?;
    let mut bed = Bed::make(stack, &pgbench, settings).await?;
    let mut found = Found::default();
    for round in 1..=settings.rounds {
        for column in columns(&settings.clients) {
            let ran = bed.run(&column).await?;
            println!("round {round}  {column:<17}  {ran}");
            found.add(&column, &ran);
        }
    }
    let mut report = Report::new("ipam", described(settings, durability));
    for (name, bound) in BOUNDS {
        report.bound(name, bound);
    }
    found.report(&mut report);
    wal::run(&postgres, &bed, &mut report).await?;
    bed.check().await?;
    let mut deploys = Vec::new();
    for round in 1..=settings.rounds {
        let took_s = bulk::run(&mut bed, round).await?;
        println!(
            "round {round}  a deploy of {} instances  {took_s:.3} s",
            bulk::INSTANCES
        );
        deploys.push(took_s);
    }
    report.figure("bulk8000_s", median(deploys));
    Ok(report)
}

/// With what it was run.
fn described(settings: &Settings, postgres: Map<String, Value>) -> Map<String, Value> {
    Map::from_iter([
        ("rounds".to_owned(), json!(settings.rounds)),
        ("seconds".to_owned(), json!(settings.seconds)),
        ("warm_seconds".to_owned(), json!(settings.warm_seconds)),
        ("replicas".to_owned(), json!(REPLICAS)),
        ("http_replicas".to_owned(), json!(settings.http_replicas)),
        ("addresses".to_owned(), json!(grid::SIZE)),
        ("full_percent".to_owned(), json!(bed::FULL_PERCENT)),
        ("postgres".to_owned(), Value::Object(postgres)),
    ])
}
