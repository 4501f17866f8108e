//! How fast containers on two hosts talk to each other, beside what one would use
//! instead.
//!
//! Every configuration has two hosts of its own on one switch and a container on
//! each: no overlay at all (`raw`), our two paths (`fast` and `sleeve`), and Docker
//! Swarm, nebula, and WireGuard in user space with a VXLAN inside. Hosts are network
//! namespaces. All are built before the first round. Each part of a round, one stream
//! for example, runs once on each of them, one after the other, so that what else the
//! machine does hits all that is compared; a round goes over veth pairs as they are
//! and over ones that carry packets as a wire does.
//!
//! Whatever is not as it must be ends the run: no configuration is left out. A panic
//! of the lab does too; all that was started ends with this process.

mod figures;
mod hosts;
mod nebula;
mod ours;
mod process;
mod scratch;
mod swarm;
mod traffic;
mod underlay;
mod wireguard_go;

use std::time::Duration;

use kontena_lab::Switch;
use serde_json::{Map, Value, json};

use self::figures::Found;
use self::hosts::{Host, Pair};
use self::traffic::{Load, Ran};
use self::underlay::{End, Ports, Underlay, wire};
use super::BenchError;
use crate::cpu::Ticks;
use crate::results::Report;

/// How long nothing is sent before each round, to see what else the machine does.
const QUIET: Duration = Duration::from_secs(1);

/// How to run it.
#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// How often everything is measured; the result is the median
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Seconds of each stream
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    /// Echoes of each ping
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(200..))]
    echoes: u16,
}

/// Two hosts, a container on each, and what is between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Configuration {
    /// A bridge on each host that has the underlay as a port: no overlay.
    Raw,
    /// Our path inside trusted subnets.
    Fast,
    /// Our encrypted path in user space.
    Sleeve,
    /// Docker's own overlay, not encrypted.
    Swarm,
    /// An encrypted overlay of layer 3 in user space.
    Nebula,
    /// WireGuard in user space, with a kernel VXLAN inside.
    WireguardGo,
}

impl Configuration {
    const ALL: [Self; 6] = [
        Self::Raw,
        Self::Fast,
        Self::Sleeve,
        Self::Swarm,
        Self::Nebula,
        Self::WireguardGo,
    ];

    /// As figures name it.
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Fast => "fast",
            Self::Sleeve => "sleeve",
            Self::Swarm => "swarm",
            Self::Nebula => "nebula",
            Self::WireguardGo => "wireguard_go",
        }
    }

    fn start(self, hosts: [Host; 2]) -> Result<Pair, BenchError> {
        match self {
            Self::Raw => hosts::raw(hosts),
            Self::Fast => ours::fast(hosts),
            Self::Sleeve => ours::sleeve(hosts),
            Self::Swarm => swarm::start(hosts),
            Self::Nebula => nebula::start(hosts),
            Self::WireguardGo => wireguard_go::start(hosts),
        }
    }
}

/// Measures on hosts of its own.
pub(crate) fn run(settings: &Settings) -> Result<Report, BenchError> {
    if !nix::unistd::geteuid().is_root() {
        let why = "only root may make the network namespaces that are its hosts";
        return Err(BenchError::Failed(why.to_owned()));
    }
    process::heed_interrupts()?;
    // Before any thread is: only threads that begin afterwards are inside.
    scratch::enter()?;
    let versions = versions()?;
    println!("{}\n", json!(versions));
    let switch = Switch::start();
    let mut ports = Ports::default();
    let mut beds = Vec::new();
    let mut number = 0;
    for configuration in Configuration::ALL {
        let hosts = [(); 2].map(|()| {
            number += 1;
            Host::start(&switch, number)
        });
        for host in &hosts {
            ports.add(&switch, host)?;
        }
        let pair = configuration.start(hosts)?;
        beds.push((configuration, Load::start(pair)?));
        println!("{} is up", configuration.name());
    }
    // Docker may have loaded the module only now.
    switch.filter_nothing();
    let found = measure(&mut beds, &ports, settings)?;
    let mut report = Report::new("overlay", described(settings, versions));
    found.report(&mut report);
    Ok(report)
}

fn measure(
    beds: &mut [(Configuration, Load)],
    ports: &Ports,
    settings: &Settings,
) -> Result<Found, BenchError> {
    let mut found = Found::default();
    println!("\n{}", Ran::HEADER);
    for round in 1..=settings.rounds {
        let begun = Ticks::now()?;
        std::thread::sleep(QUIET);
        found.others(Ticks::now()?.percent_since(&begun));
        for underlay in Underlay::ALL {
            ports.set(underlay)?;
            let mut runs = [(); Configuration::ALL.len()].map(|()| Ran::default());
            for part in Load::PARTS {
                for ((_, load), ran) in beds.iter_mut().zip(&mut runs) {
                    part(load, settings, ran)?;
                }
            }
            for ((configuration, _), ran) in beds.iter().zip(runs) {
                let name = configuration.name();
                println!("round {round}  {:<4}  {name:<12}  {ran}", underlay.name());
                found.add(*configuration, underlay, ran);
            }
        }
    }
    Ok(found)
}

/// What is measured beside ours, and with what.
fn versions() -> Result<Map<String, Value>, BenchError> {
    let mut versions = Map::new();
    for line in [
        "iperf3 --version",
        "dockerd --version",
        "nebula -version",
        "wireguard-go --version",
    ] {
        let said = process::here(line)?;
        let first = said.lines().next().unwrap_or_default();
        let program = line.split(' ').next().unwrap_or_default();
        versions.insert(program.to_owned(), json!(first));
    }
    Ok(versions)
}

/// With what it was run.
fn described(settings: &Settings, versions: Map<String, Value>) -> Map<String, Value> {
    Map::from_iter([
        ("rounds".to_owned(), json!(settings.rounds)),
        ("seconds".to_owned(), json!(settings.seconds)),
        ("echoes".to_owned(), json!(settings.echoes)),
        (
            "echo_interval_s".to_owned(),
            json!(traffic::ECHO_INTERVAL_S),
        ),
        ("congestion_control".to_owned(), json!(traffic::CONGESTION)),
        ("udp_bytes".to_owned(), json!(traffic::UDP_BYTES)),
        ("wire_host".to_owned(), json!(wire(End::Host))),
        ("wire_switch".to_owned(), json!(wire(End::Switch))),
        ("versions".to_owned(), Value::Object(versions)),
    ])
}
