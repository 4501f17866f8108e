//! The plan against a model of the kernel: any device from any other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, SystemTime};

use ipnetwork::{IpNetwork, Ipv4Network};
use netlink_packet_core::Emitable;
use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;

use super::changes::{NETWORKS_MAX, PEERS_BYTES_MAX, changes};
use super::codec;
use super::device::{Device, How, Message, Observed, ObservedPeer, WgPeer};
use super::model::deliver;
use kontena_schema::key::PublicKey;
use kontena_sleeve::PrivateKey;

fn private(seed: u8) -> PrivateKey {
    PrivateKey::from_octets([seed; 32])
}

/// The last two are keys that the device itself may have.
fn key(number: u8) -> PublicKey {
    match number {
        6 | 7 => private(number).public(),
        _ => PublicKey([number; 32]),
    }
}

fn candidate(host: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, host), 6783)
}

/// Some lie inside others.
fn network(number: u8) -> Ipv4Network {
    let prefix = if number == 0 { 24 } else { 32 };
    Ipv4Network::new(Ipv4Addr::new(100, 127, 81, number), prefix).unwrap()
}

fn any_place() -> impl Strategy<Value = Option<SocketAddrV4>> {
    proptest::option::of((1_u8..4).prop_map(candidate))
}

prop_compose! {
    fn any_device()(
        seed in 6_u8..9,
        listen_port in 6783_u16..6785,
        peers in btree_map(1_u8..8, (any_place(), btree_set(0_u8..6, 0..3), 0_u16..2), 0..6),
    ) -> Device {
        let peer = |(number, (endpoint, allowed, keepalive_s)): (u8, (_, BTreeSet<u8>, _))| {
            let allowed = allowed.into_iter().map(network).collect();
            (key(number), WgPeer { endpoint, allowed, keepalive_s })
        };
        let peers = peers.into_iter().map(peer).collect();
        Device { private_key: private(seed), listen_port, peers }
    }
}

prop_compose! {
    fn any_observed()(
        seed in proptest::option::of(6_u8..9),
        listen_port in 6782_u16..6785,
        peers in btree_map(1_u8..8, (any_place(), 0_u16..2, any::<(bool, bool)>()), 0..6),
        owners in btree_map(0_u8..6, 1_u8..8, 0..6),
    ) -> Observed {
        let peer = |(number, (endpoint, keepalive_s, more)): (u8, (_, u16, (bool, bool)))| {
            let (shook_hands, foreign) = more;
            let endpoint = Option::map(endpoint, |candidate: SocketAddrV4| candidate.into());
            let allowed = owners.iter().filter(|(_, owner)| **owner == number);
            let mut allowed: BTreeSet<IpNetwork> =
                allowed.map(|(n, _)| IpNetwork::V4(network(*n))).collect();
            if foreign {
                allowed.insert(IpNetwork::V6(format!("fd00::{number}/128").parse().unwrap()));
            }
            let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            let last_handshake = shook_hands.then_some(moment);
            let received_bytes = 1000 + u64::from(number);
            let peer = ObservedPeer {
                endpoint, allowed, keepalive_s, last_handshake, received_bytes, sent_bytes: 7,
            };
            (key(number), peer)
        };
        let mut peers: BTreeMap<_, _> = peers.into_iter().map(peer).collect();
        let public_key = seed.map(|seed| private(seed).public());
        peers.retain(|key, _| Some(*key) != public_key);
        Observed { public_key, listen_port, peers }
    }
}

fn any_told() -> impl Strategy<Value = BTreeMap<PublicKey, SocketAddrV4>> {
    let number = |(number, host)| (key(number), candidate(host));
    btree_map(1_u8..8, 1_u8..4, 0..6).prop_map(move |told| told.into_iter().map(number).collect())
}

/// Whose a network is to be.
fn owner(wanted: &Device, network: IpNetwork) -> Option<PublicKey> {
    let own = wanted.private_key.public();
    let has = |peer: &WgPeer| peer.allowed.iter().any(|n| IpNetwork::V4(*n) == network);
    let mut owners = wanted.peers.iter().filter(|(_, peer)| has(peer));
    owners.find(|(key, _)| **key != own).map(|(key, _)| *key)
}

fn holder(device: &Observed, network: IpNetwork) -> Option<PublicKey> {
    let mut holders = device
        .peers
        .iter()
        .filter(|(_, peer)| peer.allowed.contains(&network));
    let first = holders.next().map(|(key, _)| *key);
    assert_eq!(
        holders.next(),
        None,
        "the kernel has one peer for a network"
    );
    first
}

fn after(observed: &Observed, messages: &[Message]) -> Observed {
    let mut device = observed.clone();
    for message in messages {
        deliver(&mut device, message, |_| {});
    }
    device
}

/// Where a peer is to be that was at `there`.
fn endpoint(
    wanted: Option<SocketAddrV4>,
    told: Option<SocketAddrV4>,
    there: Option<&ObservedPeer>,
) -> Option<std::net::SocketAddr> {
    let now = there.and_then(|there| there.endpoint);
    let shook_hands = there.is_some_and(|there| there.last_handshake.is_some());
    match (wanted, told, now) {
        (None, _, now) => now,
        (Some(wanted), _, None) => Some(wanted.into()),
        (Some(wanted), Some(told), Some(_)) if told != wanted => Some(wanted.into()),
        (Some(wanted), None, Some(_)) if !shook_hands => Some(wanted.into()),
        (Some(_), _, roamed) => roamed,
    }
}

proptest! {
    #[test]
    fn wireguard_changes_lead_to_the_device_that_is_wanted(
        wanted in any_device(), told in any_told(), observed in any_observed(),
    ) {
        let messages = changes(&wanted, &told, &observed);
        let device = after(&observed, &messages);
        let own = wanted.private_key.public();
        prop_assert_eq!(device.public_key, Some(own));
        prop_assert_eq!(device.listen_port, wanted.listen_port);
        let keys: BTreeSet<_> = wanted.peers.keys().filter(|key| **key != own).collect();
        prop_assert_eq!(device.peers.keys().collect::<BTreeSet<_>>(), keys);
        for (key, peer) in &device.peers {
            let is = &wanted.peers[key];
            prop_assert_eq!(peer.keepalive_s, is.keepalive_s);
            let mine = (0..6).map(|n| IpNetwork::V4(network(n)));
            let mine: BTreeSet<_> = mine.filter(|n| owner(&wanted, *n) == Some(*key)).collect();
            prop_assert_eq!(&peer.allowed, &mine);
            let candidate = endpoint(is.endpoint, told.get(key).copied(), observed.peers.get(key));
            prop_assert_eq!(peer.endpoint, candidate);
        }
    }

    #[test]
    fn wireguard_changes_leave_nothing_to_do(
        wanted in any_device(), told in any_told(), observed in any_observed(),
    ) {
        let device = after(&observed, &changes(&wanted, &told, &observed));
        prop_assert_eq!(changes(&wanted, &wanted.endpoints(), &device), vec![]);
        prop_assert_eq!(changes(&wanted, &told, &device), vec![]);
    }

    #[test]
    fn wireguard_changes_never_reset_a_peer_that_stays(
        wanted in any_device(), told in any_told(), observed in any_observed(),
    ) {
        let own = wanted.private_key.public();
        let stays = |(key, _): &(&PublicKey, &ObservedPeer)| {
            wanted.peers.contains_key(key) && **key != own
        };
        let session = |peer: &ObservedPeer| {
            (peer.last_handshake, peer.received_bytes, peer.sent_bytes)
        };
        let mut device = observed.clone();
        for message in changes(&wanted, &told, &observed) {
            deliver(&mut device, &message, |moment| {
                for (key, peer) in observed.peers.iter().filter(stays) {
                    let now = moment.device.peers.get(key).map(session);
                    assert_eq!(now, Some(session(peer)), "{key:?}");
                }
            });
        }
    }

    #[test]
    fn wireguard_changes_never_leave_a_network_without_a_peer_while_it_moves(
        wanted in any_device(), told in any_told(), observed in any_observed(),
    ) {
        let networks: Vec<_> = (0..6).map(|n| IpNetwork::V4(network(n))).collect();
        // A peer whose key becomes the device's own is removed with that.
        let own = wanted.private_key.public();
        let kept = |network: &&IpNetwork| {
            holder(&observed, **network).is_some_and(|key| key != own)
                && owner(&wanted, **network).is_some()
        };
        let mut device = observed.clone();
        for message in changes(&wanted, &told, &observed) {
            deliver(&mut device, &message, |moment| {
                for network in networks.iter().filter(kept) {
                    let now = holder(moment.device, *network);
                    // One that loses what nobody gets has its own networks replaced.
                    let new = owner(&wanted, *network);
                    assert!(now.is_some() || moment.replaced == new, "{network} is nobody's");
                }
            });
            for network in networks.iter().filter(kept) {
                prop_assert!(holder(&device, *network).is_some(), "{network} is nobody's");
            }
        }
    }

    #[test]
    fn wireguard_changes_replace_networks_only_where_some_must_go(
        wanted in any_device(), told in any_told(), observed in any_observed(),
    ) {
        let messages = changes(&wanted, &told, &observed);
        for change in messages.iter().flat_map(|message| &message.peers) {
            if change.how == How::Narrow {
                let had = &observed.peers[&change.key].allowed;
                prop_assert!(had.iter().any(|network| owner(&wanted, *network).is_none()));
            }
        }
    }
}

fn peer(number: u16) -> (PublicKey, WgPeer) {
    let [high, low] = number.to_be_bytes();
    let mut key = [9; 32];
    (key[0], key[1]) = (high, low);
    let tunnel_address = Ipv4Network::new(Ipv4Addr::new(100, 127, high, low), 32).unwrap();
    let peer = WgPeer {
        endpoint: Some(candidate(low)),
        allowed: BTreeSet::from([tunnel_address]),
        keepalive_s: 15,
    };
    (PublicKey(key), peer)
}

fn device(peers: impl Iterator<Item = (PublicKey, WgPeer)>) -> Device {
    Device {
        private_key: private(1),
        listen_port: 6783,
        peers: peers.collect(),
    }
}

/// A whole grid of 254 nodes, all of whose peers are new.
#[test]
fn wireguard_changes_are_cut_into_messages_that_can_be_encoded() {
    let wanted = device((1..255).map(peer));
    let told = wanted.endpoints();
    let messages = changes(&wanted, &told, &Observed::default());
    assert_eq!(messages.len(), 2);
    assert!(messages[1].private_key.is_none() && messages[1].listen_port.is_none());
    let device = after(&Observed::default(), &messages);
    assert_eq!(device.peers.len(), 254);
    assert_eq!(changes(&wanted, &told, &device), vec![]);
    for message in messages {
        let bytes: usize = message.peers.iter().map(codec::peer_bytes).sum();
        assert!(bytes <= PEERS_BYTES_MAX, "{bytes}");
        // The interface's name, key, port and the list's own header.
        assert!(codec::request(&message).buffer_len() <= PEERS_BYTES_MAX + 64);
    }
}

#[test]
fn wireguard_changes_cut_a_peer_with_very_many_networks() {
    let many = |count: u16| {
        let (key, mut peer) = peer(1);
        peer.allowed = (0..count)
            .map(|n| Ipv4Network::from(Ipv4Addr::from(0x0a00_0000 + u32::from(n))))
            .collect();
        device(std::iter::once((key, peer)))
    };
    let mut there = Observed::default();
    for count in [5000, 4999, 1] {
        let wanted = many(count);
        let messages = changes(&wanted, &wanted.endpoints(), &there);
        for message in &messages {
            let bytes: usize = message.peers.iter().map(codec::peer_bytes).sum();
            assert!(bytes <= PEERS_BYTES_MAX, "{bytes}");
            let networks = |change: &super::device::PeerChange| change.allowed.len();
            assert!(
                message
                    .peers
                    .iter()
                    .map(networks)
                    .all(|n| n <= NETWORKS_MAX)
            );
        }
        there = after(&there, &messages);
        assert_eq!(there.peers[&peer(1).0].allowed.len(), usize::from(count));
        assert_eq!(changes(&wanted, &wanted.endpoints(), &there), vec![]);
    }
}

#[test]
fn wireguard_changes_know_a_network_by_its_prefix() {
    let (key, mut peer) = peer(1);
    peer.allowed = BTreeSet::from(["100.127.81.9/24".parse().unwrap()]);
    let wanted = device(std::iter::once((key, peer)));
    let messages = changes(&wanted, &BTreeMap::new(), &Observed::default());
    let there = after(&Observed::default(), &messages);
    let bare: IpNetwork = "100.127.81.0/24".parse().unwrap();
    assert_eq!(there.peers[&key].allowed, BTreeSet::from([bare]));
    assert_eq!(changes(&wanted, &BTreeMap::new(), &there), vec![]);
}
