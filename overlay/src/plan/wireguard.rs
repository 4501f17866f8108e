//! The part of the plan that is WireGuard's: its device, and the routes to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnetwork::Ipv4Network;
use kontena_schema::address::InnerSubnet;
use kontena_schema::key::PublicKey;
use kontena_schema::limits::WIREGUARD_PORT;

use crate::model::devices::Link;
use crate::model::intent::{OverlayIntent, PeerIntent, Reach};
use crate::model::state::{Encryption, TunnelRoute, WireGuardState};
use crate::plan::step::{Step, WireGuardStep};
use crate::wireguard::{Device, Looked, Named, WgPeer, WireGuardUpdate, changes};

/// What is around a frame of the overlay inside WireGuard: Ethernet, VXLAN, UDP and IPv4.
const ENVELOPE: u32 = 14 + 8 + 8 + 20;
/// As the sleeve's: half of the shortest time after which common routers forget.
const KEEPALIVE_S: u16 = 15;
/// Where nobody is.
const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

/// Where WireGuard is to lead to. None without it, and where a route of the tunnel subnet
/// would take this host its own network.
fn subnet(intent: &OverlayIntent) -> Option<InnerSubnet> {
    let encrypts =
        intent.encryption == Encryption::WireGuard && intent.own_in_tunnel_subnet().is_none();
    encrypts.then_some(intent.tunnel_subnet)
}

/// Makes sure that nothing for an tunnel address takes another way, before there is one;
/// and without WireGuard, that it is not in the sleeve's way.
pub(super) fn egress(intent: &OverlayIntent, inside: &WireGuardState, steps: &mut Vec<Step>) {
    match subnet(intent).map(TunnelRoute::Unreachable) {
        Some(route) if inside.routes.contains(&route) => {}
        Some(route) => steps.push(Step::WireGuard(WireGuardStep::AddRoute(route))),
        // It has the sleeve's port.
        None => steps.extend(delete_link(inside)),
    }
}

/// Takes those routes to nowhere away where no way to tunnel addresses is wanted: all, or
/// those of a grid that the host was in before.
pub(super) fn remove_unreachable(
    intent: &OverlayIntent,
    inside: &WireGuardState,
    steps: &mut Vec<Step>,
) {
    steps.extend(delete_routes(subnet(intent), inside));
}

/// The steps that leave nothing of it.
pub(super) fn remove(inside: &WireGuardState) -> impl Iterator<Item = Step> {
    let link = delete_link(inside);
    link.into_iter().chain(delete_routes(None, inside))
}

fn delete_link(inside: &WireGuardState) -> Option<Step> {
    let there = inside.link.is_some();
    there.then_some(Step::DeleteLink(Link::WireGuard))
}

/// Deletes the routes to nowhere but one. Those through the device go with it.
fn delete_routes(but: Option<InnerSubnet>, inside: &WireGuardState) -> impl Iterator<Item = Step> {
    let delete = move |&route: &TunnelRoute| match route {
        TunnelRoute::Unreachable(of) if Some(of) != but => {
            Some(Step::WireGuard(WireGuardStep::DeleteRoute(route)))
        }
        _ => None,
    };
    inside.routes.iter().filter_map(delete)
}

/// Brings the device to what is wanted: the peers before it is up, the route last.
pub(super) fn encrypt(intent: &OverlayIntent, inside: &WireGuardState, steps: &mut Vec<Step>) {
    let Some(through) = subnet(intent).map(TunnelRoute::Through) else {
        return;
    };
    let mtu = intent.mtu + ENVELOPE;
    let there = inside.link.as_ref().zip(inside.device.as_ref());
    if there.is_none() {
        steps.push(Step::WireGuard(WireGuardStep::CreateWireGuard { mtu }));
    }
    // What is for tunnel addresses of a former grid goes nowhere from here on.
    let stale = inside.routes.iter().filter(|route| match route {
        TunnelRoute::Through(_) => **route != through,
        TunnelRoute::Unreachable(_) => false,
    });
    steps.extend(stale.map(|&route| Step::WireGuard(WireGuardStep::DeleteRoute(route))));
    let own = Ipv4Network::from(intent.own.tunnel_address);
    let addresses = there
        .map(|(link, _)| link.addresses.clone())
        .unwrap_or_default();
    let others = addresses.iter().filter(|address| **address != own);
    steps.extend(others.map(|&other| Step::RemoveAddress(Link::WireGuard, other)));
    if !addresses.contains(&own) {
        steps.push(Step::AddAddress(Link::WireGuard, own));
    }
    steps.extend(update(intent, there.map(|(_, device)| device)));
    let up = there.is_some_and(|(link, _)| link.up && link.mtu == mtu);
    if !up {
        steps.push(Step::WireGuard(WireGuardStep::SetWireGuard { mtu }));
    }
    // A link that loses its last address loses its routes; one that is down has none.
    let keeps = addresses.is_empty() || addresses.contains(&own);
    if !inside.routes.contains(&through) || !keeps {
        steps.push(Step::WireGuard(WireGuardStep::AddRoute(through)));
    }
    if there.is_none() || inside.hears != Some(intent.own.tunnel_address) {
        steps.push(Step::WireGuard(WireGuardStep::ListenForHeartbeats(
            intent.own.tunnel_address,
        )));
    }
}

fn update(intent: &OverlayIntent, looked: Option<&Looked>) -> Option<Step> {
    let (device, named) = wanted(intent)?;
    let nothing = Looked::default();
    let looked = looked.unwrap_or(&nothing);
    let update = WireGuardUpdate {
        messages: changes(&device, &told(looked), &looked.device),
        named,
    };
    let known = update.messages.is_empty() && update.named == looked.named;
    (!known).then(|| Step::WireGuard(WireGuardStep::UpdateWireGuard(Box::new(update))))
}

/// What the device was told of candidates; a peer that is lost is to be told of again.
fn told(looked: &Looked) -> BTreeMap<PublicKey, SocketAddrV4> {
    let told = |(key, named): (&PublicKey, &Named)| {
        let lost = looked.lost.contains(key);
        let told = if lost { Some(NOWHERE) } else { named.endpoint };
        Some((*key, told?))
    };
    looked.named.iter().filter_map(told).collect()
}

/// The device, and who has which key; none before this host has a key.
fn wanted(intent: &OverlayIntent) -> Option<(Device, BTreeMap<PublicKey, Named>)> {
    let mut device = Device {
        private_key: intent.keys.first()?.clone(),
        listen_port: WIREGUARD_PORT,
        peers: BTreeMap::new(),
    };
    let mut named = BTreeMap::new();
    for peer in intent.peers.values() {
        for (key, of, peer) in keys(intent, peer) {
            named.insert(key, of);
            device.peers.insert(key, peer);
        }
    }
    Some((device, named))
}

/// A peer with each of its keys. It is reached with the one that it uses; of the other it
/// only hears, so that a handshake with it finds an answer.
fn keys(intent: &OverlayIntent, peer: &PeerIntent) -> Vec<(PublicKey, Named, WgPeer)> {
    let Some(keys) = peer
        .keys
        .filter(|_| !matches!(intent.reach(peer), Reach::None(_)))
    else {
        return Vec::new();
    };
    let endpoint = peer
        .candidate()
        .map(|candidate| SocketAddrV4::new(candidate, WIREGUARD_PORT));
    let one = |key: PublicKey, next: bool| {
        let named = Named {
            tunnel_address: peer.tunnel_address,
            endpoint,
            next,
        };
        let used = next == peer.uses_next();
        let allowed = used.then(|| Ipv4Network::from(peer.tunnel_address));
        let keepalive_s = if used { KEEPALIVE_S } else { 0 };
        let allowed: BTreeSet<_> = allowed.into_iter().collect();
        let peer = WgPeer {
            endpoint,
            allowed,
            keepalive_s,
        };
        (key, named, peer)
    };
    let next = keys.next.map(|next| one(next, true));
    [one(keys.current, false)].into_iter().chain(next).collect()
}

#[cfg(test)]
#[path = "wireguard_tests.rs"]
mod tests;
