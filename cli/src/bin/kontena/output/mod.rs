//! Printing: tables and text for people, the API's JSON for programs.

mod confirm;
pub(crate) mod data;
mod progress;
pub(crate) mod tables;

use std::io::{IsTerminal, stderr, stdout};

pub(crate) use confirm::{confirm, confirm_with_data};
pub(crate) use progress::Step;
use serde::Serialize;
use serde_yaml_ng::{Mapping, Value};

use crate::failure::Failure;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    simple_term: bool,
}

impl Output {
    pub(crate) fn new(json: bool, simple_term: bool) -> Self {
        Self { json, simple_term }
    }

    /// Whether the output is for a program.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints `answer` as it is, or what `table` makes of it.
    pub(crate) fn list<A: Serialize>(self, answer: &A, table: impl FnOnce(&A) -> String) {
        if self.json {
            json(answer);
        } else {
            let styled = stdout().is_terminal() && !self.simple_term;
            print(&tables::with_bold_header(&table(answer), styled));
        }
    }

    /// Prints `answer` as it is, or indented under its name.
    pub(crate) fn show<A: Serialize>(self, name: &str, answer: &A) -> Result<(), Failure> {
        if self.json {
            json(answer);
            return Ok(());
        }
        let value = serde_yaml_ng::to_value(answer)
            .and_then(|value| indented(name, value))
            .map_err(|err| Failure::Usage(format!("the answer cannot be shown: {err}")))?;
        print(value.trim_end());
        Ok(())
    }

    /// Prints the answer to a change as it is; a person was told by the step.
    pub(crate) fn changed<A: Serialize>(self, answer: &A) {
        if self.json {
            json(answer);
        }
    }

    /// Prints the answer of a route that has nothing to tell.
    pub(crate) fn empty(self) {
        self.changed(&serde_json::Map::new());
    }

    /// Prints a line for people.
    pub(crate) fn line(self, text: &str) {
        if !self.json {
            print(text);
        }
    }

    /// Warns, of what was done all the same; on standard error, for programs too.
    pub(crate) fn warn(self, text: &str) {
        use std::io::Write;
        let _ = writeln!(stderr(), " [warn] {text}");
    }

    /// Begins something that may take a while.
    pub(crate) fn step(self, text: impl Into<String>) -> Step {
        Step::begin(text.into(), self.json, self.simple_term)
    }
}

fn json<A: Serialize>(answer: &A) {
    match serde_json::to_string_pretty(answer) {
        Ok(text) => print(&text),
        Err(err) => eprintln!(" [error] the answer cannot be printed: {err}"),
    }
}

/// A reader that went away (`kontena ... | head`) is no error.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(stdout(), "{text}");
}

fn indented(name: &str, value: Value) -> Result<String, serde_yaml_ng::Error> {
    let mut root = Mapping::new();
    root.insert(name.into(), without_nothing(value).unwrap_or(Value::Null));
    serde_yaml_ng::to_string(&root)
}

/// Leaves out what says nothing: nulls, empty lists, empty mappings.
fn without_nothing(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Sequence(items) if items.is_empty() => None,
        Value::Sequence(items) => Some(
            items
                .into_iter()
                .filter_map(without_nothing)
                .collect::<Vec<_>>()
                .into(),
        ),
        Value::Mapping(entries) => {
            let entries = entries.into_iter();
            let kept: Mapping = entries
                .filter_map(|(key, value)| Some((key, without_nothing(value)?)))
                .collect();
            (!kept.is_empty()).then_some(Value::Mapping(kept))
        }
        value => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_indented_and_leaves_nothing_out_but_nothing() {
        let value: Value = serde_yaml_ng::from_str(
            "{b: 1, a: null, list: [], deep: {x: null}, subnet: 10.0.0.0/8}",
        )
        .unwrap();
        assert_eq!(
            indented("demo", value).unwrap(),
            "demo:\n  b: 1\n  subnet: 10.0.0.0/8\n"
        );
    }
}
