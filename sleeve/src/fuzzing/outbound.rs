//! The way of frames from one bridge to the other: cut, encrypted, sent as bursts,
//! received as bursts, opened and coalesced.

use kontena_fuzz::{Input, Target};

use super::ends::{Ends, SECOND, is_admitted, is_arp, with_ends};
use super::frames::{ARP, cut_all, gso, plain, read, solicitation, tcp_v4, tcp_v6, udp_v4};
use super::segmenting::stream;
use crate::headers::{ACK, PSH};
use crate::virtio::{Header, Kind};
use crate::{inbound, outbound};

/// The other bridge gets what the frames of this one are cut to, as it is and in its
/// order, if it is for somebody there, may leave its host and is not too long; the rest is
/// nowhere.
pub(super) const OUTBOUND: Target = Target {
    name: "outbound",
    check: |bytes| with_ends(|ends| outbound(ends, bytes)),
    seeds,
};

/// Most frames of one input.
const FRAMES: usize = 16;
/// Longest payload of those that are made of a number.
const PAYLOAD: u16 = 20_000;

fn outbound(ends: &Ends, bytes: &[u8]) {
    let mut work = outbound::Work::begin(&ends.first().shared);
    for mut read in frames(&mut Input::new(bytes)) {
        let mut wanted = Vec::new();
        if let Some((header, frame)) = Header::parse(&read)
            && is_for_second(frame)
            && !is_local(frame)
        {
            let pieces = cut_all(header, frame).unwrap_or_default();
            let passes = |piece: &Vec<u8>| is_admitted(piece) && piece.len() <= LONGEST;
            wanted.extend(pieces.into_iter().filter(passes));
        }
        work.carry(&ends.first().snapshot, &mut read);
        work.flush();
        let wanted: Vec<_> = wanted.into_iter().map(plain).collect();
        assert_eq!(arrived(ends), wanted, "the frames");
    }
}

/// A packet of 1370 bytes, and Ethernet.
const LONGEST: usize = 1384;

fn is_for_second(frame: &[u8]) -> bool {
    let target = frame.first_chunk::<6>();
    target.is_some_and(|mac| mac[0] & 1 != 0 || *mac == SECOND)
}

/// What no host sends to another: ARP, a tag, or ICMPv6 of type 135 and code 0 right after IPv6's header.
fn is_local(frame: &[u8]) -> bool {
    let octets = |at: usize, wanted: &[u8]| frame.get(at..at + wanted.len()) == Some(wanted);
    let arp = frame.get(12..14).is_some_and(is_arp);
    arp || octets(12, &[0x86, 0xdd]) && octets(20, &[58]) && octets(54, &[135, 0])
}

/// What is on loopback is there at once.
fn arrived(ends: &Ends) -> Vec<Vec<u8>> {
    let end = ends.second();
    let mut work = inbound::Work::new(&end.shared);
    let mut frames = Vec::new();
    while end.receives(0) {
        work.receive(&end.snapshot);
        work.flush();
        frames.extend(end.delivered());
    }
    frames
}

/// What the device executor over, each behind an octet that says of what kind it is.
fn frames(input: &mut Input<'_>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while !input.is_empty() && frames.len() < FRAMES {
        let kind = input.octet();
        let (payload, size) = (input.number() % PAYLOAD, input.number());
        let payload = vec![kind; payload.into()];
        match kind & 7 {
            0 => frames.push(input.take(payload.len()).to_vec()),
            1 => frames.push(read(
                gso(Kind::TcpV4, size),
                &tcp_v4(1, 1, ACK | PSH, &payload),
            )),
            2 => frames.push(read(gso(Kind::TcpV6, size), &tcp_v6(1, &payload))),
            3 => frames.push(read(gso(Kind::Udp, size), &udp_v4(&payload))),
            4 => {
                let plain = Header::default();
                let stream = stream(&mut Input::new(input.take(payload.len())));
                frames.extend(stream.iter().map(|frame| read(plain, frame)));
            }
            _ => {
                let (at, to) = (usize::from(input.octet()), input.octet());
                let last = frames.last().cloned();
                frames.extend(last.map(|mut last: Vec<u8>| {
                    let at = at % last.len().max(1);
                    last.get_mut(at).into_iter().for_each(|octet| *octet = to);
                    last
                }));
            }
        }
    }
    frames
}

fn seeds() -> Vec<Vec<u8>> {
    let whole = read(gso(Kind::TcpV4, 100), &tcp_v4(1, 1, ACK, &[7; 250]));
    let raw = |read: &[u8]| {
        let length = (read.len() as u16).to_be_bytes();
        [&[0, length[0], length[1], 0, 0][..], read].concat()
    };
    let whole_frame = |frame: &[u8]| raw(&read(Header::default(), frame));
    vec![
        // A long frame of each kind.
        vec![1, 0x30, 0, 5, 0, 2, 0x30, 0, 5, 0, 3, 0x30, 0, 5, 0],
        // Many pieces.
        vec![1, 4, 0, 0, 50],
        // Frames that follow each other.
        vec![4, 0, 5, 0, 0, 1, 1, 1, 1, 1],
        // For all, for nobody, from somebody else.
        [
            1, 0, 99, 1, 0, 5, 0, 0, 0, 0, 10, 1, 5, 0, 0, 0, 0, 10, 2, 5, 0, 0, 0, 0, 21, 9,
        ]
        .to_vec(),
        raw(&whole),
        // Questions, to all and to one.
        whole_frame(&ARP),
        whole_frame(&[&SECOND, &ARP[6..12], &[0x81, 0, 0, 0], &ARP[12..]].concat()),
        whole_frame(&[&SECOND, &ARP[6..]].concat()),
        whole_frame(&solicitation()),
    ]
}
