//! The engine's events, as marks on what they are about: containers, or networks.
//!
//! An event says only that a look is due. The stream ends with the engine; when
//! it is there again everything is marked, because what happened in between was
//! not told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::dirty::DirtySet;
use super::labels::{TYPE, TYPE_CONTAINER};

/// How soon a broken stream is opened again; the engine's restart takes longer.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// A health check has another result, which the action names: `health_status: healthy`.
const HEALTH: &str = "health_status";
/// The events after which a container has another state.
const ACTIONS: [&str; 6] = ["start", "die", "destroy", HEALTH, "pause", "unpause"];

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
                info!("the Docker engine answers again");
                renegotiate(&docker).await;
                away = false;
            }
            follow(&docker, &filters, |event| mark(&dirty, event)).await;
        } else if !away {
            warn!("the Docker engine does not answer");
            away = true;
        }
        sleep(RETRY_EVERY).await;
    }
}

fn mark(dirty: &DirtySet, event: Option<Event>) {
    match event {
        // A health check may flap for as long as its container lives.
        Some(event) if event.action.starts_with(HEALTH) => dirty.add_soon(event.id),
        Some(event) => {
            dirty.add(event.id);
        }
        None => dirty.add_all(),
    }
}

/// An engine may come back as another version of itself.
async fn renegotiate(docker: &Docker) {
    if let Err(err) = docker.clone().negotiate_version().await {
        warn!(%err, "cannot negotiate the Docker API version");
    }
}

/// Something that happened.
pub(super) struct Event {
    /// What, in Docker's words.
    action: String,
    /// The id of what it happened to.
    id: String,
}

/// Looks at all objects of one kind whenever one is created or destroyed, and once in a
/// while besides, for ever; a look that fails is soon repeated.
pub(super) async fn look_at<T, F>(
    docker: &Docker,
    (kind, tick): (&str, Duration),
    look: impl Fn() -> F,
    mut take: impl FnMut(T),
) where
    F: Future<Output = Result<T, Error>>,
{
    let filters = HashMap::from([
        ("type", vec![kind.to_owned()]),
        ("event", vec!["create".to_owned(), "destroy".to_owned()]),
    ]);
    let due = Notify::new();
    let follow = async {
        loop {
            follow(docker, &filters, |_| due.notify_one()).await;
            sleep(RETRY_EVERY).await;
        }
    };
    let look = async {
        loop {
            let _ = timeout(tick, due.notified()).await;
            match look().await {
                Ok(found) => take(found),
                Err(err) => {
                    debug!(%err, kind, "they cannot be listed");
                    sleep(RETRY_EVERY).await;
                    due.notify_one();
                }
            }
        }
    };
    tokio::join!(follow, look);
}

/// Follows one stream to its end, and calls `tell` with each event; with none where
/// anything may have happened, as at both ends of the stream.
pub(super) async fn follow(
    docker: &Docker,
    filters: &HashMap<&str, Vec<String>>,
    tell: impl Fn(Option<Event>),
) {
    // The engine sends no sign of having opened the stream, so it is asked for
    // what happened from before this moment on.
    let options = EventsOptionsBuilder::default()
        .filters(filters)
        .since(&since())
        .build();
    let mut events = std::pin::pin!(docker.events(Some(options)));
    tell(None);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let id = event.actor.and_then(|actor| actor.id);
                let action = event.action.unwrap_or_default();
                debug!(action, id, "event");
                tell(id.map(|id| Event { action, id }));
            }
            Err(err) => {
                debug!(%err, "the stream of events broke");
                break;
            }
        }
    }
    tell(None);
}

fn since() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_sub(Duration::from_secs(1))
        .as_secs()
        .to_string()
}
