//! Load and benchmarks: `make bench NAME=x` runs `kontena-load bench x`.
//!
//! A benchmark measures what users do, with what users run; it prints a table and
//! leaves `load/results/x.json`, whose form is the same for all of them
//! ([`results`]). A figure that does not keep to its bound makes the run fail,
//! after the result was written.

mod agent;
mod bench;
mod client;
mod cpu;
mod machine;
mod results;
mod stack;
mod tree;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::bench::BenchError;
use crate::tree::Tree;

/// Puts load on a Master and its grids, and measures.
#[derive(Debug, Parser)]
#[command(name = "kontena-load", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a benchmark and writes its result to load/results
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Leases and releases addresses over HTTP, beside pgbench on the same Postgres
    Ipam(bench::ipam::Settings),
    /// Joins as many real agents as a grid takes and times until all reach all
    Mesh(bench::mesh::Settings),
    /// Sends between containers on two hosts of its own, beside Swarm, nebula and wireguard-go
    Overlay(bench::overlay::Settings),
    /// Times `make up` with everything built and nothing running, and `make down`
    Up(bench::up::Settings),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!(" [error] {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), BenchError> {
    let tree = Tree::find()?;
    let Command::Bench(bench) = &args.command;
    let result = match bench {
        Bench::Ipam(settings) => bench::ipam::run(&tree, settings)?,
        Bench::Mesh(settings) => bench::mesh::run(&tree, settings)?,
        Bench::Overlay(settings) => bench::overlay::run(settings)?,
        Bench::Up(settings) => bench::up::run(&tree, settings)?,
    };
    let path = result.write(&tree.results())?;
    println!("\n{}\n\nwritten to {}", result.table(), path.display());
    result.check()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_description_of_the_commands_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_make_types_is_understood() {
        for bench in ["up", "ipam", "mesh", "overlay"] {
            assert!(Args::try_parse_from(["kontena-load", "bench", bench]).is_ok());
        }
        assert!(Args::try_parse_from(["kontena-load", "bench", "nonsense"]).is_err());
    }
}
