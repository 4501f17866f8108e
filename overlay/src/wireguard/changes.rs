//! The pure difference between the wanted and the actual device.
//!
//! First peers get what they lack; the kernel moves a network from its former peer to the new one
//! atomically. Then peers lose the networks that no peer gets, which requires replacing all that
//! they have: for an instant such a peer has none. Last, peers that are not wanted are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use ipnetwork::{IpNetwork, Ipv4Network};

use super::codec;
use super::device::{Device, How, Message, Observed, ObservedPeer, PeerChange, WgPeer};
use kontena_schema::key::PublicKey;

/// The most bytes of peers in one message. The length of an attribute has 16 bits, and the crate
/// that encodes it truncates longer ones silently; a quarter of that needs no large buffer in the
/// kernel.
pub(super) const PEERS_BYTES_MAX: usize = 16 * 1024;

/// The most networks in one change of a peer, so that it fits into a message.
pub(super) const NETWORKS_MAX: usize = 256;

/// The messages that turn `observed` into `wanted`, in order.
///
/// `last_sent` has the endpoints that were wanted before, once all messages of that time were
/// applied. An endpoint that differs from the kernel's is written only if it is not the last one
/// sent: else the peer has roamed. A peer without a last one, as after a restart, may have roamed
/// too if it ever completed a handshake, and is left alone. To reset a peer to the wanted endpoint,
/// pass any other one as the last.
///
/// A peer with the device's own key is left out: the kernel ignores it, and removes the existing one
/// when the device gets its key.
pub(crate) fn changes(
    wanted: &Device,
    last_sent: &BTreeMap<PublicKey, SocketAddrV4>,
    observed: &Observed,
) -> Vec<Message> {
    let own = wanted.private_key.public();
    let peers = || wanted.peers.iter().filter(|(key, _)| **key != own);
    let owners = owners(peers());
    let (mut gains, mut losses) = (Vec::new(), Vec::new());
    for (&key, peer) in peers() {
        let allowed = owners.iter().filter(|(_, owner)| **owner == key);
        let allowed: BTreeSet<Ipv4Network> = allowed.map(|(network, _)| *network).collect();
        match observed.peers.get(&key) {
            None => gains.push(addition(key, peer, &allowed)),
            Some(there) => {
                let endpoint = endpoint(peer.endpoint, last_sent.get(&key).copied(), there);
                gains.extend(update(key, peer, endpoint, &allowed, there));
                // None of our networks is IPv6.
                let owned = |n: &IpNetwork| matches!(n, IpNetwork::V4(n) if owners.contains_key(n));
                if !there.allowed.iter().all(owned) {
                    let mut narrow = PeerChange::new(key, How::Narrow);
                    narrow.allowed.extend(&allowed);
                    losses.push(narrow);
                }
            }
        }
    }
    let gone = |key: &&PublicKey| !wanted.peers.contains_key(key);
    let removals = observed.peers.keys().filter(gone);
    let removals = removals.map(|&key| PeerChange::new(key, How::Remove));
    let first = Message {
        private_key: (observed.public_key != Some(own)).then(|| wanted.private_key.clone()),
        listen_port: (wanted.listen_port != observed.listen_port).then_some(wanted.listen_port),
        peers: Vec::new(),
    };
    pack(first, gains.into_iter().chain(losses).chain(removals))
}

/// The peer of each network, as the kernel has it: one per network, and without host bits.
fn owners<'a>(
    peers: impl Iterator<Item = (&'a PublicKey, &'a WgPeer)>,
) -> BTreeMap<Ipv4Network, PublicKey> {
    let mut owners = BTreeMap::new();
    for (key, peer) in peers {
        for network in &peer.allowed {
            // The prefix is valid already, so this cannot fail.
            let bare = Ipv4Network::new(network.network(), network.prefix());
            owners.entry(bare.unwrap_or(*network)).or_insert(*key);
        }
    }
    owners
}

fn addition(key: PublicKey, peer: &WgPeer, allowed: &BTreeSet<Ipv4Network>) -> PeerChange {
    PeerChange {
        endpoint: peer.endpoint,
        keepalive_s: (peer.keepalive_s != 0).then_some(peer.keepalive_s),
        allowed: allowed.iter().copied().collect(),
        ..PeerChange::new(key, How::Add)
    }
}

/// What an existing peer lacks.
fn update(
    key: PublicKey,
    peer: &WgPeer,
    endpoint: Option<SocketAddrV4>,
    allowed: &BTreeSet<Ipv4Network>,
    there: &ObservedPeer,
) -> Option<PeerChange> {
    let lacks = |n: &&Ipv4Network| !there.allowed.contains(&IpNetwork::V4(**n));
    let nothing = PeerChange::new(key, How::Update);
    let update = PeerChange {
        endpoint,
        keepalive_s: (peer.keepalive_s != there.keepalive_s).then_some(peer.keepalive_s),
        allowed: allowed.iter().filter(lacks).copied().collect(),
        ..nothing.clone()
    };
    (update != nothing).then_some(update)
}

/// The endpoint to send for an existing peer.
fn endpoint(
    wanted: Option<SocketAddrV4>,
    last_sent: Option<SocketAddrV4>,
    there: &ObservedPeer,
) -> Option<SocketAddrV4> {
    let wanted = wanted?;
    let now = there.endpoint;
    let may_have_roamed = match last_sent {
        Some(last_sent) => last_sent == wanted,
        None => there.last_handshake.is_some(),
    };
    let stays = now == Some(wanted.into()) || (now.is_some() && may_have_roamed);
    (!stays).then_some(wanted)
}

/// Packs changes into as few messages as are allowed, in order.
fn pack(first: Message, changes: impl Iterator<Item = PeerChange>) -> Vec<Message> {
    let mut messages = Vec::new();
    let (mut open, mut bytes) = (first, 0);
    for change in changes.flat_map(split) {
        let more = codec::peer_bytes(&change);
        if bytes + more > PEERS_BYTES_MAX {
            messages.push(std::mem::take(&mut open));
            bytes = 0;
        }
        bytes += more;
        open.peers.push(change);
    }
    if !open.is_empty() {
        messages.push(open);
    }
    messages
}

/// Splits a change that would not fit into a message; the later parts add to the first.
fn split(mut change: PeerChange) -> Vec<PeerChange> {
    let rest = change
        .allowed
        .split_off(change.allowed.len().min(NETWORKS_MAX));
    let key = change.key;
    let more = rest.chunks(NETWORKS_MAX).map(|networks| PeerChange {
        allowed: networks.to_vec(),
        ..PeerChange::new(key, How::Update)
    });
    let more: Vec<_> = more.collect();
    std::iter::once(change).chain(more).collect()
}
