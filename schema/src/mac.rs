//! MAC addresses on the overlay.
//!
//! The overlay is one flat layer 2 without learning, so a MAC has to say by
//! itself which lease it belongs to: two leases of one address differ in it, and
//! a frame that was sent to a former holder reaches nobody.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::LeaseNumber;

/// A MAC address, written `02:00:0a:51:01:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// The low bits of an address that differ within the largest subnet, a /12.
const HOST_BITS: u32 = 20;
/// What is left of 46 bits; 2^26 leases of one address before a MAC repeats.
const LEASE_BITS: u32 = 26;

impl Mac {
    /// The MAC of a lease. 48 bits less the multicast and the local bit
    /// (IEEE 802, clause 8.2.2) hold 20 bits of the address and 26 of the lease.
    pub fn of_lease(address: Ipv4Addr, lease: LeaseNumber) -> Self {
        let host = u64::from(address.to_bits()) & ((1 << HOST_BITS) - 1);
        let lease = lease.0.cast_unsigned() & ((1 << LEASE_BITS) - 1);
        let bits = (host << LEASE_BITS) | lease;
        let [_, _, first, rest @ ..] = bits.to_be_bytes();
        let [b1, b2, b3, b4, b5] = rest;
        // 46 bits leave the first octet 6: shift them above the two flag bits.
        Self([(first << 2) | 0b10, b1, b2, b3, b4, b5])
    }

    /// The MAC of a node's own overlay address, which is no lease: lease
    /// numbers start at 1, so 0 is free for it.
    pub fn of_node(address: Ipv4Addr) -> Self {
        Self::of_lease(address, LeaseNumber(0))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is no MAC address.
#[derive(Debug, thiserror::Error)]
#[error("not a MAC address: {0:?}")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let octets: Option<Vec<u8>> = text
            .split(':')
            .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())?)
            .collect();
        octets
            .and_then(|octets| octets.try_into().ok())
            .map(Self)
            .ok_or_else(|| MacError(text.to_owned()))
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn macs_of_leases_and_nodes_are_all_different_and_local_unicast() {
        let mut seen = HashSet::new();
        for host in 1..=400_u32 {
            let address = Ipv4Addr::from_bits(0x0a51_0000 + host * 20);
            for lease in [0, 1, 2, 1000, (1 << 26) - 1] {
                let mac = Mac::of_lease(address, LeaseNumber(lease));
                assert!(seen.insert(mac), "{mac} twice");
                assert_eq!(mac.0[0] & 0b11, 0b10, "{mac}");
            }
        }
        assert!(seen.contains(&Mac::of_node(Ipv4Addr::new(10, 81, 0, 20))));
    }

    #[test]
    fn text_survives_a_round_trip_and_nonsense_is_refused() {
        let mac = Mac::of_lease(Ipv4Addr::new(10, 81, 1, 1), LeaseNumber(7));
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        for bad in [
            "",
            "02:00",
            "02:00:00:00:00:0",
            "zz:00:00:00:00:00",
            "2:0:0:0:0:0:0",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
