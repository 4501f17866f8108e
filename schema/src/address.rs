//! The address plan of a grid (`infra/adr/0001-addresses.md`).
//!
//! `subnet` is what may be allocated, `supernet` the on-link prefix of every
//! overlay interface. Node n has the subnet's base + n. Containers get what is
//! left, by class, so that every usable address works and a node is the last to
//! lose the address that belongs to its number.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::ids::NodeNumber;

/// The subnet of a grid that names none.
pub const DEFAULT_SUBNET: &str = "10.81.0.0/19";
/// The supernet of a grid that names none.
pub const DEFAULT_SUPERNET: &str = "10.81.0.0/17";

/// Private address space, RFC 1918 section 3.
const RFC1918: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];

/// Why two networks are no address plan; `field` is the one to change.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct PlanError {
    /// `subnet` or `supernet`.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

/// The networks of one grid, valid by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    subnet: Ipv4Network,
    supernet: Ipv4Network,
}

impl Plan {
    /// Checks the two networks: both RFC 1918 networks without host bits, the
    /// subnet a /12 to /23 inside the supernet.
    pub fn new(subnet: Ipv4Network, supernet: Ipv4Network) -> Result<Self, PlanError> {
        for (field, network) in [("subnet", subnet), ("supernet", supernet)] {
            let fail = |reason| Err(PlanError { field, reason });
            if network.ip() != network.network() {
                let (network, prefix) = (network.network(), network.prefix());
                return fail(format!(
                    "has host bits set, did you mean {network}/{prefix}?"
                ));
            }
            if !is_private(network) {
                return fail(format!("{network} is not private address space (RFC 1918)"));
            }
        }
        if !(12..=23).contains(&subnet.prefix()) {
            let reason = format!(
                "prefix is /{}, must be between /12 and /23",
                subnet.prefix()
            );
            return Err(PlanError {
                field: "subnet",
                reason,
            });
        }
        if !subnet.is_subnet_of(supernet) {
            let reason = format!("{supernet} does not contain the subnet {subnet}");
            return Err(PlanError {
                field: "supernet",
                reason,
            });
        }
        Ok(Self { subnet, supernet })
    }

    /// What may be allocated.
    pub fn subnet(self) -> Ipv4Network {
        self.subnet
    }

    /// The on-link prefix of every overlay interface.
    pub fn supernet(self) -> Ipv4Network {
        self.supernet
    }

    /// The overlay address of a node.
    pub fn node_address(self, number: NodeNumber) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits() + u32::from(number.get()))
    }

    /// How many addresses nodes and containers can have together: all but the
    /// network's own and the broadcast address.
    pub fn usable(self) -> u32 {
        self.subnet.size() - 2
    }
}

/// In which order an address of the subnet is given to containers: 1 outside the
/// node range and not ending in .0 or .255, 2 the others outside it, 3 inside.
pub fn class(subnet: Ipv4Network, address: Ipv4Addr) -> i16 {
    let host = address.to_bits() - subnet.network().to_bits();
    match host {
        1..=254 => 3,
        _ if matches!(host % 256, 0 | 255) => 2,
        _ => 1,
    }
}

fn is_private(network: Ipv4Network) -> bool {
    RFC1918.iter().any(|&(base, prefix)| {
        Ipv4Network::new(base, prefix).is_ok_and(|private| network.is_subnet_of(private))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(subnet: &str, supernet: &str) -> Result<Plan, PlanError> {
        Plan::new(subnet.parse().unwrap(), supernet.parse().unwrap())
    }

    #[test]
    fn the_default_plan_has_8190_usable_addresses_and_nodes_at_the_bottom() {
        let plan = plan(DEFAULT_SUBNET, DEFAULT_SUPERNET).unwrap();
        assert_eq!(plan.usable(), 8190);
        let number = NodeNumber::try_from(254_u8).unwrap();
        assert_eq!(plan.node_address(number), Ipv4Addr::new(10, 81, 0, 254));
    }

    #[test]
    fn a_bad_plan_names_the_field() {
        for (subnet, supernet, field) in [
            ("10.81.0.1/19", "10.81.0.0/17", "subnet"),
            ("10.81.0.0/24", "10.81.0.0/17", "subnet"),
            ("10.0.0.0/11", "10.0.0.0/8", "subnet"),
            ("11.0.0.0/19", "11.0.0.0/17", "subnet"),
            ("10.81.0.0/19", "10.82.0.0/17", "supernet"),
            ("10.81.0.0/19", "10.81.0.0/20", "supernet"),
            ("10.0.0.0/12", "8.0.0.0/5", "supernet"),
        ] {
            let got = plan(subnet, supernet);
            // A /20 does hold half of a /19 but not all of it.
            assert_eq!(got.unwrap_err().field, field, "{subnet} in {supernet}");
        }
    }

    #[test]
    fn the_classes_of_the_default_subnet_have_7874_62_and_254_addresses() {
        let subnet: Ipv4Network = DEFAULT_SUBNET.parse().unwrap();
        let count = |wanted| {
            let usable = subnet.iter().skip(1).take(8190);
            usable.filter(|ip| class(subnet, *ip) == wanted).count()
        };
        assert_eq!([1, 2, 3].map(count), [7874, 62, 254]);
        assert_eq!(class(subnet, Ipv4Addr::new(10, 81, 1, 1)), 1);
        assert_eq!(class(subnet, Ipv4Addr::new(10, 81, 0, 255)), 2);
    }

    #[test]
    fn the_subnet_may_be_the_supernet() {
        assert!(plan("192.168.0.0/16", "192.168.0.0/16").is_ok());
    }
}
