//! What is known of one service container. Pure.
//!
//! An inspection tells everything. Where Docker does not answer it, the list
//! still tells whether the container runs: then its state is [`State::Unknown`],
//! and whoever acts leaves it alone.

use std::collections::HashMap;

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary,
    ContainerSummaryStateEnum, HealthStatusEnum,
};
use kontena_overlay::Process;

use super::labels::{self, Origin};

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
    /// What its health check says.
    pub health: HealthCheck,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was never started.
    Created,
    /// It runs.
    Running {
        /// Its first process.
        process: Process,
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
    /// Docker lists it and does not answer when asked about it.
    Unknown {
        /// Its first process, if the list says that it runs and the process is known.
        process: Option<Process>,
    },
}

/// What Docker's health check of a container says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    /// There is none.
    Absent,
    /// It has not come to a result since the container was started.
    Starting,
    /// The last one passed.
    Healthy,
    /// As many as the image allows failed in a row.
    Unhealthy,
}

impl Container {
    /// Its first process, if it runs.
    pub fn process(&self) -> Option<Process> {
        match self.state {
            State::Running { process } => Some(process),
            State::Unknown { process } => process,
            _ => None,
        }
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.process().is_some()
    }

    /// Whether Docker does not answer when asked about it.
    pub fn is_unknown(&self) -> bool {
        matches!(self.state, State::Unknown { .. })
    }
}

/// On whose behalf a container exists; none if it only has our labels from the
/// image that somebody made of one of ours.
fn origin(labels: &HashMap<String, String>, name: &str) -> Option<Origin> {
    (labels::own_name(labels)? == name).then(|| labels::read(labels))?
}

/// What an inspection tells; none if `running` does not know the container's first
/// process by its number.
pub(super) fn inspected(
    id: &str,
    response: ContainerInspectResponse,
    running: impl FnOnce(i32) -> Option<Process>,
) -> Option<Container> {
    let labels = response
        .config
        .and_then(|config| config.labels)
        .unwrap_or_default();
    let state = response.state.unwrap_or_default();
    let health = state.health.as_ref().and_then(|health| health.status);
    let name = response.name.unwrap_or_default();
    let name = name.trim_start_matches('/');
    Some(Container {
        id: id.to_owned(),
        name: name.to_owned(),
        origin: origin(&labels, name),
        health: match health {
            Some(HealthStatusEnum::STARTING) => HealthCheck::Starting,
            Some(HealthStatusEnum::HEALTHY) => HealthCheck::Healthy,
            Some(HealthStatusEnum::UNHEALTHY) => HealthCheck::Unhealthy,
            _ => HealthCheck::Absent,
        },
        state: run_state(state, running)?,
    })
}

/// What the list tells of a container that cannot be inspected, which has this process if
/// it runs.
pub(super) fn unknown(id: &str, summary: &ContainerSummary, process: Option<Process>) -> Container {
    let names = summary.names.as_deref().unwrap_or_default();
    let name = names
        .first()
        .map_or("", |name| name.trim_start_matches('/'));
    let labels = summary.labels.as_ref();
    let process = process.filter(|_| is_running(summary));
    Container {
        id: id.to_owned(),
        name: name.to_owned(),
        origin: labels.and_then(|labels| origin(labels, name)),
        health: listed_health(summary.status.as_deref().unwrap_or_default()),
        state: State::Unknown { process },
    }
}

fn is_running(summary: &ContainerSummary) -> bool {
    use ContainerSummaryStateEnum as Listed;
    matches!(summary.state, Some(Listed::RUNNING | Listed::PAUSED))
}

/// The list has the result of the health check only in a text for people, such as
/// `Up 2 minutes (unhealthy)`; the form is that of docker/cli's documentation.
fn listed_health(status: &str) -> HealthCheck {
    let ends = |text: &str| status.ends_with(text);
    match () {
        () if ends("(health: starting)") => HealthCheck::Starting,
        () if ends("(healthy)") => HealthCheck::Healthy,
        () if ends("(unhealthy)") => HealthCheck::Unhealthy,
        () => HealthCheck::Absent,
    }
}

fn run_state(state: ContainerState, running: impl FnOnce(i32) -> Option<Process>) -> Option<State> {
    use ContainerStateStatusEnum as Status;
    let exit_code = state.exit_code.unwrap_or_default();
    let pid = state
        .pid
        .and_then(|pid| i32::try_from(pid).ok())
        .filter(|pid| *pid > 0);
    Some(match (state.status, pid) {
        (Some(Status::RUNNING | Status::PAUSED), Some(pid)) => State::Running {
            process: running(pid)?,
        },
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
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const FIRST: Process = Process {
        pid: 7,
        started: 100,
    };

    fn state(status: ContainerStateStatusEnum, pid: i64, error: &str) -> State {
        let state = ContainerState {
            status: Some(status),
            pid: Some(pid),
            exit_code: Some(3),
            error: Some(error.to_owned()),
            ..ContainerState::default()
        };
        run_state(state, |pid| Some(Process { pid, ..FIRST })).unwrap()
    }

    #[test]
    fn states_are_told_apart() {
        use ContainerStateStatusEnum as Status;
        assert_eq!(
            state(Status::RUNNING, 7, ""),
            State::Running { process: FIRST }
        );
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

    pub(crate) const LABELS: &str = r#"{"io.kontena.container.type": "container",
        "io.kontena.placement.id": "11", "io.kontena.node.id": "1",
        "io.kontena.container.service_revision": "1", "io.kontena.stack.name": "null",
        "io.kontena.service.name": "web", "io.kontena.service.instance_number": "1"}"#;

    #[test]
    fn a_copy_of_ours_is_not_ours() {
        let labels = serde_json::from_str(LABELS).unwrap();
        assert!(origin(&labels, "web-1").is_some());
        assert!(origin(&labels, "copy").is_none());
    }

    fn listed(state: &str, status: &str) -> ContainerSummary {
        let json = format!(
            r#"{{"Id": "a", "Names": ["/web-1"], "State": "{state}", "Status": "{status}",
                "Labels": {LABELS}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn what_is_unknown_keeps_its_process_while_the_list_says_that_it_runs() {
        let up = listed("running", "Up 2 minutes");
        let of = |summary, process| unknown("a", summary, process);
        assert_eq!(of(&up, None).state, State::Unknown { process: None });
        let first = of(&up, Some(FIRST));
        assert!(first.origin.is_some() && first.is_unknown());
        assert_eq!(first.process(), Some(FIRST));
        let ended = listed("exited", "Exited (0) 2 minutes ago");
        assert_eq!(of(&ended, Some(FIRST)).process(), None);
    }

    #[test]
    fn the_list_tells_the_health_too() {
        for (status, health) in [
            ("Up 2 minutes", HealthCheck::Absent),
            ("Up 2 minutes (health: starting)", HealthCheck::Starting),
            ("Up 2 minutes (healthy)", HealthCheck::Healthy),
            ("Up 2 minutes (unhealthy)", HealthCheck::Unhealthy),
        ] {
            let container = unknown("a", &listed("running", status), None);
            assert_eq!(container.health, health);
        }
    }
}
