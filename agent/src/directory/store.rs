//! What survives the agent, as files in its state directory.
//!
//! `node-token` (mode 600), `directory.json` or `directory-outdated.json`,
//! `commands.json`, `keys.json`, `engine-id` where there is no engine that has one, and
//! `bin/w`, the program that containers mount. Each is replaced whole: written beside,
//! synced, renamed, the directory synced. A file that cannot be read counts as absent and
//! is said so: what was in it comes again from the Master. Only the journal does
//! not come again, so its loss is told apart from its absence.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;
use uuid::Uuid;

use super::Directory;
use crate::config::Secret;

/// The state directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// A file of the state directory that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", .path.display())]
pub struct StoreError {
    path: PathBuf,
    source: io::Error,
}

/// The program that containers wait in could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could be written and not executed.
    #[error(
        "{} is on a filesystem mounted noexec, and containers run a program from there; \
         remount it with exec, or set KONTENA_STATE_DIR to another directory", .0.display()
    )]
    NoExec(PathBuf),
}

/// A file of the state directory is there and cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

const TOKEN: &str = "node-token";
const DIRECTORY: &str = "directory.json";
/// The same while it is outdated. A file gets another name on a full disk, too.
const OUTDATED: &str = "directory-outdated.json";
const COMMANDS: &str = "commands.json";
const KEYS: &str = "keys.json";
const ENGINE_ID: &str = "engine-id";

impl Store {
    /// Makes the state directory where it is missing.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let fail = |source| StoreError {
            path: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir.join("bin")).map_err(fail)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// The node's own token.
    pub fn node_token(&self) -> Option<Secret> {
        let text = self.read(TOKEN).ok()??;
        let text = String::from_utf8(text).ok()?.trim().to_owned();
        (!text.is_empty()).then(|| Secret::new(text))
    }

    /// Keeps the node's own token.
    pub fn save_node_token(&self, token: &str) -> Result<(), StoreError> {
        self.write(TOKEN, token.as_bytes(), 0o600)
    }

    /// What was last known of the grid.
    pub fn directory(&self) -> Option<Directory> {
        if let Ok(Some(directory)) = self.json(DIRECTORY) {
            return Some(directory);
        }
        let outdated = self.json::<Directory>(OUTDATED).ok()??;
        Some(Directory {
            outdated: true,
            ..outdated
        })
    }

    /// Keeps what is known of the grid. If that fails, what was kept before stays, marked
    /// as outdated.
    pub fn save_directory(&self, directory: &Directory) -> Result<(), StoreError> {
        if directory.outdated {
            // The Master has said who this host is, and nothing of what is new.
            return self.save(OUTDATED, directory);
        }
        let Err(failed) = self.save(DIRECTORY, directory) else {
            // Nobody reads it beside the new one, and nobody may later.
            return self.unlink(OUTDATED);
        };
        let path = self.dir.join(DIRECTORY);
        match fs::rename(&path, self.dir.join(OUTDATED)).and_then(|()| sync_dir_of(&path)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError { path, source })
            }
            _ => Err(failed),
        }
    }

    /// The journal of commands; none if there never was one.
    pub fn commands<T: DeserializeOwned>(&self) -> Result<Option<T>, Unreadable> {
        self.json(COMMANDS)
    }

    /// Keeps the journal of commands.
    pub fn save_commands(&self, journal: &impl Serialize) -> Result<(), StoreError> {
        self.save(COMMANDS, journal)
    }

    /// The host's keys.
    pub fn keys<T: DeserializeOwned>(&self) -> Option<T> {
        self.json(KEYS).ok()?
    }

    /// Keeps the host's keys.
    pub fn save_keys(&self, keys: &impl Serialize) -> Result<(), StoreError> {
        self.save(KEYS, keys)
    }

    /// What tells this host from others where no engine does; made once. A node that
    /// was removed from its grid is still this host.
    pub fn engine_id(&self) -> Result<String, StoreError> {
        let kept = self.read(ENGINE_ID).ok().flatten();
        let kept = kept.and_then(|text| Uuid::parse_str(std::str::from_utf8(&text).ok()?).ok());
        let id = kept.unwrap_or_else(Uuid::new_v4).to_string();
        if kept.is_none() {
            self.write(ENGINE_ID, id.as_bytes(), 0o600)?;
        }
        Ok(id)
    }

    /// Forgets the grid: a node that was removed from it keeps nothing.
    pub fn forget(&self) -> Result<(), StoreError> {
        [TOKEN, DIRECTORY, OUTDATED, COMMANDS, KEYS]
            .into_iter()
            .try_for_each(|name| self.unlink(name))
    }

    fn unlink(&self, name: &str) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError { path, source })
            }
            _ => Ok(()),
        }
    }

    /// The directory that containers mount.
    pub fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// Puts the program into [`Store::bin`] that waits for a container's
    /// interface. Containers that run keep the file that they have open.
    ///
    /// Whether a container can execute it in spite of `noexec` depends on the
    /// engine's runtime: runc 1.1 loses the option when it makes a mount read-only.
    /// So it is refused at once, and not by each container on some hosts.
    pub fn install_weavewait(&self, from: &Path) -> Result<(), InstallError> {
        let bin = self.bin();
        if is_noexec(&bin)? {
            return Err(InstallError::NoExec(bin));
        }
        let path = bin.join("w");
        let program = fs::read(from).map_err(|source| StoreError {
            path: from.to_owned(),
            source,
        })?;
        if fs::read(&path).is_ok_and(|present| present == program) {
            return Ok(());
        }
        match write_atomically(&path, &program, 0o755) {
            // One of another version does, too.
            Err(err) if path.is_file() => {
                warn!(%err, path = %path.display(), "cannot update weavewait; using the one that is there");
                Ok(())
            }
            written => Ok(written.map_err(|source| StoreError { path, source })?),
        }
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Unreadable> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|err| {
            warn!(file = name, %err, "unreadable; starting without it");
            Unreadable
        })
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Unreadable> {
        match fs::read(self.dir.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => {
                warn!(file = name, %err, "unreadable; starting without it");
                Err(Unreadable)
            }
        }
    }

    fn save(&self, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
        let json = serde_json::to_vec(value).expect("ids as keys and plain data are JSON");
        self.write(name, &json, 0o600)
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        write_atomically(&path, bytes, mode).map_err(|source| StoreError { path, source })
    }
}

/// Whether no file of this directory may be executed.
fn is_noexec(dir: &Path) -> Result<bool, StoreError> {
    let found = statvfs(dir).map_err(|errno| StoreError {
        path: dir.to_owned(),
        source: errno.into(),
    })?;
    Ok(found.flags().contains(FsFlags::ST_NOEXEC))
}

/// Replaces a file so that after a crash it is the old one or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = path.with_extension("new");
    if let Err(err) = write_synced(&beside, bytes, mode).and_then(|()| fs::rename(&beside, path)) {
        // What there is of it takes room that others need.
        let _ = fs::remove_file(&beside);
        return Err(err);
    }
    sync_dir_of(path)
}

fn sync_dir_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::tests::directory;
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn what_was_saved_is_there_after_a_restart_and_gone_when_forgotten() {
        let dir = TempDir::new();
        let store = Store::open(dir.path()).unwrap();
        assert!(store.directory().is_none() && store.node_token().is_none());
        store.save_directory(&directory()).unwrap();
        store.save_node_token("secret").unwrap();

        let again = Store::open(dir.path()).unwrap();
        // What was stored the Master has not confirmed yet.
        let stored = Directory {
            confirmed: false,
            ..directory()
        };
        assert_eq!(again.directory(), Some(stored));
        assert_eq!(again.node_token(), Some(Secret::new("secret")));
        let mode = fs::metadata(dir.path().join(TOKEN))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);

        again.forget().unwrap();
        assert!(again.directory().is_none() && again.node_token().is_none());
    }

    #[test]
    fn the_id_of_a_host_without_an_engine_is_made_once() {
        let dir = TempDir::new();
        let store = Store::open(dir.path()).unwrap();
        let id = store.engine_id().unwrap();
        store.forget().unwrap();
        let again = Store::open(dir.path()).unwrap();
        assert_eq!(again.engine_id().unwrap(), id);
        fs::write(dir.path().join(ENGINE_ID), b"").unwrap();
        assert_ne!(again.engine_id().unwrap(), id);
    }

    #[test]
    fn a_broken_file_counts_as_absent() {
        let dir = TempDir::new();
        let store = Store::open(dir.path()).unwrap();
        fs::write(dir.path().join(DIRECTORY), b"{\"me\":").unwrap();
        assert!(store.directory().is_none());
        assert_eq!(store.commands::<u8>(), Ok(None));
        fs::write(dir.path().join(COMMANDS), b"{").unwrap();
        assert_eq!(store.commands::<u8>(), Err(Unreadable));
    }

    #[test]
    fn the_waiting_program_is_installed_for_everyone_to_execute() {
        let dir = TempDir::new();
        let store = Store::open(dir.path()).unwrap();
        let program = dir.path().join("weavewait");
        assert!(store.install_weavewait(&program).is_err());
        for version in [b"one", b"two"] {
            fs::write(&program, version).unwrap();
            store.install_weavewait(&program).unwrap();
            assert_eq!(fs::read(store.bin().join("w")).unwrap(), version);
        }
        let mode = fs::metadata(store.bin().join("w"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn weavewait_of_another_version_does_where_there_is_no_room_for_this_one() {
        let dir = TempDir::new();
        let store = Store::open(dir.path()).unwrap();
        let program = dir.path().join("weavewait");
        let installed = store.bin().join("w");
        fs::write(&program, b"new").unwrap();
        // Nothing can be written there.
        fs::create_dir(installed.with_extension("new")).unwrap();
        assert!(store.install_weavewait(&program).is_err());
        fs::write(&installed, b"old").unwrap();
        store.install_weavewait(&program).unwrap();
        assert_eq!(fs::read(&installed).unwrap(), b"old");
    }
}
