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
use tokio::time::sleep;
use tracing::{info, warn};

use crate::net::{AddressEvents, interface_address};

/// How often the interface is looked at even if nothing is told of it.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The same where nothing can be told.
const LOOK_OFTEN: Duration = Duration::from_millis(500);
/// An engine that starts changes many addresses at once.
const GATHER: Duration = Duration::from_millis(100);
/// What an engine calls it unless it is told otherwise.
pub const DEFAULT_NAME: &str = "docker0";
pub(super) const NAME_OPTION: &str = "com.docker.network.bridge.name";

/// Where the address is to be seen; none while there is none.
pub type BridgeSlot = watch::Receiver<Option<Ipv4Addr>>;

/// Publishes the address whenever it changes, for ever; `name` may become known
/// later.
pub async fn watch(mut name: watch::Receiver<String>, slot: watch::Sender<Option<Ipv4Addr>>) {
    // Before the first look, so that no change is missed.
    let mut events = AddressEvents::open()
        .inspect_err(|err| warn!(%err, "no notifications of address changes; polling instead"))
        .ok();
    let every = events.as_ref().map_or(LOOK_OFTEN, |_| LOOK_EVERY);
    loop {
        let interface = name.borrow_and_update().clone();
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
            info!(interface, ?address, "found Docker's bridge");
        }
        tokio::select! {
            () = changed_address(&mut events) => sleep(GATHER).await,
            Ok(()) = name.changed() => {}
            () = sleep(every) => {}
        }
    }
}

async fn changed_address(events: &mut Option<AddressEvents>) {
    match events {
        Some(events) => events.changed().await,
        None => std::future::pending().await,
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
            warn!(%err, "cannot look up the name of Docker's bridge; assuming {DEFAULT_NAME}");
            DEFAULT_NAME.to_owned()
        }
    }
}
