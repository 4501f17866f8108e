//! Whether this host's overlay may be brought up at all.
//!
//! The Master refuses a host whose own networks overlap the grid's. But it may be of the previous
//! version, or away, and a host may get a network after joining. Where the overlay would shadow
//! the host's LAN or its route to the Master, it is not brought up.
//!
//! Invariant: an overlay that is up stays up and is maintained as usual: containers are on it, and
//! what it shadows is shadowed already.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::Ipv4Network;
use kontena_schema::agent::GridSettings;
use kontena_schema::overlap::{HostNetworks, Overlap, overlap};

use super::networks;
use crate::net;
use kontena_overlay::BRIDGE;

/// Why the overlay is not brought up, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A network of this host overlaps one of the grid's.
    Network(Overlap),
    /// The Master's address is in one of the grid's.
    Master(SocketAddr, Ipv4Network),
    /// This host's networks are not known.
    Unknown(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(overlap) => write!(f, "this host's {overlap}; {}", overlap.advice()),
            Self::Master(at, grid) => write!(
                f,
                "the Master's address {} is inside the grid's network {grid}; \
                 create the grid with others (--subnet, --inner-subnet)",
                at.ip()
            ),
            Self::Unknown(reason) => write!(f, "this host's networks cannot be read: {reason}"),
        }
    }
}

/// Why the overlay of a grid must not be brought up on this host; none if it may, or is up.
/// Looks at the calling thread's network namespace.
pub async fn refusal(
    grid: &GridSettings,
    masters: Option<&BTreeSet<SocketAddr>>,
) -> Option<Refusal> {
    // The bridge's address puts the grid's networks on-link.
    if net::interface_address(BRIDGE).is_some() {
        return None;
    }
    decide(grid, masters, networks::look().await)
}

fn decide(
    grid: &GridSettings,
    masters: Option<&BTreeSet<SocketAddr>>,
    networks: Result<HostNetworks, String>,
) -> Option<Refusal> {
    let networks = match networks {
        Ok(networks) => networks,
        Err(reason) => return Some(Refusal::Unknown(reason)),
    };
    if let Some(found) = overlap(grid.supernet, grid.inner_subnet, &networks) {
        return Some(Refusal::Network(found));
    }
    let grids = [grid.supernet, grid.inner_subnet.network()];
    masters.into_iter().flatten().find_map(|at| {
        // The grid has no IPv6 address.
        let IpAddr::V4(ip) = at.ip() else {
            return None;
        };
        let network = grids.into_iter().find(|grid| grid.contains(ip))?;
        Some(Refusal::Master(*at, network))
    })
}

#[cfg(test)]
mod tests {
    use kontena_schema::overlap::HostNetwork;

    use super::*;
    use crate::directory::tests::grid;

    fn on_eth0(network: &str) -> Result<HostNetworks, String> {
        let network = HostNetwork {
            network: network.parse().unwrap(),
            interface: Some("eth0".to_owned()),
        };
        Ok(HostNetworks::of([network]).0)
    }

    fn masters(at: &str) -> Option<BTreeSet<SocketAddr>> {
        Some([at.parse().unwrap()].into())
    }

    #[test]
    fn an_overlay_that_would_take_the_hosts_network_is_refused_with_both_named() {
        let refused = decide(&grid(), None, on_eth0("10.81.3.0/24")).unwrap();
        let text = "this host's network 10.81.3.0/24 on eth0 overlaps the grid's overlay network \
                    10.81.0.0/17; create the grid with another `--subnet`";
        assert_eq!(refused.to_string(), text);
        assert_eq!(decide(&grid(), None, on_eth0("10.82.0.0/16")), None);
    }

    #[test]
    fn an_overlay_that_would_take_the_way_to_the_master_is_refused() {
        let networks = on_eth0("192.168.1.0/24");
        for (at, network) in [
            ("10.81.3.4:443", "10.81.0.0/17"),
            ("100.127.81.9:443", "100.127.81.0/24"),
        ] {
            let refused = decide(&grid(), masters(at).as_ref(), networks.clone()).unwrap();
            assert!(refused.to_string().contains(network), "{refused}");
        }
        let elsewhere = masters("192.0.2.1:443");
        assert_eq!(decide(&grid(), elsewhere.as_ref(), networks), None);
    }

    #[test]
    fn a_host_whose_networks_cannot_be_read_has_none_brought_up() {
        let unknown = decide(&grid(), None, Err("no answer".to_owned())).unwrap();
        assert!(unknown.to_string().ends_with("no answer"), "{unknown}");
    }
}
