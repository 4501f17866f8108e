//! The Master's own parts: the containers of Postgres, Redis, the replicas and
//! the edge.

use std::time::Duration;

use kontena::Client;
use kontena::client::Retry;

use crate::{Settings, docker, until};

/// Long enough for Postgres to recover and a replica to notice.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// The Master under test.
#[derive(Clone, Debug)]
pub struct Master {
    project: String,
    client: Client,
}

impl Master {
    /// The Master of the stack.
    pub fn new(settings: &Settings, client: &Client) -> Self {
        Self {
            project: settings.project.clone(),
            client: client.clone().with_retry(Retry::NONE),
        }
    }

    /// Runs `docker VERB` on parts of it, named as in `docker-compose.yml`.
    pub async fn docker(&self, verb: &[&str], parts: &[&str]) {
        let names: Vec<_> = parts
            .iter()
            .map(|part| format!("{}-{part}", self.project))
            .collect();
        let args = verb.iter().copied().chain(names.iter().map(String::as_str));
        docker(&args.collect::<Vec<_>>()).await.must();
    }

    /// Kills a part at once, without any goodbye, and starts it again.
    pub async fn kill_and_start(&self, part: &str) {
        self.docker(&["kill", "--signal", "KILL"], &[part]).await;
        self.docker(&["start"], &[part]).await;
    }

    /// Waits until every part is well and the API answers from its database.
    pub async fn is_back(&self) {
        until(BACK_WITHIN, "the Master answers again", async || {
            for part in ["postgres", "redis", "api-1", "api-2", "edge"] {
                let name = format!("{}-{part}", self.project);
                let format = "{{.State.Running}} {{.State.Health.Status}}";
                let state = docker(&["inspect", "--format", format, &name]).await.ok()?;
                if state != "true healthy" {
                    return Err(format!("{part}: {state}"));
                }
            }
            self.client
                .grid_list()
                .await
                .map_err(|err| err.to_string())?;
            Ok(())
        })
        .await;
    }

    /// One value from the Master's database, as text.
    pub async fn sql(&self, query: &str) -> String {
        let name = format!("{}-postgres", self.project);
        let psql = ["psql", "-U", "postgres", "-d", "kontena", "-Atc", query];
        let args: Vec<_> = ["exec", "--user", "postgres", &name]
            .into_iter()
            .chain(psql)
            .collect();
        docker(&args).await.must()
    }
}
