//! The address of Docker's default bridge, where names are served and whence
//! containers reach the host.
//!
//! It is read from the interface and not from the engine, so that it is known
//! while the engine is away; the engine is asked once what the interface is
//! called.

use std::net::Ipv4Addr;
use std::time::Duration;

use bollard::Docker;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::net::interface_address;

/// How often the interface is looked at: an engine that starts makes it once in
/// its life, so a look may be late by this much.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What an engine calls it unless it is told otherwise.
pub const DEFAULT_NAME: &str = "docker0";
pub(super) const NAME_OPTION: &str = "com.docker.network.bridge.name";

/// Where the address is to be seen; none while there is none.
pub type BridgeSlot = watch::Receiver<Option<Ipv4Addr>>;

/// Publishes the address whenever it changes, for ever; `name` may become known
/// later.
pub async fn watch(name: watch::Receiver<String>, slot: watch::Sender<Option<Ipv4Addr>>) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let interface = name.borrow().clone();
        let address = interface_address(&interface);
        let changed = |old: &mut Option<Ipv4Addr>| {
            // An engine that restarts may take the interface away for a moment.
            let differs = address.is_some() && *old != address;
            if differs {
                *old = address;
            }
            differs
        };
        if slot.send_if_modified(changed) {
            info!(interface, ?address, "Docker's bridge");
        }
    }
}

/// What the engine calls the interface.
pub async fn name(docker: &Docker) -> String {
    match docker.inspect_network("bridge", None).await {
        Ok(network) => network
            .options
            .and_then(|mut options| options.remove(NAME_OPTION))
            .unwrap_or_else(|| DEFAULT_NAME.to_owned()),
        Err(err) => {
            warn!(%err, "Docker's bridge is taken for {DEFAULT_NAME}");
            DEFAULT_NAME.to_owned()
        }
    }
}
