//! Where a host's own networks meet those of a grid.
//!
//! A grid's supernet and its tunnel subnet are on-link on every host of the grid. A host that
//! has a network of its own there loses one of the two: its LAN, and with it SSH and the Master,
//! or the overlay; which, the longer prefix or a policy rule decides. So such a host does not
//! join. The Master and the agent go by the same function, [`overlap`].
//!
//! Invariants: what came over the wire is valid and bounded; of networks that contain each other
//! only the widest is kept, which overlaps whatever the others do.
//!
//! Absent on purpose: networks that no grid can have ([`is_of_grids`]), since nothing meets them;
//! and IPv6, which the overlay has none of.

use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::address::{InnerSubnet, host_bits, is_of_grids};
use crate::limits::HOST_NETWORKS_MAX;

/// Longest name of an interface in octets, `IFNAMSIZ` of `linux/if.h` without its end.
const INTERFACE_BYTES_MAX: usize = 15;

/// A network that a host has or reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct HostNetwork {
    /// The network, without host bits.
    pub network: Ipv4Network,
    /// The interface that leads there; none where the network is an address at which others
    /// reach the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// A network as it comes over the wire.
#[derive(Deserialize)]
struct Unchecked {
    network: Ipv4Network,
    #[serde(default)]
    interface: Option<String>,
}

/// Why what a host says of its networks is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("networks: {0}")]
pub struct HostNetworkError(String);

impl TryFrom<Unchecked> for HostNetwork {
    type Error = HostNetworkError;

    fn try_from(unchecked: Unchecked) -> Result<Self, HostNetworkError> {
        let Unchecked { network, interface } = unchecked;
        if let Some(reason) = host_bits(network) {
            return Err(HostNetworkError(format!("{network} {reason}")));
        }
        let named = |name: &String| {
            let fits = (1..=INTERFACE_BYTES_MAX).contains(&name.len());
            // As the kernel has it (`dev_valid_name`).
            fits && !name.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/')
        };
        match interface {
            Some(name) if !named(&name) => Err(HostNetworkError(format!(
                "{name:?} is not an interface's name"
            ))),
            interface => Ok(Self { network, interface }),
        }
    }
}

impl HostNetwork {
    /// An address at which others reach the host.
    pub fn of_address(address: Ipv4Addr) -> Self {
        Self {
            network: address.into(),
            interface: None,
        }
    }
}

impl fmt::Display for HostNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interface {
            Some(interface) => write!(f, "network {} on {interface}", self.network),
            None if self.network.prefix() == 32 => write!(f, "address {}", self.network.ip()),
            None => write!(f, "network {}", self.network),
        }
    }
}

/// The networks of one host: none contains another, the widest first, and at most
/// [`HOST_NETWORKS_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<HostNetwork>", into = "Vec<HostNetwork>")]
pub struct HostNetworks(Vec<HostNetwork>);

impl HostNetworks {
    /// What is to be kept of the networks found, and how many more there are. Of the same
    /// network on two interfaces the first is kept.
    pub fn of(found: impl IntoIterator<Item = HostNetwork>) -> (Self, usize) {
        let relevant = |found: &HostNetwork| is_of_grids(found.network);
        let mut found: Vec<_> = found.into_iter().filter(relevant).collect();
        found.sort_by_key(|found| found.network.prefix());
        let (mut kept, mut more) = (Vec::<HostNetwork>::new(), 0);
        for one in found {
            let inside = |wider: &HostNetwork| one.network.is_subnet_of(wider.network);
            if kept.iter().any(inside) {
                continue;
            }
            if kept.len() < HOST_NETWORKS_MAX {
                kept.push(one);
            } else {
                more += 1;
            }
        }
        (Self(kept), more)
    }

    /// The networks.
    pub fn iter(&self) -> std::slice::Iter<'_, HostNetwork> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a HostNetworks {
    type Item = &'a HostNetwork;
    type IntoIter = std::slice::Iter<'a, HostNetwork>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl TryFrom<Vec<HostNetwork>> for HostNetworks {
    type Error = HostNetworkError;

    fn try_from(all: Vec<HostNetwork>) -> Result<Self, HostNetworkError> {
        if all.len() > HOST_NETWORKS_MAX {
            let count = all.len();
            let reason = format!("{count} are too many, the limit is {HOST_NETWORKS_MAX}");
            return Err(HostNetworkError(reason));
        }
        // A host that says the same twice, or more than is asked for, is harmless.
        Ok(Self::of(all).0)
    }
}

impl From<HostNetworks> for Vec<HostNetwork> {
    fn from(networks: HostNetworks) -> Self {
        networks.0
    }
}

/// A network of a host that overlaps one of a grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The host's.
    pub host: HostNetwork,
    /// The grid's.
    pub grid: Ipv4Network,
    /// Which of the grid's it is: `supernet` or `inner_subnet`.
    pub field: &'static str,
}

impl Overlap {
    /// What chooses another network for the grid.
    pub fn advice(&self) -> &'static str {
        match self.field {
            InnerSubnet::FIELD => "create the grid with another `--inner-subnet`",
            _ => "create the grid with another `--subnet`",
        }
    }
}

/// Both networks; the sentence goes on from "this host's", or "node x's".
impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, grid, field } = self;
        let what = match *field {
            InnerSubnet::FIELD => "tunnel",
            _ => "overlay",
        };
        write!(f, "{host} overlaps the grid's {what} network {grid}")
    }
}

/// The first network of a host that a grid with these networks would take from it, or it from
/// the grid. The subnet lies in the supernet.
pub fn overlap<'a>(
    supernet: Ipv4Network,
    tunnel: InnerSubnet,
    networks: impl IntoIterator<Item = &'a HostNetwork>,
) -> Option<Overlap> {
    let grid = [
        ("supernet", supernet),
        (InnerSubnet::FIELD, tunnel.network()),
    ];
    networks.into_iter().find_map(|host| {
        let (field, grid) = grid.into_iter().find(|(_, g)| g.overlaps(host.network))?;
        let host = host.clone();
        Some(Overlap { host, grid, field })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{DEFAULT_SUPERNET, Plan};

    fn on(network: &str, interface: &str) -> HostNetwork {
        HostNetwork {
            network: network.parse().unwrap(),
            interface: Some(interface.to_owned()),
        }
    }

    fn of(networks: &[&str]) -> (HostNetworks, usize) {
        HostNetworks::of(networks.iter().map(|network| on(network, "eth0")))
    }

    fn texts(networks: &HostNetworks) -> Vec<String> {
        let all = networks.iter();
        all.map(|one| one.network.to_string()).collect()
    }

    fn default_grid(networks: &[&str]) -> Option<Overlap> {
        let supernet = DEFAULT_SUPERNET.parse().unwrap();
        overlap(supernet, InnerSubnet::default(), &of(networks).0)
    }

    #[test]
    fn a_host_overlaps_a_grid_in_either_direction_and_both_networks_are_named() {
        for (network, field, grid) in [
            ("10.81.0.0/17", "supernet", "overlay network 10.81.0.0/17"),
            ("10.81.5.0/24", "supernet", "overlay network 10.81.0.0/17"),
            // Beyond the subnet 10.81.0.0/19, and on-link all the same.
            (
                "10.81.127.255/32",
                "supernet",
                "overlay network 10.81.0.0/17",
            ),
            ("10.80.0.0/12", "supernet", "overlay network 10.81.0.0/17"),
            ("10.0.0.0/8", "supernet", "overlay network 10.81.0.0/17"),
            (
                "100.127.81.7/32",
                "inner_subnet",
                "tunnel network 100.127.81.0/24",
            ),
            (
                "100.64.0.0/10",
                "inner_subnet",
                "tunnel network 100.127.81.0/24",
            ),
        ] {
            let found = default_grid(&["192.168.1.0/24", network]).expect(network);
            assert_eq!(found.field, field);
            let text = format!("network {network} on eth0 overlaps the grid's {grid}");
            assert_eq!(found.to_string(), text);
        }
        for network in ["10.80.0.0/16", "10.81.128.0/17", "100.127.80.0/24"] {
            assert_eq!(default_grid(&[network]), None, "{network}");
        }
    }

    #[test]
    fn the_advice_names_the_option_that_helps() {
        for (network, option) in [
            ("10.81.5.0/24", "--subnet`"),
            ("100.127.81.7/32", "--inner-subnet`"),
        ] {
            let advice = default_grid(&[network]).unwrap().advice();
            assert!(advice.contains(option), "{advice}");
        }
    }

    #[test]
    fn an_address_without_an_interface_is_called_an_address() {
        let address = HostNetwork::of_address(Ipv4Addr::new(10, 81, 3, 4));
        let supernet = DEFAULT_SUPERNET.parse().unwrap();
        let found = overlap(supernet, InnerSubnet::default(), [&address]).unwrap();
        let text = "address 10.81.3.4 overlaps the grid's overlay network 10.81.0.0/17";
        assert_eq!(found.to_string(), text);
    }

    #[test]
    fn the_widest_networks_are_kept_and_the_first_of_the_same() {
        let (kept, more) = of(&[
            "10.81.0.5/32",
            "10.81.0.0/24",
            "8.8.8.0/24",
            "192.168.1.0/24",
            "10.0.0.0/8",
        ]);
        assert_eq!(texts(&kept), ["10.0.0.0/8", "192.168.1.0/24"]);
        assert_eq!(more, 0);
        let (kept, _) = HostNetworks::of([on("10.1.0.0/16", "eth0"), on("10.1.0.0/16", "tun0")]);
        assert_eq!(Vec::from(kept), [on("10.1.0.0/16", "eth0")]);
    }

    #[test]
    fn what_goes_beyond_the_bound_is_counted_and_the_narrowest_of_all() {
        let narrow = (0..=255).flat_map(|b| (0..4).map(move |c| format!("10.{b}.{c}.0/24")));
        let all = narrow.chain(["192.168.0.0/16".to_owned()]);
        let (kept, more) = HostNetworks::of(all.map(|network| on(&network, "eth0")));
        assert_eq!(texts(&kept)[0], "192.168.0.0/16");
        assert_eq!(kept.iter().count(), HOST_NETWORKS_MAX);
        assert_eq!(more, 1025 - HOST_NETWORKS_MAX);
    }

    #[test]
    fn what_a_host_says_is_read_as_it_was_written_and_else_refused() {
        let (kept, _) = of(&["10.1.0.0/16", "192.168.1.0/24"]);
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<HostNetworks>(&text).unwrap(), kept);
        for (bad, reason) in [
            (r#"[{"network": "10.1.0.1/16"}]"#, "host bits"),
            (r#"[{"network": "10.1.0.0/33"}]"#, ""),
            (
                r#"[{"network": "10.1.0.0/16", "interface": ""}]"#,
                "not an interface's name",
            ),
            (
                r#"[{"network": "10.1.0.0/16", "interface": "a b"}]"#,
                "not an interface's name",
            ),
            (
                r#"[{"network": "10.1.0.0/16", "interface": "0123456789abcdef"}]"#,
                "not an interface's name",
            ),
            (
                r#"[{"network": "10.1.0.0/16", "interface": "\u0000"}]"#,
                "not an interface's name",
            ),
        ] {
            let error = serde_json::from_str::<HostNetworks>(bad).unwrap_err();
            assert!(error.to_string().contains(reason), "{bad}: {error}");
        }
        let one = r#"{"network": "10.1.0.0/16", "interface": "eth0"}"#;
        let many = vec![one; HOST_NETWORKS_MAX + 1].join(",");
        let error = serde_json::from_str::<HostNetworks>(&format!("[{many}]")).unwrap_err();
        assert!(error.to_string().contains("too many"), "{error}");
    }

    #[test]
    fn every_plan_is_made_of_networks_that_are_looked_for() {
        for (subnet, inner) in [
            ("10.81.0.0/19", "100.127.81.0/24"),
            ("172.31.0.0/16", "172.30.7.0/24"),
            ("192.168.0.0/16", "10.0.0.0/24"),
        ] {
            let [subnet, inner] = [subnet, inner].map(|text| text.parse().unwrap());
            let plan = Plan::new(subnet, subnet, inner).unwrap();
            assert!(is_of_grids(plan.supernet()) && is_of_grids(inner));
        }
        for other in ["8.8.8.0/24", "127.0.0.0/8", "169.254.0.0/16"] {
            assert!(!is_of_grids(other.parse().unwrap()), "{other}");
        }
    }
}
