//! What runs in each round, and what becomes of it.

use std::collections::BTreeMap;
use std::fmt;

use super::bed::Ran;
use crate::results::{Report, median};

/// As many as pgbench runs with; ours is also shown with more.
const PGBENCH_CLIENTS_MAX: usize = 64;

/// With so many clients columns are compared.
pub(crate) const CLIENTS: usize = 64;

/// Who does the cycles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Pgbench,
    Http,
    Https,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pgbench => "pgbench",
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// On what they are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// One grid, half full.
    One,
    /// A grid for each client.
    Many,
    /// One grid with hardly anything held.
    Full1,
    /// One grid with nearly everything held.
    Full99,
}

/// A combination that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) via: Via,
    pub(crate) on: On,
    pub(crate) clients: usize,
}

impl Column {
    /// What follows the name of a figure.
    fn label(self) -> String {
        match self.on {
            On::One => format!("c{}", self.clients),
            On::Many => format!("grids{}", self.clients),
            On::Full1 => "full1".to_owned(),
            On::Full99 => "full99".to_owned(),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} {}", self.via, self.label()))
    }
}

/// Those that are compared stand next to each other.
pub(crate) fn columns(clients: &[usize]) -> Vec<Column> {
    let column = |via, on, clients| Column { via, on, clients };
    let mut columns = Vec::new();
    for clients in clients.iter().copied() {
        if clients <= PGBENCH_CLIENTS_MAX {
            columns.push(column(Via::Pgbench, On::One, clients));
        }
        columns.push(column(Via::Http, On::One, clients));
        columns.push(column(Via::Https, On::One, clients));
    }
    for on in [On::Full1, On::Full99, On::Many] {
        columns.push(column(Via::Http, on, CLIENTS));
    }
    columns
}

/// Figures of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Found(BTreeMap<String, Vec<f64>>);

impl Found {
    /// Adds a run.
    pub(crate) fn add(&mut self, column: &Column, ran: &Ran) {
        let (via, label) = (column.via, column.label());
        self.put(format!("{via}_per_s.{label}"), ran.per_s);
        if let Some((p50_ms, p99_ms)) = ran.p50_p99_ms {
            self.put(format!("p50_ms.{via}.{label}"), p50_ms);
            self.put(format!("p99_ms.{via}.{label}"), p99_ms);
        }
        if let (Some(others), Some(machine)) = (ran.used("others"), ran.used("machine")) {
            self.put("others_percent".to_owned(), others / machine * 100.0);
        }
        if column.on == On::One && column.clients == CLIENTS {
            for (who, us) in &ran.cpu_us_per_cycle {
                self.put(format!("cpu_us_per_cycle.{via}.{label}.{who}"), *us);
            }
        }
    }

    fn put(&mut self, name: String, value: f64) {
        self.0.entry(name).or_default().push(value);
    }

    /// Tells the medians, and what follows from them.
    pub(crate) fn report(self, report: &mut Report) {
        let medians: BTreeMap<String, f64> = self
            .0
            .into_iter()
            .map(|(name, values)| (name, median(values)))
            .collect();
        let at = |name: &str| medians.get(name).copied();
        // Half full is what the other columns are.
        if let Some(per_s) = at("http_per_s.c64") {
            report.figure("http_per_s.full50", per_s);
        }
        for (ratio, over, under) in [
            ("ratio_http.c64", "http_per_s.c64", "pgbench_per_s.c64"),
            ("ratio_https.c64", "https_per_s.c64", "pgbench_per_s.c64"),
            ("full99_over_full1", "http_per_s.full99", "http_per_s.full1"),
        ] {
            if let (Some(over), Some(under)) = (at(over), at(under)) {
                report.figure(ratio, over / under);
            }
        }
        for (name, value) in medians {
            report.figure(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    #[test]
    fn every_combination_has_a_name_of_its_own() {
        let names: Vec<String> = columns(&[64, 256]).iter().map(Column::to_string).collect();
        let want = [
            "pgbench c64",
            "http c64",
            "https c64",
            "http c256",
            "https c256",
            "http full1",
            "http full99",
            "http grids64",
        ];
        assert_eq!(names, want);
    }

    #[test]
    fn ratios_are_of_medians() {
        let mut found = Found::default();
        for (rates, column) in [[1.0, 50.0, 2.0], [3.0, 6.0, 7.0]]
            .iter()
            .zip(columns(&[64]))
        {
            for per_s in rates {
                let ran = Ran {
                    per_s: *per_s,
                    ..Ran::default()
                };
                found.add(&column, &ran);
            }
        }
        let mut report = Report::new("x", Map::new());
        found.report(&mut report);
        let figures: Vec<_> = report.figures.into_iter().collect();
        let want = [
            ("http_per_s.c64", 6.0),
            ("http_per_s.full50", 6.0),
            ("pgbench_per_s.c64", 2.0),
            ("ratio_http.c64", 3.0),
        ];
        assert_eq!(figures, want.map(|(name, value)| (name.to_owned(), value)));
    }
}
