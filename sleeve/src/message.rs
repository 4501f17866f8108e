//! Messages between the agents of two hosts, inside the tunnel.
//!
//! They are datagrams of UDP between the tunnel addresses, so that an agent whose
//! kernel does the encryption sends and receives the same with a socket.

use std::net::Ipv4Addr;

use kontena_schema::limits::PROBE_PORT;

use crate::checksum::{pseudo, sum, transport_checksum};
use crate::headers::{IPV4, PROTOCOL_UDP, UDP, is_fragment, seal_ipv4};

/// WireGuard's header and tag around a packet (whitepaper section 5.4.6).
pub(crate) const SEAL: usize = 32;
const VERSION_AND_LENGTH: u8 = 0x45;
const TTL: u8 = 64;
/// Longer ones would not pass every underlay in one piece.
const CONTENTS_MAX: usize = 1024;

/// What a peer's agent advertised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The peer's tunnel address; it is proven.
    pub from: Ipv4Addr,
    /// What it advertised.
    pub contents: Vec<u8>,
}

/// The packet of a message; none if it is too long.
pub(crate) fn packet(from: Ipv4Addr, to: Ipv4Addr, contents: &[u8]) -> Option<Vec<u8>> {
    if contents.len() > CONTENTS_MAX {
        return None;
    }
    let udp_length = u16::try_from(UDP + contents.len()).ok()?;
    let length = udp_length + IPV4 as u16;
    let mut packet = vec![0; length.into()];
    let (ip, udp) = packet.split_at_mut(IPV4);
    ip[0] = VERSION_AND_LENGTH;
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    ip[8] = TTL;
    ip[9] = PROTOCOL_UDP;
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&to.octets());
    seal_ipv4(ip);
    udp[0..2].copy_from_slice(&PROBE_PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&PROBE_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
    udp[UDP..].copy_from_slice(contents);
    let total = pseudo(&ip[12..20], PROTOCOL_UDP, udp_length) + sum(udp);
    udp[6..8].copy_from_slice(&transport_checksum(total));
    Some(packet)
}

/// What a message between these two says; none if the packet is no such message.
pub(crate) fn contents(packet: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Option<&[u8]> {
    let (ip, udp) = packet.split_at_checked(IPV4)?;
    let whole = usize::from(u16::from_be_bytes([ip[2], ip[3]])) == packet.len();
    let datagram = ip[0] == VERSION_AND_LENGTH && ip[9] == PROTOCOL_UDP && !is_fragment(ip)?;
    let ours = ip[12..16] == from.octets() && ip[16..20] == to.octets();
    let (head, contents) = udp.split_at_checked(UDP)?;
    let for_us = head[2..4] == PROBE_PORT.to_be_bytes();
    let length = usize::from(u16::from_be_bytes([head[4], head[5]])) == udp.len();
    (whole && datagram && ours && for_us && length && contents.len() <= CONTENTS_MAX)
        .then_some(contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::encapsulations;
    use proptest::prelude::*;

    const A: Ipv4Addr = Ipv4Addr::new(100, 127, 81, 1);
    const B: Ipv4Addr = Ipv4Addr::new(100, 127, 81, 2);

    proptest! {
        #[test]
        fn a_message_is_read_as_it_was_written(advertised in prop::collection::vec(any::<u8>(), 0..80)) {
            (encapsulations::MESSAGE.check)(&advertised);
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_not_sent() {
        assert!(packet(A, B, &[0; CONTENTS_MAX]).is_some());
        assert!(packet(A, B, &[0; CONTENTS_MAX + 1]).is_none());
    }
}
