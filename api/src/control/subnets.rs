//! Networks as requests name them, and which of them may be trusted.
//!
//! A trusted network is one on which hosts are. What is refused cannot be meant: it holds
//! no host, it is the overlay itself, or it is wider than any network that one party has.
//! That a narrower one holds nobody else's hosts only its administrator knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::{IpNetwork, Ipv4Network};
use kontena_schema::address::{InnerSubnet, host_bits};
use kontena_schema::limits::TRUSTED_SUBNETS_MAX;

/// The prefix of the widest private network, 10.0.0.0/8 (RFC 1918 section 3).
const PREFIX_MIN: u8 = 8;

/// Where no host is: the special-purpose address registry (RFC 6890 section 2.2.2), and
/// multicast (RFC 5771).
const WITHOUT_HOSTS: [(Ipv4Addr, u8, &str); 4] = [
    (Ipv4Addr::UNSPECIFIED, 8, "of addresses that no host has"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "a host's loopback network"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "of multicast groups"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// Parses a network; `example` is one as it might be. None after a fault.
pub(super) fn network(
    field: &str,
    text: &str,
    example: &str,
    faults: &mut BTreeMap<String, String>,
) -> Option<Ipv4Network> {
    let mut refuse = |reason: String| {
        faults.insert(field.to_owned(), format!("{text:?} {reason}"));
        None
    };
    // The crate takes an address for a network of one.
    match (text.contains('/'), text.parse()) {
        (true, Ok(IpNetwork::V4(network))) => Some(network),
        (false, Ok(IpNetwork::V4(network))) => refuse(format!(
            "has no prefix length; that one address is {network}"
        )),
        (_, Ok(IpNetwork::V6(_))) => refuse("is IPv6, only IPv4 networks are possible".to_owned()),
        (_, Err(_)) => refuse(format!("is no IPv4 network such as {example}")),
    }
}

/// A list of networks: parsed, and without host bits. None of them after a fault.
pub(super) fn networks(
    field: &str,
    texts: &[String],
    faults: &mut BTreeMap<String, String>,
) -> Vec<Ipv4Network> {
    if texts.len() > TRUSTED_SUBNETS_MAX {
        let reason = format!("at most {TRUSTED_SUBNETS_MAX} are possible");
        faults.insert(field.to_owned(), reason);
        return Vec::new();
    }
    let (mut parsed, before) = (Vec::new(), faults.len());
    for (index, text) in texts.iter().enumerate() {
        let field = format!("{field}.{index}");
        let Some(subnet) = network(&field, text, "192.168.0.0/16", faults) else {
            continue;
        };
        if let Some(reason) = host_bits(subnet) {
            faults.insert(field, format!("{text:?} {reason}"));
        }
        parsed.push(subnet);
    }
    if faults.len() > before {
        parsed.clear();
    }
    parsed
}

/// What keeps a grid from trusting networks that it does not trust yet.
pub(super) fn judge(
    field: &str,
    subnets: &[Ipv4Network],
    grid: &Own,
    faults: &mut BTreeMap<String, String>,
) {
    for (index, subnet) in subnets.iter().enumerate() {
        if grid.trusted.contains(subnet) {
            continue;
        }
        if let Some(reason) = fault(*subnet, grid) {
            faults.insert(format!("{field}.{index}"), format!("{subnet} {reason}"));
        }
    }
}

/// A grid's own networks.
pub(super) struct Own<'a> {
    pub(super) subnet: Ipv4Network,
    pub(super) inner: InnerSubnet,
    pub(super) trusted: &'a [Ipv4Network],
}

fn fault(subnet: Ipv4Network, grid: &Own) -> Option<String> {
    for (base, prefix, what) in WITHOUT_HOSTS {
        let space = Ipv4Network::new(base, prefix).expect("it is a prefix");
        if subnet.is_subnet_of(space) {
            return Some(format!("is {what} ({space})"));
        }
    }
    if subnet.prefix() < PREFIX_MIN {
        return Some(format!(
            "is too wide: at most a /{PREFIX_MIN} can be trusted, as 10.0.0.0/8 is"
        ));
    }
    let own = [
        (grid.subnet, "the overlay itself"),
        (
            grid.inner.network(),
            "what nodes use inside encrypted paths",
        ),
    ];
    let (network, what) = own.into_iter().find(|(own, _)| subnet.is_subnet_of(*own))?;
    Some(format!(
        "is {what} ({network}); trusted are networks of the hosts below it"
    ))
}

/// The same networks, each once.
pub(super) fn each_once(subnets: impl IntoIterator<Item = Ipv4Network>) -> Vec<Ipv4Network> {
    let mut seen = BTreeSet::new();
    let new = |subnet: &Ipv4Network| seen.insert(*subnet);
    subnets.into_iter().filter(new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of networks, by their fields.
    fn said(texts: &[&str]) -> BTreeMap<String, String> {
        let mut faults = BTreeMap::new();
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let subnets = networks("add", &texts, &mut faults);
        if faults.is_empty() {
            let own = Own {
                subnet: "10.81.0.0/19".parse().unwrap(),
                inner: InnerSubnet::default(),
                trusted: &["10.81.4.0/24".parse().unwrap()],
            };
            judge("add", &subnets, &own, &mut faults);
        }
        faults
    }

    #[test]
    fn networks_of_hosts_can_be_trusted() {
        let good = [
            "10.0.0.0/8",
            "192.168.1.0/24",
            "198.51.100.7/32",
            "100.64.0.0/10",
            "169.254.0.0/16",
        ];
        assert_eq!(said(&good), BTreeMap::new());
        // It holds the overlay, and hosts beside it.
        assert_eq!(said(&["10.80.0.0/12"]), BTreeMap::new());
        // Nobody lends its addresses; a host that has one is reached there.
        assert_eq!(said(&["10.81.64.0/24"]), BTreeMap::new());
        // One that is trusted already, as an older version let it.
        assert_eq!(said(&["10.81.4.0/24"]), BTreeMap::new());
    }

    #[test]
    fn what_is_no_network_of_hosts_is_refused_with_its_reason() {
        for (text, reason) in [
            ("nonsense", "is no IPv4 network such as 192.168.0.0/16"),
            ("10.0.0.0/33", "is no IPv4 network"),
            ("198.51.100.7", "that one address is 198.51.100.7/32"),
            ("2001:db8::/32", "is IPv6, only IPv4"),
            ("2001:db8::1", "is IPv6, only IPv4"),
            ("10.0.0.1/8", "did you mean 10.0.0.0/8?"),
            ("0.0.0.0/0", "is too wide"),
            ("10.0.0.0/7", "is too wide"),
            ("0.0.0.0/8", "no host has (0.0.0.0/8)"),
            ("127.0.0.0/8", "loopback network (127.0.0.0/8)"),
            ("127.1.0.0/16", "loopback network"),
            ("239.0.0.0/8", "multicast groups (224.0.0.0/4)"),
            ("224.0.0.0/4", "multicast groups"),
            ("255.255.255.255/32", "reserved (240.0.0.0/4)"),
            ("10.81.0.0/19", "the overlay itself (10.81.0.0/19)"),
            ("10.81.5.0/24", "the overlay itself (10.81.0.0/19)"),
            (
                "100.127.81.0/24",
                "inside encrypted paths (100.127.81.0/24)",
            ),
        ] {
            let faults = said(&["10.0.0.0/8", "10.0.0.0/8", text]);
            assert_eq!(faults.len(), 1, "{text}: {faults:?}");
            let why = faults.get("add.2").expect(text);
            assert!(why.contains(reason), "{text}: {why}");
        }
    }

    #[test]
    fn too_many_are_refused_and_doubles_taken_once() {
        let many: Vec<String> = vec!["10.0.0.0/8".to_owned(); TRUSTED_SUBNETS_MAX + 1];
        let mut faults = BTreeMap::new();
        assert!(networks("add", &many, &mut faults).is_empty());
        assert!(faults["add"].contains("at most"), "{faults:?}");
        let [a, b]: [Ipv4Network; 2] = ["10.2.0.0/16", "10.1.0.0/16"].map(|t| t.parse().unwrap());
        assert_eq!(each_once([a, b, a]), [a, b]);
    }
}
