//! What is around a frame inside the encrypted tunnel: IPv4, UDP and VXLAN (RFC 7348),
//! as the kernel's VXLAN device writes it.

use std::net::Ipv4Addr;

use kontena_schema::limits::VXLAN_PORT;

use crate::checksum::{fold, sum};
use crate::headers::{IPV4, PROTOCOL_UDP, UDP, is_fragment, seal_ipv4};

/// Bytes of VXLAN's own header.
pub const VXLAN_HEADER: usize = 8;
/// Bytes before the frame.
pub(crate) const BYTES: usize = IPV4 + UDP + VXLAN_HEADER;

const VERSION_AND_LENGTH: u8 = 0x45;
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
const TTL: u8 = 64;
/// "The VNI is valid", the only flag that is defined.
const FLAGS: u8 = 0x08;
/// Source ports say which stream a frame is of (RFC 7348 section 5).
const FIRST_SOURCE_PORT: u16 = 49152;

/// The packet around a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encapsulation {
    /// The tunnel address of who sent it.
    pub(crate) from: Ipv4Addr,
    /// The tunnel address of who gets it.
    pub(crate) to: Ipv4Addr,
    /// The grid's VXLAN network identifier, 24 bits.
    pub(crate) vni: u32,
}

/// VXLAN's own header, before a frame of this network (RFC 7348 section 5).
pub fn vxlan_header(vni: u32) -> [u8; VXLAN_HEADER] {
    let [_, high, middle, low] = vni.to_be_bytes();
    [FLAGS, 0, 0, 0, high, middle, low, 0]
}

impl Encapsulation {
    /// What stands before a frame of so many bytes that begins with these. None if
    /// it is too long.
    pub(crate) fn head(&self, frame: &[u8], bytes: usize) -> Option<[u8; BYTES]> {
        let udp_length = u16::try_from(UDP + VXLAN_HEADER + bytes).ok()?;
        let length = udp_length.checked_add(IPV4 as u16)?;
        let mut head = [0; BYTES];
        let (ip, rest) = head.split_at_mut(IPV4);
        ip[0] = VERSION_AND_LENGTH;
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip[6..8].copy_from_slice(&DONT_FRAGMENT);
        ip[8] = TTL;
        ip[9] = PROTOCOL_UDP;
        ip[12..16].copy_from_slice(&self.from.octets());
        ip[16..20].copy_from_slice(&self.to.octets());
        seal_ipv4(ip);
        let (udp, vxlan) = rest.split_at_mut(UDP);
        // Both MACs say enough of the stream; the packet is encrypted anyway.
        let stream = fold(sum(frame.get(..12).unwrap_or_default()));
        udp[0..2].copy_from_slice(&(FIRST_SOURCE_PORT | stream >> 2).to_be_bytes());
        udp[2..4].copy_from_slice(&VXLAN_PORT.to_be_bytes());
        udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
        // No UDP checksum: what encrypts the packet proves more.
        vxlan.copy_from_slice(&vxlan_header(self.vni));
        Some(head)
    }

    /// Reads a packet: its encapsulation, and where the frame in it begins. Whatever a
    /// VXLAN device would not take is refused.
    pub(crate) fn parse(packet: &[u8]) -> Option<(Self, usize)> {
        let first = *packet.first()?;
        let header = usize::from(first & 0xf) * 4;
        let well_formed = first >> 4 == 4 && header >= IPV4;
        let ip = packet.get(..header).filter(|_| well_formed)?;
        let address = |at: usize| {
            let octets: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets))
        };
        let length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        if ip[9] != PROTOCOL_UDP || is_fragment(ip)? || length != packet.len() {
            return None;
        }
        let udp = packet.get(header..header + UDP)?;
        let udp_length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        let for_us = udp[2..4] == VXLAN_PORT.to_be_bytes();
        let whole = header + udp_length == length;
        let vxlan = packet.get(header + UDP..header + UDP + VXLAN_HEADER)?;
        if !for_us || !whole || vxlan[0] & FLAGS == 0 {
            return None;
        }
        let encapsulation = Self {
            from: address(12)?,
            to: address(16)?,
            vni: u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]),
        };
        Some((encapsulation, header + UDP + VXLAN_HEADER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::encapsulations;
    use proptest::prelude::*;

    fn encapsulation(vni: u32) -> Encapsulation {
        let address = |host| Ipv4Addr::new(100, 127, 81, host);
        Encapsulation {
            from: address(1),
            to: address(2),
            vni,
        }
    }

    fn packet(encapsulation: &Encapsulation, frame: &[u8]) -> Vec<u8> {
        [&encapsulation.head(frame, frame.len()).unwrap()[..], frame].concat()
    }

    #[test]
    fn the_head_is_what_the_kernel_takes() {
        let head = encapsulation(0x0a_0b_0c).head(&[0; 60], 60).unwrap();
        assert_eq!(
            fold(sum(&head[..IPV4])),
            0xffff,
            "the checksum of the IP header"
        );
        assert_eq!(head[2..4], [0, 96], "total length");
        assert_eq!(head[22..26], [0x1a, 0x80, 0, 76], "port 6784, UDP length");
        assert_eq!(head[28..36], [8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0]);
    }

    #[test]
    fn what_a_vxlan_device_would_not_take_is_refused() {
        let good = packet(&encapsulation(7), &[1; 60]);
        assert!(Encapsulation::parse(&good).is_some());
        let with = |at: usize, octet: u8| {
            let mut bad = good.clone();
            bad[at] = octet;
            Encapsulation::parse(&bad)
        };
        for (at, octet, why) in [
            (0, 0x65, "IPv6"),
            (0, 0x44, "a header that is too short"),
            (3, 0, "another length"),
            (6, 0x20, "the first of several fragments"),
            (7, 1, "a later fragment"),
            (9, 6, "TCP"),
            (22, 0, "another port"),
            (25, 0, "another UDP length"),
            (28, 0, "no VNI"),
        ] {
            assert_eq!(with(at, octet), None, "{why}");
        }
        for length in 0..good.len() {
            assert_eq!(
                Encapsulation::parse(&good[..length]),
                None,
                "{length} bytes"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            (encapsulations::VXLAN.check)(&bytes);
        }
    }
}
