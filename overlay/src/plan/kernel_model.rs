//! A model of the kernel for the plan's tests: what each step does to what a
//! plan can see. It panics where the kernel would refuse.

use ipnetwork::Ipv4Network;

use super::*;
use crate::model::state::{
    Chain, ContainerEnd, ForwardPlace, HostEnd, TunnelRoute, Variant, WireGuardLink, WireGuardState,
};
use crate::plan::step::WireGuardStep;
use crate::wireguard::{Looked, model::deliver};

pub(super) const DOCKER_USER: ForwardPlace = ForwardPlace {
    variant: Variant::Nft,
    chain: Chain::DockerUser,
};

pub(super) fn bare(intent: &OverlayIntent) -> Observed {
    Observed {
        filter: FilterState::Missing,
        anti_spoofing: AntiSpoofingState::Missing,
        forwarding: Some(Forwarding {
            place: DOCKER_USER,
            present: BTreeMap::new(),
        }),
        bridge: None,
        vxlan: None,
        sleeve: None,
        tap: None,
        inside: WireGuardState::default(),
        path_probes: None,
        remote: BTreeMap::new(),
        host_ends: BTreeMap::new(),
        containers: intent.attachments().map(|(id, _)| (id, None)).collect(),
    }
}

/// What the kernel makes of a step. It panics where the kernel would refuse.
pub(super) fn apply(model: &mut Observed, step: &Step) {
    match step {
        Step::InstallFilter(_)
        | Step::SetEgressPolicy { .. }
        | Step::AllowPeers(_)
        | Step::ForbidPeers(_)
        | Step::RemoveFilter
        | Step::InstallAntiSpoofing(_)
        | Step::ChangeAntiSpoofing { .. }
        | Step::RemoveAntiSpoofing => apply_to_filters(model, step),
        Step::AllowForwarding(place) => *forward(model).entry(*place).or_default() += 1,
        Step::ForgetForwarding(place) => forget_forwarding(forward(model), *place),
        Step::Announce(_) => {}
        Step::CreateBridge { .. }
        | Step::SetBridgeMac(_)
        | Step::SetBridge(_)
        | Step::AddAddress(Link::Bridge, _)
        | Step::RemoveAddress(Link::Bridge, _)
        | Step::Entry(EntryStep::SetNeighbour(..) | EntryStep::DeleteNeighbour(_)) => {
            apply_to_bridge(&mut model.bridge, step)
        }
        Step::ListenForPathProbes(path_probes) => {
            assert!(model.bridge.is_some(), "they are heard on it");
            model.path_probes = Some(*path_probes);
        }
        Step::DeleteLink(link) => delete_link(model, *link),
        Step::Attach { .. } | Step::SetHostEnd { .. } | Step::Configure { .. } => {
            apply_to_container(model, step);
        }
        Step::CreateVxlan { vni, mtu } => create_vxlan(model, (*vni, *mtu)),
        Step::SetVxlan(port) => {
            let protected = matches!(model.anti_spoofing, AntiSpoofingState::Sound(_));
            assert!(protected, "the anti_spoofing comes before the vxlan is up");
            model.vxlan.as_mut().expect("a vxlan").port = *port;
        }
        Step::StartSleeve(_) | Step::StopSleeve | Step::SetTap(_) | Step::SetTable(_) => {
            apply_to_sleeve(model, step);
        }
        Step::WireGuard(_) | Step::AddAddress(..) | Step::RemoveAddress(..) => {
            apply_to_inside(model, step)
        }
        Step::Entry(EntryStep::SetBridgeEntry(mac, port)) => {
            let there = match port {
                Port::Vxlan => model.vxlan.as_ref().map(|vxlan| vxlan.port),
                Port::Tap => model.tap,
            };
            assert!(
                there.expect("the port").on_bridge,
                "only ports have entries"
            );
            let (port, pinned) = (*port, true);
            model.remote.insert(*mac, RemoteEntry { port, pinned });
        }
        Step::Entry(EntryStep::DeleteBridgeEntry(mac, port)) => {
            let entry = model.remote.remove(mac).expect("an entry");
            assert_eq!(entry.port, *port);
        }
        entry => apply_to_vxlan(model.vxlan.as_mut().expect("a vxlan"), entry),
    }
}

fn create_vxlan(model: &mut Observed, (vni, mtu): (u32, u32)) {
    let filtered = matches!(model.filter, FilterState::Sound(_));
    assert!(filtered, "the filter comes first");
    assert!(model.vxlan.is_none(), "there is one already");
    let identity = VxlanIdentity {
        vni,
        udp_port: VXLAN_PORT,
        learning: false,
        proxy: true,
        bound: false,
    };
    model.vxlan = Some(Vxlan {
        identity,
        port: fresh_port(mtu),
        entries: BTreeMap::new(),
        floods: BTreeSet::new(),
    });
}

fn forget_forwarding(rules: &mut BTreeMap<ForwardPlace, usize>, place: ForwardPlace) {
    *rules.get_mut(&place).expect("there is such a rule") -= 1;
    rules.retain(|_, count| *count > 0);
}

fn apply_to_filters(model: &mut Observed, step: &Step) {
    match step {
        Step::InstallFilter(filter) => model.filter = FilterState::Sound(filter.clone()),
        Step::SetEgressPolicy { old, new } => {
            let FilterState::Sound(filter) = &mut model.filter else {
                panic!("no filter")
            };
            assert_eq!(&filter.egress, old);
            filter.egress = new.clone();
        }
        Step::AllowPeers(peers) => allowed(model).extend(peers),
        Step::ForbidPeers(peers) => {
            let there = allowed(model);
            assert!(peers.is_subset(there), "what is not there cannot go");
            there.retain(|peer| !peers.contains(peer));
        }
        Step::RemoveFilter => model.filter = FilterState::Missing,
        Step::InstallAntiSpoofing(senders) => {
            // It is hooked to the device.
            if model.vxlan.is_some() {
                model.anti_spoofing = AntiSpoofingState::Sound(senders.clone());
            }
        }
        Step::ChangeAntiSpoofing { old, new } => {
            let AntiSpoofingState::Sound(senders) = &mut model.anti_spoofing else {
                panic!("no anti_spoofing")
            };
            assert!(old.iter().all(|mac| senders.remove(mac)));
            assert!(new.iter().all(|mac| senders.insert(*mac)));
        }
        Step::RemoveAntiSpoofing => model.anti_spoofing = AntiSpoofingState::Missing,
        other => unreachable!("{other}"),
    }
}

/// A device that goes takes the bridge's entries for it along.
fn forget_port(model: &mut Observed, port: Port) {
    model.remote.retain(|_, entry| entry.port != port);
}

fn apply_to_sleeve(model: &mut Observed, step: &Step) {
    match step {
        Step::StartSleeve(identity) => {
            assert!(model.inside.link.is_none(), "it has the port");
            forget_port(model, Port::Tap);
            model.tap = Some(fresh_port(1500));
            model.sleeve = Some(SleeveState {
                identity: *identity,
                table: Table::default(),
            });
        }
        Step::StopSleeve => {
            forget_port(model, Port::Tap);
            model.tap = None;
            model.sleeve.take().expect("an encrypted path");
        }
        Step::SetTap(port) => *model.tap.as_mut().expect("a device") = *port,
        Step::SetTable(table) => {
            model.sleeve.as_mut().expect("an encrypted path").table = (**table).clone();
        }
        other => unreachable!("{other}"),
    }
}

fn apply_to_inside(model: &mut Observed, step: &Step) {
    let filtered = matches!(model.filter, FilterState::Sound(_));
    let inside = &mut model.inside;
    let to_nowhere = |route: &TunnelRoute| matches!(route, TunnelRoute::Unreachable(_));
    let fenced = inside.routes.iter().any(to_nowhere);
    if let Step::WireGuard(WireGuardStep::CreateWireGuard { mtu }) = step {
        assert!(filtered && fenced, "what protects it comes first");
        assert!(inside.link.is_none(), "there is one already");
        inside.device = Some(Looked::default());
        inside.link = Some(WireGuardLink {
            mtu: *mtu,
            up: false,
            addresses: BTreeSet::new(),
        });
        return;
    }
    match step {
        Step::WireGuard(WireGuardStep::AddRoute(route @ TunnelRoute::Unreachable(_))) => {
            inside.routes.insert(*route);
        }
        Step::WireGuard(WireGuardStep::DeleteRoute(route)) => assert!(inside.routes.remove(route)),
        _ => apply_to_device(inside, step),
    }
}

fn apply_to_device(inside: &mut WireGuardState, step: &Step) {
    let link = inside.link.as_mut().expect("a link");
    let looked = inside.device.as_mut().expect("a device");
    match step {
        Step::AddAddress(_, address) => assert!(link.addresses.insert(*address)),
        Step::RemoveAddress(_, address) => {
            assert!(link.addresses.remove(address));
            if link.addresses.is_empty() {
                forget_routes(&mut inside.routes);
            }
        }
        Step::WireGuard(WireGuardStep::UpdateWireGuard(update)) => {
            for message in &update.messages {
                deliver(&mut looked.device, message, |_| {});
            }
            looked.named.clone_from(&update.named);
        }
        Step::WireGuard(WireGuardStep::SetWireGuard { mtu }) => {
            assert!(looked.device.listen_port != 0, "the port is told first");
            (link.mtu, link.up) = (*mtu, true);
        }
        Step::WireGuard(WireGuardStep::AddRoute(route @ TunnelRoute::Through(_))) => {
            assert!(link.up && !link.addresses.is_empty());
            let new = inside.routes.insert(*route);
            assert!(new, "what is there is nobody's to replace");
        }
        Step::WireGuard(WireGuardStep::ListenForHeartbeats(tunnel_address)) => {
            assert!(link.addresses.contains(&Ipv4Network::from(*tunnel_address)));
            inside.hears = Some(*tunnel_address);
        }
        other => unreachable!("{other}"),
    }
}

/// A link that goes takes the routes through it along.
fn forget_routes(routes: &mut BTreeSet<TunnelRoute>) {
    routes.retain(|route| matches!(route, TunnelRoute::Unreachable(_)));
}

pub(super) fn allowed(model: &mut Observed) -> &mut BTreeSet<Ipv4Addr> {
    let FilterState::Sound(filter) = &mut model.filter else {
        panic!("no filter")
    };
    &mut filter.peers
}

pub(super) fn forward(model: &mut Observed) -> &mut BTreeMap<ForwardPlace, usize> {
    &mut model.forwarding.as_mut().expect("readable").present
}

fn fresh_port(mtu: u32) -> PortSettings {
    PortSettings {
        mtu,
        up: false,
        on_bridge: false,
        learning: true,
        flood: true,
        isolated: false,
        locked: false,
        neigh_suppress: false,
    }
}

fn apply_to_bridge(bridge: &mut Option<Bridge>, step: &Step) {
    if let Step::CreateBridge { mac, mtu } = step {
        assert!(bridge.is_none());
        let settings = BridgeSettings {
            mtu: *mtu,
            up: false,
            stp: false,
            multicast_snooping: true,
        };
        let (addresses, neighbours) = (BTreeSet::new(), BTreeMap::new());
        *bridge = Some(Bridge {
            mac: *mac,
            settings,
            addresses,
            neighbours,
        });
        return;
    }
    let bridge = bridge.as_mut().expect("a bridge");
    match step {
        Step::SetBridgeMac(mac) => {
            bridge.mac = *mac;
            bridge.neighbours.clear();
        }
        Step::SetBridge(settings) => bridge.settings = *settings,
        Step::AddAddress(_, address) => assert!(bridge.addresses.insert(*address)),
        Step::RemoveAddress(_, address) => assert!(bridge.addresses.remove(address)),
        Step::Entry(EntryStep::SetNeighbour(ip, mac)) => {
            bridge.neighbours.insert(*ip, *mac);
        }
        Step::Entry(EntryStep::DeleteNeighbour(ip)) => {
            assert!(bridge.neighbours.remove(ip).is_some())
        }
        other => unreachable!("{other}"),
    }
}

fn delete_link(model: &mut Observed, link: Link) {
    match link {
        Link::Bridge => drop(model.bridge.take().expect("a bridge")),
        Link::Vxlan => {
            model.vxlan.take().expect("a vxlan");
            forget_port(model, Port::Vxlan);
            // Older kernels drop the chain with its device.
            if matches!(model.anti_spoofing, AntiSpoofingState::Sound(_)) {
                model.anti_spoofing = AntiSpoofingState::Broken;
            }
        }
        Link::Tap => unreachable!("it goes with the sleeve"),
        Link::WireGuard => {
            model.inside.link.take().expect("a link");
            model.inside.device = None;
            model.inside.hears = None;
            forget_routes(&mut model.inside.routes);
        }
        Link::HostEnd(id) => {
            model.host_ends.remove(&id).expect("a host end");
            // A pair goes as a whole.
            if let Some(end) = model.containers.get_mut(&id) {
                end.take_if(|end| end.paired);
            }
        }
    }
}

fn apply_to_vxlan(vxlan: &mut Vxlan, step: &Step) {
    match step {
        Step::Entry(EntryStep::SetVxlanEntry(mac, to)) => {
            let targets = vxlan.entries.entry(*mac).or_default();
            assert!(
                targets.len() <= 1,
                "the kernel would replace only one of them"
            );
            *targets = BTreeSet::from([*to]);
        }
        Step::Entry(EntryStep::DeleteVxlanEntry(mac)) => {
            assert!(vxlan.entries.remove(mac).is_some())
        }
        Step::Entry(EntryStep::AddFlood(to)) => assert!(vxlan.floods.insert(*to)),
        Step::Entry(EntryStep::DeleteFlood(to)) => assert!(vxlan.floods.remove(to)),
        other => unreachable!("{other}"),
    }
}

fn apply_to_container(model: &mut Observed, step: &Step) {
    match step {
        Step::Attach { placement, to, mtu } => {
            let end = HostEnd {
                port: fresh_port(*mtu),
                pinned: BTreeSet::new(),
            };
            assert!(
                model.host_ends.insert(*placement, end).is_none(),
                "the name is taken"
            );
            let end = ContainerEnd {
                paired: true,
                mac: to.mac,
                mtu: *mtu,
                up: false,
                addresses: BTreeSet::new(),
                multicast_route: false,
            };
            model.containers.insert(*placement, Some(end));
        }
        Step::SetHostEnd {
            placement,
            mac,
            port,
        } => {
            assert!(model.bridge.is_some());
            let end = HostEnd {
                port: *port,
                pinned: BTreeSet::from([*mac]),
            };
            model.host_ends.insert(*placement, end).expect("a host end");
        }
        Step::Configure {
            placement,
            address,
            mtu,
            ..
        } => {
            let end = model
                .containers
                .get_mut(placement)
                .and_then(Option::as_mut)
                .expect("ethwe");
            end.up = true;
            end.mtu = *mtu;
            end.addresses = BTreeSet::from([*address]);
            end.multicast_route = true;
        }
        other => unreachable!("{other}"),
    }
}
