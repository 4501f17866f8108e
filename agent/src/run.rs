//! Puts the parts together: one slot for each thing that is known, one task for
//! each part that knows.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::apply::Tools;
use crate::config::{Config, EngineConfig};
use crate::directory::{Directory, InstallError, Store, StoreError, keep};
use crate::dns::lookup::Lookup;
use crate::dns::zone::Zone;
use crate::docker::dirty::DirtySet;
use crate::docker::volumes::VolumesSlot;
use crate::docker::{self, bridge, events, networks, sizes, volumes};
use crate::keys::HostKeys;
use crate::link::{self, Link};
use crate::measures::MeasuresSlot;
use crate::overlay::{self, OverlaySlot, Sources};
use crate::pings::{Pings, PingsSlot};
use crate::reconcile::{Reconciler, Slots};
use crate::report::HostSlot;
use crate::{dns, facts, keys, measures};
use kontena_overlay::Overlay;

use kontena_task::Tasks;

/// Why the agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Containers would have nothing to wait in.
    #[error(transparent)]
    Install(#[from] InstallError),
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
    let (opened, overlay) = watch::channel(None);
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let parts = async {
        start(&mut tasks, config, store, opened).await?;
        let ended = tasks.first_end().await.unwrap_or("none");
        Err::<(), _>(RunError::Ended(ended))
    };
    tokio::select! {
        () = stopped => {
            info!("stopping; containers and the overlay stay");
            let overlay = overlay.borrow().clone();
            if let Some(overlay) = overlay {
                Overlay::outlive(&overlay).await;
            }
            Ok(())
        }
        failed = parts => failed,
    }
}

/// Starts every part. What needs the engine is started last: the overlay, names and the
/// link to the Master do not wait for it.
async fn start(
    tasks: &mut Tasks,
    config: Arc<Config>,
    store: Store,
    opened: watch::Sender<Option<Arc<Overlay>>>,
) -> Result<(), RunError> {
    let known = Arc::new(known(&store));
    let (zone_in, zone) = watch::channel(Arc::new(Zone::build(&known, []).incomplete()));
    let lookup = Lookup::of_host();
    let (received_in, directory) = start_directory(tasks, &store, known);
    let key_taken = Arc::new(Notify::new());
    let keys = start_keys(tasks, &store, &directory, &key_taken);

    let (bridges_in, bridges) = watch::channel(None);
    let (containers_in, containers) = watch::channel(Arc::default());
    let sources = Sources {
        directory: directory.clone(),
        keys: keys.clone(),
        masters: start_masters(tasks, &config, &lookup),
        bridges,
        containers,
        multicast: config.multicast,
    };
    let overlay = overlay::start(tasks, sources, opened, Overlay::new);

    let (volumes_in, volumes) = watch::channel(None);
    let (host_in, host) = watch::channel(None);
    let (facts_in, facts) = watch::channel(None);
    let slots = link::Slots {
        pings: start_pings(tasks, &directory, &host, &overlay.overlay),
        measures: start_statistics(tasks, &overlay.overlay, &volumes),
        host,
        facts,
    };
    let (of_link, link_store, of_link_lookup) = (config.clone(), store.clone(), lookup.clone());
    tasks.supervise("link", move || {
        let (config, store) = (of_link.clone(), link_store.clone());
        let (slots, taken) = (slots.clone(), key_taken.clone());
        let (received_in, lookup) = (received_in.clone(), of_link_lookup.clone());
        Link::new(config, store, received_in, slots, taken, lookup).run()
    });

    let dirty = Arc::new(DirtySet::default());
    let (source, tools) = match &config.engine {
        Some(engine) => {
            store.install_weavewait(&engine.weavewait)?;
            let names = (zone, lookup.clone());
            let tools = start_engine(tasks, engine, &store, bridges_in, names, &dirty).await;
            let docker = tools.docker.clone();
            tasks.supervise("volumes", move || {
                volumes::watch(docker.clone(), volumes_in.clone())
            });
            (facts::Source::Engine(tools.docker.clone()), Some(tools))
        }
        None => {
            let id = store.engine_id()?;
            warn!("without an engine: no containers, no names");
            (facts::Source::Kernel { id }, None)
        }
    };
    start_facts(tasks, (source, lookup), &config, keys, facts_in);
    let slots = Slots {
        directory,
        overlay: overlay.state,
        unavailable: overlay.unavailable,
        dirty,
        volumes,
        attached: containers_in,
        zone: zone_in,
        host: host_in,
    };
    tasks.supervise("reconcile", move || {
        Reconciler::new(slots.clone(), store.clone(), tools.clone()).run()
    });
    Ok(())
}

/// What the last run of the agent knew of the grid.
fn known(store: &Store) -> Directory {
    let known = store.directory().unwrap_or_default();
    info!(revision = %known.revision(), "loaded the saved directory");
    if known.outdated {
        warn!(
            "the saved directory is outdated; nothing is started or trusted until the Master is reached"
        );
    }
    known
}

/// What the Master says goes in at one end, and comes out of the other when it is on disk.
fn start_directory(
    tasks: &mut Tasks,
    store: &Store,
    known: Arc<Directory>,
) -> (
    watch::Sender<Arc<Directory>>,
    watch::Receiver<Arc<Directory>>,
) {
    let (received_in, received) = watch::channel(known.clone());
    let (directory_in, directory) = watch::channel(known.clone());
    let store = store.clone();
    tasks.supervise("directory", move || {
        let writer = keep::Writer::new(store.clone(), known.clone());
        keep::run(writer, received.clone(), directory_in.clone())
    });
    (received_in, directory)
}

/// Where the Master is.
fn start_masters(
    tasks: &mut Tasks,
    config: &Arc<Config>,
    lookup: &Lookup,
) -> watch::Receiver<Option<BTreeSet<SocketAddr>>> {
    let (masters_in, masters) = watch::channel(None);
    let (config, lookup) = (config.clone(), lookup.clone());
    tasks.supervise("master", move || {
        facts::master::watch(config.clone(), lookup.clone(), masters_in.clone())
    });
    masters
}

fn start_facts(
    tasks: &mut Tasks,
    (source, lookup): (facts::Source, Lookup),
    config: &Arc<Config>,
    keys: watch::Receiver<Arc<HostKeys>>,
    facts: watch::Sender<Option<Arc<facts::HostFacts>>>,
) {
    let (public_in, public_ip) = watch::channel(None);
    let of_public = config.clone();
    tasks.supervise("public-ip", move || {
        facts::watch_public_ip(of_public.clone(), lookup.clone(), public_in.clone())
    });
    let config = config.clone();
    tasks.supervise("facts", move || {
        let (public_ip, keys) = (public_ip.clone(), keys.clone());
        facts::watch(
            source.clone(),
            config.clone(),
            public_ip,
            keys,
            facts.clone(),
        )
    });
}

fn start_statistics(
    tasks: &mut Tasks,
    overlay: &OverlaySlot,
    volumes: &VolumesSlot,
) -> MeasuresSlot {
    let (data_in, data) = watch::channel(None);
    let (overlay, volumes) = (overlay.clone(), volumes.clone());
    tasks.supervise("sizes", move || {
        sizes::watch(volumes.clone(), data_in.clone())
    });
    let (statistics_in, statistics) = watch::channel(None);
    tasks.supervise("statistics", move || {
        measures::watch(overlay.clone(), data.clone(), statistics_in.clone())
    });
    statistics
}

/// Starts what has to do with containers, and waits for the engine.
async fn start_engine(
    tasks: &mut Tasks,
    engine: &EngineConfig,
    store: &Store,
    bridges: watch::Sender<Option<BTreeSet<String>>>,
    (zone, lookup): (watch::Receiver<Arc<Zone>>, Lookup),
    dirty: &Arc<DirtySet>,
) -> Tools {
    let (name_in, name) = watch::channel(bridge::DEFAULT_NAME.to_owned());
    // Names are served from what was known, before and without the engine.
    let (bridge_in, bridge) = watch::channel(None);
    let at = bridge.clone();
    tasks.supervise("names", move || {
        dns::server::run(at.clone(), zone.clone(), lookup.upstreams().clone())
    });
    tasks.supervise("bridge", move || {
        bridge::watch(name.clone(), bridge_in.clone())
    });
    let docker = docker::connect(&engine.socket).await;
    name_in.send_replace(bridge::name(&docker).await);
    let of_networks = docker.clone();
    tasks.supervise("networks", move || {
        networks::watch(of_networks.clone(), bridges.clone())
    });
    let (of_events, dirty) = (docker.clone(), dirty.clone());
    tasks.supervise("events", move || {
        events::watch(of_events.clone(), dirty.clone())
    });
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
    let (store, directory, taken) = (store.clone(), directory.clone(), taken.clone());
    let mut first = Some(keys);
    tasks.supervise("keys", move || {
        let load = || keys::load(&store, &keys::generate);
        let keys = first.take().unwrap_or_else(load);
        let (directory, taken) = (directory.clone(), taken.clone());
        keys::watch(keys, store.clone(), directory, taken, slot.clone())
    });
    host_keys
}

fn start_pings(
    tasks: &mut Tasks,
    directory: &watch::Receiver<Arc<Directory>>,
    host: &HostSlot,
    overlay: &OverlaySlot,
) -> PingsSlot {
    let (slot, pings) = watch::channel(Arc::default());
    let (directory, host, overlay) = (directory.clone(), host.clone(), overlay.clone());
    tasks.supervise("pings", move || {
        let (directory, host) = (directory.clone(), host.clone());
        Pings::new(directory, host, overlay.clone(), slot.clone()).run()
    });
    pings
}
