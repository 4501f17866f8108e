//! The measure: pgbench with the committed script, in a container beside the
//! replicas, so that it reaches Postgres as they do.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::bench::BenchError;
use crate::stack::{Stack, output};
use crate::tree::Tree;

/// Its own, so that its table is none of ours.
pub(crate) const DATABASE: &str = "pgbench";

/// What one run of pgbench found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ran {
    /// Cycles in each second after the first ones.
    pub(crate) per_s: f64,
    /// All cycles.
    pub(crate) cycles: f64,
}

/// pgbench on a stack.
pub(crate) struct Pgbench<'a> {
    stack: &'a Stack,
    scripts: PathBuf,
    password: String,
}

impl<'a> Pgbench<'a> {
    /// With the table made, in a database that is there.
    pub(crate) fn new(tree: &Tree, stack: &'a Stack) -> Result<Self, BenchError> {
        let pgbench = Self {
            stack,
            scripts: tree.root().join("load/pgbench"),
            password: stack.setting("POSTGRES_PASSWORD")?,
        };
        let psql = ["psql", "--quiet", "--no-psqlrc", "-v", "ON_ERROR_STOP=1"];
        pgbench.exec(&psql, "init.sql")?;
        Ok(pgbench)
    }

    /// Cycles with so many clients for so many seconds, of which the first do not
    /// count.
    pub(crate) fn run(&self, clients: usize, warm_s: u32, for_s: u32) -> Result<Ran, BenchError> {
        let clients = clients.to_string();
        // A thread for each processor, as far as there are clients.
        let threads = std::thread::available_parallelism()?.get().to_string();
        let seconds = (warm_s + for_s).to_string();
        let args = [
            "pgbench",
            "--no-vacuum",
            "--protocol=prepared",
            "--progress=1",
            "--file=-",
            "--client",
            &clients,
            "--jobs",
            &threads,
            "--time",
            &seconds,
        ];
        parse(&self.exec(&args, "cycle.sql")?, warm_s)
    }

    /// Runs a client program with a script as its input.
    fn exec(&self, program: &[&str], script: &str) -> Result<String, BenchError> {
        let mut command = Command::new("docker");
        command
            .args([
                "exec",
                "--interactive",
                "--env",
                "PGPASSWORD",
                "--env",
                "PGHOST=postgres",
            ])
            .args(["--env", "PGUSER=kontena", "--env"])
            .arg(format!("PGDATABASE={DATABASE}"))
            .arg(self.stack.container("pgbench"))
            // Its progress is told as errors.
            .args(["sh", "-c", "exec \"$@\" 2>&1", "-"])
            .args(program)
            .env("PGPASSWORD", &self.password)
            .stdin(Stdio::from(File::open(self.scripts.join(script))?));
        output(command)
    }
}

/// The seconds after the first ones, and the sum.
fn parse(text: &str, warm_s: u32) -> Result<Ran, BenchError> {
    let per_s: Vec<f64> = text
        .lines()
        .filter_map(progress)
        .skip(warm_s as usize)
        .collect();
    let cycles = value(text, "number of transactions actually processed: ");
    let failed = value(text, "number of failed transactions: ");
    match (per_s.len(), cycles, failed) {
        (1.., Some(cycles), Some(0.0)) => Ok(Ran {
            per_s: per_s.iter().sum::<f64>() / per_s.len() as f64,
            cycles,
        }),
        _ => Err(BenchError::Failed(format!("pgbench says:\n{text}"))),
    }
}

/// `progress: 2.0 s, 3471.9 tps, lat 18.3 ms stddev 7.8, 0 failed`
fn progress(line: &str) -> Option<f64> {
    let (_, rest) = line.strip_prefix("progress: ")?.split_once(" s, ")?;
    rest.split_once(" tps")?.0.parse().ok()
}

fn value(text: &str, key: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
pgbench (15.20)
progress: 1.0 s, 1000.0 tps, lat 18.304 ms stddev 7.845, 0 failed
progress: 2.0 s, 3400.0 tps, lat 18.304 ms stddev 7.845, 0 failed
progress: 3.0 s, 3500.5 tps, lat 18.304 ms stddev 7.845, 0 failed
transaction type: -
number of clients: 64
number of transactions actually processed: 7900
number of failed transactions: 0 (0.000%)
tps = 2633.428 (without initial connection time)
";

    #[test]
    fn the_first_seconds_do_not_count() {
        let ran = parse(SAID, 1).unwrap();
        assert!((ran.per_s - 3450.25).abs() < 1e-9, "{ran:?}");
        assert!((ran.cycles - 7900.0).abs() < 1e-9);
    }

    #[test]
    fn a_run_that_failed_has_no_result() {
        assert!(parse(&SAID.replace(": 0 (0.000%)", ": 1 (0.013%)"), 1).is_err());
        assert!(parse("pgbench: error: client 0 aborted", 1).is_err());
        assert!(parse(SAID, 3).is_err());
    }
}
