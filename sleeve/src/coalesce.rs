//! Coalesces packets of one TCP stream, so that the kernel gets up to 64 KiB of it as one
//! frame (receive offload in user space).
//!
//! Only what segmentation could have produced from one frame is coalesced: headers that
//! are equal but for sequence number, length, identification and checksums, and payloads of
//! equal length but for the last. All other frames pass unchanged, in order.

use crate::checksum::{fold, pseudo, sum};
use crate::headers::{
    ACK, ETHERNET, IPV4, IPV4_ETHERTYPE, PROTOCOL_TCP, PSH, TCP, TCP_CHECKSUM, TCP_FLAGS,
    ethertype, is_fragment, write_ipv4_checksum,
};
use crate::virtio::{Gso, Header, Kind};

const TRANSPORT: usize = ETHERNET + IPV4;
/// The longest IPv4 packet.
const LONGEST: usize = 0xffff;
/// The most pieces of one write: as many packets as a sender puts into one call, and far fewer
/// than the 1,024 buffers that a write may have.
const PIECES: usize = 64;

/// Frames that are held back until it is clear whether the next one continues their stream.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    /// The pieces, as ranges of the buffer that holds the whole burst: first a whole frame,
    /// then payloads.
    pieces: Vec<(usize, usize)>,
    stream: Option<Stream>,
}

/// What the next segment must match.
#[derive(Clone, Copy, Debug)]
struct Stream {
    header_bytes: usize,
    /// Payload bytes of each piece but the last.
    size: usize,
    next_sequence: u32,
    next_id: u16,
    total: usize,
    /// Nothing may follow: the last piece was short or had PSH set.
    closed: bool,
}

/// A frame with a TCP segment that can be coalesced.
struct Segment {
    header_bytes: usize,
    sequence: u32,
    id: u16,
    payload: usize,
    push: bool,
}

impl Segment {
    fn of(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(ETHERNET..)?;
        // IPv4 without options, not a fragment, TCP.
        let plain = ethertype(frame)? == IPV4_ETHERTYPE
            && *ip.first()? == 0x45
            && !is_fragment(ip)?
            && *ip.get(9)? == PROTOCOL_TCP;
        let length = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
        let tcp = ip.get(IPV4..)?;
        let tcp_bytes = usize::from(tcp.get(12)? >> 4) * 4;
        let flags = *tcp.get(TCP_FLAGS)?;
        let header_bytes = TRANSPORT + tcp_bytes;
        let payload = frame.len().checked_sub(header_bytes)?;
        let fits = plain
            && length == ip.len()
            && tcp_bytes >= TCP
            && flags & !PSH == ACK
            && payload > 0
            && checksums_are_valid(ip, tcp);
        fits.then(|| Self {
            header_bytes,
            sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            id: u16::from_be_bytes([ip[4], ip[5]]),
            payload,
            push: flags & PSH != 0,
        })
    }
}

/// Both checksums are valid. The kernel does not check them again.
fn checksums_are_valid(ip: &[u8], tcp: &[u8]) -> bool {
    let pseudo = pseudo(&ip[12..20], PROTOCOL_TCP, tcp.len() as u16);
    fold(sum(&ip[..IPV4])) == 0xffff && fold(pseudo + sum(tcp)) == 0xffff
}

impl Coalescer {
    /// Adds the frame at `at..end` of the buffer. If it does not continue what is held back,
    /// that is written first.
    pub(crate) fn push(
        &mut self,
        buffer: &mut [u8],
        (at, end): (usize, usize),
        write: impl FnMut(&[&[u8]]),
    ) {
        let segment = Segment::of(&buffer[at..end]);
        if let (Some(stream), Some(segment)) = (self.stream, &segment)
            && self.follows(buffer, &stream, segment, at)
        {
            let added = segment.payload;
            self.pieces.push((at + segment.header_bytes, end));
            self.stream = Some(Stream {
                next_sequence: stream.next_sequence.wrapping_add(added as u32),
                next_id: stream.next_id.wrapping_add(1),
                total: stream.total + added,
                closed: segment.push || added < stream.size,
                ..stream
            });
            if segment.push {
                let (first, _) = self.pieces[0];
                buffer[first + TRANSPORT + TCP_FLAGS] |= PSH;
            }
            return;
        }
        self.flush(buffer, write);
        self.pieces.push((at, end));
        self.stream = segment.map(|segment| Stream {
            header_bytes: segment.header_bytes,
            size: segment.payload,
            next_sequence: segment.sequence.wrapping_add(segment.payload as u32),
            next_id: segment.id.wrapping_add(1),
            total: end - at - ETHERNET,
            closed: segment.push,
        });
    }

    /// Whether nothing is held back.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn follows(&self, buffer: &[u8], stream: &Stream, segment: &Segment, at: usize) -> bool {
        let (first, _) = self.pieces[0];
        let (a, b) = (&buffer[first..], &buffer[at..]);
        let same = |range: std::ops::Range<usize>| a[range.clone()] == b[range];
        let tcp = |offset: usize| TRANSPORT + offset;
        !stream.closed
            && self.pieces.len() < PIECES
            && segment.header_bytes == stream.header_bytes
            && segment.sequence == stream.next_sequence
            && segment.id == stream.next_id
            && segment.payload <= stream.size
            && stream.total + segment.payload <= LONGEST
            // Ethernet, version and service; fragment bits, TTL, protocol;
            // addresses, ports; acknowledgement, header length; window; options.
            && same(0..ETHERNET + 2)
            && same(ETHERNET + 6..ETHERNET + 10)
            && same(ETHERNET + 12..tcp(4))
            && same(tcp(8)..tcp(13))
            && same(tcp(14)..tcp(16))
            && same(tcp(18)..stream.header_bytes)
    }

    /// Writes what is held back, as the pieces of one write.
    pub(crate) fn flush(&mut self, buffer: &mut [u8], mut write: impl FnMut(&[&[u8]])) {
        let Some(&(at, end)) = self.pieces.first() else {
            return;
        };
        let header = match self.stream {
            Some(stream) if self.pieces.len() > 1 => coalesce(&mut buffer[at..end], &stream),
            _ => Header::default().format(0),
        };
        let mut pieces: Vec<&[u8]> = Vec::with_capacity(1 + self.pieces.len());
        pieces.push(&header);
        pieces.extend(self.pieces.iter().map(|&(at, end)| &buffer[at..end]));
        write(&pieces);
        self.pieces.clear();
        self.stream = None;
    }
}

/// Turns the first frame's headers into those of the coalesced frame.
fn coalesce(frame: &mut [u8], stream: &Stream) -> [u8; crate::virtio::BYTES] {
    let ip = &mut frame[ETHERNET..];
    ip[2..4].copy_from_slice(&(stream.total as u16).to_be_bytes());
    write_ipv4_checksum(&mut ip[..IPV4]);
    let length = (stream.total - IPV4) as u16;
    let pseudo = fold(pseudo(&ip[12..20], PROTOCOL_TCP, length));
    ip[IPV4 + TCP_CHECKSUM..][..2].copy_from_slice(&pseudo.to_be_bytes());
    let gso = Gso {
        kind: Kind::TcpV4,
        size: stream.size as u16,
    };
    Header {
        checksum: Some((TRANSPORT as u16, TCP_CHECKSUM as u16)),
        gso: Some(gso),
    }
    .format(stream.header_bytes as u16)
}
