//! Segmentation and coalescing, each against the RFCs, and both against each other.

use proptest::prelude::*;

use super::*;
use crate::checksum::fold;
use crate::fuzzing::frames::{
    coalesce_all, gso, ip_sum, segment_all, tcp_v4, tcp_v6, transport_sum, udp_v4,
};
use crate::fuzzing::segmenting::{check_round_trip, check_segments};
use crate::virtio;

fn number(frame: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(frame[at..at + 4].try_into().unwrap())
}

#[test]
fn each_tcp_segment_has_its_own_sequence_number_flags_and_checksums() {
    let payload: Vec<u8> = (0..250).collect();
    let whole = tcp_v4(u32::MAX - 49, 0xffff, 0x10 | PSH | FIN | CWR, &payload);
    let pieces = segment_all(gso(Kind::TcpV4, 100), &whole).unwrap();
    assert_eq!(
        pieces
            .iter()
            .map(|piece| piece.len() - 66)
            .collect::<Vec<_>>(),
        [100, 100, 50]
    );
    let sequences: Vec<_> = pieces.iter().map(|piece| number(piece, 38)).collect();
    assert_eq!(sequences, [u32::MAX - 49, 50, 150]);
    let ids: Vec<_> = pieces
        .iter()
        .map(|piece| number(piece, 16) as u16)
        .collect();
    assert_eq!(ids, [0xffff, 0, 1]);
    let flags: Vec<_> = pieces.iter().map(|piece| piece[47]).collect();
    assert_eq!(flags, [0x10 | CWR, 0x10, 0x10 | PSH | FIN]);
    for piece in &pieces {
        assert_eq!(
            usize::from(u16::from_be_bytes([piece[16], piece[17]])),
            piece.len() - 14
        );
        assert_eq!((ip_sum(piece), transport_sum(piece)), (0xffff, 0xffff));
    }
}

#[test]
fn udp_and_ipv6_are_segmented() {
    let udp = udp_v4(&[9; 25]);
    let pieces = segment_all(gso(Kind::Udp, 10), &udp).unwrap();
    assert_eq!(
        pieces
            .iter()
            .map(|piece| piece.len() - 42)
            .collect::<Vec<_>>(),
        [10, 10, 5]
    );
    for piece in &pieces {
        assert_eq!(usize::from(piece[39]), piece.len() - 34, "UDP length");
        assert_eq!((ip_sum(piece), transport_sum(piece)), (0xffff, 0xffff));
    }

    let six = tcp_v6(5, &[7; 30]);
    let pieces = segment_all(gso(Kind::TcpV6, 20), &six).unwrap();
    assert_eq!(
        pieces
            .iter()
            .map(|piece| number(piece, 58))
            .collect::<Vec<_>>(),
        [5, 25]
    );
    for piece in &pieces {
        let transport = &piece[54..];
        assert_eq!(usize::from(piece[19]), transport.len(), "payload length");
        assert_eq!(transport_sum(piece), 0xffff);
    }
}

#[test]
fn a_partial_checksum_is_completed() {
    let whole = tcp_v4(1, 1, 0x10, &[5; 11]);
    let mut partial = whole.clone();
    let pseudo = [&whole[26..34], &[0, 6, 0, 43]].concat();
    partial[50..52].copy_from_slice(&fold(sum(&pseudo)).to_be_bytes());
    let header = Header {
        checksum: Some((34, 16)),
        gso: None,
    };
    for (header, frame) in [(header, &partial), (Header::default(), &whole)] {
        let pieces = segment_all(header, frame).unwrap();
        assert_eq!(pieces, std::slice::from_ref(&whole));
    }
}

#[test]
fn headers_that_contradict_the_virtio_header_are_malformed() {
    let whole = tcp_v4(1, 1, 0x10, &[5; 300]);
    let with = |at: usize, octet: u8| {
        let mut bad = whole.clone();
        bad[at] = octet;
        segment_all(gso(Kind::TcpV4, 100), &bad)
    };
    for (at, octet, why) in [
        (12, 0x81, "another ethertype"),
        (14, 0x65, "another version of IP"),
        (14, 0x44, "an IP header that is too short"),
        (14, 0x4f, "an IP header that is too long"),
        (20, 0x20, "a fragment"),
        (23, PROTOCOL_UDP, "another protocol"),
        (46, 0x40, "a TCP header that is too short"),
    ] {
        assert_eq!(with(at, octet), Err(Malformed), "{why}");
    }
    assert_eq!(segment_all(gso(Kind::TcpV4, 0), &whole), Err(Malformed));
    assert_eq!(segment_all(gso(Kind::TcpV6, 100), &whole), Err(Malformed));
    let many = tcp_v4(1, 1, 0x10, &[5; 2049]);
    assert_eq!(segment_all(gso(Kind::TcpV4, 1), &many), Err(Malformed));
    let outside = Header {
        checksum: Some((400, 16)),
        gso: None,
    };
    assert_eq!(segment_all(outside, &whole), Err(Malformed));
    let at_the_end = Header {
        checksum: Some((365, 16)),
        gso: None,
    };
    assert_eq!(segment_all(at_the_end, &whole), Err(Malformed));
}

#[test]
fn frames_that_do_not_continue_the_stream_are_not_coalesced() {
    let first = tcp_v4(1000, 5, 0x10, &[1; 100]);
    let next = |sequence, id, flags, payload: &[u8]| tcp_v4(sequence, id, flags, payload);
    let changed = |at: usize, octet: u8| {
        let mut frame = next(1100, 6, 0x10, &[2; 100]);
        frame[at] = octet;
        // Checksums that are valid after the change.
        frame[24..26].fill(0);
        let checksum = !ip_sum(&frame);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        frame[50..52].fill(0);
        let checksum = !transport_sum(&frame);
        frame[50..52].copy_from_slice(&checksum.to_be_bytes());
        frame
    };
    let mut damaged = next(1100, 6, 0x10, &[2; 100]);
    *damaged.last_mut().unwrap() ^= 1;
    for (second, why) in [
        (next(1101, 6, 0x10, &[2; 100]), "a gap"),
        (next(1100, 7, 0x10, &[2; 100]), "another identification"),
        (next(1100, 6, 0x11, &[2; 100]), "FIN"),
        (next(1100, 6, 0x12, &[2; 100]), "SYN"),
        (next(1100, 6, 0x90, &[2; 100]), "CWR"),
        (next(1100, 6, 0x10, &[2; 101]), "a longer payload"),
        (next(1100, 6, 0x10, &[]), "no payload"),
        (changed(5, 9), "another MAC"),
        (changed(15, 4), "another DSCP"),
        (changed(22, 63), "another TTL"),
        (changed(29, 9), "another sender"),
        (changed(35, 9), "another port"),
        (changed(45, 8), "another acknowledgement"),
        (changed(49, 9), "another window"),
        (changed(65, 9), "another timestamp"),
        (damaged, "a wrong checksum"),
    ] {
        let frames = [first.clone(), second];
        let written = coalesce_all(&frames);
        let plain = |frame: &Vec<u8>| (Header::default(), frame.clone());
        assert_eq!(
            written,
            frames.iter().map(plain).collect::<Vec<_>>(),
            "{why}"
        );
    }
}

#[test]
fn a_short_segment_or_psh_ends_a_coalesced_frame() {
    let frames = [
        tcp_v4(0, 0, 0x10, &[1; 100]),
        tcp_v4(100, 1, 0x10, &[2; 60]),
        tcp_v4(160, 2, 0x10 | PSH, &[3; 60]),
        tcp_v4(220, 3, 0x10, &[4; 60]),
    ];
    let written = coalesce_all(&frames);
    let lengths: Vec<_> = written.iter().map(|(_, frame)| frame.len() - 66).collect();
    assert_eq!(lengths, [160, 60, 60]);
    let frames = [frames[0].clone(), tcp_v4(100, 1, 0x10 | PSH, &[2; 100])];
    let written = coalesce_all(&frames);
    assert_eq!(written.len(), 1);
    assert_eq!(written[0].1[47], 0x10 | PSH, "PSH is kept");
}

proptest! {
    #[test]
    fn segments_are_coalesced_to_the_same_frame(
        payload in prop::collection::vec(any::<u8>(), 101..20_000),
        size in 400u16..1400,
        sequence: u32,
        id: u16,
        push: bool,
    ) {
        let flags = if push { 0x10 | PSH } else { 0x10 };
        let whole = tcp_v4(sequence, id, flags, &payload);
        check_segments(gso(Kind::TcpV4, size), &whole);
        let pieces = segment_all(gso(Kind::TcpV4, size), &whole).unwrap();
        check_round_trip(&pieces);
        let written = coalesce_all(&pieces);
        prop_assert_eq!(written.len(), 1);
        prop_assert_eq!(&written[0].1[66..], &payload[..]);
    }

    #[test]
    fn arbitrary_frames_are_not_changed(
        mut frame in prop::collection::vec(any::<u8>(), 0..200),
        virtio in prop::array::uniform10(any::<u8>()),
        like_ip: bool,
    ) {
        if like_ip && frame.len() > 24 {
            frame[12..15].copy_from_slice(&[8, 0, 0x45]);
            frame[23] = PROTOCOL_TCP;
        }
        prop_assert_eq!(virtio.len(), virtio::BYTES);
        if let Some((header, _)) = Header::parse(&virtio) {
            check_segments(header, &frame);
        }
        check_round_trip(&[frame.clone(), frame]);
    }
}
