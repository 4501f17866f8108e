//! Offsets and constants of the headers that are read and written here: Ethernet, IPv4
//! (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP (RFC 768).

use kontena_schema::mac::Mac;

use crate::checksum::internet_checksum;

/// Bytes of headers without options.
pub(crate) const ETHERNET: usize = 14;
pub(crate) const IPV4: usize = 20;
pub(crate) const IPV6: usize = 40;
pub(crate) const TCP: usize = 20;
pub(crate) const UDP: usize = 8;

pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;

/// TCP flags, in the octet at `TCP_FLAGS`.
pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const CWR: u8 = 0x80;
pub(crate) const TCP_FLAGS: usize = 13;
/// Offset of the checksum in the TCP header.
pub(crate) const TCP_CHECKSUM: usize = 16;

/// Ethertypes (IANA, IEEE 802 Numbers).
pub(crate) const IPV4_ETHERTYPE: [u8; 2] = [0x08, 0x00];
const ARP_ETHERTYPE: [u8; 2] = [0x08, 0x06];
pub(crate) const IPV6_ETHERTYPE: [u8; 2] = [0x86, 0xdd];

/// The source MAC of a frame. None if it is truncated.
pub(crate) fn source(frame: &[u8]) -> Option<Mac> {
    frame.get(6..12)?.try_into().ok().map(Mac)
}

/// The Ethertype of a frame. None if it is truncated.
pub(crate) fn ethertype(frame: &[u8]) -> Option<[u8; 2]> {
    frame.get(ETHERNET - 2..ETHERNET)?.try_into().ok()
}

/// Whether a frame is ARP (RFC 826) or has a VLAN tag (IEEE 802.1Q), which a kernel strips and
/// may find ARP behind.
pub(crate) fn is_arp(ethertype: [u8; 2]) -> bool {
    const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
    ethertype == ARP_ETHERTYPE || TAGS.contains(&ethertype)
}

/// Whether a frame is ARP, tagged, or an IPv6 neighbour solicitation (RFC 4861): what a kernel
/// VXLAN device with `proxy` does not send either.
pub(crate) fn stays_on_its_host(frame: &[u8]) -> bool {
    const NEXT_HEADER: usize = ETHERNET + 6;
    const ICMPV6: u8 = 58;
    const SOLICITATION: [u8; 2] = [135, 0];
    match ethertype(frame) {
        Some(ethertype) if is_arp(ethertype) => true,
        Some(IPV6_ETHERTYPE) => {
            let message = frame.get(ETHERNET + IPV6..).unwrap_or_default();
            frame.get(NEXT_HEADER) == Some(&ICMPV6) && message.starts_with(&SOLICITATION)
        }
        _ => false,
    }
}

/// Whether an IPv4 packet is a fragment. None if it is truncated.
pub(crate) fn is_fragment(ip: &[u8]) -> Option<bool> {
    const MORE_AND_OFFSET: u8 = 0x3f;
    Some(ip.get(6)? & MORE_AND_OFFSET != 0 || *ip.get(7)? != 0)
}

/// Writes the checksum of an IPv4 header; `header` is exactly that header.
pub(crate) fn write_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = internet_checksum(header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}
