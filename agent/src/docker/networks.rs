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
use tokio::sync::watch;
use tracing::{info, warn};

use super::bridge::NAME_OPTION;
use super::events;
use crate::net::default_interface;

const DRIVER: &str = "bridge";
/// How many octets of its id a network without a name for its bridge lends it.
const ID_IN_NAME: usize = 12;

/// Longest name of an interface in octets, `IFNAMSIZ` of `linux/if.h` without its end.
const NAME_MAX: usize = 15;
/// How often they are looked at even without an event.
const TICK: Duration = Duration::from_secs(10);

/// Where their names are to be seen; none before the first look.
pub type BridgesSlot = watch::Receiver<Option<BTreeSet<String>>>;

/// Publishes the names whenever they change, for ever. While the engine is away they stay
/// as they were.
pub async fn watch(docker: Docker, slot: watch::Sender<Option<BTreeSet<String>>>) {
    let mut told = BTreeSet::new();
    let take = |seen: Seen| {
        publish(&slot, seen.containers);
        if seen.others != told {
            warn!(bridges = ?seen.others, "the egress policy does not cover containers on these bridges");
            told = seen.others;
        }
    };
    events::look_at(&docker, ("network", TICK), || look(&docker), take).await;
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
        info!(
            bridges = told,
            "the egress policy covers containers on these bridges"
        );
    }
}

/// What the bridges of an engine are called.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Those that only containers are behind.
    containers: BTreeSet<String>,
    /// All others: one that leads out of the host, and what has a name that the packet
    /// filter would not take.
    others: BTreeSet<String>,
}

async fn look(docker: &Docker) -> Result<Seen, Error> {
    let filters = HashMap::from([("driver", vec![DRIVER.to_owned()])]);
    let options = ListNetworksOptionsBuilder::default()
        .filters(&filters)
        .build();
    let networks = docker.list_networks(Some(options)).await?;
    Ok(bridges(&networks, default_interface().as_deref()))
}

/// The bridges of networks. Whoever reaches the host comes through the one that leads out.
fn bridges(networks: &[Network], uplink: Option<&str>) -> Seen {
    let names = networks.iter().filter_map(name);
    let of_containers = |name: &String| Some(&**name) != uplink && is_plain(name);
    let (containers, others) = names.partition(of_containers);
    Seen { containers, others }
}

/// What the engine calls the bridge of a network.
fn name(network: &Network) -> Option<String> {
    let options = network.options.as_ref();
    // The engine takes an empty one for none.
    let given = options.and_then(|options| options.get(NAME_OPTION));
    match given.filter(|name| !name.is_empty()) {
        Some(name) => Some(name.clone()),
        None => Some(format!("br-{}", network.id.as_ref()?.get(..ID_IN_NAME)?)),
    }
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
    fn a_name_that_the_packet_filter_would_not_take_is_told_apart() {
        for bad in [
            "br*",
            "@masters",
            "a b",
            "a/b",
            "br-0123456789abcd",
            "\u{e9}",
        ] {
            let seen = bridges(&[network(None), network(Some(bad))], None);
            let others = BTreeSet::from([bad.to_owned()]);
            assert_eq!((seen.containers.len(), seen.others), (1, others));
        }
    }

    #[test]
    fn a_bridge_that_leads_out_of_the_host_is_none_of_containers() {
        let networks = ["docker0", "br0"].map(|name| network(Some(name)));
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut all = Seen {
            containers: set(&["br0", "docker0"]),
            others: set(&[]),
        };
        assert_eq!(bridges(&networks, Some("eth0")), all);
        assert_eq!(bridges(&networks, None), all);
        all.containers.remove("br0");
        all.others.insert("br0".to_owned());
        assert_eq!(bridges(&networks, Some("br0")), all);
    }
}
