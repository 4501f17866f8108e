//! The pure difference between the device that is wanted and the one that is
//! there.
//!
//! First peers get what they lack; the kernel takes a network from its former peer
//! in the moment in which the new one gets it. Then peers lose what nobody gets,
//! which takes a replacement of all that they have: for an instant such a peer has
//! no networks. Last, peers go that have no reason.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use ipnetwork::{IpNetwork, Ipv4Network};

use super::codec;
use super::device::{Device, How, Message, Observed, ObservedPeer, PeerChange, WgPeer};
use kontena_schema::key::PublicKey;

/// The most that the peers of one message take, in bytes. The length of an
/// attribute has 16 bits, and the crate that encodes it cuts longer ones without a
/// word; a quarter of that needs no large buffer of the kernel.
pub(super) const PEERS_BYTES_MAX: usize = 16 * 1024;

/// The most networks of one change of a peer, so that it fits into a message.
pub(super) const NETWORKS_MAX: usize = 256;

/// The messages that make `wanted` of `observed`, in order.
///
/// `told` has the endpoints that were wanted before, once all messages of that time were
/// taken. An endpoint that differs from the
/// kernel's is written if it is not the one told before: else the peer has roamed.
/// A peer that nothing is known of, as after a restart, may have roamed too if it
/// ever made a handshake, and is left alone. To send a peer back to where it is
/// wanted, give any other endpoint as told.
///
/// A peer with the device's own key is left out: the kernel ignores it, and removes
/// the one that is there when the device gets its key.
pub(crate) fn changes(
    wanted: &Device,
    told: &BTreeMap<PublicKey, SocketAddrV4>,
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
                let endpoint = endpoint(peer.endpoint, told.get(&key).copied(), there);
                gains.extend(update(key, peer, endpoint, &allowed, there));
                // None of IPv6 is ours.
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

/// Whose each network is to be, as the kernel has it: once, and without host bits.
fn owners<'a>(
    peers: impl Iterator<Item = (&'a PublicKey, &'a WgPeer)>,
) -> BTreeMap<Ipv4Network, PublicKey> {
    let mut owners = BTreeMap::new();
    for (key, peer) in peers {
        for network in &peer.allowed {
            // It is a prefix already, so this cannot fail.
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

/// What a peer that is there lacks.
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

/// The endpoint that a peer which is there must be told.
fn endpoint(
    wanted: Option<SocketAddrV4>,
    told: Option<SocketAddrV4>,
    there: &ObservedPeer,
) -> Option<SocketAddrV4> {
    let wanted = wanted?;
    let now = there.endpoint;
    let may_have_roamed = match told {
        Some(told) => told == wanted,
        None => there.last_handshake.is_some(),
    };
    let stays = now == Some(wanted.into()) || (now.is_some() && may_have_roamed);
    (!stays).then_some(wanted)
}

/// Puts changes into as few messages as are allowed, without changing their order.
fn pack(first: Message, changes: impl Iterator<Item = PeerChange>) -> Vec<Message> {
    let mut messages = Vec::new();
    let (mut open, mut bytes) = (first, 0);
    for change in changes.flat_map(pieces) {
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

/// Cuts a change that would not fit into a message; what follows adds to it.
fn pieces(mut change: PeerChange) -> Vec<PeerChange> {
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
