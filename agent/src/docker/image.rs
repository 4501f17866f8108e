//! Bringing an image to the host.
//!
//! The engine's own registry mirror does the transport. An image is pulled when
//! it is absent, or named `latest` and new to a revision of a service; a pull
//! that fails is no loss while the image is there. It may take as long as the engine
//! tells of its progress.

use std::time::Duration;

use bollard::Docker;
use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use tokio::time::timeout;
use tracing::{info, warn};

use super::spec::{ImageConfig, image_name};
use super::{status, words};

/// A pull may take long, and the engine tells how far it is. One of which it tells nothing
/// for this long hangs, and must not keep its place from others.
const SILENT_MAX: Duration = Duration::from_secs(5 * 60);

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
    match pull(docker, &image, SILENT_MAX).await {
        Ok(()) => Ok(()),
        Err((reason, _)) if present => {
            warn!(%image, reason, "cannot pull the image; using the local copy");
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

/// Pulls an image, or says why not, with the HTTP status of the engine if it has one.
async fn pull(
    docker: &Docker,
    image: &str,
    silent_max: Duration,
) -> Result<(), (String, Option<u16>)> {
    // The engine answers only when the registry did, which may take its time.
    let docker = docker.clone().with_timeout(silent_max);
    let options = CreateImageOptionsBuilder::default()
        .from_image(image)
        .build();
    let mut told = docker.create_image(Some(options), None, None);
    loop {
        match timeout(silent_max, told.next()).await {
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(err))) => return Err((words(&err), status(&err))),
            Ok(None) => return Ok(()),
            Err(_) => {
                let reason = format!(
                    "the engine has reported no progress for {} s",
                    silent_max.as_secs()
                );
                return Err((reason, None));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bollard::API_DEFAULT_VERSION;
    use kontena_task::{Task, spawn};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::time::sleep;

    use super::*;
    use crate::testing::TempDir;

    const SILENT: Duration = Duration::from_secs(4);

    /// An engine that tells of a pull so many times, and then ends it or hangs.
    fn engine(times: u32, ends: bool) -> (Docker, Task, TempDir) {
        let dir = TempDir::new();
        let socket = dir.path().join("engine");
        let listener = UnixListener::bind(&socket).unwrap();
        let task = spawn("engine", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let read = stream.read(&mut [0; 4096]).await.unwrap();
            assert!(read > 0);
            let head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
            stream.write_all(head).await.unwrap();
            for _ in 0..times {
                sleep(SILENT / 8).await;
                let line = b"{\"status\": \"Downloading\"}\r\n";
                stream.write_all(line).await.unwrap();
            }
            if !ends {
                std::future::pending::<()>().await;
            }
        });
        let docker = Docker::connect_with_unix(socket.to_str().unwrap(), 60, API_DEFAULT_VERSION);
        (docker.unwrap(), task, dir)
    }

    #[tokio::test]
    async fn a_pull_takes_as_long_as_the_engine_tells_of_it() {
        let (docker, _task, _dir) = engine(10, true);
        assert_eq!(pull(&docker, "image:1", SILENT).await, Ok(()));
    }

    #[tokio::test]
    async fn a_pull_of_which_nothing_is_told_is_given_up() {
        let (docker, _task, _dir) = engine(1, false);
        let (reason, status) = pull(&docker, "image:1", SILENT).await.unwrap_err();
        assert_eq!(reason, "the engine has reported no progress for 4 s");
        assert_eq!(status, None);
    }
}
