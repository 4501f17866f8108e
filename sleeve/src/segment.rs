//! Segments frames of the TAP device to fit a packet, with all headers and checksums as a
//! network card would write them.
//!
//! Headers are changed in place and passed along with each slice of the payload: nothing is
//! copied here.

use crate::checksum::{pseudo, sum, transport_checksum};
use crate::headers::{
    CWR, ETHERNET, FIN, IPV4, IPV4_ETHERTYPE, IPV6, IPV6_ETHERTYPE, PROTOCOL_TCP, PROTOCOL_UDP,
    PSH, TCP, TCP_CHECKSUM, TCP_FLAGS, UDP, ethertype, is_fragment, write_ipv4_checksum,
};
use crate::virtio::{Gso, Header, Kind};

/// Offset of the checksum in the UDP header.
const UDP_CHECKSUM: usize = 6;
/// More segments than the kernel makes of the longest frame at TCP's smallest segment size (48
/// bytes). A container may write anything to a raw socket.
const PIECES: usize = 2048;

/// A frame whose headers contradict its virtio header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Calls `each` with the headers and the payload of every segment, in order. A frame that
/// is not segmented is passed as headers only.
pub(crate) fn segments(
    header: Header,
    frame: &mut [u8],
    mut each: impl FnMut(&[u8], &[u8]),
) -> Result<(), Malformed> {
    match header.gso {
        Some(gso) => segment(gso, frame, each),
        None => {
            complete(header, frame)?;
            each(frame, &[]);
            Ok(())
        }
    }
}

/// Completes the checksum, whose field holds the sum of the pseudo header.
fn complete(header: Header, frame: &mut [u8]) -> Result<(), Malformed> {
    let Some((start, offset)) = header.checksum else {
        return Ok(());
    };
    let (start, offset) = (usize::from(start), usize::from(offset));
    let covered = frame.get(start..).ok_or(Malformed)?;
    let checksum = transport_checksum(sum(covered));
    let field = frame
        .get_mut(start + offset..start + offset + 2)
        .ok_or(Malformed)?;
    field.copy_from_slice(&checksum);
    Ok(())
}

/// The layout of a frame's headers.
struct Layout {
    v4: bool,
    /// Offsets of the transport header and of the payload.
    transport: usize,
    payload: usize,
    protocol: u8,
    /// The sum of the pseudo header, without the length.
    pseudo: u64,
}

impl Layout {
    fn of(frame: &[u8], kind: Kind) -> Option<Self> {
        let ethertype = ethertype(frame)?;
        let ip = frame.get(ETHERNET..)?;
        let version = ip.first()? >> 4;
        let v4 = ethertype == IPV4_ETHERTYPE && version == 4;
        let (ip_bytes, protocol, addresses) = if v4 {
            let bytes = usize::from(ip.first()? & 0xf) * 4;
            if bytes < IPV4 || is_fragment(ip)? {
                return None;
            }
            (bytes, *ip.get(9)?, ip.get(12..20)?)
        } else if ethertype == IPV6_ETHERTYPE && version == 6 {
            // The device segments nothing that has extension headers.
            (IPV6, *ip.get(6)?, ip.get(8..40)?)
        } else {
            return None;
        };
        let wanted = match kind {
            Kind::TcpV4 => v4 && protocol == PROTOCOL_TCP,
            Kind::TcpV6 => !v4 && protocol == PROTOCOL_TCP,
            Kind::Udp => protocol == PROTOCOL_UDP,
        };
        let transport = ETHERNET + ip_bytes;
        let bytes = match protocol {
            PROTOCOL_TCP => usize::from(frame.get(transport + 12)? >> 4) * 4,
            _ => UDP,
        };
        let long_enough = protocol != PROTOCOL_TCP || bytes >= TCP;
        let payload = transport + bytes;
        // There must be a payload: only frames longer than a packet are segmented.
        let well_formed = wanted && long_enough && payload < frame.len();
        well_formed.then(|| Self {
            v4,
            transport,
            payload,
            protocol,
            pseudo: pseudo(addresses, protocol, 0),
        })
    }
}

fn segment(
    gso: Gso,
    frame: &mut [u8],
    mut each: impl FnMut(&[u8], &[u8]),
) -> Result<(), Malformed> {
    let layout = Layout::of(frame, gso.kind).ok_or(Malformed)?;
    if gso.size == 0 {
        return Err(Malformed);
    }
    let (head, payload) = frame.split_at_mut(layout.payload);
    let first = First::of(&layout, head);
    let mut done = 0;
    let pieces = payload.chunks(usize::from(gso.size));
    if pieces.len() > PIECES {
        return Err(Malformed);
    }
    let last = pieces.len() - 1;
    for (number, piece) in pieces.enumerate() {
        write_head(&layout, &first, head, (number, number == last, done), piece)
            .ok_or(Malformed)?;
        each(head, piece);
        done += piece.len();
    }
    Ok(())
}

/// The first segment's values, from which those of the others are counted.
struct First {
    id: u16,
    sequence: u32,
    flags: u8,
}

impl First {
    fn of(layout: &Layout, head: &[u8]) -> Self {
        let ip = &head[ETHERNET..];
        let transport = &head[layout.transport..];
        let tcp = layout.protocol == PROTOCOL_TCP;
        Self {
            id: u16::from_be_bytes([ip[4], ip[5]]),
            sequence: u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]),
            flags: if tcp { transport[TCP_FLAGS] } else { 0 },
        }
    }
}

fn write_head(
    layout: &Layout,
    first: &First,
    head: &mut [u8],
    (number, last, done): (usize, bool, usize),
    piece: &[u8],
) -> Option<()> {
    let transport_bytes = u16::try_from(layout.payload - layout.transport + piece.len()).ok()?;
    let (below, transport) = head.split_at_mut(layout.transport);
    let ip = &mut below[ETHERNET..];
    if layout.v4 {
        let length = u16::try_from(ip.len()).ok()?.checked_add(transport_bytes)?;
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        let id = first.id.wrapping_add(number as u16);
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        write_ipv4_checksum(ip);
    } else {
        ip[4..6].copy_from_slice(&transport_bytes.to_be_bytes());
    }
    let field = if layout.protocol == PROTOCOL_TCP {
        let sequence = first.sequence.wrapping_add(done as u32);
        transport[4..8].copy_from_slice(&sequence.to_be_bytes());
        let not_last = if last { 0 } else { FIN | PSH };
        let not_first = if number == 0 { 0 } else { CWR };
        transport[TCP_FLAGS] = first.flags & !not_last & !not_first;
        TCP_CHECKSUM
    } else {
        transport[4..6].copy_from_slice(&transport_bytes.to_be_bytes());
        UDP_CHECKSUM
    };
    transport[field..field + 2].fill(0);
    let total = layout.pseudo + u64::from(transport_bytes.to_be()) + sum(transport) + sum(piece);
    transport[field..field + 2].copy_from_slice(&transport_checksum(total));
    Some(())
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
