//! Cutting and gluing, each against what the RFCs say of headers, and both against
//! each other.

use kontena_fuzz::{Input, Target};

use super::frames::{
    cut_all, encrypt, glue_all, gso, ip_sum, is_v4, plain, read, tcp_v4, tcp_v6, transport_at,
    transport_bytes, transport_sum, udp_v4, udp_v6,
};
use crate::checksum::{fold, sum, transport_checksum};
use crate::headers::{
    ACK, CWR, ETHERNET, FIN, PROTOCOL_TCP, PSH, TCP_CHECKSUM, TCP_FLAGS, is_fragment, seal_ipv4,
};
use crate::segment::segments;
use crate::virtio::{self, Gso, Header, Kind};

/// The sum is that of words added one by one, and what is encrypted with it adds up.
pub(crate) const CHECKSUM: Target = Target {
    name: "checksum",
    check: checksum,
    seeds: || vec![tcp_v4(1, 1, ACK, &[5; 9]), vec![0; 33], vec![0xff; 64]],
};

/// A header that is read is written as the same.
pub(super) const VIRTIO: Target = Target {
    name: "virtio",
    check: virtio,
    seeds: segment_seeds,
};

/// The pieces of a frame carry its payload and its headers, with the numbers, flags
/// and checksums of each, and are no longer than the device says.
pub(super) const SEGMENT: Target = Target {
    name: "segment",
    check: segment,
    seeds: segment_seeds,
};

/// Frames that are coalesced, if they are cut again, are the same frames.
pub(super) const COALESCE: Target = Target {
    name: "coalesce",
    check: |bytes| are_cut_again(&stream(&mut Input::new(bytes))),
    seeds: stream_seeds,
};

/// What one write may have: the most buffers, and a frame of the longest packet.
const BUFFERS: usize = 1024;
const LONGEST: usize = ETHERNET + 0xffff;

fn checksum(bytes: &[u8]) {
    let mut slow = 0_u32;
    for pair in bytes.chunks(2) {
        slow += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        slow = (slow & 0xffff) + (slow >> 16);
    }
    assert_eq!(u32::from(fold(sum(bytes))), slow);
    let encrypted = [
        bytes,
        &[0][..bytes.len() % 2],
        &transport_checksum(sum(bytes)),
    ]
    .concat();
    assert_eq!(fold(sum(&encrypted)), 0xffff, "what is encrypted adds up");
    match bytes.get(6..8) {
        Some(place) => assert_eq!(
            is_fragment(bytes),
            Some(place[0] & 0x3f != 0 || place[1] != 0)
        ),
        None => assert_ne!(is_fragment(bytes), Some(false), "it is cut short"),
    }
    if bytes.len() >= 20 {
        let mut header = bytes[..bytes.len() / 4 * 4].to_vec();
        seal_ipv4(&mut header);
        assert_eq!(fold(sum(&header)), 0xffff, "an encrypted header adds up");
        header[10..12].copy_from_slice(&bytes[10..12]);
        assert_eq!(header, bytes[..header.len()], "only the checksum changes");
    }
}

fn virtio(bytes: &[u8]) {
    let Some((header, frame)) = Header::parse(bytes) else {
        let known = bytes
            .get(1)
            .map(|kind| matches!(kind & 0x7f, 0 | 1 | 4 | 5));
        return assert!(bytes.len() < virtio::BYTES || known == Some(false));
    };
    assert_eq!(frame, &bytes[virtio::BYTES..]);
    let again = header.format(u16::from_ne_bytes([bytes[2], bytes[3]]));
    assert_eq!(Header::parse(&again), Some((header, &[][..])));
}

fn segment(bytes: &[u8]) {
    if let Some((header, frame)) = Header::parse(bytes) {
        is_cut(header, frame);
    }
}

/// A frame and its header, as the device executor them over.
pub(crate) fn is_cut(header: Header, frame: &[u8]) {
    let mut pieces = Vec::new();
    let mut changed = frame.to_vec();
    let cut = segments(header, &mut changed, |head, payload| {
        pieces.push((head.to_vec(), payload.to_vec()))
    });
    if cut.is_err() {
        return assert!(pieces.is_empty(), "a part of a malformed frame was sent");
    }
    match header.gso {
        Some(gso) => are_pieces(gso, frame, &pieces),
        None => {
            let [(whole, rest)] = &pieces[..] else {
                panic!("a frame that is not to be cut became {}", pieces.len());
            };
            assert!(rest.is_empty());
            is_completed(header.checksum, frame, whole);
        }
    }
}

fn is_completed(checksum: Option<(u16, u16)>, frame: &[u8], whole: &[u8]) {
    let Some((start, offset)) = checksum else {
        return assert_eq!(frame, whole, "there was nothing to complete");
    };
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    let mut restored = whole.to_vec();
    restored[field..field + 2].copy_from_slice(&frame[field..field + 2]);
    assert_eq!(restored, frame, "only the checksum changes");
    // At an odd place, no sum of 16-bit words is meant.
    if offset % 2 == 0 {
        let total = sum(&whole[start..]) + sum(&frame[field..field + 2]);
        assert_eq!(fold(total), 0xffff, "it adds up with what was there");
    }
}

fn are_pieces(gso: Gso, frame: &[u8], pieces: &[(Vec<u8>, Vec<u8>)]) {
    let head_bytes = transport_at(frame) + transport_bytes(frame);
    let (head, payload) = frame.split_at(head_bytes);
    let size = usize::from(gso.size);
    assert_eq!(pieces.len(), payload.len().div_ceil(size));
    assert!(pieces.len() <= 2048, "one frame becomes {}", pieces.len());
    for (number, (piece, wanted)) in pieces.iter().zip(payload.chunks(size)).enumerate() {
        assert_eq!(piece.1, wanted, "the payload of piece {number}");
        let whole = [&piece.0[..], &piece.1].concat();
        assert!(
            whole.len() <= head_bytes + size,
            "piece {number} is too long"
        );
        let last = number + 1 == pieces.len();
        let wanted = head_of(head, (number, last, number * size), &whole);
        assert_eq!(piece.0, wanted, "the headers of piece {number}");
        assert_eq!(
            transport_sum(&whole),
            0xffff,
            "the checksum of piece {number}"
        );
        if is_v4(frame) {
            assert_eq!(ip_sum(&whole), 0xffff, "the header of piece {number}");
        }
    }
}

/// The headers that a piece must have. Its checksums are taken from it: they must add
/// up.
fn head_of(head: &[u8], (number, last, done): (usize, bool, usize), whole: &[u8]) -> Vec<u8> {
    let mut wanted = head.to_vec();
    let at = transport_at(head);
    let mut put = |at: usize, octets: &[u8]| wanted[at..at + octets.len()].copy_from_slice(octets);
    let protocol = if is_v4(head) {
        let id = u16::from_be_bytes([head[18], head[19]]).wrapping_add(number as u16);
        put(16, &((whole.len() - ETHERNET) as u16).to_be_bytes());
        put(18, &id.to_be_bytes());
        put(24, &whole[24..26]);
        head[23]
    } else {
        put(18, &((whole.len() - at) as u16).to_be_bytes());
        head[20]
    };
    if protocol == PROTOCOL_TCP {
        let before = u32::from_be_bytes([head[at + 4], head[at + 5], head[at + 6], head[at + 7]]);
        put(at + 4, &before.wrapping_add(done as u32).to_be_bytes());
        let only_last = if last { 0 } else { FIN | PSH };
        let only_first = if number == 0 { 0 } else { CWR };
        put(
            at + TCP_FLAGS,
            &[head[at + TCP_FLAGS] & !(only_last | only_first)],
        );
        put(at + TCP_CHECKSUM, &whole[at + TCP_CHECKSUM..][..2]);
    } else {
        put(at + 4, &((whole.len() - at) as u16).to_be_bytes());
        put(at + 6, &whole[at + 6..at + 8]);
    }
    wanted
}

fn segment_seeds() -> Vec<Vec<u8>> {
    let flags = ACK | PSH | FIN | CWR;
    let payload: Vec<u8> = (0..250).collect();
    let whole = tcp_v4(u32::MAX - 49, 0xffff, flags, &payload);
    let checksum = |at, field| Header {
        checksum: Some((at, field)),
        gso: None,
    };
    let mut options = [&whole[..34], &[1; 4], &whole[34..]].concat();
    options[ETHERNET] += 1;
    vec![
        read(gso(Kind::TcpV4, 100), &whole),
        read(gso(Kind::TcpV4, 100), &options),
        read(gso(Kind::TcpV6, 60), &tcp_v6(5, &payload)),
        read(gso(Kind::Udp, 99), &udp_v4(&payload)),
        read(gso(Kind::Udp, 99), &udp_v6(&payload)),
        read(checksum(34, 16), &whole),
        read(checksum(34, 6), &udp_v4(&[9; 11])),
        read(Header::default(), &whole),
    ]
}

/// Most frames of one input: more than are coalesced to one.
const FRAMES: usize = 80;
/// Longest payload of them.
const PAYLOAD: u16 = 1400;

/// Frames that mostly follow each other. What begins with 0 is any bytes; the rest
/// are TCP, and their bits say what is wrong with them.
pub(super) fn stream(input: &mut Input<'_>) -> Vec<Vec<u8>> {
    let (mut sequence, mut id, mut length) = (0_u32, 0_u16, 100_u16);
    let mut frames = Vec::new();
    while !input.is_empty() && frames.len() < FRAMES {
        let kind = input.octet();
        let has = |bit: u8| kind & bit != 0;
        if kind == 0 {
            let bytes = input.octet();
            frames.push(input.take(bytes.into()).to_vec());
            continue;
        }
        if has(2) {
            length = input.number() % PAYLOAD;
        }
        if has(4) {
            sequence = u32::from_be_bytes(input.octets());
            id = input.number();
        }
        let flags = if has(8) { input.octet() } else { ACK };
        let mut frame = tcp_v4(sequence, id, flags, &vec![kind; length.into()]);
        if has(16) {
            let (at, to) = (usize::from(input.octet()), input.octet());
            let at = at % frame.len();
            frame[at] = to;
        }
        // A wrong octet may be one that whoever sends it means.
        if has(32) {
            encrypt(&mut frame);
        }
        sequence = sequence.wrapping_add(length.into());
        id = id.wrapping_add(1);
        frames.push(frame);
    }
    frames
}

pub(crate) fn are_cut_again(frames: &[Vec<u8>]) {
    let written = glue_all(frames);
    let mut again = Vec::new();
    for (header, frame) in &written {
        assert!(frame.len() <= LONGEST, "a frame of {} octets", frame.len());
        let pieces = cut_all(*header, frame).expect("what is coalesced can be cut");
        // Each is a buffer, and so is the header.
        assert!(pieces.len() < BUFFERS, "{} pieces", pieces.len());
        if header.gso.is_some() {
            assert_eq!(ip_sum(frame), 0xffff, "the header of a coalesced frame");
        }
        again.extend(pieces);
    }
    let plain = |frames: &[Vec<u8>]| frames.iter().cloned().map(plain).collect::<Vec<_>>();
    assert_eq!(
        plain(&again),
        plain(frames),
        "coalesced to {}",
        written.len()
    );
}

fn stream_seeds() -> Vec<Vec<u8>> {
    vec![
        // More than are coalesced to one.
        vec![1; FRAMES],
        // A short one, a pushed one, another stream.
        vec![
            1,
            1,
            2,
            0,
            60,
            1,
            8,
            ACK | PSH,
            1,
            4,
            0,
            1,
            2,
            3,
            0,
            9,
            1,
            1,
        ],
        // Longer than a packet can be.
        [&[2, 5, 120][..], &[1; 60]].concat(),
        // A wrong octet, whose checksum is wrong or right.
        vec![1, 16, 70, 3, 48, 22, 63, 1, 0, 4, 8, 0, 0x45, 0, 1],
        // Checksums of zero, which can be written in two transports.
        vec![1, 24, ACK, 24, 0, 1, 16, 25, 0, 16, 51, 0],
    ]
}
