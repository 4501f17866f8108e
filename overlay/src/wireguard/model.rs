//! A model of the kernel for tests: it takes requests as bytes, and does with
//! them what drivers/net/wireguard/netlink.c of Linux does. It panics where that
//! would refuse.

use ipnetwork::IpNetwork;
use netlink_packet_core::{Emitable, ParseableParametrized};
use netlink_packet_generic::{GenlHeader, GenlMessage};
use netlink_packet_wireguard::{
    WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd, WireguardMessage, WireguardPeer,
    WireguardPeerAttribute, WireguardPeerFlags,
};

use super::codec;
use super::device::{Message, Observed, ObservedPeer};
use crate::model::devices::WIREGUARD;
use kontena_schema::key::PublicKey;
use kontena_sleeve::PrivateKey;

/// A moment inside a message: packets that pass now meet what is there now.
pub(crate) struct Moment<'a> {
    pub(crate) device: &'a Observed,
    /// The peer whose networks are being replaced.
    pub(crate) replaced: Option<PublicKey>,
}

/// A generic netlink message as the kernel gets it, without the netlink header.
pub(super) fn payload(message: WireguardMessage) -> Vec<u8> {
    let message = GenlMessage::from_payload(message);
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// Makes the changes of a message, and shows every moment of it.
pub(crate) fn deliver(device: &mut Observed, message: &Message, mut show: impl FnMut(Moment<'_>)) {
    let bytes = payload(codec::request(message));
    let header = GenlHeader::parse(&bytes).unwrap();
    let request = WireguardMessage::parse_with_param(&bytes[header.buffer_len()..], header);
    let request = request.unwrap();
    assert_eq!(request.cmd, WireguardCmd::SetDevice);
    let mut named = false;
    for attribute in request.attributes {
        match attribute {
            WireguardAttribute::IfName(name) => {
                assert_eq!(name, WIREGUARD);
                named = true;
            }
            WireguardAttribute::ListenPort(port) => device.listen_port = port,
            WireguardAttribute::PrivateKey(key) => {
                let public = PrivateKey::from_octets(key).public();
                device.peers.remove(&public);
                device.public_key = Some(public);
            }
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    set_peer(device, Request::new(&peer), &mut show);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(named);
}

/// What a request says of one peer.
struct Request {
    key: PublicKey,
    flags: WireguardPeerFlags,
    rest: ObservedPeer,
    keepalive_s: Option<u16>,
}

impl Request {
    fn new(attributes: &WireguardPeer) -> Self {
        let mut key = None;
        let mut request = Request {
            key: PublicKey([0; 32]),
            flags: WireguardPeerFlags::empty(),
            rest: ObservedPeer::default(),
            keepalive_s: None,
        };
        for attribute in attributes.iter() {
            match attribute {
                WireguardPeerAttribute::PublicKey(bytes) => key = Some(PublicKey(*bytes)),
                WireguardPeerAttribute::Flags(flags) => request.flags = *flags,
                WireguardPeerAttribute::Endpoint(to) => request.rest.endpoint = Some(*to),
                WireguardPeerAttribute::PersistentKeepalive(s) => request.keepalive_s = Some(*s),
                WireguardPeerAttribute::AllowedIps(all) => {
                    request
                        .rest
                        .allowed
                        .extend(all.iter().map(|one| network(one)));
                }
                other => panic!("{other:?}"),
            }
        }
        request.key = key.expect("the kernel refuses a peer without a key");
        request
    }
}

/// The kernel wants all three, and clears the host's bits.
fn network(attributes: &[WireguardAllowedIpAttr]) -> IpNetwork {
    use WireguardAllowedIpAttr as Attribute;
    let [
        Attribute::Family(_),
        Attribute::IpAddr(ip),
        Attribute::Cidr(prefix),
    ] = attributes
    else {
        panic!("{attributes:?}");
    };
    let network = IpNetwork::new(*ip, *prefix).unwrap();
    IpNetwork::new(network.network(), *prefix).unwrap()
}

fn set_peer(device: &mut Observed, request: Request, show: &mut impl FnMut(Moment<'_>)) {
    let Request { key, flags, .. } = request;
    let has = |flag| flags.contains(flag);
    let replaces = has(WireguardPeerFlags::ReplaceAllowedIps);
    if !device.peers.contains_key(&key) {
        let ignored = has(WireguardPeerFlags::RemoveMe) || has(WireguardPeerFlags::UpdateOnly);
        if ignored || device.public_key == Some(key) {
            return;
        }
        device.peers.insert(key, ObservedPeer::default());
    }
    let replaced = replaces.then_some(key);
    let mut show = |device: &Observed| show(Moment { device, replaced });
    if has(WireguardPeerFlags::RemoveMe) {
        device.peers.remove(&key);
        return show(device);
    }
    let peer = device.peers.get_mut(&key).unwrap();
    peer.endpoint = request.rest.endpoint.or(peer.endpoint);
    if replaces {
        peer.allowed.clear();
        show(device);
    }
    for network in request.rest.allowed {
        for peer in device.peers.values_mut() {
            peer.allowed.remove(&network);
        }
        device.peers.get_mut(&key).unwrap().allowed.insert(network);
        show(device);
    }
    let peer = device.peers.get_mut(&key).unwrap();
    peer.keepalive_s = request.keepalive_s.unwrap_or(peer.keepalive_s);
    show(device);
}
