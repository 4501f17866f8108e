//! The Docker engine of this host, as far as the agent needs it.
//!
//! [`labels`], [`spec`] and [`container`] are pure: what a container of ours looks
//! like, and what is read back from it. [`observe`] looks at the host, [`image`]
//! brings images, [`events`] tells when to look again and [`dirty`] at what,
//! [`bridge`] knows the address of Docker's default bridge, [`networks`] what all
//! bridges are called, [`volumes`] whose data is where, and
//! [`sizes`] how much it is.
//!
//! Invariant: a container is ours if and only if it carries our labels; nothing
//! else on the engine is ever touched.

pub mod bridge;
pub mod container;
pub mod dirty;
pub mod events;
pub mod image;
mod inspections;
pub mod labels;
pub mod networks;
pub mod observe;
mod process;
pub mod sizes;
pub mod spec;
pub mod volumes;

use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, Docker};
use tokio::time::sleep;
use tracing::{info, warn};

/// An engine answers a look within this time, or it counts as away.
const LOOK_SECS_MAX: u64 = 10;
/// How soon an engine that is away is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// Waits until the engine answers, and agrees with it on a version of its API.
pub async fn connect(socket: &str) -> Docker {
    let mut told = false;
    loop {
        match try_connect(socket).await {
            Ok(docker) => {
                info!(version = %docker.client_version(), "the Docker engine answers");
                return docker;
            }
            Err(err) if !told => {
                warn!(socket, %err, "waiting for the Docker engine");
                told = true;
            }
            Err(_) => {}
        }
        sleep(RETRY_EVERY).await;
    }
}

async fn try_connect(socket: &str) -> Result<Docker, bollard::errors::Error> {
    let docker = Docker::connect_with_unix(socket, LOOK_SECS_MAX, API_DEFAULT_VERSION)?;
    docker.negotiate_version().await
}

/// What the engine said, in words for the user.
pub fn words(err: &bollard::errors::Error) -> String {
    match err {
        bollard::errors::Error::DockerResponseServerError { message, .. } => message.clone(),
        bollard::errors::Error::DockerStreamError { error } => error.clone(),
        bollard::errors::Error::RequestTimeoutError => {
            "the Docker engine did not answer in time".to_owned()
        }
        other => format!("the Docker engine: {other}"),
    }
}

/// The HTTP status with which the engine refused.
pub fn status(err: &bollard::errors::Error) -> Option<u16> {
    match err {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}
