//! The engine's events, as marks on what they are about: containers, or networks.
//!
//! An event says only that a look is due. The stream ends with the engine; when
//! it is there again everything is marked, because what happened in between was
//! not told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::dirty::DirtySet;
use super::labels::{TYPE, TYPE_CONTAINER};

/// How soon a broken stream is opened again; the engine's restart takes longer.
pub(super) const RETRY_EVERY: Duration = Duration::from_millis(250);
/// The events after which a container has another state.
const ACTIONS: [&str; 6] = [
    "start",
    "die",
    "destroy",
    "health_status",
    "pause",
    "unpause",
];

/// Turns events into marks, for ever.
pub async fn watch(docker: Docker, dirty: Arc<DirtySet>) {
    let filters = HashMap::from([
        ("type", vec!["container".to_owned()]),
        ("label", vec![format!("{TYPE}={TYPE_CONTAINER}")]),
        ("event", ACTIONS.map(str::to_owned).to_vec()),
    ]);
    let mut away = false;
    loop {
        if docker.ping().await.is_ok() {
            if away {
                info!("the Docker engine is back");
                renegotiate(&docker).await;
                away = false;
            }
            follow(&docker, &filters, |container| {
                container.map_or_else(|| dirty.add_all(), |id| dirty.add(id));
            })
            .await;
        } else if !away {
            warn!("the Docker engine is away");
            away = true;
        }
        sleep(RETRY_EVERY).await;
    }
}

/// An engine may come back as another version of itself.
async fn renegotiate(docker: &Docker) {
    if let Err(err) = docker.clone().negotiate_version().await {
        warn!(%err, "no agreement on the version of Docker's API");
    }
}

/// Follows one stream to its end, and calls `mark` with the id of what each event is
/// about; with none where it may be anything, as it is at both ends of the stream.
pub(super) async fn follow(
    docker: &Docker,
    filters: &HashMap<&str, Vec<String>>,
    mark: impl Fn(Option<String>),
) {
    // The engine sends no sign of having opened the stream, so it is asked for
    // what happened from before this moment on.
    let options = EventsOptionsBuilder::default()
        .filters(filters)
        .since(&since())
        .build();
    let mut events = std::pin::pin!(docker.events(Some(options)));
    mark(None);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let id = event.actor.and_then(|actor| actor.id);
                debug!(action = event.action, id, "event");
                mark(id);
            }
            Err(err) => {
                debug!(%err, "the stream of events broke");
                break;
            }
        }
    }
    mark(None);
}

fn since() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_sub(Duration::from_secs(1))
        .as_secs()
        .to_string()
}
