//! The address plan of a grid (`infra/adr/0001-addresses.md`).
//!
//! `subnet` is what may be allocated, `supernet` the on-link prefix of every
//! overlay interface. Node n has the subnet's base + n. Containers get what is
//! left, by class, so that every usable address works and a node is the last to
//! lose the address that belongs to its number.
//!
//! `inner_subnet` is beside both: nodes have its addresses inside encrypted paths only,
//! where nothing but packets of the overlay itself is.

use std::fmt;
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

/// Shared address space, RFC 6598 section 7. Hosts do not route it, so inner addresses
/// may be of it; overlay addresses stay with what users know as private.
const RFC6598: (Ipv4Addr, u8) = (Ipv4Addr::new(100, 64, 0, 0), 10);

/// Why networks are no address plan; `field` is the one to change.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct PlanError {
    /// `subnet`, `supernet` or `inner_subnet`.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

/// The networks of one grid, valid by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    subnet: Ipv4Network,
    supernet: Ipv4Network,
    inner_subnet: InnerSubnet,
}

impl Plan {
    /// Checks the networks: subnet and supernet are RFC 1918 networks without host bits,
    /// the subnet a /12 to /23 inside the supernet, and the inner subnet outside of it.
    pub fn new(
        subnet: Ipv4Network,
        supernet: Ipv4Network,
        inner_subnet: Ipv4Network,
    ) -> Result<Self, PlanError> {
        for (field, network) in [("subnet", subnet), ("supernet", supernet)] {
            no_host_bits(field, network)?;
            if !is_private(network) {
                let reason = format!("{network} is not private address space (RFC 1918)");
                return Err(PlanError { field, reason });
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
        let inner_subnet = InnerSubnet::try_from(inner_subnet)?;
        // A host could not tell an overlay address from an inner one.
        if inner_subnet.network().overlaps(supernet) {
            return Err(PlanError {
                field: InnerSubnet::FIELD,
                reason: format!("{inner_subnet} overlaps the supernet {supernet}"),
            });
        }
        Ok(Self {
            subnet,
            supernet,
            inner_subnet,
        })
    }

    /// What may be allocated.
    pub fn subnet(self) -> Ipv4Network {
        self.subnet
    }

    /// The on-link prefix of every overlay interface.
    pub fn supernet(self) -> Ipv4Network {
        self.supernet
    }

    /// The addresses of nodes inside encrypted paths.
    pub fn inner_subnet(self) -> InnerSubnet {
        self.inner_subnet
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

/// The addresses of a grid's nodes inside encrypted paths, by their numbers. It is always a
/// /24: node numbers are its host part, and of a wider one hosts would lose more than
/// that for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Network", into = "Ipv4Network")]
pub struct InnerSubnet {
    base: Ipv4Addr,
}

impl InnerSubnet {
    /// The prefix of all of them.
    pub const PREFIX: u8 = 24;
    pub(crate) const FIELD: &str = "inner_subnet";

    /// The network.
    pub fn network(self) -> Ipv4Network {
        Ipv4Network::new(self.base, Self::PREFIX).expect("24 is a prefix")
    }

    /// A node's address inside encrypted paths.
    pub fn address(self, number: NodeNumber) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() | u32::from(number.get()))
    }

    /// Whether an address is one of it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.network().contains(address)
    }
}

/// That of a grid that names none.
impl Default for InnerSubnet {
    fn default() -> Self {
        Self {
            base: Ipv4Addr::new(100, 127, 81, 0),
        }
    }
}

impl TryFrom<Ipv4Network> for InnerSubnet {
    type Error = PlanError;

    fn try_from(network: Ipv4Network) -> Result<Self, PlanError> {
        let field = Self::FIELD;
        no_host_bits(field, network)?;
        if network.prefix() != Self::PREFIX {
            let reason = format!(
                "prefix is /{}, must be /{}: the last octet is the node's number",
                network.prefix(),
                Self::PREFIX
            );
            return Err(PlanError { field, reason });
        }
        if !is_private(network) && !is_inside(network, RFC6598) {
            let reason = format!(
                "{network} is neither private (RFC 1918) nor shared address space (RFC 6598)"
            );
            return Err(PlanError { field, reason });
        }
        Ok(Self { base: network.ip() })
    }
}

impl From<InnerSubnet> for Ipv4Network {
    fn from(inner: InnerSubnet) -> Self {
        inner.network()
    }
}

impl fmt::Display for InnerSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.network().fmt(f)
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

fn no_host_bits(field: &'static str, network: Ipv4Network) -> Result<(), PlanError> {
    host_bits(network).map_or(Ok(()), |reason| Err(PlanError { field, reason }))
}

/// What is wrong with an address that is written in the place of its network.
pub fn host_bits(network: Ipv4Network) -> Option<String> {
    let (base, prefix) = (network.network(), network.prefix());
    let reason = || format!("has host bits set, did you mean {base}/{prefix}?");
    (network.ip() != base).then(reason)
}

/// Whether a network holds addresses that a grid may have. No other can overlap a grid's.
pub fn is_of_grids(network: Ipv4Network) -> bool {
    let mut spaces = RFC1918.into_iter().chain([RFC6598]);
    spaces.any(|(base, prefix)| {
        Ipv4Network::new(base, prefix).is_ok_and(|space| space.overlaps(network))
    })
}

/// Whether a network is one of the blocks of private address space as a whole.
pub fn is_private_block(network: Ipv4Network) -> bool {
    RFC1918.contains(&(network.network(), network.prefix()))
}

fn is_private(network: Ipv4Network) -> bool {
    RFC1918.iter().any(|&space| is_inside(network, space))
}

fn is_inside(network: Ipv4Network, (base, prefix): (Ipv4Addr, u8)) -> bool {
    Ipv4Network::new(base, prefix).is_ok_and(|space| network.is_subnet_of(space))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn plan(subnet: &str, supernet: &str) -> Result<Plan, PlanError> {
        let inner = InnerSubnet::default().network();
        Plan::new(network(subnet), network(supernet), inner)
    }

    fn inside(inner: &str) -> Result<Plan, PlanError> {
        let [subnet, supernet] = [DEFAULT_SUBNET, DEFAULT_SUPERNET].map(network);
        Plan::new(subnet, supernet, network(inner))
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
    fn inner_addresses_are_a_network_and_node_numbers_in_it() {
        let all = [
            "100.127.81.0/24",
            "100.64.0.0/24",
            "10.82.0.0/24",
            "172.31.255.0/24",
            "192.168.7.0/24",
            // Beside the default supernet, which ends at 10.81.127.255.
            "10.81.128.0/24",
        ];
        for text in all {
            let inner = inside(text).unwrap().inner_subnet();
            assert_eq!(inner.to_string(), text);
            let base = network(text).ip().to_bits();
            for number in [1_u8, 254] {
                let address = inner.address(NodeNumber::try_from(number).unwrap());
                assert_eq!(address.to_bits(), base + u32::from(number));
                assert!(inner.contains(address));
            }
            assert!(!inner.contains(Ipv4Addr::from_bits(base - 1)));
            assert!(!inner.contains(Ipv4Addr::from_bits(base + 256)));
        }
        let default = InnerSubnet::default();
        assert_eq!(InnerSubnet::try_from(default.network()).unwrap(), default);
    }

    #[test]
    fn a_bad_inner_subnet_names_its_field_and_the_reason() {
        for (inner, reason) in [
            ("100.127.81.1/24", "did you mean 100.127.81.0/24?"),
            ("100.127.0.0/16", "prefix is /16, must be /24"),
            ("100.127.81.0/25", "prefix is /25, must be /24"),
            ("198.51.100.0/24", "neither private"),
            ("100.128.0.0/24", "neither private"),
            ("100.63.255.0/24", "neither private"),
            ("10.81.40.0/24", "overlaps the supernet 10.81.0.0/17"),
            ("10.81.127.0/24", "overlaps the supernet 10.81.0.0/17"),
        ] {
            let error = inside(inner).unwrap_err();
            assert_eq!(error.field, "inner_subnet", "{inner}");
            assert!(error.reason.contains(reason), "{inner}: {}", error.reason);
        }
    }

    #[test]
    fn an_inner_subnet_is_read_as_the_text_that_it_is_and_no_other_is() {
        let inner = InnerSubnet::default();
        let text = serde_json::to_string(&inner).unwrap();
        assert_eq!(text, "\"100.127.81.0/24\"");
        assert_eq!(serde_json::from_str::<InnerSubnet>(&text).unwrap(), inner);
        for bad in ["\"100.127.81.0/25\"", "\"8.8.8.0/24\"", "\"x\"", "7"] {
            assert!(serde_json::from_str::<InnerSubnet>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_subnet_may_be_the_supernet() {
        assert!(plan("192.168.0.0/16", "192.168.0.0/16").is_ok());
    }
}
