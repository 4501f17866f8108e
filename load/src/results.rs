//! The form of every benchmark's result: a file of JSON for programs, a table for
//! people.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::bench::BenchError;
use crate::machine;

/// What a figure must keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
    Exactly(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::Below(limit) => value < limit,
            Self::AtLeast(least) => value >= least,
            Self::Exactly(right) => value == right,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::Below(limit) => write!(f, "< {limit}"),
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::Exactly(right) => write!(f, "= {right}"),
        }
    }
}

/// What a benchmark found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The benchmark.
    pub(crate) name: String,
    /// When it ended, ISO 8601.
    pub(crate) at: String,
    /// On what it was measured.
    pub(crate) machine: String,
    /// With what it was run.
    pub(crate) settings: Map<String, Value>,
    /// What it found; units last in the names.
    pub(crate) figures: BTreeMap<String, f64>,
    /// What figures must keep to; not part of the file.
    #[serde(skip)]
    pub(crate) bounds: BTreeMap<String, Bound>,
}

impl Report {
    /// A report without figures, of now and here.
    pub(crate) fn new(name: &str, settings: Map<String, Value>) -> Self {
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).ok();
        Self {
            name: name.to_owned(),
            at: now
                .and_then(|now| now.format(&Rfc3339).ok())
                .unwrap_or_default(),
            machine: machine::describe(),
            settings,
            figures: BTreeMap::new(),
            bounds: BTreeMap::new(),
        }
    }

    /// Adds a figure, rounded to what is worth reading.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64) {
        self.figures
            .insert(name.into(), (value * 1000.0).round() / 1000.0);
    }

    /// Says what a figure must keep to.
    pub(crate) fn bound(&mut self, name: impl Into<String>, bound: Bound) {
        self.bounds.insert(name.into(), bound);
    }

    /// Writes `NAME.json` into a directory.
    pub(crate) fn write(&self, results: &Path) -> Result<PathBuf, BenchError> {
        let path = results.join(format!("{}.json", self.name));
        let mut text = serde_json::to_string_pretty(self).map_err(io::Error::from)?;
        text.push('\n');
        fs::create_dir_all(results)?;
        fs::write(&path, text)?;
        Ok(path)
    }

    /// The figures by name, with the bound of those that have one.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["FIGURE", "VALUE", "BOUND"]);
        for (name, value) in &self.figures {
            let bound = self
                .bounds
                .get(name)
                .map_or(String::new(), Bound::to_string);
            table.add_row([name.clone(), value.to_string(), bound]);
        }
        for (number, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            column.set_cell_alignment(match number {
                0 => CellAlignment::Left,
                _ => CellAlignment::Right,
            });
        }
        format!(
            "bench {} on {}\n\n{}",
            self.name,
            self.machine,
            table.trim_fmt()
        )
    }

    /// Fails with every figure that does not keep to its bound, or is missing.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        let mut broken = Vec::new();
        for (name, bound) in &self.bounds {
            match self.figures.get(name) {
                Some(value) if bound.holds(*value) => {}
                Some(value) => broken.push(format!("{name} is {value}, must be {bound}")),
                None => broken.push(format!("{name} is missing, must be {bound}")),
            }
        }
        match broken {
            none if none.is_empty() => Ok(()),
            broken => Err(BenchError::Bounds(broken.join("; "))),
        }
    }
}

/// The middle one of several measurements.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new("x", Map::from_iter([("runs".to_owned(), 3.into())]));
        report.figure("up_warm_s", 41.234_567);
        report.figure("steps.start_s", 3.0);
        report.bound("up_warm_s", Bound::AtMost(60.0));
        report.machine = "1 x CPU".to_owned();
        report
    }

    #[test]
    fn the_file_has_the_keys_that_all_results_have() {
        let dir = std::env::temp_dir().join(format!("kontena-results-{}", std::process::id()));
        let path = report().write(&dir).unwrap();
        let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        fs::remove_dir_all(dir).unwrap();
        let keys: Vec<_> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(keys, ["at", "figures", "machine", "name", "settings"]);
        assert_eq!(json["figures"]["up_warm_s"], 41.235);
        assert!(OffsetDateTime::parse(json["at"].as_str().unwrap(), &Rfc3339).is_ok());
        assert!(path.ends_with("x.json"));
    }

    #[test]
    fn the_table_shows_figures_and_bounds() {
        let want = "\
bench x on 1 x CPU

FIGURE          VALUE  BOUND
steps.start_s       3
up_warm_s      41.235  <= 60";
        assert_eq!(report().table(), want);
    }

    #[test]
    fn each_figure_that_breaks_its_bound_is_named_and_so_is_a_missing_one() {
        assert!(report().check().is_ok());
        let mut slow = report();
        slow.figure("up_warm_s", 60.1);
        slow.bound("ratio", Bound::AtLeast(2.0));
        assert_eq!(
            slow.check().unwrap_err().to_string(),
            "ratio is missing, must be >= 2; up_warm_s is 60.1, must be <= 60"
        );
    }

    #[test]
    fn bounds_hold_up_to_their_edge() {
        for (bound, holds, breaks) in [
            (Bound::AtMost(2.0), 2.0, 2.1),
            (Bound::Below(2.0), 1.9, 2.0),
            (Bound::AtLeast(2.0), 2.0, 1.9),
        ] {
            assert!(bound.holds(holds) && !bound.holds(breaks), "{bound}");
            assert!(!bound.holds(f64::NAN));
        }
    }

    #[test]
    fn medians() {
        assert!(median(Vec::new()).is_nan());
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0]) - 2.5).abs() < f64::EPSILON);
    }
}
