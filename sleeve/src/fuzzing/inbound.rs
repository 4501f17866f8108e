//! Packets from the underlay to the bridge.

use kontena_fuzz::{Input, Target};

use super::ends::{ENCAPSULATION, Ends, TUNNEL_ADDRESSES, is_admitted, short, with_ends};
use super::frames::normalized;
use super::segmenting::stream;
use crate::inbound::Work;
use crate::message::{self, Message};
use crate::vxlan::Encapsulation;

/// Whatever the burst of packets: the bridge receives, unchanged and in order, the frames that
/// the peer encrypted and may send, the agent receives its messages, and every other packet is
/// counted as dropped.
pub(super) const INBOUND: Target = Target {
    name: "inbound",
    check: |bytes| with_ends(|ends| inbound(ends, bytes)),
    seeds,
};

/// The most packets of one input: a burst.
const PACKETS: usize = 64;

/// A packet, and its contents if it decrypts in this session.
struct Packet {
    encrypted: Vec<u8>,
    plain: Option<Vec<u8>>,
}

/// What is expected to happen to a packet.
enum Expected {
    Frame(Vec<u8>),
    Message(Vec<u8>),
    Keepalive,
    Dropped,
}

fn inbound(ends: &Ends, bytes: &[u8]) {
    let packets = packets(ends, &mut Input::new(bytes));
    let (mut frames, mut messages, mut dropped) = (Vec::new(), Vec::new(), ends.second().dropped());
    for packet in &packets {
        match expected(packet.plain.as_deref()) {
            Expected::Frame(frame) => frames.push(normalized(frame)),
            Expected::Message(contents) => messages.push(Message {
                from: TUNNEL_ADDRESSES[0],
                contents,
            }),
            Expected::Keepalive => {}
            Expected::Dropped => dropped += 1,
        }
    }
    let end = ends.second();
    let mut work = Work::new(&end.shared);
    let burst = packets.iter().map(|packet| &packet.encrypted[..]);
    work.decrypt(&end.snapshot, burst, ends.first().address());
    work.flush();
    assert_eq!(end.delivered(), frames, "the frames");
    assert_eq!(end.messages(), messages, "the messages");
    assert_eq!(end.dropped(), dropped, "the packets counted as dropped");
}

fn expected(plain: Option<&[u8]>) -> Expected {
    let Some(plain) = plain else {
        return Expected::Dropped;
    };
    if plain.is_empty() {
        return Expected::Keepalive;
    }
    // WireGuard pads packets; the IP header has the length.
    let whole = plain.get(2..4).and_then(|length| {
        let length = u16::from_be_bytes([length[0], length[1]]);
        plain.get(..length.into())
    });
    let Some(packet) = whole.filter(|_| plain.len() >= 20 && plain[0] >> 4 == 4) else {
        return Expected::Dropped;
    };
    match Encapsulation::parse(packet) {
        Some((ENCAPSULATION, at)) if is_admitted(&packet[at..]) => {
            Expected::Frame(packet[at..].to_vec())
        }
        Some(_) => Expected::Dropped,
        None => match message::contents(packet, TUNNEL_ADDRESSES[0], TUNNEL_ADDRESSES[1]) {
            Some(contents) => Expected::Message(contents.to_vec()),
            None => Expected::Dropped,
        },
    }
}

/// Reads the packets of an input; the first octet of each is its kind.
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
                let packet = message::packet(
                    TUNNEL_ADDRESSES[0],
                    TUNNEL_ADDRESSES[1],
                    input.take(length.into()),
                );
                packets.push(encrypt(ends, &packet.expect("it is short")));
            }
            4 => packets.push(encrypt(ends, &encapsulated(&short()))),
            5 => packets.extend(last_changed(ends, &packets, input)),
            6 => packets.extend(last_damaged(&packets, input)),
            _ => {
                let length = input.octet();
                let frames = stream(&mut Input::new(input.take(length.into())));
                packets.extend(
                    frames
                        .iter()
                        .map(|frame| encrypt(ends, &encapsulated(frame))),
                );
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

fn encapsulated(frame: &[u8]) -> Vec<u8> {
    let head = ENCAPSULATION.head(frame, frame.len()).expect("it is short");
    [&head[..], frame].concat()
}

/// The contents of the last packet that has any, with one octet changed, encrypted again.
fn last_changed(ends: &Ends, packets: &[Packet], input: &mut Input<'_>) -> Option<Packet> {
    let (at, to) = (usize::from(input.octet()), input.octet());
    let mut last = packets.iter().rev().find_map(|one| one.plain.clone())?;
    *last.get_mut(at)? = to;
    Some(encrypt(ends, &last))
}

/// The last packet, with one octet of its ciphertext changed.
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
    // What looks like a packet of a session, sent by a host that is not a peer.
    let foreign = [&[0, 32, 4, 0, 0, 0, 0, 0, 0, 0][..], &[1; 24]].concat();
    vec![
        // A stream that is coalesced, followed by a message.
        vec![7, 4, 1, 1, 1, 1, 3, 2, 9, 9],
        // From the peer's other container, and from one of the receiver's.
        vec![4, 5, 47, 3, 4, 5, 47, 2],
        // ARP, and VLAN tags.
        vec![
            4, 5, 48, 8, 5, 49, 6, 4, 5, 48, 0x81, 5, 49, 0, 4, 5, 49, 0xa8,
        ],
        // Another VNI, another sender address, another receiver address.
        vec![7, 1, 1, 5, 34, 1, 7, 1, 1, 5, 15, 3, 7, 1, 1, 5, 19, 3],
        // A keepalive, and packets that are not IPv4.
        vec![1, 0, 1, 3, 0x45, 0, 9, 1, 1, 0x60],
        // A replay, damaged ciphertext, another session.
        vec![4, 2, 4, 6, 50, 1, 4, 6, 4, 1, 4, 6, 8, 1],
        // Lengths beyond the packet; a frame that is too long.
        vec![4, 5, 3, 77, 4, 5, 3, 79, 4, 5, 25, 1],
        foreign,
        // Handshake initiation, response and cookie.
        [&[0, 148, 1, 0, 0, 0][..], &[7; 144]].concat(),
        [&[0, 92, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], &[7; 80]].concat(),
        [&[0, 64, 3, 0, 0, 0, 0, 0, 0, 0][..], &[7; 56]].concat(),
    ]
}
