//! How soon everybody can talk to everybody in a grid that is full: as many agents as
//! a grid takes, each on a host of its own, join a Master at the same moment.
//!
//! The agents are the real binary without an engine; each has a network namespace on
//! one switch ([`kontena_lab::large_topology`]). The Master is the real stack. Pairs are counted
//! by what users do: every node pings the overlay address of every other one. It runs
//! twice, on a grid that trusts nobody, so that all is sealed, and on one that trusts
//! the switch, which also ends with all pairs in clear.

mod frames;
mod hosts;
mod master;
mod pings;
mod usage;

#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use self::hosts::Hosts;
use self::master::Master;
use self::pings::Reached;
use self::usage::Usage;
use super::BenchError;
use crate::cpu::{Cpu, Used};
use crate::results::{Bound, Report};
use crate::stack::{REPLICAS, Stack};
use crate::tree::Tree;

/// As many nodes as a grid has numbers.
const NODES: u16 = 254;

/// What a full grid may take on two processors.
const SECONDS_MAX: f64 = 60.0;
const PSS_MIB_MAX: f64 = 3.0 * 1024.0;

/// The longest that a run may take; then what is not there counts as missing.
const WITHIN: Duration = Duration::from_secs(300);

/// What passes connections on to the Master stands for a network, and what pings for a clock:
/// neither waits until a thousand threads of hosts have had their turn.
const OURS_NICE: i32 = -15;

/// How to run it.
#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// The stack to make
    #[arg(long, default_value = "kontena-bench")]
    project: String,
    /// How many nodes; bounds are for 254
    #[arg(long, default_value_t = NODES, value_parser = clap::value_parser!(u16).range(2..=i64::from(NODES)))]
    nodes: u16,
    /// Which grids: one that trusts nobody, one that trusts the switch
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Trust::Sealed, Trust::Fast])]
    trust: Vec<Trust>,
    /// What the agents log, to files beside their state
    #[arg(long, default_value = "warn,boringtun=off")]
    log: String,
    /// Where the agents' state and logs stay; else they are removed
    #[arg(long)]
    keep_state: Option<PathBuf>,
    /// The agent's program, if not the stack's: such as one with symbols, for a profiler
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Take the stack that is there, and leave it running
    #[arg(long)]
    keep: bool,
}

/// Whom a grid trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Trust {
    /// Nobody: everything is sealed.
    Sealed,
    /// The switch: everything becomes clear.
    Fast,
}

impl Trust {
    /// What names of its figures end with.
    fn word(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Fast => "fast",
        }
    }
}

/// Measures on a stack of its own.
pub(crate) fn run(tree: &Tree, settings: &Settings) -> Result<Report, BenchError> {
    let stack = Stack::new(tree, &settings.project);
    if !settings.keep {
        // What an interrupted run left has seen load already.
        stack.down()?;
    }
    stack.up()?;
    let mut report = Report::new("mesh", described(settings));
    let measured = settings
        .trust
        .iter()
        .try_for_each(|&trust| measure(&stack, settings, trust, &mut report));
    if !settings.keep {
        stack.down()?;
    }
    measured.map(|()| report)
}

/// One grid, from its creation to the end of its agents.
fn measure(
    stack: &Stack,
    settings: &Settings,
    trust: Trust,
    report: &mut Report,
) -> Result<(), BenchError> {
    let state = settings.keep_state.as_ref().map(|at| at.join(trust.word()));
    let hosts = Hosts::start(settings.nodes, state)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let figures = runtime.block_on(async {
        let cpu = Cpu::of(stack)?;
        let master = Master::open(stack.replicas(REPLICAS)?, &hosts)?;
        let mut grid = master.grid(trust).await?;
        let before = cpu.used()?;
        let begun = Instant::now();
        let at = (master.uri.as_str(), grid.token.as_str());
        let agent = settings.agent.clone();
        let agent = agent.unwrap_or_else(|| stack.program("kontena-agent"));
        let mut agents = hosts.agents(&agent, at, &settings.log)?;
        set_nice(OURS_NICE)?;
        let reached = reach(&hosts, begun, WITHIN).await?;
        println!("{}: {reached}", trust.word());
        let mut figures = Figures::default();
        figures.reached(&reached, grid.count().await?);
        figures.used(&before, &cpu.used()?);
        figures.agents(&agents.usage()?);
        figures.messages(&master);
        if trust == Trust::Fast {
            figures.add("all_clear_s", grid.clear(begun, WITHIN).await?);
        }
        if settings.nodes == NODES {
            master.refuses_one_more(&grid).await?;
        }
        agents.stop()?;
        grid.remove().await?;
        // What starts the next hosts goes before nobody, and they have what it has.
        set_nice(0)?;
        Ok::<_, BenchError>(figures)
    })?;
    figures.report(trust, settings.nodes, report);
    Ok(())
}

/// Pings until all reach all.
async fn reach(hosts: &Hosts, begun: Instant, within: Duration) -> Result<Reached, BenchError> {
    let pingers = hosts.pingers();
    let addresses: Vec<_> = (1..=pingers.len()).map(overlay).collect();
    let all = move || {
        set_nice(OURS_NICE)?;
        pings::all(pingers, &addresses, begun, within)
    };
    let all = tokio::task::spawn_blocking(all).await;
    all.map_err(|err| BenchError::Failed(err.to_string()))?
}

/// Sets how much the calling thread gives way to others.
fn set_nice(nice: i32) -> std::io::Result<()> {
    // SAFETY: it takes numbers only. On Linux, 0 is the calling thread.
    let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if set == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// The overlay address of a node in a grid with the default subnet.
fn overlay(number: usize) -> Ipv4Addr {
    let host = u8::try_from(number).expect("there are at most 254");
    Ipv4Addr::new(10, 81, 0, host)
}

/// What was found, before the names say in which grid.
#[derive(Default)]
struct Figures(Vec<(String, f64)>);

impl Figures {
    fn add(&mut self, name: impl Into<String>, value: f64) {
        self.0.push((name.into(), value));
    }

    fn reached(&mut self, reached: &Reached, nodes: usize) {
        self.add("nodes", nodes as f64);
        self.add("pairs_ok", reached.pairs as f64);
        self.add("pings", reached.sent as f64);
        self.add("seconds", reached.seconds);
        for (percent, at) in &reached.at_s {
            self.add(format!("pairs{percent}_s"), *at);
        }
    }

    /// Processor time of all but the agents.
    fn used(&mut self, before: &Used, after: &Used) {
        for who in ["machine", "replicas", "postgres", "redis", "load"] {
            let us = after.get(who).zip(before.get(who));
            let us = us.map_or(f64::NAN, |(after, before)| after - before);
            self.add(format!("cpu_s.{who}"), us / 1e6);
        }
    }

    fn agents(&mut self, usage: &Usage) {
        self.add("rss_mib", usage.rss_mib);
        self.add("pss_mib", usage.pss_mib);
        self.add("cpu_s.agents", usage.own_s);
        self.add("cpu_s.programs", usage.programs_s);
    }

    fn messages(&mut self, master: &Master) {
        let count = |messages: &AtomicU64| messages.load(Ordering::Relaxed) as f64;
        self.add("messages_to_agents", count(&master.messages.to_agents));
        self.add("messages_from_agents", count(&master.messages.from_agents));
    }

    fn report(self, trust: Trust, nodes: u16, report: &mut Report) {
        let nodes = f64::from(nodes);
        for (name, value) in self.0 {
            report.figure(format!("{name}.{}", trust.word()), value);
        }
        for (name, bound) in [
            ("nodes", Bound::Exactly(nodes)),
            ("pairs_ok", Bound::Exactly(nodes * (nodes - 1.0))),
            ("seconds", Bound::Below(SECONDS_MAX)),
            // What is shared counts once; the program alone is 8 MiB of each.
            ("pss_mib", Bound::Below(PSS_MIB_MAX)),
        ] {
            report.bound(format!("{name}.{}", trust.word()), bound);
        }
    }
}

/// With what it was run.
fn described(settings: &Settings) -> Map<String, Value> {
    let trust = settings.trust.iter().map(|trust| trust.word());
    Map::from_iter([
        ("nodes".to_owned(), json!(settings.nodes)),
        ("replicas".to_owned(), json!(REPLICAS)),
        ("trust".to_owned(), trust.collect()),
        ("log".to_owned(), json!(settings.log)),
    ])
}
