//! Executes one step. The reason for it is decided elsewhere; work that is already
//! done counts as done.

use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use ipnetwork::Ipv4Network;
use kontena_schema::agent::Placement;

use crate::directory::Directory;
use crate::docker::bridge::BridgeSlot;
use crate::docker::image::{self, ImageError};
use crate::docker::labels::{Origin, container_name};
use crate::docker::spec::{CreateContext, NoCommand, create_body};
use crate::docker::volumes::{self, Owner};
use crate::docker::{status, words};
use crate::plan::Action;

/// A stop takes up to the container's grace period, which the engine enforces.
const STOP_WITHIN: Duration = Duration::from_secs(15 * 60);
/// Creating and starting are disk-bound, and the disk may be busy.
const START_WITHIN: Duration = Duration::from_secs(120);

/// What steps need.
#[derive(Clone)]
pub struct Tools {
    /// The engine.
    pub docker: Docker,
    /// The directory with the waiting program.
    pub bin: PathBuf,
    /// The address that serves DNS.
    pub bridge: BridgeSlot,
}

/// Why a step failed, in words for the user.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The image is not available.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is nothing to execute.
    #[error(transparent)]
    Command(#[from] NoCommand),
    /// The engine refused.
    #[error("{}", words(.0))]
    Engine(#[from] bollard::errors::Error),
    /// The agent runs without an engine.
    #[error("this agent runs without a Docker engine")]
    NoEngine,
    /// The agent does not know something yet.
    #[error("{0} is not known yet")]
    NotYet(&'static str),
    /// What was to be done is no longer wanted.
    #[error("it is no longer wanted")]
    Unwanted,
}

impl ApplyError {
    /// Whether the request itself is wrong, so that an early retry is useless. Conflicts
    /// (409) and engine errors (5xx) may pass.
    pub fn is_mistake(&self) -> bool {
        match self {
            Self::Image(ImageError::Pull { status, .. }) => is_refusal(*status),
            Self::Engine(err) => is_refusal(status(err)),
            Self::Command(_) => true,
            Self::Image(ImageError::Engine(_))
            | Self::NoEngine
            | Self::NotYet(_)
            | Self::Unwanted => false,
        }
    }
}

fn is_refusal(status: Option<u16>) -> bool {
    status.is_some_and(|status| matches!(status, 400..=404))
}

/// Executes one step; `placement` is set for steps about one.
pub async fn execute(
    tools: &Tools,
    action: &Action,
    placement: Option<&Placement>,
    directory: &Directory,
) -> Result<(), ApplyError> {
    match action {
        Action::Pull => {
            let placement = placement.ok_or(ApplyError::NotYet("the placement"))?;
            Ok(image::prepare(&tools.docker, &placement.spec.image).await?)
        }
        Action::Create => {
            let placement = placement.ok_or(ApplyError::NotYet("the placement"))?;
            create(tools, placement, directory).await
        }
        Action::Start(id) => start(tools, id).await,
        Action::Stop(id) => stop(tools, id).await,
        Action::Remove(id) => {
            stop(tools, id).await?;
            volumes::keep(&tools.docker, id).await?;
            remove(tools, id).await
        }
        Action::RemoveVolume(volume) => Ok(volumes::remove(&tools.docker, volume).await?),
    }
}

/// Restarts a container, with its own grace period.
pub async fn restart(tools: &Tools, id: &str) -> Result<(), ApplyError> {
    let docker = tools.docker.clone().with_timeout(STOP_WITHIN);
    Ok(docker.restart_container(id, None).await?)
}

async fn create(
    tools: &Tools,
    placement: &Placement,
    directory: &Directory,
) -> Result<(), ApplyError> {
    let image = image::config(&tools.docker, &placement.spec.image).await?;
    let image = image.ok_or_else(|| ImageError::Pull {
        image: placement.spec.image.clone(),
        reason: "it is not there any more".to_owned(),
        status: None,
    })?;
    let grid = directory
        .grid
        .as_ref()
        .ok_or(ApplyError::NotYet("the grid"))?;
    let me = directory
        .me
        .as_ref()
        .ok_or(ApplyError::NotYet("this node"))?;
    let overlay = |address| {
        Ipv4Network::new(address, grid.supernet.prefix()).expect("a prefix of a network is valid")
    };
    let owner = Owner::of(placement, me.node, &grid.name);
    // List before creating anything: only the list tells which volumes exist.
    let volumes = volumes::list(&tools.docker).await?;
    let context = CreateContext {
        origin: Origin {
            placement: placement.id,
            node: me.node,
            service_revision: placement.service_revision,
            lease: placement.lease,
            overlay: placement.address.map(overlay),
        },
        grid: &grid.name,
        resolver: tools
            .bridge
            .borrow()
            .ok_or(ApplyError::NotYet("the address of docker0"))?,
        bin: &tools.bin,
        mounts: volumes::mounts(&owner, &volumes, &image.volumes),
    };
    let body = create_body(placement, &image, &context)?;
    let name = container_name(placement);
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    let docker = tools.docker.clone().with_timeout(START_WITHIN);
    let created = docker.create_container(Some(options), body).await?;
    start(tools, &created.id).await
}

async fn start(tools: &Tools, id: &str) -> Result<(), ApplyError> {
    let docker = tools.docker.clone().with_timeout(START_WITHIN);
    done(docker.start_container(id, None).await, &[304])
}

async fn stop(tools: &Tools, id: &str) -> Result<(), ApplyError> {
    let docker = tools.docker.clone().with_timeout(STOP_WITHIN);
    done(docker.stop_container(id, None).await, &[304, 404])
}

/// Removes a container but none of its volumes.
async fn remove(tools: &Tools, id: &str) -> Result<(), ApplyError> {
    let options = RemoveContainerOptionsBuilder::default()
        .v(false)
        .force(true)
        .build();
    let docker = tools.docker.clone().with_timeout(START_WITHIN);
    done(docker.remove_container(id, Some(options)).await, &[404])
}

/// `already`: the statuses by which the engine says that nothing was left to do.
fn done(result: Result<(), bollard::errors::Error>, already: &[u16]) -> Result<(), ApplyError> {
    match result {
        Err(err) if status(&err).is_some_and(|status| already.contains(&status)) => Ok(()),
        other => Ok(other?),
    }
}
