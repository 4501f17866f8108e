//! How long a newcomer waits: the scripts behind `make up` and `make down`, run as
//! a person runs them.
//!
//! `up_warm_s` is `up` with binaries and images built and nothing running, until
//! the example's page answers; its steps are what the script itself records. The
//! stack is brought up once before, so that everything is built. It is removed on
//! the way, and at the end it is up if it was up before.
//!
//! `cpu_percent_idle` and `rss_mib_idle` are what the costliest agent of the grid uses
//! while nothing changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Map, json};

use super::{BenchError, idle};
use crate::results::{Bound, Report, median};
use crate::tree::Tree;

/// The longest that a newcomer should wait once everything is built.
const UP_WARM_S_MAX: f64 = 60.0;
/// What an agent of a small grid may cost its host: percent of a core, and MiB.
const CPU_PERCENT_IDLE_MAX: f64 = 0.3;
const RSS_MIB_IDLE_MAX: f64 = 20.0;

/// The step under which the script records itself as a whole.
const WHOLE: &str = "up";

/// How to run it.
#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// The stack; what is in it is lost
    #[arg(long, env = "PROJECT", default_value = "kontena")]
    project: String,
    /// How often to measure; the result is the median
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
}

/// A line of the script's record.
#[derive(Debug, Deserialize)]
struct StepLine {
    step: String,
    seconds: f64,
}

/// Measures.
pub(crate) fn run(tree: &Tree, settings: &Settings) -> Result<Report, BenchError> {
    let project = &settings.project;
    let was_up = steps_file(tree, project).is_file();
    println!(
        "The stack {project:?} is removed and brought up again, with nothing of what is in it."
    );
    script(tree, project, "up")?;
    let mut measured: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..settings.runs {
        let down_s = script(tree, project, "down")?;
        measured
            .entry("down_s".to_owned())
            .or_default()
            .push(down_s);
        script(tree, project, "up")?;
        let mut figures = figures(&steps_file(tree, project))?;
        let idle = idle::measure(project)?;
        figures.insert("cpu_percent_idle".to_owned(), idle.cpu_percent);
        figures.insert("rss_mib_idle".to_owned(), idle.rss_mib);
        for (figure, value) in figures {
            measured.entry(figure).or_default().push(value);
        }
    }
    if !was_up {
        script(tree, project, "down")?;
    }
    let settings = Map::from_iter([
        ("project".to_owned(), json!(project)),
        ("runs".to_owned(), json!(settings.runs)),
    ]);
    let mut report = Report::new("up", settings);
    report.bound("up_warm_s", Bound::AtMost(UP_WARM_S_MAX));
    report.bound("cpu_percent_idle", Bound::AtMost(CPU_PERCENT_IDLE_MAX));
    report.bound("rss_mib_idle", Bound::AtMost(RSS_MIB_IDLE_MAX));
    measured
        .into_iter()
        .for_each(|(figure, values)| report.figure(figure, median(values)));
    Ok(report)
}

fn steps_file(tree: &Tree, project: &str) -> std::path::PathBuf {
    tree.state(project).join("steps.jsonl")
}

/// Runs a script of the bootstrap; the seconds that it took.
fn script(tree: &Tree, project: &str, name: &str) -> Result<f64, BenchError> {
    let script = tree.script(name);
    let begun = Instant::now();
    let status = Command::new(&script)
        .current_dir(tree.root())
        .env("PROJECT", project)
        .status()?;
    if !status.success() {
        return Err(BenchError::Script { script, status });
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// The figures in what `up` recorded.
fn figures(file: &Path) -> Result<BTreeMap<String, f64>, BenchError> {
    let fail = |reason| BenchError::Steps {
        file: file.to_owned(),
        reason,
    };
    let text = fs::read_to_string(file)?;
    let figures = parse(&text).map_err(|err| fail(err.to_string()))?;
    if !figures.contains_key("up_warm_s") {
        return Err(fail(format!("there is no step {WHOLE:?}")));
    }
    Ok(figures)
}

fn parse(text: &str) -> Result<BTreeMap<String, f64>, serde_json::Error> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let StepLine { step, seconds } = serde_json::from_str(line)?;
            let figure = if step == WHOLE {
                "up_warm_s".to_owned()
            } else {
                format!("steps.{step}_s")
            };
            Ok((figure, seconds))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_records_becomes_figures() {
        let text = "{\"step\":\"tools\",\"seconds\":0.1,\"at\":\"2026-01-01T00:00:00Z\"}\n\
            {\"step\":\"image-base\",\"seconds\":2.5,\"at\":\"2026-01-01T00:00:00Z\"}\n\
            {\"step\":\"up\",\"seconds\":42.0,\"at\":\"2026-01-01T00:00:00Z\"}\n";
        let want = [
            ("steps.image-base_s", 2.5),
            ("steps.tools_s", 0.1),
            ("up_warm_s", 42.0),
        ];
        let want = want.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(parse(text).unwrap(), BTreeMap::from(want));
        assert!(parse("{\"step\":1}").is_err());
    }
}
