//! Why a command failed, and how that is shown.

use std::io;

use kontena::config::ConfigError;
use kontena::stackfile::Faults;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The call to the Master.
    #[error(transparent)]
    Call(#[from] kontena::Error),
    /// The file of Masters.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The stack file.
    #[error("{file} has faults\n{faults}")]
    StackFile {
        /// Its name.
        file: String,
        /// All of them.
        faults: Faults,
    },
    /// A file.
    #[error("{file}: {source}")]
    File {
        /// Its name.
        file: String,
        /// The reason.
        source: io::Error,
    },
    /// Something of the machine.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What is asked for cannot be done like that; the text says how.
    #[error("{0}")]
    Usage(String),
    /// Two nodes between which frames do not arrive.
    #[error("{0}")]
    NoWay(String),
    /// Deploys that ended badly.
    #[error("{0}")]
    Deploy(String),
}

/// What stands before an error, and the same width for its further lines.
const HEAD: &str = " [error] ";

impl Failure {
    /// The lines for standard error.
    pub(crate) fn shown(&self) -> String {
        let indent = format!("\n{}", " ".repeat(HEAD.len()));
        format!(
            "{HEAD}{}",
            self.to_string().trim_end().replace('\n', &indent)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_lines_are_indented() {
        let failure = Failure::Usage("one\ntwo\nthree".to_owned());
        assert_eq!(
            failure.shown(),
            " [error] one\n         two\n         three"
        );
    }
}
