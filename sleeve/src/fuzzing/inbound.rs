//! The way of packets from the underlay to the bridge.

use kontena_fuzz::{Input, Target};

use super::ends::{ENCAPSULATION, Ends, INNER, is_admitted, short, with_ends};
use super::frames::plain;
use super::segmenting::stream;
use crate::inbound::Work;
use crate::message::{self, Message};
use crate::vxlan::Encapsulation;

/// Of any burst of packets, the bridge gets the frames that the peer encrypted and may
/// send, as they were and in their order, the agent gets its messages, and all others
/// are counted.
pub(super) const INBOUND: Target = Target {
    name: "inbound",
    check: |bytes| with_ends(|ends| inbound(ends, bytes)),
    seeds,
};

/// Most packets of one input: a burst.
const PACKETS: usize = 64;

/// A packet, and what is in it, if its encrypt is whole and of this session.
struct Packet {
    encrypted: Vec<u8>,
    plain: Option<Vec<u8>>,
}

/// What must become of a packet.
enum Fate {
    Frame(Vec<u8>),
    Message(Vec<u8>),
    /// A sign of life.
    Nothing,
    Dropped,
}

fn inbound(ends: &Ends, bytes: &[u8]) {
    let packets = packets(ends, &mut Input::new(bytes));
    let (mut frames, mut messages, mut dropped) = (Vec::new(), Vec::new(), ends.second().dropped());
    for packet in &packets {
        match fate(packet.plain.as_deref()) {
            Fate::Frame(frame) => frames.push(plain(frame)),
            Fate::Message(contents) => messages.push(Message {
                from: INNER[0],
                contents,
            }),
            Fate::Nothing => {}
            Fate::Dropped => dropped += 1,
        }
    }
    let end = ends.second();
    let mut work = Work::new(&end.shared);
    let burst = packets.iter().map(|packet| &packet.encrypted[..]);
    work.open(&end.snapshot, burst, ends.first().address());
    work.flush();
    assert_eq!(end.delivered(), frames, "the frames");
    assert_eq!(end.heard(), messages, "the messages");
    assert_eq!(end.dropped(), dropped, "what is counted");
}

fn fate(plain: Option<&[u8]>) -> Fate {
    let Some(plain) = plain else {
        return Fate::Dropped;
    };
    if plain.is_empty() {
        return Fate::Nothing;
    }
    // WireGuard fills packets up: IP says where one ends.
    let whole = plain.get(2..4).and_then(|length| {
        let length = u16::from_be_bytes([length[0], length[1]]);
        plain.get(..length.into())
    });
    let Some(packet) = whole.filter(|_| plain.len() >= 20 && plain[0] >> 4 == 4) else {
        return Fate::Dropped;
    };
    match Encapsulation::parse(packet) {
        Some((ENCAPSULATION, at)) if is_admitted(&packet[at..]) => {
            Fate::Frame(packet[at..].to_vec())
        }
        Some(_) => Fate::Dropped,
        None => match message::contents(packet, INNER[0], INNER[1]) {
            Some(contents) => Fate::Message(contents.to_vec()),
            None => Fate::Dropped,
        },
    }
}

/// Reads packets of an input, each behind an octet that says of what kind it is.
fn packets(ends: &Ends, input: &mut Input<'_>) -> Vec<Packet> {
    let mut packets = Vec::new();
    while !input.is_empty() && packets.len() < PACKETS {
        let kind = input.octet();
        match kind & 7 {
            0 => {
                let length = input.octet();
                packets.push(Packet {
                    encrypted: input.take(length.into()).to_vec(),
                    plain: None,
                });
            }
            1 => {
                let length = input.octet();
                packets.push(encrypt(ends, input.take(length.into())));
            }
            2 => packets.extend(packets.last().map(|last: &Packet| Packet {
                encrypted: last.encrypted.clone(),
                plain: None,
            })),
            3 => {
                let length = input.octet();
                let packet = message::packet(INNER[0], INNER[1], input.take(length.into()));
                packets.push(encrypt(ends, &packet.expect("it is short")));
            }
            4 => packets.push(encrypt(ends, &enveloped(&short()))),
            5 => packets.extend(last_changed(ends, &packets, input)),
            6 => packets.extend(last_damaged(&packets, input)),
            _ => {
                let length = input.octet();
                let frames = stream(&mut Input::new(input.take(length.into())));
                packets.extend(frames.iter().map(|frame| encrypt(ends, &enveloped(frame))));
            }
        }
    }
    packets
}

fn encrypt(ends: &Ends, plain: &[u8]) -> Packet {
    Packet {
        encrypted: ends.encrypted(plain),
        plain: Some(plain.to_vec()),
    }
}

fn enveloped(frame: &[u8]) -> Vec<u8> {
    let head = ENCAPSULATION.head(frame, frame.len()).expect("it is short");
    [&head[..], frame].concat()
}

/// What was in the last packet that has anything in it, but for one octet.
fn last_changed(ends: &Ends, packets: &[Packet], input: &mut Input<'_>) -> Option<Packet> {
    let (at, to) = (usize::from(input.octet()), input.octet());
    let mut last = packets.iter().rev().find_map(|one| one.plain.clone())?;
    *last.get_mut(at)? = to;
    Some(encrypt(ends, &last))
}

/// The last packet, but for one octet of what is encrypted.
fn last_damaged(packets: &[Packet], input: &mut Input<'_>) -> Option<Packet> {
    let (at, by) = (usize::from(input.octet()), input.octet().max(1));
    let mut encrypted = packets.last()?.encrypted.clone();
    *encrypted.get_mut(at)? ^= by;
    Some(Packet {
        encrypted,
        plain: None,
    })
}

fn seeds() -> Vec<Vec<u8>> {
    // Whoever is no peer sends what looks like a packet of a session.
    let foreign = [&[0, 32, 4, 0, 0, 0, 0, 0, 0, 0][..], &[1; 24]].concat();
    vec![
        // A stream that is coalesced, and after it a message.
        vec![7, 4, 1, 1, 1, 1, 3, 2, 9, 9],
        // From another behind the peer, and from one behind the other host.
        vec![4, 5, 47, 3, 4, 5, 47, 2],
        // ARP, and tags.
        vec![
            4, 5, 48, 8, 5, 49, 6, 4, 5, 48, 0x81, 5, 49, 0, 4, 5, 49, 0xa8,
        ],
        // Another network, another sender's address, another receiver's.
        vec![7, 1, 1, 5, 34, 1, 7, 1, 1, 5, 15, 3, 7, 1, 1, 5, 19, 3],
        // A sign of life, and what is no packet of IP.
        vec![1, 0, 1, 3, 0x45, 0, 9, 1, 1, 0x60],
        // The same twice, damaged, or for another session.
        vec![4, 2, 4, 6, 50, 1, 4, 6, 4, 1, 4, 6, 8, 1],
        // More than there is; more than a frame.
        vec![4, 5, 3, 77, 4, 5, 3, 79, 4, 5, 25, 1],
        foreign,
        // What begins and answers handshakes.
        [&[0, 148, 1, 0, 0, 0][..], &[7; 144]].concat(),
        [&[0, 92, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], &[7; 80]].concat(),
        [&[0, 64, 3, 0, 0, 0, 0, 0, 0, 0][..], &[7; 56]].concat(),
    ]
}
