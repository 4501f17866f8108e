//! Where files of a run are, and their end.
//!
//! The run has a `/run` of its own, in memory, that nothing else on the machine sees
//! and that vanishes with the last process in it, however it ends. So neither control
//! sockets (those of wireguard-go lie in `/run/wireguard` for all namespaces), nor an
//! engine's files, nor keys are left or met by another run.

use std::fs;
use std::io;
use std::path::PathBuf;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::bench::BenchError;

/// Gives the calling thread, and what it starts from now on, a `/run` of its own.
pub(crate) fn enter() -> Result<(), BenchError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(io::Error::from)?;
    let nothing = None::<&str>;
    // What is mounted from now on is seen nowhere else.
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, flags, nothing).map_err(io::Error::from)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        flags,
        Some("mode=755"),
    )
    .map_err(io::Error::from)?;
    Ok(())
}

/// Makes a directory in it.
pub(crate) fn directory(name: &str) -> Result<PathBuf, BenchError> {
    let path = PathBuf::from("/run").join(name);
    fs::create_dir(&path)?;
    Ok(path)
}
