//! The stack that benchmarks load: three replicas of the Master, Postgres, Redis
//! and the edge, made by `load/stack/up` and known by the names of its containers.
//!
//! Containers are asked at their own addresses. A published port would lead
//! through a proxy of the engine, which would be measured too.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use crate::bench::BenchError;
use crate::client::Target;
use crate::tree::Tree;

/// How many replicas there are.
pub(crate) const REPLICAS: u16 = 3;

/// The port of a replica.
const API_PORT: u16 = 9292;

/// A stack by its project.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    tree: Tree,
    project: String,
}

impl Stack {
    /// The stack of a project, whether it is there or not.
    pub(crate) fn new(tree: &Tree, project: &str) -> Self {
        Self {
            tree: tree.clone(),
            project: project.to_owned(),
        }
    }

    /// Brings the stack up, made of this tree.
    pub(crate) fn up(&self) -> Result<(), BenchError> {
        self.script(&self.tree.root().join("load/stack/up"))
    }

    /// Removes it with everything in it.
    pub(crate) fn down(&self) -> Result<(), BenchError> {
        self.script(&self.tree.script("down"))
    }

    fn script(&self, script: &Path) -> Result<(), BenchError> {
        let status = Command::new(script)
            .current_dir(self.tree.root())
            .env("PROJECT", &self.project)
            .status()?;
        succeeded(status, || script.display().to_string())
    }

    /// The name of a part's container.
    pub(crate) fn container(&self, part: &str) -> String {
        format!("{}-{part}", self.project)
    }

    /// The address of a part's container.
    pub(crate) fn address(&self, part: &str) -> Result<Ipv4Addr, BenchError> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let found = self.inspect(part, format)?;
        let bad = || BenchError::Failed(format!("{part} has the address {found:?}"));
        found.parse().map_err(|_| bad())
    }

    /// The first so many replicas, as its administrator.
    pub(crate) fn replicas(&self, count: u16) -> Result<Vec<Target>, BenchError> {
        let token = self.setting("KONTENA_ADMIN_TOKEN")?;
        let replicas = (1..=count).map(|number| {
            let address = self.address(&format!("api-{number}"))?;
            Ok(Target {
                address: SocketAddr::from((address, API_PORT)),
                tls: None,
                token: token.clone(),
            })
        });
        replicas.collect()
    }

    /// A program that the stack was made with.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.tree.programs(&self.project).join(name)
    }

    /// What the engine says of a part's container.
    pub(crate) fn inspect(&self, part: &str, format: &str) -> Result<String, BenchError> {
        let mut command = Command::new("docker");
        command.args(["inspect", "--format", format, &self.container(part)]);
        output(command)
    }

    /// A value that the stack was made with, such as a secret.
    pub(crate) fn setting(&self, name: &str) -> Result<String, BenchError> {
        let file = self.tree.state(&self.project).join("stack.env");
        let text = fs::read_to_string(&file)?;
        let value = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .rfind(|(key, _)| *key == name);
        let missing = || BenchError::Failed(format!("{} lacks {name}", file.display()));
        value.map(|(_, value)| value.to_owned()).ok_or_else(missing)
    }

    /// The certificate of the edge's authority.
    pub(crate) fn ca(&self) -> PathBuf {
        self.tree.state(&self.project).join("ca.pem")
    }
}

/// What a command prints; its complaints reach the terminal.
pub(crate) fn output(mut command: Command) -> Result<String, BenchError> {
    let done = command.stderr(Stdio::inherit()).output()?;
    succeeded(done.status, || format!("{command:?}"))?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

fn succeeded(status: ExitStatus, what: impl FnOnce() -> String) -> Result<(), BenchError> {
    if status.success() {
        return Ok(());
    }
    Err(BenchError::Failed(format!("{}: {status}", what())))
}
