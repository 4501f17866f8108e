//! What is around a frame or a message inside the tunnel.

use std::net::Ipv4Addr;

use kontena_fuzz::{Input, Target};

use super::frames::tcp_v4;
use crate::headers::{ACK, IPV4, UDP};
use crate::message;
use crate::vxlan::{self, Encapsulation};

/// A packet that is taken says of itself what the sleeve would say of its contents,
/// and what is written is read back, but not if it is cut short.
pub(crate) const VXLAN: Target = Target {
    name: "vxlan",
    check: vxlan,
    seeds: vxlan_seeds,
};

/// The same for the messages of agents.
pub(crate) const MESSAGE: Target = Target {
    name: "message",
    check: message,
    seeds: message_seeds,
};

const A: Ipv4Addr = Ipv4Addr::new(100, 127, 81, 1);
const B: Ipv4Addr = Ipv4Addr::new(100, 127, 81, 2);
/// Octets of an encapsulation before the frame, in an input for the writer.
const ENCAPSULATION: Encapsulation = Encapsulation {
    from: A,
    to: B,
    vni: 0x0a_0b_0c,
};

/// In an IP header: both lengths, where it is a fragment, its protocol and addresses.
const TOLD_BY_IP: [std::ops::Range<usize>; 2] = [9..10, 12..20];
/// Behind it: the target's port and the length.
const TOLD_BY_UDP: std::ops::Range<usize> = 2..6;

fn vxlan(bytes: &[u8]) {
    if let Some((encapsulation, at)) = Encapsulation::parse(bytes) {
        vxlan_agrees(&encapsulation, bytes, at);
    }
    vxlan_is_read_back(bytes);
}

/// What a packet was read as, written again, is that packet.
fn vxlan_agrees(encapsulation: &Encapsulation, packet: &[u8], at: usize) {
    let frame = &packet[at..];
    let options = at - vxlan::BYTES;
    let head = encapsulation
        .head(frame, frame.len())
        .expect("what came in one packet fits one");
    let total = u16::from_be_bytes([packet[2], packet[3]]);
    assert_eq!(usize::from(total), packet.len(), "the length of the packet");
    assert_eq!(
        packet[0],
        0x45 + (options / 4) as u8,
        "the length of IP's header"
    );
    assert!(
        packet[6] & 0x3f == 0 && packet[7] == 0,
        "a fragment was taken"
    );
    for told in TOLD_BY_IP {
        assert_eq!(packet[told.clone()], head[told], "the header of IP");
    }
    let (advertised, wanted) = (&packet[IPV4 + options..], &head[IPV4..]);
    assert_eq!(
        advertised[TOLD_BY_UDP], wanted[TOLD_BY_UDP],
        "the header of UDP"
    );
    assert_eq!(
        advertised[UDP + 4..UDP + 7],
        wanted[UDP + 4..UDP + 7],
        "the VNI"
    );
    assert_ne!(advertised[UDP] & wanted[UDP], 0, "the VNI's flag");
    let again = [&head[..], frame].concat();
    let wanted = Some((*encapsulation, vxlan::BYTES));
    assert_eq!(
        Encapsulation::parse(&again),
        wanted,
        "what was read is written otherwise"
    );
}

fn vxlan_is_read_back(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let [_, vni @ ..] = input.octets::<4>();
    let encapsulation = Encapsulation {
        from: input.octets().into(),
        to: input.octets().into(),
        vni: u32::from_be_bytes([0, vni[0], vni[1], vni[2]]),
    };
    let frame = input.rest();
    let Some(head) = encapsulation.head(frame, frame.len()) else {
        return assert!(frame.len() > usize::from(u16::MAX) - vxlan::BYTES);
    };
    let packet = [&head[..], frame].concat();
    assert_eq!(
        Encapsulation::parse(&packet),
        Some((encapsulation, vxlan::BYTES))
    );
    for length in shorter(&packet) {
        assert_eq!(
            Encapsulation::parse(&packet[..length]),
            None,
            "{length} octets"
        );
    }
}

fn vxlan_seeds() -> Vec<Vec<u8>> {
    let frame = tcp_v4(1, 1, ACK, &[5; 40]);
    let head = ENCAPSULATION
        .head(&frame, frame.len())
        .expect("it is short");
    let packet = [&head[..], &frame].concat();
    // With four octets of options.
    let mut options = [&packet[..IPV4], &[1; 4], &packet[IPV4..]].concat();
    options[0] += 1;
    options[3] += 4;
    vec![packet, options, head.to_vec()]
}

fn message(bytes: &[u8]) {
    if let Some(contents) = message::contents(bytes, A, B) {
        message_agrees(bytes, contents);
    }
    message_is_read_back(bytes);
}

fn message_agrees(packet: &[u8], contents: &[u8]) {
    let again = message::packet(A, B, contents).expect("what was taken is not too long");
    assert_eq!(again.len(), packet.len(), "the length of the packet");
    assert!(
        packet[6] & 0x3f == 0 && packet[7] == 0,
        "a fragment was taken"
    );
    assert_eq!(packet[..4], [&[0x45, packet[1]][..], &again[2..4]].concat());
    for told in TOLD_BY_IP {
        assert_eq!(packet[told.clone()], again[told], "the header of IP");
    }
    let (advertised, wanted) = (&packet[IPV4..], &again[IPV4..]);
    assert_eq!(
        advertised[TOLD_BY_UDP], wanted[TOLD_BY_UDP],
        "the header of UDP"
    );
    assert_eq!(advertised[UDP..], wanted[UDP..], "the contents");
    assert_eq!(
        message::contents(packet, B, A),
        None,
        "it is between others"
    );
}

fn message_is_read_back(advertised: &[u8]) {
    let Some(packet) = message::packet(A, B, advertised) else {
        return assert!(
            advertised.len() > 1024,
            "{} octets are not too long",
            advertised.len()
        );
    };
    assert_eq!(message::contents(&packet, A, B), Some(advertised));
    assert_eq!(
        message::contents(&packet, B, A),
        None,
        "it is between others"
    );
    for length in shorter(&packet) {
        let short = message::contents(&packet[..length], A, B);
        assert_eq!(short, None, "{length} octets");
    }
}

/// Where a packet can be cut short: inside the headers, and at the last octet.
fn shorter(packet: &[u8]) -> impl Iterator<Item = usize> {
    (0..packet.len().min(64)).chain([packet.len() - 1])
}

fn message_seeds() -> Vec<Vec<u8>> {
    let advertised = [b"a heartbeat".to_vec(), Vec::new(), vec![7; 1024]];
    let packet = |advertised: &Vec<u8>| message::packet(A, B, advertised).expect("it is short");
    advertised.iter().map(packet).collect()
}
