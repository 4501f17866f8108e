//! Where the scripts and the results are: in the tree that the command is run
//! from, which need not be the one that it was built in.

use std::path::{Path, PathBuf};
use std::{env, io};

/// The tree's root.
#[derive(Clone, Debug)]
pub(crate) struct Tree(PathBuf);

impl Tree {
    /// The nearest directory upwards that holds the bootstrap scripts.
    pub(crate) fn find() -> io::Result<Self> {
        let here = env::current_dir()?;
        let root = here
            .ancestors()
            .find(|dir| dir.join("infra/bootstrap/up").is_file());
        let missing = || io::Error::other("run this inside the project's tree");
        root.map(|root| Self(root.to_owned())).ok_or_else(missing)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// A script of the bootstrap.
    pub(crate) fn script(&self, name: &str) -> PathBuf {
        self.0.join("infra/bootstrap").join(name)
    }

    /// What the scripts keep about a stack.
    pub(crate) fn state(&self, project: &str) -> PathBuf {
        self.0.join(".kontena").join(project)
    }

    /// The programs that a stack was made with.
    pub(crate) fn programs(&self, project: &str) -> PathBuf {
        self.0.join(".kontena").join(format!("bin-{project}"))
    }

    /// Where results go.
    pub(crate) fn results(&self) -> PathBuf {
        self.0.join("load/results")
    }
}
