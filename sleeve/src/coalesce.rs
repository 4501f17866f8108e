//! Glues packets of one TCP stream together, so that the kernel takes up to 64 KiB
//! of it as one frame.
//!
//! What is coalesced is exactly what segmenting would have made of one frame: the same
//! headers but for sequence number, length, identification and checksums, and all
//! payloads of one length but the last. Everything else passes as it is, in order.

use crate::checksum::{fold, pseudo, sum};
use crate::headers::{
    ACK, ETHERNET, IPV4, IPV4_ETHERTYPE, PROTOCOL_TCP, PSH, TCP, TCP_CHECKSUM, TCP_FLAGS,
    ethertype, is_fragment, seal_ipv4,
};
use crate::virtio::{Gso, Header, Kind};

const TRANSPORT: usize = ETHERNET + IPV4;
/// The longest IPv4 packet.
const LONGEST: usize = 0xffff;
/// Most pieces of one write: as many as one call of a sender holds, and far fewer
/// than the 1,024 buffers that a write may have.
const PIECES: usize = 64;

/// Frames that wait for the next one of their stream.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    /// Where the pieces are in the buffer that all frames of a burst are in. The
    /// first is a whole frame, the others payloads.
    pieces: Vec<(usize, usize)>,
    stream: Option<Stream>,
}

/// What the next piece must fit.
#[derive(Clone, Copy, Debug)]
struct Stream {
    header_bytes: usize,
    /// Payload in each piece but the last.
    size: usize,
    next_sequence: u32,
    next_id: u16,
    total: usize,
    /// Nothing can follow: the last piece was short or pushed.
    closed: bool,
}

/// A frame whose TCP segment can be coalesced.
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
        // IPv4 without options, no fragment, TCP.
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
            && sound(ip, tcp);
        fits.then(|| Self {
            header_bytes,
            sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            id: u16::from_be_bytes([ip[4], ip[5]]),
            payload,
            push: flags & PSH != 0,
        })
    }
}

/// Both checksums are right: the kernel will not look at them again.
fn sound(ip: &[u8], tcp: &[u8]) -> bool {
    let pseudo = pseudo(&ip[12..20], PROTOCOL_TCP, tcp.len() as u16);
    fold(sum(&ip[..IPV4])) == 0xffff && fold(pseudo + sum(tcp)) == 0xffff
}

impl Coalescer {
    /// Takes the frame at `at..end` of the buffer; executor over what had to wait if
    /// the frame does not belong to it.
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

    /// Whether nothing waits.
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

    /// Executor over what waits, as the pieces of one write.
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

/// Makes the first frame's headers those of the whole.
fn coalesce(frame: &mut [u8], stream: &Stream) -> [u8; crate::virtio::BYTES] {
    let ip = &mut frame[ETHERNET..];
    ip[2..4].copy_from_slice(&(stream.total as u16).to_be_bytes());
    seal_ipv4(&mut ip[..IPV4]);
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
