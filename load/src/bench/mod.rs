//! The benchmarks, one module each: `Settings` is what can be typed, `run` answers
//! a report.

mod idle;
pub(crate) mod ipam;
pub(crate) mod mesh;
pub(crate) mod overlay;
pub(crate) mod up;

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::client::ClientError;

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
    /// Figures that do not keep to their bounds.
    #[error("{0}")]
    Bounds(String),
    /// A request to the Master.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A statement of the benchmark's own.
    #[error("Postgres: {0}")]
    Postgres(#[from] tokio_postgres::Error),
    /// Whatever else is not as it must be.
    #[error("{0}")]
    Failed(String),
}
