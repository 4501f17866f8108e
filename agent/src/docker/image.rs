//! Bringing an image to the host.
//!
//! The engine's own registry mirror does the transport. An image is pulled when
//! it is absent, or named `latest` and new to a revision of a service; a pull
//! that fails is no loss while the image is there.

use std::time::Duration;

use bollard::Docker;
use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::TryStreamExt;
use tokio::time::timeout;
use tracing::{info, warn};

use super::spec::{ImageConfig, image_name};
use super::{status, words};

/// A pull may be long, yet one that hangs must not hold its place for ever.
const PULL_WITHIN: Duration = Duration::from_secs(30 * 60);

/// An image that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It could not be pulled and is not there.
    #[error("the image {image} cannot be pulled: {reason}")]
    Pull {
        /// The image.
        image: String,
        /// What the engine said.
        reason: String,
        /// The HTTP status with which it did.
        status: Option<u16>,
    },
    /// The engine could not be asked.
    #[error("{0}")]
    Engine(String),
}

/// Makes sure that the image is there.
pub async fn prepare(docker: &Docker, image: &str) -> Result<(), ImageError> {
    let image = image_name(image);
    let present = inspect(docker, &image).await?.is_some();
    if present && !image.ends_with(":latest") {
        return Ok(());
    }
    info!(%image, "pulling");
    let pulled = match timeout(PULL_WITHIN, pull(docker, &image)).await {
        Ok(result) => result.map_err(|err| (words(&err), status(&err))),
        Err(_) => Err(("it takes too long".to_owned(), None)),
    };
    match pulled {
        Ok(()) => Ok(()),
        Err((reason, _)) if present => {
            warn!(%image, reason, "not pulled; using the one that is there");
            Ok(())
        }
        Err((reason, status)) => Err(ImageError::Pull {
            image,
            reason,
            status,
        }),
    }
}

/// What the image says; none if it is not there.
pub async fn config(docker: &Docker, image: &str) -> Result<Option<ImageConfig>, ImageError> {
    let inspected = inspect(docker, &image_name(image)).await?;
    Ok(inspected.map(|image| {
        let config = image.config.unwrap_or_default();
        ImageConfig {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            volumes: config.volumes.unwrap_or_default(),
        }
    }))
}

async fn inspect(docker: &Docker, image: &str) -> Result<Option<ImageInspect>, ImageError> {
    match docker.inspect_image(image).await {
        Ok(image) => Ok(Some(image)),
        Err(err) if status(&err) == Some(404) => Ok(None),
        Err(err) => Err(ImageError::Engine(words(&err))),
    }
}

async fn pull(docker: &Docker, image: &str) -> Result<(), bollard::errors::Error> {
    // The engine answers only when the registry did, which may take its time.
    let docker = docker.clone().with_timeout(PULL_WITHIN);
    let options = CreateImageOptionsBuilder::default()
        .from_image(image)
        .build();
    docker
        .create_image(Some(options), None, None)
        .try_for_each(|_| async { Ok(()) })
        .await
}
