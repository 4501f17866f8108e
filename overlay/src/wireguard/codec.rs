//! Messages as the kernel's generic netlink family has them (linux/wireguard.h).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnetwork::{IpNetwork, Ipv4Network};
use netlink_packet_core::Emitable;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
    WireguardTimeSpec,
};

use super::device::{How, Message, Observed, ObservedPeer, PeerChange};
use crate::model::devices::WIREGUARD;
use kontena_schema::key::PublicKey;

/// The question for everything about the device.
pub(super) fn question() -> WireguardMessage {
    WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes: vec![WireguardAttribute::IfName(WIREGUARD.to_owned())],
    }
}

/// The request that a message makes.
pub(super) fn request(message: &Message) -> WireguardMessage {
    let mut attributes = vec![WireguardAttribute::IfName(WIREGUARD.to_owned())];
    let key = message.private_key.as_ref();
    attributes.extend(key.map(|key| WireguardAttribute::PrivateKey(key.to_octets())));
    attributes.extend(message.listen_port.map(WireguardAttribute::ListenPort));
    if !message.peers.is_empty() {
        let peers = message.peers.iter().map(peer).collect();
        attributes.push(WireguardAttribute::Peers(peers));
    }
    WireguardMessage {
        cmd: WireguardCmd::SetDevice,
        attributes,
    }
}

/// How much of a message a change takes.
pub(super) fn peer_bytes(change: &PeerChange) -> usize {
    peer(change).buffer_len()
}

fn peer(change: &PeerChange) -> WireguardPeer {
    use WireguardPeerAttribute as Attribute;
    let mut attributes = vec![Attribute::PublicKey(change.key.0)];
    attributes.extend(flags(change.how).map(Attribute::Flags));
    let endpoint = change.endpoint.map(SocketAddr::V4);
    attributes.extend(endpoint.map(Attribute::Endpoint));
    attributes.extend(change.keepalive_s.map(Attribute::PersistentKeepalive));
    if !change.allowed.is_empty() {
        let allowed = change.allowed.iter().map(allowed).collect();
        attributes.push(Attribute::AllowedIps(allowed));
    }
    WireguardPeer(attributes)
}

fn flags(how: How) -> Option<WireguardPeerFlags> {
    match how {
        How::Add => None,
        // A peer that went meanwhile must not come back as half of itself.
        How::Update => Some(WireguardPeerFlags::UpdateOnly),
        How::Narrow => Some(WireguardPeerFlags::UpdateOnly | WireguardPeerFlags::ReplaceAllowedIps),
        How::Remove => Some(WireguardPeerFlags::RemoveMe),
    }
}

fn allowed(network: &Ipv4Network) -> WireguardAllowedIp {
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
        WireguardAllowedIpAttr::IpAddr(IpAddr::V4(network.network())),
        WireguardAllowedIpAttr::Cidr(network.prefix()),
    ])
}

/// Adds one message of the kernel's answer to what the others advertised: it may cut its
/// list of peers anywhere, even inside a peer's networks.
pub(super) fn add_answer(observed: &mut Observed, answer: &WireguardMessage) {
    for attribute in &answer.attributes {
        match attribute {
            WireguardAttribute::PublicKey(key) => observed.public_key = Some(PublicKey(*key)),
            WireguardAttribute::ListenPort(port) => observed.listen_port = *port,
            WireguardAttribute::Peers(peers) => {
                for attributes in peers {
                    add_peer(observed, attributes);
                }
            }
            _ => {}
        }
    }
}

fn add_peer(observed: &mut Observed, attributes: &WireguardPeer) {
    let key = attributes.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(PublicKey(*key)),
        _ => None,
    });
    // The kernel names every peer.
    let Some(key) = key else { return };
    let peer = observed.peers.entry(key).or_default();
    for attribute in attributes.iter() {
        add_to_peer(peer, attribute);
    }
}

fn add_to_peer(peer: &mut ObservedPeer, attribute: &WireguardPeerAttribute) {
    match attribute {
        WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(*endpoint),
        WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive_s = *seconds,
        WireguardPeerAttribute::LastHandshake(time) => peer.last_handshake = moment(*time),
        WireguardPeerAttribute::RxBytes(bytes) => peer.received_bytes = *bytes,
        WireguardPeerAttribute::TxBytes(bytes) => peer.sent_bytes = *bytes,
        WireguardPeerAttribute::AllowedIps(networks) => {
            peer.allowed.extend(networks.iter().filter_map(network));
        }
        _ => {}
    }
}

fn network(attributes: &WireguardAllowedIp) -> Option<IpNetwork> {
    let (mut address, mut prefix) = (None, None);
    for attribute in attributes.iter() {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(ip) => address = Some(*ip),
            WireguardAllowedIpAttr::Cidr(bits) => prefix = Some(*bits),
            _ => {}
        }
    }
    IpNetwork::new(address?, prefix?).ok()
}

/// The time of a handshake; the kernel says 0 if there was none.
fn moment(time: WireguardTimeSpec) -> Option<SystemTime> {
    let seconds = Duration::from_secs(time.seconds.try_into().ok()?);
    let more = Duration::from_nanos(time.nano_seconds.try_into().ok()?);
    let since = seconds.checked_add(more).filter(|since| !since.is_zero())?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}
