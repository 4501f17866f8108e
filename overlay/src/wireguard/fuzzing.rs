//! What a WireGuard device says of itself, over netlink and as text.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnetwork::IpNetwork;
use kontena_fuzz::{Input, Target};
use kontena_schema::key::PublicKey;
use netlink_packet_core::{Emitable, NlasIterator, ParseableParametrized};
use netlink_packet_generic::{GenlHeader, GenlMessage};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardTimeSpec,
};

use super::device::{Observed, ObservedPeer};
use super::{codec, uapi};

/// What was read of the kernel's answer, advertised as the kernel would, is read as the same,
/// wherever the list of peers is cut.
pub(crate) const NETLINK: Target = Target {
    name: "netlink",
    check: netlink,
    seeds: netlink_seeds,
};

/// What was read of an answer in text, advertised as a device would, is read as the same.
pub(crate) const UAPI: Target = Target {
    name: "uapi",
    check: uapi,
    seeds: || vec![text(&sample()).into_bytes(), b"errno=0\n\n".to_vec()],
};

/// How many networks one message has; the first octet of an input.
fn netlink(octets: &[u8]) {
    let mut input = Input::new(octets);
    let step = usize::from(input.octet()) + 1;
    let Some(observed) = decoded(input.rest()) else {
        return;
    };
    let mut again = Observed::default();
    for answer in answers(&observed, step) {
        let answer = decoded_to(&mut again, &payload(answer));
        answer.expect("what is encoded is decoded");
    }
    assert_eq!(again, observed);
}

fn decoded(octets: &[u8]) -> Option<Observed> {
    let mut observed = Observed::default();
    decoded_to(&mut observed, octets)?;
    Some(observed)
}

fn decoded_to(observed: &mut Observed, octets: &[u8]) -> Option<()> {
    let header = GenlHeader::parse(octets).ok()?;
    let attributes = octets.get(header.buffer_len()..)?;
    if !every_prefix_has_a_length(attributes) {
        return None;
    }
    let message = WireguardMessage::parse_with_param(attributes, header).ok()?;
    codec::add_answer(observed, &message);
    Some(())
}

/// netlink-packet-wireguard 0.5.0 panics at a network whose prefix has no octets, which
/// the kernel never writes and nobody else may send.
fn every_prefix_has_a_length(attributes: &[u8]) -> bool {
    const PEERS: u16 = 8;
    const NETWORKS: u16 = 9;
    const PREFIX: u16 = 3;
    let inside = |octets: &[u8], kind: Option<u16>| -> Vec<Vec<u8>> {
        let all = NlasIterator::new(octets).map_while(Result::ok);
        let wanted = all.filter(|nla| kind.is_none_or(|kind| nla.kind() == kind));
        wanted.map(|nla| nla.value().to_vec()).collect()
    };
    let below = |of: Vec<Vec<u8>>, kind| -> Vec<Vec<u8>> {
        of.iter().flat_map(|octets| inside(octets, kind)).collect()
    };
    let peers = below(inside(attributes, Some(PEERS)), None);
    let networks = below(below(peers, Some(NETWORKS)), None);
    below(networks, Some(PREFIX))
        .iter()
        .all(|prefix| !prefix.is_empty())
}

/// The kernel's answer, with so many networks a message at most.
fn answers(observed: &Observed, step: usize) -> Vec<WireguardMessage> {
    use WireguardPeerAttribute as Attribute;
    let key = observed.public_key;
    let mut attributes = vec![WireguardAttribute::ListenPort(observed.listen_port)];
    attributes.extend(key.map(|key| WireguardAttribute::PublicKey(key.0)));
    let mut answers = vec![answer(attributes)];
    for (key, peer) in &observed.peers {
        let mut told = vec![
            Attribute::PublicKey(key.0),
            Attribute::PersistentKeepalive(peer.keepalive_s),
            Attribute::LastHandshake(time(peer.last_handshake)),
            Attribute::RxBytes(peer.received_bytes),
            Attribute::TxBytes(peer.sent_bytes),
        ];
        told.extend(peer.endpoint.map(Attribute::Endpoint));
        answers.push(about(told));
        let networks: Vec<_> = peer.allowed.iter().map(network).collect();
        for some in networks.chunks(step) {
            let networks = Attribute::AllowedIps(some.to_vec());
            answers.push(about(vec![Attribute::PublicKey(key.0), networks]));
        }
    }
    answers
}

fn about(told: Vec<WireguardPeerAttribute>) -> WireguardMessage {
    answer(vec![WireguardAttribute::Peers(vec![WireguardPeer(told)])])
}

fn answer(attributes: Vec<WireguardAttribute>) -> WireguardMessage {
    WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes,
    }
}

/// A generic netlink message, without the netlink header.
fn payload(message: WireguardMessage) -> Vec<u8> {
    let message = GenlMessage::from_payload(message);
    let mut octets = vec![0; message.buffer_len()];
    message.emit(&mut octets);
    octets
}

fn network(network: &IpNetwork) -> WireguardAllowedIp {
    let family = match network.ip() {
        IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
        IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(network.ip()),
        WireguardAllowedIpAttr::Cidr(network.prefix()),
    ])
}

fn since(moment: Option<SystemTime>) -> Duration {
    let since = moment.map(|moment| moment.duration_since(SystemTime::UNIX_EPOCH));
    since.map_or(Duration::ZERO, |since| since.expect("none is earlier"))
}

fn time(moment: Option<SystemTime>) -> WireguardTimeSpec {
    let since = since(moment);
    WireguardTimeSpec {
        seconds: since.as_secs() as i64,
        nano_seconds: since.subsec_nanos().into(),
    }
}

fn uapi(octets: &[u8]) {
    let Ok(advertised) = std::str::from_utf8(octets) else {
        return;
    };
    let Some(mut observed) = uapi::read(advertised) else {
        return;
    };
    // What a device says of itself is the other half of its key.
    observed.public_key = None;
    assert_eq!(uapi::read(&text(&observed)), Some(observed));
    for line in advertised.lines() {
        if let Some(("public_key" | "private_key", key)) = line.split_once('=') {
            let hex = key.bytes().all(|octet| octet.is_ascii_hexdigit());
            assert!(hex && key.len() == 64, "{key} is no key");
        }
    }
}

/// An answer about a device without a key.
fn text(observed: &Observed) -> String {
    let mut text = format!("listen_port={}\n", observed.listen_port);
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{key}={value}");
    };
    for (key, peer) in &observed.peers {
        let hex: String = key.0.iter().map(|octet| format!("{octet:02x}")).collect();
        line("public_key", &hex);
        if let Some(endpoint) = peer.endpoint {
            line("endpoint", &endpoint);
        }
        let since = since(peer.last_handshake);
        line("last_handshake_time_sec", &since.as_secs());
        line("last_handshake_time_nsec", &since.subsec_nanos());
        line("tx_bytes", &peer.sent_bytes);
        line("rx_bytes", &peer.received_bytes);
        line("persistent_keepalive_interval", &peer.keepalive_s);
        for network in &peer.allowed {
            line("allowed_ip", network);
        }
    }
    text.push_str("errno=0\n\n");
    text
}

/// A device with two peers.
fn sample() -> Observed {
    let networks = ["100.127.81.2/32", "10.81.0.0/17", "2001:db8::/64"];
    let networks = networks.map(|network| network.parse().expect("it is a network"));
    let peer = ObservedPeer {
        endpoint: Some(([198, 51, 100, 2], 6783).into()),
        allowed: networks.into(),
        keepalive_s: 15,
        last_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(1_800_000_000, 5)),
        received_bytes: 10,
        sent_bytes: 20,
    };
    let six = ObservedPeer {
        endpoint: Some((std::net::Ipv6Addr::LOCALHOST, 6783).into()),
        ..ObservedPeer::default()
    };
    let peers = [(PublicKey([0xab; 32]), peer), (PublicKey([1; 32]), six)];
    Observed {
        public_key: None,
        listen_port: 6783,
        peers: peers.into(),
    }
}

fn netlink_seeds() -> Vec<Vec<u8>> {
    let device = Observed {
        public_key: Some(PublicKey([6; 32])),
        ..sample()
    };
    // All in one message, as the kernel has it, and each of several alone.
    let several = answers(&device, 2);
    let mut whole = answer(Vec::new());
    whole.attributes = several
        .iter()
        .flat_map(|one| one.attributes.clone())
        .collect();
    let all = [whole].into_iter().chain(several);
    all.map(|one| [&[1][..], &payload(one)].concat()).collect()
}
