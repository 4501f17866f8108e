//! What service containers the host has.
//!
//! One list per look, and an inspection of every container that is new or that
//! an event or a full look made doubtful: a host with a thousand containers is
//! looked at cheaply whenever one of them moves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum};
use bollard::query_parameters::ListContainersOptionsBuilder;
use futures_util::{StreamExt, TryStreamExt, stream};
use kontena_schema::agent::Health;
use tokio::sync::Notify;

use super::labels::{self, Origin, TYPE, TYPE_CONTAINER};
use super::status;

/// Inspections under way at once: enough to hide their latency, too few to
/// crowd out others who use the engine.
const INSPECTIONS_MAX: usize = 8;

/// A container with our labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Docker's id.
    pub id: String,
    /// Docker's name.
    pub name: String,
    /// On whose behalf it exists; none if its labels are not whole.
    pub origin: Option<Origin>,
    /// What it does.
    pub state: State,
    /// Whether it does its work.
    pub health: Health,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was never started.
    Created,
    /// It runs.
    Running {
        /// Its first process, as the host numbers it.
        pid: i32,
    },
    /// It ended, and Docker will start it again.
    Restarting {
        /// How it ended.
        exit_code: i64,
    },
    /// It ended, or could not be started.
    Exited {
        /// How it ended.
        exit_code: i64,
        /// What Docker says about it.
        error: Option<String>,
    },
    /// Docker is removing it.
    Going,
}

impl Container {
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }
}

/// Which containers are to be inspected again, and a bell for whoever looks.
#[derive(Default)]
pub struct Doubts {
    doubts: Mutex<Doubt>,
    bell: Notify,
}

#[derive(Default)]
struct Doubt {
    all: bool,
    some: BTreeSet<String>,
}

impl Doubts {
    /// Doubts one container.
    pub fn add(&self, id: String) {
        self.with(|doubt| doubt.some.insert(id));
        self.bell.notify_one();
    }

    /// Doubts one container, for a look that is about to come anyway.
    pub fn note(&self, id: String) {
        self.with(|doubt| doubt.some.insert(id));
    }

    /// Doubts everything.
    pub fn add_all(&self) {
        self.with(|doubt| doubt.all = true);
        self.bell.notify_one();
    }

    /// Waits for a doubt.
    pub async fn changed(&self) {
        self.bell.notified().await;
    }

    fn take(&self) -> Doubt {
        self.with(std::mem::take)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Doubt) -> T) -> T {
        work(&mut self.doubts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Looks at the host's containers.
pub struct Observer {
    docker: Docker,
    known: BTreeMap<String, Container>,
}

impl Observer {
    /// An observer that has not looked yet.
    pub fn new(docker: Docker) -> Self {
        Self {
            docker,
            known: BTreeMap::new(),
        }
    }

    /// The containers of the last look that succeeded.
    pub fn last(&self) -> Vec<Container> {
        self.known.values().cloned().collect()
    }

    /// Looks. After an error the doubts remain.
    pub async fn look(&mut self, doubts: &Doubts) -> Result<(), Error> {
        let doubt = doubts.take();
        let looked = self.look_again(&doubt).await;
        if looked.is_err() {
            doubts.with(|kept| {
                kept.all |= doubt.all;
                kept.some.extend(doubt.some);
            });
        }
        looked
    }

    async fn look_again(&mut self, doubt: &Doubt) -> Result<(), Error> {
        let listed = self.list().await?;
        self.known.retain(|id, _| listed.contains(id));
        let doubtful =
            |id: &&String| doubt.all || doubt.some.contains(*id) || !self.known.contains_key(*id);
        let ids: Vec<String> = listed.iter().filter(doubtful).cloned().collect();
        let docker = &self.docker;
        let inspected: Vec<(String, Option<Container>)> = stream::iter(ids)
            .map(|id| async move {
                let container = inspect(docker, &id).await?;
                Ok::<_, Error>((id, container))
            })
            .buffer_unordered(INSPECTIONS_MAX)
            .try_collect()
            .await?;
        for (id, container) in inspected {
            match container {
                Some(container) => self.known.insert(id, container),
                None => self.known.remove(&id),
            };
        }
        Ok(())
    }

    async fn list(&self) -> Result<BTreeSet<String>, Error> {
        let label = format!("{TYPE}={TYPE_CONTAINER}");
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let listed = self.docker.list_containers(Some(options)).await?;
        Ok(listed
            .into_iter()
            .filter_map(|summary| summary.id)
            .collect())
    }
}

async fn inspect(docker: &Docker, id: &str) -> Result<Option<Container>, Error> {
    match docker.inspect_container(id, None).await {
        Ok(inspected) => Ok(Some(container(id, inspected))),
        Err(err) if status(&err) == Some(404) => Ok(None),
        Err(err) => Err(err),
    }
}

fn container(id: &str, inspected: ContainerInspectResponse) -> Container {
    let labels = inspected
        .config
        .and_then(|config| config.labels)
        .unwrap_or_default();
    let state = inspected.state.unwrap_or_default();
    let health = state.health.as_ref().and_then(|health| health.status);
    Container {
        id: id.to_owned(),
        name: inspected
            .name
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned(),
        origin: labels::read(&labels),
        health: match health {
            Some(HealthStatusEnum::HEALTHY) => Health::Healthy,
            Some(HealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
            _ => Health::Unknown,
        },
        state: run_state(state),
    }
}

fn run_state(state: bollard::models::ContainerState) -> State {
    use ContainerStateStatusEnum as Status;
    let exit_code = state.exit_code.unwrap_or_default();
    let pid = state
        .pid
        .and_then(|pid| i32::try_from(pid).ok())
        .filter(|pid| *pid > 0);
    match (state.status, pid) {
        (Some(Status::RUNNING | Status::PAUSED), Some(pid)) => State::Running { pid },
        (Some(Status::RESTARTING), _) => State::Restarting { exit_code },
        (Some(Status::REMOVING | Status::DEAD), _) => State::Going,
        // A failed start leaves it as created, with an error.
        (Some(Status::CREATED), _) if state.error.as_deref().unwrap_or_default().is_empty() => {
            State::Created
        }
        _ => State::Exited {
            exit_code,
            error: state.error.filter(|text| !text.is_empty()),
        },
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ContainerState;

    use super::*;

    fn state(status: ContainerStateStatusEnum, pid: i64, error: &str) -> State {
        run_state(ContainerState {
            status: Some(status),
            pid: Some(pid),
            exit_code: Some(3),
            error: Some(error.to_owned()),
            ..ContainerState::default()
        })
    }

    #[test]
    fn states_are_told_apart() {
        use ContainerStateStatusEnum as Status;
        assert_eq!(state(Status::RUNNING, 7, ""), State::Running { pid: 7 });
        assert_eq!(
            state(Status::RESTARTING, 0, ""),
            State::Restarting { exit_code: 3 }
        );
        assert_eq!(state(Status::CREATED, 0, ""), State::Created);
        let failed = State::Exited {
            exit_code: 3,
            error: Some("port in use".to_owned()),
        };
        assert_eq!(state(Status::CREATED, 0, "port in use"), failed);
        assert_eq!(
            state(Status::EXITED, 0, ""),
            State::Exited {
                exit_code: 3,
                error: None
            }
        );
        assert_eq!(state(Status::DEAD, 0, ""), State::Going);
    }

    #[tokio::test]
    async fn a_doubt_rings_the_bell_even_before_anybody_waits() {
        let doubts = Doubts::default();
        doubts.add("a".to_owned());
        doubts.changed().await;
        assert!(doubts.take().some.contains("a"));
        assert!(doubts.take().some.is_empty());
    }
}
