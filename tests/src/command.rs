//! Running `docker` on this machine.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Longer than anything that a test lets run.
const WITHIN: Duration = Duration::from_secs(90);

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Output {
    what: String,
    /// Its status, 0 for success.
    pub status: Option<i32>,
    /// What it printed, without the last line's end.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// What it printed, or everything about its failure.
    pub fn ok(self) -> Result<String, String> {
        if self.status == Some(0) {
            Ok(self.stdout)
        } else {
            Err(self.describe())
        }
    }

    /// What it printed.
    ///
    /// # Panics
    /// When it failed.
    pub fn must(self) -> String {
        self.ok().unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// Command, status and both outputs.
    pub fn describe(&self) -> String {
        let Output {
            what,
            status,
            stdout,
            stderr,
        } = self;
        format!("{what}\nstatus {status:?}\n{stdout}\n{stderr}")
    }
}

/// Runs `docker` with these arguments to its end.
///
/// # Panics
/// When it cannot be started or does not end.
pub async fn docker(args: &[&str]) -> Output {
    let mut command = Command::new("docker");
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(WITHIN, command.output())
        .await
        .unwrap_or_else(|_| panic!("docker {args:?} did not end within {WITHIN:?}"))
        .expect("the docker command can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    Output {
        what: format!("docker {}", args.join(" ")),
        status: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}
