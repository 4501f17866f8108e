//! The file of known Masters, `~/.kontena_client.json`.
//!
//! The original's layout, so that both commands can use one file: what this one
//! does not know stays in it. It holds tokens, so only its owner may read it, and
//! it is replaced whole, so that an interrupted command leaves the old one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Only the owner reads and writes.
const MODE: u32 = 0o600;

/// All known Masters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The name of the Master that commands go to.
    #[serde(default)]
    pub current_server: Option<String>,
    /// The Masters.
    #[serde(default)]
    pub servers: Vec<Server>,
    /// What other versions keep here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A known Master.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// The name that it has here.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// The bearer token.
    #[serde(default)]
    pub token: Option<String>,
    /// The grid that commands concern.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<String>,
    /// The certificates to trust, PEM; none trusts what the machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// What other versions keep here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Server");
        debug
            .field("name", &self.name)
            .field("url", &self.url)
            .field("grid", &self.grid);
        debug.finish_non_exhaustive()
    }
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{} is no file of Masters: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: serde_json::Error,
    },
}

impl Config {
    /// Reads the file; one that is not there knows no Master.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that is there and cannot be used.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| ConfigError::Json {
                path: path.to_owned(),
                source,
            }),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Io {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// [`ConfigError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), ConfigError> {
        let fail = |source| ConfigError::Io {
            path: path.to_owned(),
            source,
        };
        let mut text = serde_json::to_vec_pretty(self).map_err(|err| fail(err.into()))?;
        text.push(b'\n');
        write_private(path, &text).map_err(fail)
    }

    /// The Master of this name.
    pub fn server(&self, name: &str) -> Option<&Server> {
        self.servers.iter().find(|server| server.name == name)
    }

    /// The Master that commands go to.
    pub fn current(&self) -> Option<&Server> {
        self.server(self.current_server.as_deref()?)
    }

    /// Stores a Master in place of one of the same name, and makes it the
    /// current one.
    pub fn put(&mut self, server: Server) {
        self.current_server = Some(server.name.clone());
        match self
            .servers
            .iter_mut()
            .find(|known| known.name == server.name)
        {
            Some(known) => *known = server,
            None => self.servers.push(server),
        }
    }

    /// Forgets a Master; whether it was known.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.servers.len();
        self.servers.retain(|server| server.name != name);
        if self.current_server.as_deref() == Some(name) {
            self.current_server = None;
        }
        self.servers.len() < before
    }
}

/// Writes beside the file and renames over it. The mode is set at creation, so
/// that nobody else can open it in between.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        fs::create_dir_all(parent)?;
    }
    let name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(MODE)
            .open(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(MODE))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("kontena-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn server(name: &str) -> Server {
        Server {
            name: name.to_owned(),
            url: "https://x".to_owned(),
            token: Some("t".to_owned()),
            ..Server::default()
        }
    }

    #[test]
    fn a_round_trip_keeps_everything_and_is_for_the_owner_alone() {
        let dir = Dir::new("config");
        let path = dir.0.join("sub/client.json");
        let mut config = Config::load(&path).unwrap();
        assert_eq!(config, Config::default());
        config.put(Server {
            ca: Some("PEM".to_owned()),
            ..server("a")
        });
        config
            .other
            .insert("current_account".to_owned(), "kontena".into());
        config.save(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        config.save(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            MODE
        );
        assert_eq!(Config::load(&path).unwrap(), config);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_master_is_replaced_by_name_and_forgotten() {
        let mut config = Config::default();
        config.put(server("a"));
        config.put(server("b"));
        config.put(Server {
            grid: Some("demo".to_owned()),
            ..server("a")
        });
        assert_eq!(config.servers.len(), 2);
        assert_eq!(config.current().unwrap().grid.as_deref(), Some("demo"));
        assert!(config.remove("a"));
        assert!(!config.remove("a"));
        assert_eq!((config.current(), config.servers.len()), (None, 1));
    }

    #[test]
    fn a_file_that_is_no_json_is_named() {
        let dir = Dir::new("config-bad");
        let path = dir.0.join("client.json");
        fs::write(&path, "{").unwrap();
        let err = Config::load(&path).unwrap_err().to_string();
        assert!(err.contains("client.json"), "{err}");
    }

    #[test]
    fn the_token_does_not_show_in_debug() {
        let shown = format!(
            "{:?}",
            Server {
                token: Some("secret".to_owned()),
                ..server("a")
            }
        );
        assert!(!shown.contains("secret"));
    }
}
