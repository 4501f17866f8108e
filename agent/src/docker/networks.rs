//! The bridges that containers of this engine are behind: that of the default network,
//! and those of the networks that users made.
//!
//! An event says only that a look is due, as it does of containers (`events`), and not
//! every network has one: Swarm makes bridges without. So they are looked at once in a
//! while too. A container that is started at once with its network may be ahead of the
//! look by some tenths of a second.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::Network;
use bollard::query_parameters::ListNetworksOptionsBuilder;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::bridge::NAME_OPTION;
use super::events::{self, RETRY_EVERY};
use crate::facts::net::default_interface;

const DRIVER: &str = "bridge";
/// How many octets of its id a network without a name for its bridge lends it.
const ID_IN_NAME: usize = 12;

/// Longest name of an interface in octets, `IFNAMSIZ` of `linux/if.h` without its end.
const NAME_MAX: usize = 15;
/// How often they are looked at even if nothing rang.
const TICK: Duration = Duration::from_secs(10);

/// Where their names are to be seen; none before the first look.
pub type BridgesSlot = watch::Receiver<Option<BTreeSet<String>>>;

/// Publishes the names whenever they change, for ever. While the engine is away they stay
/// as they were.
pub async fn watch(docker: Docker, slot: watch::Sender<Option<BTreeSet<String>>>) {
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
            let _ = timeout(TICK, due.notified()).await;
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

fn publish(slot: &watch::Sender<Option<BTreeSet<String>>>, names: BTreeSet<String>) {
    let told = format!("{names:?}");
    let changed = slot.send_if_modified(|old| {
        let names = Some(names);
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
    Ok(bridges(&networks, default_interface().as_deref()))
}

/// The bridges of networks. One that leads out of the host is none of containers alone:
/// whoever reaches the host comes through it.
fn bridges(networks: &[Network], uplink: Option<&str>) -> BTreeSet<String> {
    let names = networks.iter().filter_map(name);
    names.filter(|name| Some(&**name) != uplink).collect()
}

/// What the engine calls the bridge of a network, which is an interface's name.
fn name(network: &Network) -> Option<String> {
    let options = network.options.as_ref();
    // The engine takes an empty one for none.
    let given = options.and_then(|options| options.get(NAME_OPTION));
    let name = match given.filter(|name| !name.is_empty()) {
        Some(name) => name.clone(),
        None => format!("br-{}", network.id.as_ref()?.get(..ID_IN_NAME)?),
    };
    let told = is_plain(&name);
    if !told {
        warn!(
            name,
            "a network whose bridge cannot have that name is passed over"
        );
    }
    told.then_some(name)
}

/// Whether it may be an interface's name that means nothing else to the packet filter;
/// one that does not would spoil the whole set.
fn is_plain(name: &str) -> bool {
    let plain = |octet: u8| octet.is_ascii_alphanumeric() || b"-_.".contains(&octet);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn network(given: Option<&str>) -> Network {
        let option = |name: &str| HashMap::from([(NAME_OPTION.to_owned(), name.to_owned())]);
        Network {
            id: Some(ID.to_owned()),
            options: given.map(option),
            ..Network::default()
        }
    }

    #[test]
    fn a_bridge_has_the_name_that_is_given_or_one_of_its_network() {
        for given in [None, Some("")] {
            assert_eq!(name(&network(given)).as_deref(), Some("br-0123456789ab"));
        }
        let longest = "a-b_c.123456789";
        for given in ["docker0", longest] {
            assert_eq!(name(&network(Some(given))).as_deref(), Some(given));
        }
        assert_eq!(name(&Network::default()), None);
    }

    #[test]
    fn what_the_packet_filter_would_not_take_is_passed_over() {
        for bad in [
            "br*",
            "@masters",
            "a b",
            "a/b",
            "br-0123456789abcd",
            "\u{e9}",
        ] {
            assert_eq!(name(&network(Some(bad))), None, "{bad}");
        }
    }

    #[test]
    fn a_bridge_that_leads_out_of_the_host_is_none_of_containers() {
        let networks = ["docker0", "br0"].map(|name| network(Some(name)));
        let of = |uplink| bridges(&networks, uplink).into_iter().collect::<Vec<_>>();
        assert_eq!(of(Some("br0")), ["docker0"]);
        assert_eq!(of(Some("eth0")), ["br0", "docker0"]);
        assert_eq!(of(None), ["br0", "docker0"]);
    }
}
