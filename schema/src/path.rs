//! How two nodes of a grid reach each other.
//!
//! One pure function that the Master and both agents compute alike, so that a
//! pair needs no negotiation: which of the peer's addresses is used, and whether
//! the overlay may run in clear between the two.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::NodeId;

/// What a path depends on at one of its ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The region of the node; nodes of one region share a private network.
    pub region: String,
    /// The address on the public network, if it is known.
    pub public_ip: Option<Ipv4Addr>,
    /// The address on the region's private network, if it is known.
    pub private_ip: Option<Ipv4Addr>,
}

/// How frames travel from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Path {
    /// In clear, over VXLAN, to this address.
    Fast {
        /// The peer's underlay address.
        to: Ipv4Addr,
    },
    /// Encrypted, to this address.
    Sealed {
        /// The peer's underlay address.
        to: Ipv4Addr,
    },
    /// The peer has no address that could be used.
    Unknown,
}

/// The address at which `from` reaches `to`: the private one within a region,
/// else the public one. A missing one is not replaced by the other.
pub fn peer_address(from: &Site, to: &Site) -> Option<Ipv4Addr> {
    if from.region == to.region {
        to.private_ip
    } else {
        to.public_ip
    }
}

/// The path from `a` to `b`: fast only if the addresses that the two use for
/// each other both lie inside the grid's trusted subnets.
pub fn path(a: &Site, b: &Site, trusted_subnets: &[Ipv4Network]) -> Path {
    let trusted = |ip: Ipv4Addr| trusted_subnets.iter().any(|subnet| subnet.contains(ip));
    match (peer_address(a, b), peer_address(b, a)) {
        (Some(to), Some(back)) if trusted(to) && trusted(back) => Path::Fast { to },
        (Some(to), _) => Path::Sealed { to },
        (None, _) => Path::Unknown,
    }
}

/// What a path between two nodes depends on, as a number: two agents whose numbers
/// agree compute the same path. It is the same from both ends.
pub fn agreement(
    (a, site_a): (NodeId, &Site),
    (b, site_b): (NodeId, &Site),
    trusted_subnets: &[Ipv4Network],
) -> u64 {
    let mut ends = [(a, site_a), (b, site_b)];
    ends.sort_by_key(|(id, _)| *id);
    let mut trusted = trusted_subnets.to_vec();
    trusted.sort();
    let text = serde_json::to_vec(&(ends, trusted)).expect("sites and networks are plain JSON");
    let [h, g, f, e, d, c, b, a, ..] = <[u8; 32]>::from(Sha256::digest(text));
    u64::from_be_bytes([h, g, f, e, d, c, b, a])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(region: &str, public: Option<[u8; 4]>, private: Option<[u8; 4]>) -> Site {
        Site {
            region: region.to_owned(),
            public_ip: public.map(Ipv4Addr::from),
            private_ip: private.map(Ipv4Addr::from),
        }
    }

    #[test]
    fn a_pair_is_fast_only_inside_trusted_subnets_on_both_sides() {
        let trusted = ["10.1.0.0/16".parse().unwrap()];
        let a = site("fi", Some([203, 0, 113, 1]), Some([10, 1, 0, 1]));
        let b = site("fi", Some([203, 0, 113, 2]), Some([10, 1, 0, 2]));
        let outside = site("fi", Some([203, 0, 113, 3]), Some([10, 2, 0, 3]));
        let abroad = site("us", Some([203, 0, 113, 4]), Some([10, 1, 0, 4]));
        let to = |octets: [u8; 4]| Ipv4Addr::from(octets);

        assert_eq!(
            path(&a, &b, &trusted),
            Path::Fast {
                to: to([10, 1, 0, 2])
            }
        );
        assert_eq!(
            path(&a, &b, &[]),
            Path::Sealed {
                to: to([10, 1, 0, 2])
            }
        );
        assert_eq!(
            path(&a, &outside, &trusted),
            Path::Sealed {
                to: to([10, 2, 0, 3])
            }
        );
        assert_eq!(
            path(&outside, &a, &trusted),
            Path::Sealed {
                to: to([10, 1, 0, 1])
            }
        );
        assert_eq!(
            path(&a, &abroad, &trusted),
            Path::Sealed {
                to: to([203, 0, 113, 4])
            }
        );
    }

    #[test]
    fn an_unknown_address_is_not_replaced_by_the_other_one() {
        let a = site("fi", Some([203, 0, 113, 1]), Some([10, 1, 0, 1]));
        let hidden = site("us", None, Some([10, 1, 0, 4]));
        assert_eq!(path(&a, &hidden, &[]), Path::Unknown);
        assert!(matches!(path(&hidden, &a, &[]), Path::Sealed { .. }));
    }

    #[test]
    fn two_ends_agree_exactly_when_they_know_the_same() {
        let trusted: [Ipv4Network; 2] = ["10.1.0.0/16", "10.2.0.0/16"].map(|n| n.parse().unwrap());
        let a = site("fi", None, Some([10, 1, 0, 1]));
        let b = site("fi", None, Some([10, 1, 0, 2]));
        let moved = site("us", None, Some([10, 1, 0, 2]));
        let (one, two) = (NodeId(1), NodeId(2));
        let here = agreement((one, &a), (two, &b), &trusted);
        let turned = [trusted[1], trusted[0]];
        assert_eq!(here, agreement((two, &b), (one, &a), &turned));
        for other in [
            agreement((one, &a), (two, &b), &trusted[..1]),
            agreement((one, &a), (two, &moved), &trusted),
            agreement((one, &b), (two, &a), &trusted),
            agreement((one, &a), (NodeId(3), &b), &trusted),
        ] {
            assert_ne!(here, other);
        }
    }
}
