//! Cycles over HTTP: so many clients, each of which leases and releases, again and
//! again, on a connection that it keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::grid::Grid;
use crate::bench::BenchError;
use crate::client::{Connection, Target};

/// How long to run, and from when on to count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) warm: Duration,
    pub(crate) counted: Duration,
}

/// What one run found.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    /// Cycles a second.
    pub(crate) per_s: f64,
    /// All cycles, also before it was counted.
    pub(crate) cycles: f64,
    /// How long a request took that half and 99 % of all kept to.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// What one client did.
#[derive(Default)]
struct Tally {
    cycles: u32,
    counted: u32,
    /// Of each request that was counted.
    latencies_us: Vec<u32>,
}

/// Connects so many clients: number i to target i, and so on around.
pub(crate) async fn connect(
    targets: &[Target],
    clients: usize,
) -> Result<Vec<Connection>, BenchError> {
    let mut connections = Vec::new();
    for target in targets.iter().cycle().take(clients) {
        connections.push(Connection::open(target).await?);
    }
    Ok(connections)
}

/// Runs clients that are connected, number i on grid i, and so on around.
pub(crate) async fn run(
    connections: Vec<Connection>,
    grids: &[Arc<Grid>],
    span: Span,
) -> Result<Ran, BenchError> {
    let begin = Instant::now() + span.warm;
    let end = begin + span.counted;
    let mut clients = JoinSet::new();
    for (connection, grid) in connections.into_iter().zip(grids.iter().cycle()) {
        clients.spawn(client(connection, Arc::clone(grid), begin, end));
    }
    let mut all = Tally::default();
    while let Some(ended) = clients.join_next().await {
        let tally = ended.map_err(|err| BenchError::Failed(err.to_string()))??;
        all.cycles += tally.cycles;
        all.counted += tally.counted;
        all.latencies_us.extend(tally.latencies_us);
    }
    all.latencies_us.sort_unstable();
    Ok(Ran {
        per_s: f64::from(all.counted) / span.counted.as_secs_f64(),
        cycles: all.cycles.into(),
        p50_ms: quantile_ms(&all.latencies_us, 0.50),
        p99_ms: quantile_ms(&all.latencies_us, 0.99),
    })
}

/// Ends with everything given back.
async fn client(
    mut connection: Connection,
    grid: Arc<Grid>,
    begin: Instant,
    end: Instant,
) -> Result<Tally, BenchError> {
    let mut tally = Tally::default();
    let mut now = Instant::now();
    while now < end {
        let begun = now;
        let address = grid.lease(&mut connection).await?;
        let leased = Instant::now();
        grid.release(&mut connection, address).await?;
        now = Instant::now();
        tally.cycles += 1;
        if (begin..end).contains(&now) {
            tally.counted += 1;
            for took in [leased - begun, now - leased] {
                let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
                tally.latencies_us.push(us);
            }
        }
    }
    Ok(tally)
}

/// Of sorted values.
fn quantile_ms(sorted_us: &[u32], share: f64) -> f64 {
    let rank = (sorted_us.len() as f64 * share).ceil() as usize;
    let value = sorted_us.get(rank.saturating_sub(1));
    value.map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_so_many_keep_to() {
        let us: Vec<u32> = (1..=100).map(|n| n * 1000).collect();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(quantile_ms(&us, 0.5), 50.0));
        assert!(close(quantile_ms(&us, 0.99), 99.0));
        assert!(close(quantile_ms(&us[..1], 0.99), 1.0));
        assert!(quantile_ms(&[], 0.5).is_nan());
    }
}
