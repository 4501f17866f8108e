//! What all runs say together: medians with the lowest and the highest, their ratios,
//! and what these must keep to.

use std::collections::BTreeMap;

use super::Configuration::{self, Fast, Nebula, Raw, Sleeve, Swarm, WireguardGo};
use super::traffic::Ran;
use super::underlay::Underlay;
use crate::results::{Bound, Report, median};

/// Floors and ceilings: what our paths must be beside what one would use instead. An
/// echo that takes longer is worse, hence ceilings.
const BOUNDS: [(&str, Bound); 15] = [
    ("fast_over_swarm.wire.tcp1", Bound::AtLeast(1.0)),
    ("fast_over_swarm.veth.tcp1", Bound::AtLeast(0.9)),
    ("fast_over_swarm.veth.tcp4", Bound::AtLeast(0.9)),
    ("fast_over_raw.wire", Bound::AtLeast(0.85)),
    ("sleeve_over_raw.wire", Bound::AtLeast(0.45)),
    ("sleeve_over_nebula.veth.tcp1", Bound::AtLeast(4.0)),
    ("sleeve_over_wireguard_go.veth.tcp1", Bound::AtLeast(8.0)),
    ("sleeve_over_nebula.veth.udp64", Bound::AtLeast(1.0)),
    ("sleeve_over_nebula.wire.udp64", Bound::AtLeast(1.0)),
    ("sleeve_over_wireguard_go.veth.udp64", Bound::AtLeast(1.0)),
    ("sleeve_over_wireguard_go.wire.udp64", Bound::AtLeast(1.0)),
    ("sleeve_over_nebula.veth.ping_p50", Bound::AtMost(1.0)),
    ("sleeve_over_nebula.wire.ping_p50", Bound::AtMost(1.0)),
    ("sleeve_over_wireguard_go.veth.ping_p50", Bound::AtMost(1.0)),
    ("sleeve_over_wireguard_go.wire.ping_p50", Bound::AtMost(1.0)),
];

/// A figure of a run.
struct Metric {
    name: &'static str,
    /// What it is called in ratios. What is never compared has no spread told either.
    compared: Option<&'static str>,
    of: fn(&Ran) -> f64,
}

const METRICS: [Metric; 7] = [
    Metric {
        name: "tcp1_gbit_per_s",
        compared: Some("tcp1"),
        of: |ran| ran.tcp1_gbit_per_s,
    },
    Metric {
        name: "tcp4_gbit_per_s",
        compared: Some("tcp4"),
        of: |ran| ran.tcp4_gbit_per_s,
    },
    Metric {
        name: "udp64_per_s",
        compared: Some("udp64"),
        of: |ran| ran.udp64_per_s,
    },
    Metric {
        name: "ping_p50_us",
        compared: Some("ping_p50"),
        of: |ran| ran.ping_p50_us,
    },
    Metric {
        name: "ping_p99_us",
        compared: Some("ping_p99"),
        of: |ran| ran.ping_p99_us,
    },
    Metric {
        name: "udp64_loss_percent",
        compared: None,
        of: |ran| ran.udp64_loss_percent,
    },
    Metric {
        name: "tcp1_cpu_percent",
        compared: None,
        of: |ran| ran.tcp1_cpu_percent,
    },
];

/// What is compared with what: all figures of both.
const COMPARED: [(Configuration, Configuration); 3] =
    [(Fast, Swarm), (Sleeve, Nebula), (Sleeve, WireguardGo)];

/// What is compared with no overlay at all, by one stream.
const OVER_RAW: [Configuration; 2] = [Fast, Sleeve];

/// The runs of each configuration on each underlay.
#[derive(Default)]
pub(crate) struct Found {
    runs: BTreeMap<(Configuration, Underlay), Vec<Ran>>,
    others_percent: Vec<f64>,
}

impl Found {
    pub(crate) fn add(&mut self, configuration: Configuration, underlay: Underlay, ran: Ran) {
        let runs = self.runs.entry((configuration, underlay)).or_default();
        runs.push(ran);
    }

    /// Notes how much of the processors was used while nothing was sent.
    pub(crate) fn others(&mut self, percent: f64) {
        self.others_percent.push(percent);
    }

    /// Tells the medians, what follows from them, and what they must keep to.
    pub(crate) fn report(&self, report: &mut Report) {
        for ((configuration, underlay), runs) in &self.runs {
            let case = format!("{}.{}", configuration.name(), underlay.name());
            for metric in &METRICS {
                let name = metric.name;
                let values: Vec<f64> = runs.iter().map(metric.of).collect();
                if metric.compared.is_some() {
                    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
                    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    report.figure(format!("{name}_min.{case}"), lowest);
                    report.figure(format!("{name}_max.{case}"), highest);
                }
                report.figure(format!("{name}.{case}"), median(values));
            }
        }
        self.ratios(report);
        report.figure("others_percent", median(self.others_percent.clone()));
        for (name, bound) in BOUNDS {
            report.bound(name, bound);
        }
    }

    fn ratios(&self, report: &mut Report) {
        for underlay in Underlay::ALL {
            let on = underlay.name();
            for (ours, other) in COMPARED {
                for metric in &METRICS {
                    let ratio = self.ratio(ours, other, underlay, metric);
                    if let (Some(short), Some(ratio)) = (metric.compared, ratio) {
                        report.figure(
                            format!("{}_over_{}.{on}.{short}", ours.name(), other.name()),
                            ratio,
                        );
                    }
                }
            }
            for ours in OVER_RAW {
                if let Some(ratio) = self.ratio(ours, Raw, underlay, &METRICS[0]) {
                    report.figure(format!("{}_over_raw.{on}", ours.name()), ratio);
                }
            }
        }
    }

    fn ratio(
        &self,
        over: Configuration,
        under: Configuration,
        underlay: Underlay,
        metric: &Metric,
    ) -> Option<f64> {
        let median = |configuration| {
            let runs = self.runs.get(&(configuration, underlay))?;
            Some(median(runs.iter().map(metric.of).collect()))
        };
        Some(median(over)? / median(under)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    /// Runs of all configurations, of which ours do twice as much in half the time.
    fn found() -> Report {
        let mut found = Found::default();
        for underlay in Underlay::ALL {
            for configuration in Configuration::ALL {
                let ours = [Fast, Sleeve].contains(&configuration);
                for spread in [1.0, 1.5, 0.5] {
                    let much = if ours { 2.0 } else { 1.0 } * spread;
                    let ran = Ran {
                        tcp1_gbit_per_s: much,
                        tcp4_gbit_per_s: much,
                        tcp1_cpu_percent: 90.0,
                        udp64_per_s: much,
                        udp64_loss_percent: 0.0,
                        ping_p50_us: spread / much,
                        ping_p99_us: spread / much,
                    };
                    found.add(configuration, underlay, ran);
                }
            }
        }
        let mut report = Report::new("x", Map::new());
        found.report(&mut report);
        report
    }

    #[test]
    fn ratios_are_of_medians() {
        let report = found();
        let of = |name: &str| report.figures[name];
        for (name, value) in [
            ("tcp1_gbit_per_s.sleeve.veth", 2.0),
            ("tcp1_gbit_per_s_min.sleeve.veth", 1.0),
            ("tcp1_gbit_per_s_max.sleeve.veth", 3.0),
            ("sleeve_over_raw.wire", 2.0),
            ("fast_over_swarm.veth.tcp4", 2.0),
            ("sleeve_over_wireguard_go.wire.ping_p50", 0.5),
        ] {
            assert!((of(name) - value).abs() < 1e-9, "{name}: {}", of(name));
        }
    }

    #[test]
    fn every_bound_is_of_a_figure_that_is_measured() {
        let report = found();
        assert_eq!(report.bounds.len(), BOUNDS.len());
        for name in report.bounds.keys() {
            assert!(report.figures.contains_key(name), "{name}");
        }
    }
}
