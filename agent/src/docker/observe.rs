//! What service containers the host has.
//!
//! One list per look, and an inspection of every container that is new or that
//! an event or a full look made doubtful: a host with a thousand containers is
//! looked at cheaply whenever one of them moves.
//!
//! A container that the engine refuses to tell about keeps what was seen of it
//! and its doubt; only an engine that does not answer fails the look.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary,
    ContainerSummaryStateEnum, HealthStatusEnum,
};
use bollard::query_parameters::ListContainersOptionsBuilder;
use futures_util::{StreamExt, TryStreamExt, stream};
use kontena_schema::agent::Health;
use tokio::sync::Notify;
use tracing::warn;

use super::labels::{self, Origin, PLACEMENT, TYPE, TYPE_CONTAINER};
use super::{status, words};

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
    /// On whose behalf it exists; none if it is not ours.
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
    /// Without an engine there are no containers, and it is never away.
    docker: Option<Docker>,
    known: BTreeMap<String, Container>,
}

impl Observer {
    /// An observer that has not looked yet.
    pub fn new(docker: Option<Docker>) -> Self {
        Self {
            docker,
            known: BTreeMap::new(),
        }
    }

    /// Our containers of the last look that succeeded.
    pub fn last(&self) -> Vec<Container> {
        let ours = |container: &&Container| container.origin.is_some();
        self.known.values().filter(ours).cloned().collect()
    }

    /// Looks. After an error the doubts remain.
    pub async fn look(&mut self, doubts: &Doubts) -> Result<(), Error> {
        let doubt = doubts.take();
        let looked = self.look_again(&doubt, doubts).await;
        if looked.is_err() {
            doubts.with(|kept| {
                kept.all |= doubt.all;
                kept.some.extend(doubt.some);
            });
        }
        looked
    }

    async fn look_again(&mut self, doubt: &Doubt, doubts: &Doubts) -> Result<(), Error> {
        let Some(docker) = &self.docker else {
            return Ok(());
        };
        let listed = list(docker).await?;
        self.known.retain(|id, _| listed.contains_key(id));
        let doubtful =
            |id: &&String| doubt.all || doubt.some.contains(*id) || !self.known.contains_key(*id);
        let ids: Vec<String> = listed.keys().filter(doubtful).cloned().collect();
        let inspected: Vec<(String, Seen)> = stream::iter(ids)
            .map(|id| async move {
                let seen = inspect(docker, &id).await?;
                Ok::<_, Error>((id, seen))
            })
            .buffer_unordered(INSPECTIONS_MAX)
            .try_collect()
            .await?;
        for (id, seen) in inspected {
            match seen {
                Seen::There(container) => {
                    self.known.insert(id, *container);
                }
                Seen::Gone => {
                    self.known.remove(&id);
                }
                Seen::Refused(reason) => {
                    warn!(container = id, reason, "it cannot be seen");
                    doubts.note(id.clone());
                    let summary = &listed[&id];
                    self.known
                        .entry(id)
                        .or_insert_with_key(|id| from_list(id, summary));
                }
            }
        }
        Ok(())
    }
}

async fn list(docker: &Docker) -> Result<BTreeMap<String, ContainerSummary>, Error> {
    let label = format!("{TYPE}={TYPE_CONTAINER}");
    let filters = HashMap::from([("label", vec![label, PLACEMENT.to_owned()])]);
    let options = ListContainersOptionsBuilder::default()
        .all(true)
        .filters(&filters)
        .build();
    let listed = docker.list_containers(Some(options)).await?;
    Ok(listed
        .into_iter()
        .filter_map(|summary| Some((summary.id.clone()?, summary)))
        .collect())
}

/// What came of one inspection.
enum Seen {
    There(Box<Container>),
    Gone,
    /// The engine answered, but not with the container; why.
    Refused(String),
}

async fn inspect(docker: &Docker, id: &str) -> Result<Seen, Error> {
    match docker.inspect_container(id, None).await {
        Ok(inspected) => Ok(Seen::There(Box::new(container(id, inspected)))),
        Err(err) if status(&err) == Some(404) => Ok(Seen::Gone),
        Err(err) if status(&err).is_some() => Ok(Seen::Refused(words(&err))),
        Err(err) => Err(err),
    }
}

/// On whose behalf a container exists; none if it only has our labels from the
/// image that somebody made of one of ours.
fn origin(labels: &HashMap<String, String>, name: &str) -> Option<Origin> {
    (labels::own_name(labels)? == name).then(|| labels::read(labels))?
}

/// What the list tells of a container that cannot be inspected: one that runs is
/// left alone, and one that does not is of no use.
fn from_list(id: &str, summary: &ContainerSummary) -> Container {
    use ContainerSummaryStateEnum as Listed;
    let names = summary.names.as_deref().unwrap_or_default();
    let name = names
        .first()
        .map_or("", |name| name.trim_start_matches('/'));
    let labels = summary.labels.as_ref();
    Container {
        id: id.to_owned(),
        name: name.to_owned(),
        origin: labels.and_then(|labels| origin(labels, name)),
        health: Health::Unknown,
        state: match summary.state {
            Some(Listed::CREATED | Listed::EXITED | Listed::REMOVING | Listed::DEAD) => {
                State::Going
            }
            _ => State::Restarting { exit_code: 0 },
        },
    }
}

fn container(id: &str, inspected: ContainerInspectResponse) -> Container {
    let labels = inspected
        .config
        .and_then(|config| config.labels)
        .unwrap_or_default();
    let state = inspected.state.unwrap_or_default();
    let health = state.health.as_ref().and_then(|health| health.status);
    let name = inspected.name.unwrap_or_default();
    let name = name.trim_start_matches('/');
    Container {
        id: id.to_owned(),
        name: name.to_owned(),
        origin: origin(&labels, name),
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

    const LABELS: &str = r#"{"io.kontena.container.type": "container",
        "io.kontena.placement.id": "11", "io.kontena.node.id": "1",
        "io.kontena.container.service_revision": "1", "io.kontena.stack.name": "null",
        "io.kontena.service.name": "web", "io.kontena.service.instance_number": "1"}"#;

    #[test]
    fn a_copy_of_ours_is_not_ours() {
        let labels = serde_json::from_str(LABELS).unwrap();
        assert!(origin(&labels, "web-1").is_some());
        assert!(origin(&labels, "copy").is_none());
    }

    /// An engine that lists two containers and breaks when asked about one.
    async fn engine(listener: tokio::net::UnixListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 8192];
            let length = stream.read(&mut request).await.unwrap();
            let line = String::from_utf8_lossy(&request[..length]).into_owned();
            let line = line.lines().next().unwrap_or_default().to_owned();
            let (status, body) = if line.contains("/containers/json") {
                let of = |id, name| {
                    format!(
                        r#"{{"Id": "{id}", "Names": ["/{name}"], "State": "running", "Labels": {LABELS}}}"#
                    )
                };
                (
                    "200 OK",
                    format!("[{}, {}]", of("good", "web-1"), of("bad", "web-1")),
                )
            } else if line.contains("/containers/good/json") {
                let config = format!(r#"{{"Labels": {LABELS}}}"#);
                let state = r#"{"Status": "running", "Pid": 7}"#;
                (
                    "200 OK",
                    format!(r#"{{"Name": "/web-1", "Config": {config}, "State": {state}}}"#),
                )
            } else {
                (
                    "500 Internal Server Error",
                    r#"{"message": "its layer is lost"}"#.to_owned(),
                )
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn one_that_cannot_be_inspected_hides_no_other() {
        let dir = crate::testing::TempDir::new();
        let socket = dir.path().join("engine");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let mut tasks = kontena_task::Tasks::new();
        tasks.spawn("engine", engine(listener));
        let version = bollard::API_DEFAULT_VERSION;
        let docker = Docker::connect_with_unix(socket.to_str().unwrap(), 10, version).unwrap();
        let mut observer = Observer::new(Some(docker));
        let doubts = Doubts::default();
        observer.look(&doubts).await.unwrap();
        let states: Vec<_> = observer
            .last()
            .into_iter()
            .map(|c| (c.id, c.state))
            .collect();
        let left_alone = State::Restarting { exit_code: 0 };
        let up = State::Running { pid: 7 };
        assert_eq!(
            states,
            [("bad".to_owned(), left_alone), ("good".to_owned(), up)]
        );
        assert_eq!(doubts.take().some, BTreeSet::from(["bad".to_owned()]));
        drop(tasks);
    }

    #[tokio::test]
    async fn without_an_engine_there_are_no_containers_and_nothing_is_away() {
        let mut observer = Observer::new(None);
        let doubts = Doubts::default();
        doubts.add_all();
        observer.look(&doubts).await.unwrap();
        assert!(observer.last().is_empty());
        assert!(!doubts.take().all);
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
