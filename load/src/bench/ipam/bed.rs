//! Where it is measured: a stack, grids of every fill, and how to run a column.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::ServerName;

use super::Settings;
use super::columns::{CLIENTS, Column, On, Via};
use super::cycles::{self, Span};
use super::grid::Grid;
use super::pgbench::Pgbench;
use crate::bench::BenchError;
use crate::client::{self, Connection, Target};
use crate::cpu::{Cpu, Used};
use crate::stack::{REPLICAS, Stack};

/// How full grids are where nothing else is said.
pub(crate) const FULL_PERCENT: u32 = 50;

/// The port of the edge, and a name of its certificate.
const EDGE_PORT: u16 = 443;
const EDGE_NAME: &str = "edge";

/// What a run of a column found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ran {
    /// Cycles a second.
    pub(crate) per_s: f64,
    /// All cycles.
    pub(crate) cycles: f64,
    /// How long a request took that half and 99 % of all kept to.
    pub(crate) p50_p99_ms: Option<(f64, f64)>,
    /// Processor time, by who used it.
    pub(crate) cpu_us_per_cycle: Used,
}

impl Ran {
    /// What somebody used for a cycle.
    pub(crate) fn used(&self, who: &str) -> Option<f64> {
        self.cpu_us_per_cycle.get(who).copied()
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7.0} cycles/s", self.per_s)?;
        if let Some((p50_ms, p99_ms)) = self.p50_p99_ms {
            write!(f, "  p50 {p50_ms:.1} ms  p99 {p99_ms:.1} ms")?;
        }
        f.write_str("  cpu us/cycle:")?;
        self.cpu_us_per_cycle
            .iter()
            .filter(|(_, us)| **us >= 1.0)
            .try_for_each(|(who, us)| write!(f, " {who} {us:.0}"))
    }
}

/// A stack with what is loaded on it.
pub(crate) struct Bed<'a> {
    pgbench: &'a Pgbench<'a>,
    cpu: Cpu,
    pub(crate) replicas: Vec<Target>,
    edge: Vec<Target>,
    /// For requests that are no load.
    pub(crate) control: Connection,
    /// What names of this run begin with: the stack may be an older one.
    prefix: String,
    one: Vec<Arc<Grid>>,
    many: Vec<Arc<Grid>>,
    full1: Vec<Arc<Grid>>,
    full99: Vec<Arc<Grid>>,
    warm_s: u32,
    counted_s: u32,
    /// How many replicas the clients over HTTP use.
    http_replicas: usize,
}

impl<'a> Bed<'a> {
    /// Makes the grids.
    pub(crate) async fn make(
        stack: &Stack,
        pgbench: &'a Pgbench<'a>,
        settings: &Settings,
    ) -> Result<Self, BenchError> {
        let replicas = stack.replicas(REPLICAS)?;
        let control = Connection::open(&replicas[0]).await?;
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut bed = Self {
            pgbench,
            cpu: Cpu::of(stack)?,
            replicas,
            edge: vec![edge(stack)?],
            control,
            prefix: format!("b{}", since.as_secs()),
            one: Vec::new(),
            many: Vec::new(),
            full1: Vec::new(),
            full99: Vec::new(),
            warm_s: settings.warm_seconds,
            counted_s: settings.seconds,
            http_replicas: settings.http_replicas.into(),
        };
        bed.one = bed.grids("one", 1, FULL_PERCENT).await?;
        bed.many = bed.grids("many", CLIENTS, FULL_PERCENT).await?;
        bed.full1 = bed.grids("full1", 1, 1).await?;
        bed.full99 = bed.grids("full99", 1, 99).await?;
        Ok(bed)
    }

    /// A name of this run's own.
    pub(crate) fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.prefix)
    }

    async fn grids(
        &mut self,
        what: &str,
        count: usize,
        percent: u32,
    ) -> Result<Vec<Arc<Grid>>, BenchError> {
        let mut grids = Vec::new();
        for number in 1..=count {
            let name = self.name(&format!("{what}-{number}"));
            let grid = Grid::make(&mut self.control, &name, percent).await?;
            grids.push(Arc::new(grid));
        }
        Ok(grids)
    }

    /// Runs a column once.
    pub(crate) async fn run(&self, column: &Column) -> Result<Ran, BenchError> {
        self.run_for(column, self.counted_s).await
    }

    /// Runs a column once, with so many seconds that count.
    pub(crate) async fn run_for(&self, column: &Column, counted_s: u32) -> Result<Ran, BenchError> {
        let targets = match column.via {
            Via::Pgbench => return self.run_pgbench(column.clients, counted_s),
            Via::Http => &self.replicas[..self.http_replicas],
            Via::Https => &self.edge,
        };
        let grids = match column.on {
            On::One => &self.one,
            On::Many => &self.many,
            On::Full1 => &self.full1,
            On::Full99 => &self.full99,
        };
        let span = Span {
            warm: Duration::from_secs(self.warm_s.into()),
            counted: Duration::from_secs(counted_s.into()),
        };
        let connections = cycles::connect(targets, column.clients).await?;
        let before = self.cpu.used()?;
        let ran = cycles::run(connections, grids, span).await?;
        Ok(Ran {
            per_s: ran.per_s,
            cycles: ran.cycles,
            p50_p99_ms: Some((ran.p50_ms, ran.p99_ms)),
            cpu_us_per_cycle: per_cycle(&before, self.cpu.used()?, ran.cycles),
        })
    }

    fn run_pgbench(&self, clients: usize, counted_s: u32) -> Result<Ran, BenchError> {
        let before = self.cpu.used()?;
        let ran = self.pgbench.run(clients, self.warm_s, counted_s)?;
        Ok(Ran {
            per_s: ran.per_s,
            cycles: ran.cycles,
            p50_p99_ms: None,
            cpu_us_per_cycle: per_cycle(&before, self.cpu.used()?, ran.cycles),
        })
    }

    /// After the load: nothing leaked in any grid.
    pub(crate) async fn check(&mut self) -> Result<(), BenchError> {
        for grids in [&self.one, &self.many, &self.full1, &self.full99] {
            for grid in grids {
                grid.check(&mut self.control).await?;
            }
        }
        Ok(())
    }
}

fn per_cycle(before: &Used, after: Used, cycles: f64) -> Used {
    let used = after.into_iter().map(|(who, us)| {
        let before = before.get(who).copied().unwrap_or_default();
        (who, (us - before) / cycles)
    });
    used.collect()
}

fn edge(stack: &Stack) -> Result<Target, BenchError> {
    let name = ServerName::try_from(EDGE_NAME).expect("it is a DNS name");
    Ok(Target {
        address: SocketAddr::from((stack.address("edge")?, EDGE_PORT)),
        tls: Some((client::tls(&stack.ca())?, name)),
        token: stack.setting("KONTENA_ADMIN_TOKEN")?,
    })
}
