//! Frames to begin with, and what their headers must add up to, by the words of the
//! RFCs and not by those of the code that is looked at.

use crate::checksum::{fold, sum};
use crate::coalesce::Coalescer;
use crate::headers::{
    ACK, ETHERNET, IPV4, IPV6, PROTOCOL_TCP, PROTOCOL_UDP, TCP, TCP_CHECKSUM, UDP,
};
use crate::segment::{Malformed, segments};
use crate::virtio::{Gso, Header, Kind};

pub(crate) const MACS: [u8; 12] = [2, 0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 1];
pub(crate) const IPV4_ETHERTYPE: [u8; 2] = [0x08, 0x00];
pub(crate) const IPV6_ETHERTYPE: [u8; 2] = [0x86, 0xdd];
const SOURCE: [u8; 4] = [10, 81, 1, 1];
const TARGET: [u8; 4] = [10, 81, 1, 2];
/// A request of ARP, from the first host's container about the second's.
pub(crate) const ARP: [u8; 42] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 1, 1, 8, 6, // Ethernet
    0, 1, 8, 0, 6, 4, 0, 1, // Ethernet and IPv4, a request
    2, 0, 0, 0, 1, 1, 10, 81, 1, 1, // who has what
    0, 0, 0, 0, 0, 0, 10, 81, 1, 2, // and whom it asks for
];
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
const IP_CHECKSUM: usize = ETHERNET + 10;
const TRANSPORT: usize = ETHERNET + IPV4;

/// A TCP frame over IPv4 with a timestamp option, with whole checksums.
pub(crate) fn tcp_v4(sequence: u32, id: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let tcp_bytes = TCP + TIMESTAMPS.len();
    let ports = [0x1f, 0x90, 0xc0, 0x01];
    let offset = ((tcp_bytes / 4) << 4) as u8;
    let tcp: [&[u8]; 5] = [
        &ports,
        &sequence.to_be_bytes(),
        &[0, 0, 0, 9, offset, flags, 1, 0, 0, 0, 0, 0],
        &TIMESTAMPS,
        payload,
    ];
    let mut frame = ip_v4(PROTOCOL_TCP, id, &tcp.concat());
    encrypt(&mut frame);
    frame
}

/// A UDP frame over IPv4 without checksums: they are for who cuts it.
pub(crate) fn udp_v4(payload: &[u8]) -> Vec<u8> {
    ip_v4(PROTOCOL_UDP, 7, &udp(payload))
}

/// The same over IPv6.
pub(crate) fn udp_v6(payload: &[u8]) -> Vec<u8> {
    ip_v6(PROTOCOL_UDP, &udp(payload))
}

/// A TCP frame over IPv6.
pub(crate) fn tcp_v6(sequence: u32, payload: &[u8]) -> Vec<u8> {
    let tcp: [&[u8]; 4] = [
        &[0, 1, 0, 2],
        &sequence.to_be_bytes(),
        &[0, 0, 0, 9, 5 << 4, ACK, 1, 0, 0, 0, 0, 0],
        payload,
    ];
    ip_v6(PROTOCOL_TCP, &tcp.concat())
}

fn udp(payload: &[u8]) -> Vec<u8> {
    [&[0x10, 0, 0x20, 0, 0, 0, 0, 0], payload].concat()
}

/// IPv6's question for who has an address: a neighbour solicitation (RFC 4861).
pub(crate) fn solicitation() -> Vec<u8> {
    const ICMPV6: u8 = 58;
    ip_v6(ICMPV6, &[&[135, 0][..], &[0; 22]].concat())
}

fn ip_v4(protocol: u8, id: u16, transport: &[u8]) -> Vec<u8> {
    let total = (IPV4 + transport.len()) as u16;
    let parts: [&[u8]; 9] = [
        &MACS,
        &IPV4_ETHERTYPE,
        &[0x45, 0],
        &total.to_be_bytes(),
        &id.to_be_bytes(),
        &[0x40, 0, 64, protocol, 0, 0],
        &SOURCE,
        &TARGET,
        transport,
    ];
    parts.concat()
}

fn ip_v6(protocol: u8, transport: &[u8]) -> Vec<u8> {
    let parts: [&[u8]; 5] = [
        &MACS,
        &IPV6_ETHERTYPE,
        &[0x60, 0, 0, 0, 0, 0, protocol, 64],
        &[0xfd; 32],
        transport,
    ];
    parts.concat()
}

/// Makes both checksums of a frame like [`tcp_v4`] right, if its headers are still
/// where they were.
pub(crate) fn encrypt(frame: &mut [u8]) {
    if frame[12..=ETHERNET] != [8, 0, 0x45] {
        return;
    }
    frame[IP_CHECKSUM..IP_CHECKSUM + 2].fill(0);
    let checksum = !ip_sum(frame);
    frame[IP_CHECKSUM..IP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    let field = TRANSPORT + TCP_CHECKSUM;
    frame[field..field + 2].fill(0);
    let checksum = !transport_sum(frame);
    frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// What pseudo header, header and payload add up to, by RFC 9293's and RFC 8200's
/// words: 0xffff if the checksum in it is right.
pub(crate) fn transport_sum(frame: &[u8]) -> u16 {
    let ip = &frame[ETHERNET..];
    let transport = &frame[transport_at(frame)..];
    let length = (transport.len() as u32).to_be_bytes();
    let (addresses, protocol) = if is_v4(frame) {
        (&ip[12..20], ip[9])
    } else {
        (&ip[8..40], ip[6])
    };
    let pseudo = [addresses, &length, &[0, 0, 0, protocol]].concat();
    fold(sum(&pseudo) + sum(transport))
}

/// What the header of IPv4 adds up to.
pub(crate) fn ip_sum(frame: &[u8]) -> u16 {
    fold(sum(&frame[ETHERNET..transport_at(frame)]))
}

pub(crate) fn is_v4(frame: &[u8]) -> bool {
    frame[12..ETHERNET] == IPV4_ETHERTYPE
}

/// Where the header above IP begins.
pub(crate) fn transport_at(frame: &[u8]) -> usize {
    let bytes = if is_v4(frame) {
        usize::from(frame[ETHERNET] & 0xf) * 4
    } else {
        IPV6
    };
    ETHERNET + bytes
}

/// The bytes above IP before the payload.
pub(crate) fn transport_bytes(frame: &[u8]) -> usize {
    let ip = &frame[ETHERNET..];
    let protocol = if is_v4(frame) { ip[9] } else { ip[6] };
    match protocol {
        PROTOCOL_TCP => usize::from(frame[transport_at(frame) + 12] >> 4) * 4,
        _ => UDP,
    }
}

/// The header of a frame that is to be cut.
pub(crate) fn gso(kind: Kind, size: u16) -> Header {
    Header {
        checksum: Some((TRANSPORT as u16, TCP_CHECKSUM as u16)),
        gso: Some(Gso { kind, size }),
    }
}

/// What the device executor over: a frame behind its header.
pub(crate) fn read(header: Header, frame: &[u8]) -> Vec<u8> {
    [&header.format(0)[..], frame].concat()
}

/// The frames that one becomes.
pub(crate) fn cut_all(header: Header, frame: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut pieces = Vec::new();
    let mut frame = frame.to_vec();
    segments(header, &mut frame, |head, payload| {
        pieces.push([head, payload].concat())
    })?;
    Ok(pieces)
}

/// What the device gets: header and frame of each write.
pub(crate) fn glue_all(frames: &[Vec<u8>]) -> Vec<(Header, Vec<u8>)> {
    let mut written = Vec::new();
    let mut buffer = frames.concat();
    let mut coalescer = Coalescer::default();
    let mut write = |pieces: &[&[u8]]| written.push(pieces.concat());
    let mut at = 0;
    for frame in frames {
        coalescer.push(&mut buffer, (at, at + frame.len()), &mut write);
        at += frame.len();
    }
    coalescer.flush(&mut buffer, &mut write);
    written.iter().map(|all| parted(all)).collect()
}

/// Header and frame of what was written to the device.
pub(crate) fn parted(written: &[u8]) -> (Header, Vec<u8>) {
    let (header, frame) = Header::parse(written).expect("what the sleeve writes has a header");
    (header, frame.to_vec())
}

/// A frame with one way of writing a checksum of zero, of the two that mean the same
/// in IPv4 and TCP.
pub(crate) fn plain(mut frame: Vec<u8>) -> Vec<u8> {
    let tcp =
        frame.len() >= TRANSPORT + TCP && is_v4(&frame) && frame[ETHERNET + 9] == PROTOCOL_TCP;
    for field in [IP_CHECKSUM, TRANSPORT + TCP_CHECKSUM] {
        if tcp && frame[field..field + 2] == [0xff; 2] {
            frame[field..field + 2].fill(0);
        }
    }
    frame
}
