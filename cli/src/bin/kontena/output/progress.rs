//! Steps that take a while: a spinner on a terminal, one plain line elsewhere.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often the spinner moves.
const TICK: Duration = Duration::from_millis(100);

/// Something that goes on. Dropped before it was said how it ended, it failed.
pub(crate) struct Step {
    text: String,
    show: Show,
    notes: Vec<String>,
}

enum Show {
    /// On a terminal, on standard error.
    Spinner(ProgressBar),
    /// Plain lines on standard output, or on standard error where the output is
    /// for a program.
    Plain {
        to_stderr: bool,
    },
    Ended,
}

impl Step {
    pub(super) fn begin(text: String, json: bool, simple_term: bool) -> Self {
        let terminal = stderr().is_terminal() && (json || stdout().is_terminal());
        let show = if terminal && !simple_term {
            let bar = ProgressBar::new_spinner().with_message(text.clone());
            bar.set_style(
                ProgressStyle::with_template(" [{spinner}] {wide_msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.enable_steady_tick(TICK);
            Show::Spinner(bar)
        } else {
            let show = Show::Plain { to_stderr: json };
            show.write(&format!("* {text} .. "));
            show
        };
        Self {
            text,
            show,
            notes: Vec::new(),
        }
    }

    /// Says how far it is, where there is room for it.
    pub(crate) fn update(&self, state: &str) {
        if let Show::Spinner(bar) = &self.show {
            bar.set_message(format!("{} ({state})", self.text));
        }
    }

    /// A line to show below the step when it has ended.
    pub(crate) fn note(&mut self, line: String) {
        self.notes.push(line);
    }

    /// It went well.
    pub(crate) fn done(mut self) {
        self.end("done");
    }

    fn end(&mut self, word: &str) {
        match std::mem::replace(&mut self.show, Show::Ended) {
            Show::Spinner(bar) => {
                bar.finish_and_clear();
                let mut lines = format!(" [{word}] {}\n", self.text);
                lines.extend(self.notes.iter().map(|note| format!("        {note}\n")));
                Show::Plain { to_stderr: true }.write(&lines);
            }
            Show::Ended => {}
            plain @ Show::Plain { .. } => {
                let mut lines = format!("{word}\n");
                lines.extend(self.notes.iter().map(|note| format!("  {note}\n")));
                plain.write(&lines);
            }
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.end("failed");
    }
}

impl Show {
    /// A reader that went away is no error.
    fn write(&self, text: &str) {
        let _ = match self {
            Self::Plain { to_stderr: false } => {
                write!(stdout(), "{text}").and_then(|()| stdout().flush())
            }
            _ => write!(stderr(), "{text}"),
        };
    }
}
