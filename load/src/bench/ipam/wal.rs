//! How often the WAL is flushed for a cycle: what sharing commits saves.
//!
//! Backends add to the counters when they end or have been idle for a while, so
//! this is measured in runs of its own with pauses around them. What the replicas
//! write by themselves, one or two flushes a second, is counted too, in the pause
//! after a run as well; the run is long beside it.

use super::bed::Bed;
use super::columns::{CLIENTS, Column, On, Via};
use super::pgbench;
use super::postgres::{Postgres, Wal};
use crate::bench::BenchError;
use crate::results::Report;

/// With how many clients pgbench shows it.
const PGBENCH_CLIENTS: [usize; 3] = [1, 8, CLIENTS];

/// So long that the pause after it does not show.
const RUN_S: u32 = 10;

/// Measures.
pub(crate) async fn run(
    postgres: &Postgres,
    bed: &Bed<'_>,
    report: &mut Report,
) -> Result<(), BenchError> {
    let column = |via, clients| Column {
        via,
        on: On::One,
        clients,
    };
    let mut before = postgres.wal_settled().await?;
    for clients in PGBENCH_CLIENTS {
        let ran = bed.run(&column(Via::Pgbench, clients)).await?;
        let after = postgres.wal_without(pgbench::DATABASE).await?;
        let wrote = after.since(before).per(ran.cycles);
        tell(report, "pgbench_", &format!("c{clients}"), wrote);
        before = after;
    }
    let ran = bed.run_for(&column(Via::Http, CLIENTS), RUN_S).await?;
    let after = postgres.wal_settled().await?;
    tell(report, "", "c64", after.since(before).per(ran.cycles));
    Ok(())
}

fn tell(report: &mut Report, who: &str, label: &str, wal: Wal) {
    println!("wal      {who}{label:<17}  {wal:?} per cycle");
    for (what, value) in [
        ("flushes", wal.flushes),
        ("records", wal.records),
        ("full_pages", wal.full_pages),
        ("bytes", wal.bytes),
    ] {
        report.figure(format!("{who}wal_{what}_per_cycle.{label}"), value);
    }
}
