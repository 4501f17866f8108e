//! The form of every benchmark's result: a file of JSON for programs, a table for
//! people.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::bench::BenchError;
use crate::machine;

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
    /// The most that a figure may be; not part of the file.
    #[serde(skip)]
    pub(crate) bounds: BTreeMap<String, f64>,
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
        table.set_header(["FIGURE", "VALUE", "AT MOST"]);
        for (name, value) in &self.figures {
            let bound = self.bounds.get(name).map_or(String::new(), f64::to_string);
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

    /// Fails if a figure is over its bound.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        let over = |name: &String, bound: f64| self.figures.get(name).is_none_or(|v| *v > bound);
        match self.bounds.iter().find(|(name, bound)| over(name, **bound)) {
            None => Ok(()),
            Some((name, bound)) => Err(BenchError::Bound {
                figure: name.clone(),
                value: self.figures.get(name).copied(),
                bound: *bound,
            }),
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
        report.bounds.insert("up_warm_s".to_owned(), 60.0);
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

FIGURE          VALUE  AT MOST
steps.start_s       3
up_warm_s      41.235       60";
        assert_eq!(report().table(), want);
    }

    #[test]
    fn a_figure_over_its_bound_fails_and_so_does_a_missing_one() {
        assert!(report().check().is_ok());
        let mut slow = report();
        slow.figure("up_warm_s", 60.1);
        assert!(
            slow.check()
                .unwrap_err()
                .to_string()
                .contains("up_warm_s is 60.1")
        );
        slow.figures.clear();
        assert!(slow.check().is_err());
    }

    #[test]
    fn medians() {
        assert!(median(Vec::new()).is_nan());
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0]) - 2.5).abs() < f64::EPSILON);
    }
}
