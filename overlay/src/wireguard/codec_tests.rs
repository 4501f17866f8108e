//! Our messages, byte by byte, against those of another program: pyroute2 encodes
//! the same cases (`reference.py`). And the kernel's answers, cut as it may.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use ipnetwork::Ipv4Network;
use netlink_packet_wireguard::{
    WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd, WireguardMessage,
    WireguardPeer, WireguardPeerAttribute, WireguardTimeSpec,
};
use serde_json::{Value, json};

use super::codec;
use super::device::{How, Message, Observed, PeerChange};
use super::model::payload;
use crate::model::devices::WIREGUARD;
use kontena_schema::key::PublicKey;
use kontena_sleeve::PrivateKey;

/// The interpreter that the system's packages of Python modules are for.
const PYTHON: &str = "/usr/bin/python3";

/// What pyroute2 makes of the cases.
fn reference(cases: &[Value]) -> Vec<String> {
    let mut program = Command::new(PYTHON)
        .args(["-c", include_str!("reference.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{PYTHON}: {error}"));
    let mut input = program.stdin.take().unwrap();
    // A program that ended early says why below.
    let _ = input.write_all(&serde_json::to_vec(cases).unwrap());
    drop(input);
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success(), "pyroute2 for {PYTHON} is needed");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A message in the words of the reference.
fn case(message: &Message) -> Value {
    let mut case = json!({"command": "set", "name": WIREGUARD});
    if let Some(key) = &message.private_key {
        case["private_key"] = json!(hex(&key.to_octets()));
    }
    if let Some(port) = message.listen_port {
        case["listen_port"] = json!(port);
    }
    case["peers"] = message.peers.iter().map(peer_case).collect();
    case
}

fn peer_case(change: &PeerChange) -> Value {
    let flags: &[&str] = match change.how {
        How::Add => &[],
        How::Update => &["update_only"],
        How::Narrow => &["update_only", "replace_allowedips"],
        How::Remove => &["remove_me"],
    };
    let mut case = json!({
        "public_key": hex(&change.key.0), "flags": flags, "allowed": change.allowed,
    });
    if let Some(endpoint) = change.endpoint {
        case["endpoint"] = json!(endpoint);
    }
    if let Some(seconds) = change.keepalive_s {
        case["keepalive_s"] = json!(seconds);
    }
    case
}

fn peer(number: u8, how: How) -> PeerChange {
    let key: Vec<u8> = (0..32).map(|n: u8| n.wrapping_mul(7) ^ number).collect();
    PeerChange::new(PublicKey(key.try_into().unwrap()), how)
}

fn endpoint(number: u8) -> Option<SocketAddrV4> {
    let port = 6783 + u16::from(number);
    Some(SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, number), port))
}

fn tunnel_address(number: u8) -> Ipv4Network {
    Ipv4Network::from(Ipv4Addr::new(100, 127, 81, number))
}

fn whole(number: u8) -> PeerChange {
    PeerChange {
        endpoint: endpoint(number),
        keepalive_s: Some(15),
        allowed: vec![tunnel_address(number)],
        ..peer(number, How::Add)
    }
}

fn with_peers(peers: Vec<PeerChange>) -> Message {
    Message {
        peers,
        ..Message::default()
    }
}

fn messages() -> Vec<Message> {
    let settings = Message {
        private_key: Some(PrivateKey::from_octets(std::array::from_fn(|n| {
            n as u8 ^ 0xa5
        }))),
        listen_port: Some(6783),
        peers: Vec::new(),
    };
    let update = |number| peer(number, How::Update);
    let narrow = |number| peer(number, How::Narrow);
    let networks = ["0.0.0.0/0", "10.81.0.0/17", "100.127.81.3/32"];
    let networks = networks.map(|network| network.parse().unwrap()).to_vec();
    vec![
        Message {
            listen_port: Some(u16::MAX),
            ..Message::default()
        },
        Message {
            private_key: settings.private_key.clone(),
            ..Message::default()
        },
        settings.clone(),
        with_peers(vec![peer(1, How::Add)]),
        with_peers(vec![whole(1)]),
        with_peers(vec![PeerChange {
            endpoint: endpoint(2),
            ..update(1)
        }]),
        with_peers(vec![PeerChange {
            keepalive_s: Some(0),
            ..update(1)
        }]),
        with_peers(vec![PeerChange {
            keepalive_s: Some(u16::MAX),
            ..update(1)
        }]),
        with_peers(vec![PeerChange {
            allowed: networks.clone(),
            ..update(2)
        }]),
        with_peers(vec![PeerChange {
            allowed: networks.clone(),
            ..narrow(3)
        }]),
        with_peers(vec![narrow(3)]),
        with_peers(vec![peer(4, How::Remove)]),
        with_peers(vec![whole(1), update(2), narrow(3), peer(4, How::Remove)]),
        Message {
            peers: (1..=254).map(whole).collect(),
            ..settings
        },
    ]
}

#[test]
fn wireguard_messages_are_those_of_another_program() {
    let messages = messages();
    let mut cases = vec![json!({"command": "get", "name": WIREGUARD, "peers": []})];
    cases.extend(messages.iter().map(case));
    let mut ours = vec![hex(&payload(codec::question()))];
    let requests = messages
        .iter()
        .map(|message| payload(codec::request(message)));
    ours.extend(requests.map(|bytes| hex(&bytes)));
    let theirs = reference(&cases);
    assert_eq!(theirs.len(), ours.len());
    for ((case, ours), theirs) in cases.iter().zip(ours).zip(theirs) {
        assert_eq!(ours, theirs, "{case}");
    }
}

fn answer(attributes: Vec<WireguardAttribute>) -> WireguardMessage {
    WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes,
    }
}

fn allowed(networks: &[Ipv4Network]) -> WireguardPeerAttribute {
    let one = |network: &Ipv4Network| {
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Cidr(network.prefix()),
            WireguardAllowedIpAttr::IpAddr(network.ip().into()),
        ])
    };
    WireguardPeerAttribute::AllowedIps(networks.iter().map(one).collect())
}

#[test]
fn wireguard_answers_are_put_together() {
    let keys = [1, 2].map(|number| PublicKey([number; 32]));
    let candidate: SocketAddr = "[2001:db8::1]:6783".parse().unwrap();
    let shake = |seconds, nano_seconds| {
        WireguardPeerAttribute::LastHandshake(WireguardTimeSpec {
            seconds,
            nano_seconds,
        })
    };
    let named = |key: PublicKey| WireguardPeerAttribute::PublicKey(key.0);
    let first = answer(vec![
        WireguardAttribute::ListenPort(6783),
        WireguardAttribute::IfIndex(3),
        WireguardAttribute::PrivateKey([5; 32]),
        WireguardAttribute::PublicKey([6; 32]),
        WireguardAttribute::Peers(vec![WireguardPeer(vec![
            named(keys[0]),
            WireguardPeerAttribute::PresharedKey([0; 32]),
            shake(1_800_000_000, 5),
            WireguardPeerAttribute::PersistentKeepalive(15),
            WireguardPeerAttribute::RxBytes(10),
            WireguardPeerAttribute::TxBytes(20),
            WireguardPeerAttribute::Endpoint(candidate),
            allowed(&[tunnel_address(1)]),
        ])]),
    ]);
    let second = answer(vec![WireguardAttribute::Peers(vec![
        WireguardPeer(vec![named(keys[0]), allowed(&[tunnel_address(2)])]),
        WireguardPeer(vec![named(keys[1]), shake(0, 0)]),
    ])]);
    let mut observed = Observed::default();
    for message in [first, second] {
        codec::add_answer(&mut observed, &message);
    }
    assert_eq!(observed.public_key, Some(PublicKey([6; 32])));
    assert_eq!(observed.listen_port, 6783);
    assert_eq!(observed.peers.keys().copied().collect::<Vec<_>>(), keys);
    let peer = &observed.peers[&keys[0]];
    let both = [tunnel_address(1), tunnel_address(2)].map(ipnetwork::IpNetwork::V4);
    assert_eq!(peer.allowed, BTreeSet::from(both));
    assert_eq!(peer.endpoint, Some(candidate));
    assert_eq!(
        (peer.keepalive_s, peer.received_bytes, peer.sent_bytes),
        (15, 10, 20)
    );
    let since = Duration::new(1_800_000_000, 5);
    assert_eq!(peer.last_handshake, Some(SystemTime::UNIX_EPOCH + since));
    assert_eq!(
        observed.peers[&keys[1]],
        super::device::ObservedPeer::default()
    );
}
