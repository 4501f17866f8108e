//! The bridges that containers of this engine are behind: that of the default network,
//! and those of the networks that users made.
//!
//! An event says only that a look is due, as it does of containers (`events`).

use std::collections::{BTreeSet, HashMap};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::Network;
use bollard::query_parameters::ListNetworksOptionsBuilder;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::{debug, info};

use super::bridge::NAME_OPTION;
use super::events::{self, RETRY_EVERY};

const DRIVER: &str = "bridge";
/// How many octets of its id a network without a name for its bridge lends it.
const ID_IN_NAME: usize = 12;

/// Where their names are to be seen.
pub type BridgesSlot = watch::Receiver<BTreeSet<String>>;

/// Publishes the names whenever they change, for ever. While the engine is away they stay
/// as they were.
pub async fn watch(docker: Docker, slot: watch::Sender<BTreeSet<String>>) {
    let filters = HashMap::from([
        ("type", vec!["network".to_owned()]),
        ("event", vec!["create".to_owned(), "destroy".to_owned()]),
    ]);
    let due = Notify::new();
    let follow = async {
        loop {
            events::follow(&docker, &filters, |_| due.notify_one()).await;
            sleep(RETRY_EVERY).await;
        }
    };
    let look = async {
        loop {
            due.notified().await;
            match names(&docker).await {
                Ok(names) => publish(&slot, names),
                Err(err) => {
                    debug!(%err, "the networks cannot be seen");
                    sleep(RETRY_EVERY).await;
                    due.notify_one();
                }
            }
        }
    };
    tokio::join!(follow, look);
}

fn publish(slot: &watch::Sender<BTreeSet<String>>, names: BTreeSet<String>) {
    let told = format!("{names:?}");
    let changed = slot.send_if_modified(|old| {
        let differs = *old != names;
        *old = names;
        differs
    });
    if changed {
        info!(bridges = told, "containers are behind");
    }
}

/// What the bridges are called.
pub async fn names(docker: &Docker) -> Result<BTreeSet<String>, Error> {
    let filters = HashMap::from([("driver", vec![DRIVER.to_owned()])]);
    let options = ListNetworksOptionsBuilder::default()
        .filters(&filters)
        .build();
    let networks = docker.list_networks(Some(options)).await?;
    Ok(networks.iter().filter_map(name).collect())
}

/// What the engine calls the bridge of a network.
fn name(network: &Network) -> Option<String> {
    let options = network.options.as_ref();
    let given = options.and_then(|options| options.get(NAME_OPTION).cloned());
    given.or_else(|| Some(format!("br-{}", network.id.as_ref()?.get(..ID_IN_NAME)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_has_the_name_that_is_given_or_one_of_its_network() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let mut network = Network {
            id: Some(id.to_owned()),
            ..Network::default()
        };
        assert_eq!(name(&network).as_deref(), Some("br-0123456789ab"));
        let options = HashMap::from([(NAME_OPTION.to_owned(), "docker0".to_owned())]);
        network.options = Some(options);
        assert_eq!(name(&network).as_deref(), Some("docker0"));
        assert_eq!(name(&Network::default()), None);
    }
}
