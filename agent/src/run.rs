//! Puts the parts together: one slot for each thing that is known, one task for
//! each part that knows.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Duration, sleep};
use tracing::{error, info, warn};

use crate::apply::Tools;
use crate::config::{Config, EngineConfig};
use crate::directory::{Directory, Store, StoreError};
use crate::dns::lookup::Lookup;
use crate::dns::zone::Zone;
use crate::docker::observe::Doubts;
use crate::docker::{self, bridge, events, networks};
use crate::keys::HostKeys;
use crate::link::{self, Link};
use crate::overlay::Overlay;
use crate::pings::{Pings, PingsSlot};
use crate::reconcile::{Reconciler, Slots};
use crate::report::HostSlot;
use crate::task::Tasks;
use crate::{dns, facts, keys, measures};

/// How soon an overlay that could not be opened is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// Why the agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signals(#[from] std::io::Error),
    /// A part ended that must not.
    #[error("the task {0} ended")]
    Ended(&'static str),
}

/// Runs the agent until it is told to stop. Containers, the kernel's state and
/// what is kept on disk stay as they are.
pub async fn run(config: Config) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = Arc::new(config);
    let store = Store::open(&config.state_dir)?;
    let mut tasks = Tasks::new();
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let parts = async {
        start(&mut tasks, config, store).await?;
        let ended = tasks.first_end().await.unwrap_or("none");
        Err::<(), _>(RunError::Ended(ended))
    };
    tokio::select! {
        () = stopped => {
            info!("stopping; containers and the overlay stay");
            Ok(())
        }
        failed = parts => failed,
    }
}

async fn start(tasks: &mut Tasks, config: Arc<Config>, store: Store) -> Result<(), RunError> {
    let known = Arc::new(store.directory().unwrap_or_default());
    info!(revision = %known.revision(), "what was known of the grid");
    let (zone_in, zone) = watch::channel(Arc::new(Zone::build(&known, []).incomplete()));
    let lookup = Lookup::of_host();

    let (received_in, received) = watch::channel(known.clone());
    let (directory_in, directory) = watch::channel(known);
    tasks.spawn("keep", keep(store.clone(), received, directory_in));

    let key_taken = Arc::new(Notify::new());
    let keys = start_keys(tasks, &store, &directory, &key_taken);

    let (public_in, public_ip) = watch::channel(None);
    tasks.spawn(
        "public-ip",
        facts::watch_public_ip(config.clone(), lookup.clone(), public_in),
    );

    let (masters_in, masters) = watch::channel(None);
    let master = facts::master::watch(config.clone(), lookup.clone(), masters_in);
    tasks.spawn("master", master);

    let doubts = Arc::new(Doubts::default());
    let (bridges_in, bridges) = watch::channel(None);
    let (source, tools) = match &config.engine {
        Some(engine) => {
            store.install_weavewait(&engine.weavewait)?;
            let names = (zone, lookup.clone());
            let tools = start_engine(tasks, engine, &store, bridges_in, names, &doubts).await;
            (facts::Source::Engine(tools.docker.clone()), Some(tools))
        }
        None => {
            let id = store.engine_id()?;
            warn!("without an engine: no containers, no names");
            (facts::Source::Kernel { id }, None)
        }
    };
    let (facts_in, facts) = watch::channel(None);
    tasks.spawn(
        "facts",
        facts::watch(source, config.clone(), public_ip, keys.clone(), facts_in),
    );

    let (host_in, host) = watch::channel(None);
    let slots = Slots {
        directory: directory.clone(),
        keys,
        masters,
        bridges,
        doubts,
        zone: zone_in,
        host: host_in,
    };
    let overlay = Arc::new(overlay().await);
    let (measures_in, measures) = watch::channel(None);
    tasks.spawn("measures", measures::watch(overlay.clone(), measures_in));
    let pings = start_pings(tasks, directory, &host, &overlay);
    let reconciler = Reconciler::new(slots, store.clone(), overlay, tools);
    tasks.spawn("reconcile", reconciler.run());
    let slots = link::Slots {
        host,
        facts,
        measures,
        pings,
    };
    let link = Link::new(config, store, received_in, slots, key_taken, lookup);
    tasks.spawn("link", link.run());
    Ok(())
}

/// Starts what has to do with containers, and waits for the engine.
async fn start_engine(
    tasks: &mut Tasks,
    engine: &EngineConfig,
    store: &Store,
    bridges: watch::Sender<Option<BTreeSet<String>>>,
    (zone, lookup): (watch::Receiver<Arc<Zone>>, Lookup),
    doubts: &Arc<Doubts>,
) -> Tools {
    let (name_in, name) = watch::channel(bridge::DEFAULT_NAME.to_owned());
    // Names are served from what was known, before and without the engine.
    let (bridge_in, bridge) = watch::channel(None);
    tasks.spawn(
        "names",
        dns::server::run(bridge.clone(), zone, lookup.upstreams().clone()),
    );
    tasks.spawn("bridge", bridge::watch(name, bridge_in));
    let docker = docker::connect(&engine.socket).await;
    name_in.send_replace(bridge::name(&docker).await);
    tasks.spawn("networks", networks::watch(docker.clone(), bridges));
    tasks.spawn("events", events::watch(docker.clone(), doubts.clone()));
    Tools {
        docker,
        bin: store.bin(),
        bridge,
    }
}

fn start_keys(
    tasks: &mut Tasks,
    store: &Store,
    directory: &watch::Receiver<Arc<Directory>>,
    taken: &Arc<Notify>,
) -> watch::Receiver<Arc<HostKeys>> {
    let keys = keys::load(store, &keys::generate);
    let (slot, host_keys) = watch::channel(Arc::new(keys.host_keys()));
    let (directory, taken) = (directory.clone(), taken.clone());
    tasks.spawn(
        "keys",
        keys::watch(keys, store.clone(), directory, taken, slot),
    );
    host_keys
}

/// Pings have a task of their own: a pass may have to wait for an engine that hangs.
fn start_pings(
    tasks: &mut Tasks,
    directory: watch::Receiver<Arc<Directory>>,
    host: &HostSlot,
    overlay: &Arc<Overlay>,
) -> PingsSlot {
    let (slot, pings) = watch::channel(Arc::default());
    let run = Pings::new(directory, host.clone(), overlay.clone(), slot).run();
    tasks.spawn("pings", run);
    pings
}

async fn overlay() -> Overlay {
    loop {
        match Overlay::new().await {
            Ok(overlay) => return overlay,
            Err(err) => warn!(%err, "the overlay cannot be worked on"),
        }
        sleep(RETRY_EVERY).await;
    }
}

/// Writes down what was received before anybody acts on it. Many changes at once
/// are written once.
async fn keep(
    store: Store,
    mut received: watch::Receiver<Arc<Directory>>,
    directory: watch::Sender<Arc<Directory>>,
) {
    while received.changed().await.is_ok() {
        let newest = received.borrow_and_update().clone();
        // What a removed node knew is forgotten when nothing of it is left.
        if !newest.removed {
            let (store, newest) = (store.clone(), newest.clone());
            let kept = spawn_blocking(move || save_or_forget(&store, &newest)).await;
            if let Err(err) = kept {
                error!(%err, "what the Master said is not written down");
            }
        }
        directory.send_replace(newest);
    }
}

/// A successor of this agent had better know nothing than something old.
fn save_or_forget(store: &Store, directory: &Directory) {
    if let Err(err) = store.save_directory(directory) {
        error!(%err, "what the Master said is not written down");
        if let Err(err) = store.forget_directory() {
            error!(%err, "what the Master said before is not forgotten");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::directory;
    use crate::testing::TempDir;

    #[test]
    fn what_cannot_be_written_down_leaves_nothing_old() {
        let dir = TempDir::new();
        let store = Store::open(dir.path()).unwrap();
        save_or_forget(&store, &directory());
        assert!(store.directory().is_some());
        // In the way of the file that is written beside.
        std::fs::create_dir(dir.path().join("directory.new")).unwrap();
        save_or_forget(&store, &directory());
        assert!(store.directory().is_none());
    }
}
