//! What a command stands on: the Master that it goes to, the grid that it
//! concerns, and how it prints.
//!
//! The Master is the stored one that is named (`--master`, `KONTENA_MASTER`), else
//! the one in `KONTENA_URL`, else the current stored one. The grid is the one that
//! is named (`--grid`, `KONTENA_GRID`), else the stored Master's current one, else
//! the only one that there is.

use std::path::PathBuf;

use kontena::Client;
use kontena::config::{Config, Server};

use crate::args::{Format, Global};
use crate::failure::Failure;
use crate::output::Output;

/// What is read from the environment and is no option of the command line.
#[derive(Default)]
pub(crate) struct Environment {
    url: Option<String>,
    token: Option<String>,
    ca: Option<String>,
    config: Option<String>,
    home: Option<String>,
    /// No spinner, however good the terminal is.
    simple_term: bool,
}

impl Environment {
    /// A variable that is set and empty is as good as unset.
    pub(crate) fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name| get(name).filter(|value| !value.is_empty());
        Self {
            url: get("KONTENA_URL"),
            token: get("KONTENA_TOKEN"),
            ca: get("KONTENA_CA"),
            config: get("KONTENA_CONFIG"),
            home: get("HOME"),
            simple_term: get("KONTENA_SIMPLE_TERM").is_some(),
        }
    }
}

/// One run of the command.
pub(crate) struct Session {
    grid: Option<String>,
    master: Option<String>,
    environment: Environment,
    config_path: PathBuf,
    /// How it prints.
    pub(crate) out: Output,
}

impl Session {
    pub(crate) fn new(global: Global, environment: Environment) -> Result<Self, Failure> {
        let config_path = match (&environment.config, &environment.home) {
            (Some(path), _) => PathBuf::from(path),
            (None, Some(home)) => PathBuf::from(home).join(".kontena_client.json"),
            (None, None) => {
                return Err(Failure::Usage(
                    "neither KONTENA_CONFIG nor HOME is set".to_owned(),
                ));
            }
        };
        Ok(Self {
            grid: global.grid.filter(|name| !name.is_empty()),
            master: global.master.filter(|name| !name.is_empty()),
            out: Output::new(global.output == Format::Json, environment.simple_term),
            environment,
            config_path,
        })
    }

    /// The stored Masters.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        Ok(Config::load(&self.config_path)?)
    }

    /// Stores the Masters.
    pub(crate) fn save(&self, config: &Config) -> Result<(), Failure> {
        Ok(config.save(&self.config_path)?)
    }

    /// A client of the Master that the command goes to.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let server = self.server()?;
        let token = server.token.as_deref().unwrap_or_default();
        let ca = server.ca.as_deref().map(str::as_bytes);
        Ok(Client::new(&server.url, token, ca)?)
    }

    fn server(&self) -> Result<Server, Failure> {
        let usage = |text: &str| Failure::Usage(text.to_owned());
        if let (None, Some(url)) = (&self.master, &self.environment.url) {
            return self.server_of_environment(url);
        }
        let config = self.config()?;
        let known = match &self.master {
            Some(name) => config.server(name),
            None => config.current(),
        };
        known.cloned().ok_or_else(|| match &self.master {
            Some(name) => Failure::Usage(format!("no Master is stored under the name {name:?}")),
            None => usage("no Master: kontena master login URL --token TOKEN"),
        })
    }

    fn server_of_environment(&self, url: &str) -> Result<Server, Failure> {
        let token = self.environment.token.clone();
        let token = token.ok_or_else(|| {
            Failure::Usage("KONTENA_URL is set, and KONTENA_TOKEN is not".to_owned())
        })?;
        let ca = self.environment.ca.as_deref().map(read_file).transpose()?;
        let url = url.to_owned();
        Ok(Server {
            url,
            token: Some(token),
            ca,
            ..Server::default()
        })
    }

    /// The grid that the command concerns.
    pub(crate) async fn grid(&self, client: &Client) -> Result<String, Failure> {
        if let Some(name) = self.grid_named()? {
            return Ok(name);
        }
        let grids = client.grid_list().await?.grids;
        match &grids[..] {
            [only] => Ok(only.name.clone()),
            [] => Err(Failure::Usage(
                "there is no grid: kontena grid create NAME".to_owned(),
            )),
            _ => {
                let names: Vec<_> = grids.iter().map(|grid| grid.name.as_str()).collect();
                let text = "which grid? kontena grid use NAME, or --grid NAME; there are";
                Err(Failure::Usage(format!("{text} {}", names.join(", "))))
            }
        }
    }

    /// The grid that is named or current, without asking the Master.
    pub(crate) fn grid_named(&self) -> Result<Option<String>, Failure> {
        match &self.grid {
            Some(name) => Ok(Some(name.clone())),
            None => Ok(self.server()?.grid),
        }
    }

    /// Makes a grid the current one of its Master; false if the Master is not a
    /// stored one.
    pub(crate) fn grid_use(&self, grid: Option<&str>) -> Result<bool, Failure> {
        let name = self.server()?.name;
        let mut config = self.config()?;
        let Some(server) = config.servers.iter_mut().find(|server| server.name == name) else {
            return Ok(false);
        };
        server.grid = grid.map(str::to_owned);
        self.save(&config)?;
        Ok(true)
    }
}

/// Reads a file that the user named.
pub(crate) fn read_file(file: &str) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|source| Failure::File {
        file: file.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(variables: &[(&str, &str)], master: Option<&str>) -> Session {
        let environment = Environment::read(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        });
        let master = master.map(str::to_owned);
        Session::new(
            Global {
                grid: None,
                master,
                output: Format::Table,
            },
            environment,
        )
        .unwrap()
    }

    #[test]
    fn the_environment_names_a_master_unless_a_stored_one_is_named() {
        let file = std::env::temp_dir().join(format!("kontena-session-{}", std::process::id()));
        let path = file.to_str().unwrap();
        let mut config = Config::default();
        let stored = Server {
            name: "stored".to_owned(),
            url: "https://stored".to_owned(),
            grid: Some("demo".to_owned()),
            ..Server::default()
        };
        config.put(stored);
        config.save(&file).unwrap();
        let both = [
            ("KONTENA_CONFIG", path),
            ("KONTENA_URL", "https://env"),
            ("KONTENA_TOKEN", "t"),
        ];
        let url = |session: Session| session.server().map(|server| server.url);

        assert_eq!(url(session(&both, None)).unwrap(), "https://env");
        assert_eq!(
            url(session(&both, Some("stored"))).unwrap(),
            "https://stored"
        );
        assert_eq!(url(session(&both[..1], None)).unwrap(), "https://stored");
        assert!(
            url(session(&both, Some("other")))
                .unwrap_err()
                .to_string()
                .contains("other")
        );
        assert!(
            url(session(&both[..2], None))
                .unwrap_err()
                .to_string()
                .contains("KONTENA_TOKEN")
        );
        let current = session(&both[..1], None).grid_named().unwrap();
        assert_eq!(current.as_deref(), Some("demo"));
        assert!(session(&both[..1], None).grid_use(Some("other")).unwrap());
        assert!(!session(&both, None).grid_use(Some("other")).unwrap());
        let current = session(&both[..1], None).grid_named().unwrap();
        assert_eq!(current.as_deref(), Some("other"));
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn without_any_master_the_way_to_one_is_told() {
        let err = session(&[("HOME", "/nonexistent")], None)
            .server()
            .unwrap_err();
        assert!(err.to_string().contains("kontena master login"), "{err}");
    }
}
