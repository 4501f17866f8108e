//! A model of the kernel for the plan's tests: the effect of each step on the observed state. It
//! panics where the kernel would return an error.

use ipnetwork::Ipv4Network;

use super::*;
use crate::model::state::{
    Chain, ContainerEnd, ForwardPlace, HostEnd, TunnelRoute, Variant, WireGuardLink, WireGuardState,
};
use crate::plan::step::{FilterStep, WireGuardStep};
use crate::wireguard::{Looked, model::deliver};

pub(super) const DOCKER_USER: ForwardPlace = ForwardPlace {
    variant: Variant::Nft,
    chain: Chain::DockerUser,
};

pub(super) fn bare(intent: &OverlayIntent) -> Observed {
    Observed {
        filter: FilterState::Missing,
        live_table: LiveTable::Missing,
        tracked: false,
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
        stale_port_filters: None,
        containers: intent.attachments().map(|(id, _)| (id, None)).collect(),
    }
}

/// The effect of a step. It panics where the kernel would return an error.
pub(super) fn apply(model: &mut Observed, step: &Step) {
    match step {
        Step::Filter(step) => apply_to_filter(model, step),
        Step::InstallAntiSpoofing(_)
        | Step::ChangeAntiSpoofing { .. }
        | Step::RemoveAntiSpoofing => apply_to_anti_spoofing(model, step),
        Step::SetPortFilters(_) | Step::DiscardPortFilters(_) | Step::RemovePortFilters => {
            apply_to_port_filters(model, step);
        }
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
            assert!(model.bridge.is_some(), "they are received on it");
            model.path_probes = Some(*path_probes);
        }
        Step::DeleteLink(link) => delete_link(model, *link),
        Step::Attach { .. } | Step::SetHostEnd { .. } | Step::Configure { .. } => {
            apply_to_container(model, step);
        }
        Step::CreateVxlan { vni, mtu } => create_vxlan(model, (*vni, *mtu)),
        Step::SetVxlan(port) => {
            let protected = matches!(model.anti_spoofing, AntiSpoofingState::Sound(_));
            assert!(
                protected,
                "the anti-spoofing filter comes before the device is up"
            );
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
                "only ports of the bridge have entries"
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

fn apply_to_filter(model: &mut Observed, step: &FilterStep) {
    match step {
        FilterStep::Install(filter) => model.filter = FilterState::Sound(filter.clone()),
        FilterStep::SetEgressPolicy { old, new } => {
            let FilterState::Sound(filter) = &mut model.filter else {
                panic!("no filter")
            };
            assert_eq!(&filter.egress, old);
            filter.egress = new.clone();
        }
        FilterStep::SetAccess { old, new } => {
            let FilterState::Sound(filter) = &mut model.filter else {
                panic!("no filter")
            };
            assert_eq!(&filter.access, old);
            filter.access = new.clone();
        }
        FilterStep::StartLive(peers) => {
            assert_eq!(model.live_table, LiveTable::Missing);
            let there = allowed(model);
            assert_eq!(peers, there, "both say the same");
            model.live_table = LiveTable::Present;
        }
        FilterStep::StopLive => {
            assert_eq!(model.live_table, LiveTable::Present);
            model.live_table = LiveTable::Missing;
        }
        FilterStep::AllowPeers(peers) => allowed(model).extend(peers),
        FilterStep::ForbidPeers(peers) => {
            let there = allowed(model);
            assert!(peers.is_subset(there), "only present peers can be removed");
            there.retain(|peer| !peers.contains(peer));
        }
        FilterStep::Remove => model.filter = FilterState::Missing,
    }
}

fn apply_to_anti_spoofing(model: &mut Observed, step: &Step) {
    match step {
        Step::InstallAntiSpoofing(senders) => {
            // It is hooked to the device.
            if model.vxlan.is_some() {
                model.anti_spoofing = AntiSpoofingState::Sound(senders.clone());
            }
        }
        Step::ChangeAntiSpoofing { old, new } => {
            let AntiSpoofingState::Sound(senders) = &mut model.anti_spoofing else {
                panic!("no anti-spoofing filter")
            };
            assert!(old.iter().all(|mac| senders.remove(mac)));
            assert!(new.iter().all(|mac| senders.insert(*mac)));
        }
        Step::RemoveAntiSpoofing => model.anti_spoofing = AntiSpoofingState::Missing,
        other => unreachable!("{other}"),
    }
}

fn apply_to_port_filters(model: &mut Observed, step: &Step) {
    match step {
        Step::SetPortFilters(filters) => {
            let stale = model.stale_port_filters.get_or_insert_default();
            for (id, filter) in filters {
                model.host_ends.get_mut(id).expect("a port").filter = Some(*filter);
                stale.remove(id);
            }
        }
        Step::DiscardPortFilters(gone) => {
            let stale = model.stale_port_filters.as_mut().expect("a table");
            stale.retain(|id| !gone.contains(id));
        }
        Step::RemovePortFilters => {
            assert!(model.host_ends.is_empty(), "a port would lose its filter");
            model.stale_port_filters.take().expect("a table");
        }
        other => unreachable!("{other}"),
    }
}

/// With a device, the kernel deletes the bridge's entries for it.
fn forget_port(model: &mut Observed, port: Port) {
    model.remote.retain(|_, entry| entry.port != port);
}

fn apply_to_sleeve(model: &mut Observed, step: &Step) {
    match step {
        Step::StartSleeve(identity) => {
            assert!(model.inside.link.is_none(), "WireGuard has the UDP port");
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
        assert!(
            filtered && fenced,
            "the filter and the unreachable route come first"
        );
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
            assert!(looked.device.listen_port != 0, "the port is set first");
            (link.mtu, link.up) = (*mtu, true);
        }
        Step::WireGuard(WireGuardStep::AddRoute(route @ TunnelRoute::Through(_))) => {
            assert!(link.up && !link.addresses.is_empty());
            let new = inside.routes.insert(*route);
            assert!(new, "an existing route cannot be added");
        }
        Step::WireGuard(WireGuardStep::ListenForHeartbeats(tunnel_address)) => {
            assert!(link.addresses.contains(&Ipv4Network::from(*tunnel_address)));
            inside.hears = Some(*tunnel_address);
        }
        other => unreachable!("{other}"),
    }
}

/// With a link, the kernel deletes the routes through it.
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
            // Older kernels delete the chain with its device.
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
            let end = model.host_ends.remove(&id).expect("a host end");
            // Newer kernels keep the chain without its device.
            if let Some(stale) = model
                .stale_port_filters
                .as_mut()
                .filter(|_| end.filter.is_some())
            {
                stale.insert(id);
            }
            // Both ends of a veth pair are deleted together.
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
                filter: None,
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
            let end = model.host_ends.get_mut(placement).expect("a host end");
            let filter = end.filter.expect("the filter comes before the port is up");
            assert_eq!(filter.mac, *mac);
            end.port = *port;
            end.pinned = BTreeSet::from([*mac]);
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
