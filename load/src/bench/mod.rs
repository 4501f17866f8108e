//! The benchmarks, one module each: `Settings` is what can be typed, `run` answers
//! a report.

pub(crate) mod up;

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why a benchmark has no result, or a bad one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// Something of the machine.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A script that is measured failed.
    #[error("{} failed: {status}", script.display())]
    Script {
        /// The script.
        script: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
    /// What a script says about its steps cannot be used.
    #[error("{}: {reason}", file.display())]
    Steps {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A figure that is over its bound.
    #[error("{figure} is {}, must be at most {bound}", value.map_or("missing".to_owned(), |v| v.to_string()))]
    Bound {
        /// The figure.
        figure: String,
        /// What was measured.
        value: Option<f64>,
        /// The most that it may be.
        bound: f64,
    },
}
