//! The plan against a model of the kernel: random intents from random states.

use kontena_schema::ids::{LeaseNumber, NodeId};
use kontena_schema::path::Path;
use proptest::prelude::*;

use super::super::intent::{OwnNode, PeerIntent, RemoteEndpoint};
use super::super::state::{Chain, ForwardPlace, Variant};
use super::*;

const DOCKER_USER: ForwardPlace = ForwardPlace {
    variant: Variant::Nft,
    chain: Chain::DockerUser,
};

fn underlay(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, host)
}

fn bare(intent: &OverlayIntent) -> Observed {
    Observed {
        filter: FilterState::Missing,
        forwarding: Some(Forwarding {
            place: DOCKER_USER,
            present: BTreeMap::new(),
        }),
        bridge: None,
        tunnel: None,
        host_ends: BTreeMap::new(),
        containers: intent.attachments.keys().map(|&id| (id, None)).collect(),
    }
}

/// What the kernel makes of a step. It panics where the kernel would refuse.
fn apply(model: &mut Observed, step: &Step) {
    match step {
        Step::InstallFilter(peers) => model.filter = FilterState::Sound(peers.clone()),
        Step::AllowPeers(peers) => allowed(model).extend(peers),
        Step::ForbidPeers(peers) => allowed(model).retain(|peer| !peers.contains(peer)),
        Step::RemoveFilter => model.filter = FilterState::Missing,
        Step::AllowForwarding(place) => *forward(model).entry(*place).or_default() += 1,
        Step::ForgetForwarding(place) => {
            let count = forward(model).get_mut(place).expect("there is such a rule");
            *count -= 1;
            forward(model).retain(|_, count| *count > 0);
        }
        Step::Announce(_) => {}
        Step::CreateBridge { .. }
        | Step::SetBridgeMac(_)
        | Step::SetBridge(_)
        | Step::AddAddress(_)
        | Step::RemoveAddress(_)
        | Step::SetNeighbour(..)
        | Step::DeleteNeighbour(_) => apply_to_bridge(&mut model.bridge, step),
        Step::DeleteLink(link) => delete_link(model, *link),
        Step::Attach { .. } | Step::SetHostEnd { .. } | Step::Configure { .. } => {
            apply_to_container(model, step);
        }
        Step::CreateTunnel { vni, mtu } => {
            assert!(
                matches!(model.filter, FilterState::Sound(_)),
                "the filter comes first"
            );
            assert!(model.tunnel.is_none(), "there is one already");
            let identity = TunnelIdentity {
                vni: *vni,
                udp_port: VXLAN_PORT,
                learning: false,
                bound: false,
            };
            model.tunnel = Some(Tunnel {
                identity,
                port: fresh_port(*mtu),
                entries: BTreeMap::new(),
                floods: BTreeSet::new(),
                bridge_entries: BTreeMap::new(),
            });
        }
        entry => apply_to_tunnel(model.tunnel.as_mut().expect("a tunnel"), entry),
    }
}

fn allowed(model: &mut Observed) -> &mut BTreeSet<Ipv4Addr> {
    let FilterState::Sound(peers) = &mut model.filter else {
        panic!("no filter")
    };
    peers
}

fn forward(model: &mut Observed) -> &mut BTreeMap<ForwardPlace, usize> {
    &mut model.forwarding.as_mut().expect("readable").present
}

fn fresh_port(mtu: u32) -> PortSettings {
    PortSettings {
        mtu,
        up: false,
        on_bridge: false,
        learning: true,
        isolated: false,
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
        Step::AddAddress(address) => assert!(bridge.addresses.insert(*address)),
        Step::RemoveAddress(address) => assert!(bridge.addresses.remove(address)),
        Step::SetNeighbour(ip, mac) => {
            bridge.neighbours.insert(*ip, *mac);
        }
        Step::DeleteNeighbour(ip) => assert!(bridge.neighbours.remove(ip).is_some()),
        other => unreachable!("{other}"),
    }
}

fn delete_link(model: &mut Observed, link: Link) {
    match link {
        Link::Bridge => drop(model.bridge.take().expect("a bridge")),
        Link::Tunnel => drop(model.tunnel.take().expect("a tunnel")),
        Link::HostEnd(id) => {
            model.host_ends.remove(&id).expect("a host end");
            // A pair goes as a whole.
            if let Some(end) = model.containers.get_mut(&id) {
                end.take_if(|end| end.paired);
            }
        }
    }
}

fn apply_to_tunnel(tunnel: &mut Tunnel, step: &Step) {
    match step {
        Step::SetTunnel(port) => tunnel.port = *port,
        Step::SetTunnelEntry(mac, to) => {
            let targets = tunnel.entries.entry(*mac).or_default();
            assert!(
                targets.len() <= 1,
                "the kernel would replace only one of them"
            );
            *targets = BTreeSet::from([*to]);
        }
        Step::DeleteTunnelEntry(mac) => assert!(tunnel.entries.remove(mac).is_some()),
        Step::SetBridgeEntry(mac) => {
            assert!(tunnel.port.on_bridge, "only ports have entries");
            tunnel.bridge_entries.insert(*mac, true);
        }
        Step::DeleteBridgeEntry(mac) => assert!(tunnel.bridge_entries.remove(mac).is_some()),
        Step::AddFlood(to) => assert!(tunnel.floods.insert(*to)),
        Step::DeleteFlood(to) => assert!(tunnel.floods.remove(to)),
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

fn any_path() -> impl Strategy<Value = Path> {
    (0_u8..4, 1_u8..6).prop_map(|(kind, host)| match kind {
        0 | 1 => Path::Fast { to: underlay(host) },
        2 => Path::Sealed { to: underlay(host) },
        _ => Path::Unknown,
    })
}

prop_compose! {
    fn any_intent()(
        vni in 7_u32..9,
        own in 1_u8..3,
        mtu in 1369_u32..1371,
        paths in proptest::collection::btree_map(10_i64..16, any_path(), 0..5),
        endpoints in proptest::collection::btree_map((1_u8..20, 1_i64..3), 10_i64..18, 0..8),
        local in proptest::collection::btree_map(1_i64..5, (20_u8..23, 1_i64..3), 0..4),
    ) -> OverlayIntent {
        let own_address = Ipv4Addr::new(10, 81, 0, own);
        let peer = |(node, path): (i64, Path)| {
            let overlay_address = Ipv4Addr::new(10, 81, 0, node.try_into().unwrap());
            (NodeId(node), PeerIntent { overlay_address, path })
        };
        let remote = |((host, lease), node): ((u8, i64), i64)| {
            let address = Ipv4Addr::new(10, 81, 1, host);
            RemoteEndpoint { address, mac: Mac::of_lease(address, LeaseNumber(lease)), node: NodeId(node) }
        };
        let attachment = |(id, (host, lease)): (i64, (u8, i64))| {
            let address = Ipv4Addr::new(10, 81, 1, host);
            let mac = Mac::of_lease(address, LeaseNumber(lease));
            (PlacementId(id), Attachment { pid: 1, container_id: id.to_string(), address, mac })
        };
        // The directory has each address once.
        let endpoints: BTreeMap<_, _> =
            endpoints.into_iter().map(remote).map(|e| (e.address, e)).collect();
        OverlayIntent {
            vni,
            supernet: "10.81.0.0/17".parse().unwrap(),
            own: OwnNode {
                address: own_address,
                mac: Mac::of_node(own_address),
                underlay: BTreeSet::from([underlay(own)]),
            },
            mtu,
            peers: paths.into_iter().map(peer).collect(),
            endpoints: endpoints.into_values().collect(),
            attachments: local.into_iter().map(attachment).collect(),
        }
    }
}

/// A host that was made right for one grid and then came to another, with some
/// damage on the way.
fn host_after(first: &OverlayIntent, second: &OverlayIntent, damage: u8) -> Observed {
    let mut model = bare(first);
    for step in plan(first, &model.clone()) {
        apply(&mut model, &step);
    }
    let old = std::mem::take(&mut model.containers);
    let end = |id: &PlacementId| old.get(id).cloned().unwrap_or_default();
    model.containers = second.attachments.keys().map(|id| (*id, end(id))).collect();
    // A container that was restarted has no interface; its host end lingers.
    if damage & 1 != 0 {
        model.containers.values_mut().for_each(|end| *end = None);
    }
    if damage & 2 != 0 {
        model.filter = FilterState::Broken;
        forward(&mut model).insert(DOCKER_USER, 2);
    }
    if damage & 4 != 0 {
        let tunnel = model.tunnel.as_mut().expect("made above");
        tunnel
            .entries
            .insert(Mac([2; 6]), BTreeSet::from([underlay(1), underlay(99)]));
        tunnel
            .bridge_entries
            .values_mut()
            .for_each(|pinned| *pinned = false);
        tunnel.port.isolated = false;
    }
    if damage & 8 != 0 {
        model
            .containers
            .values_mut()
            .flatten()
            .for_each(|end| end.addresses.clear());
        model
            .host_ends
            .values_mut()
            .for_each(|end| end.port.learning = true);
    }
    model
}

fn fast(intent: &OverlayIntent) -> BTreeSet<Ipv4Addr> {
    let of = |peer: &PeerIntent| match peer.path {
        Path::Fast { to } if !intent.own.underlay.contains(&to) => Some(to),
        _ => None,
    };
    intent.peers.values().filter_map(of).collect()
}

proptest! {
    #[test]
    fn overlay_plan_leads_where_nothing_is_left_to_do(
        first in any_intent(), second in any_intent(), damage in 0_u8..16,
    ) {
        let mut model = host_after(&first, &second, damage);
        for step in plan(&second, &model.clone()) {
            apply(&mut model, &step);
        }
        prop_assert_eq!(plan(&second, &model), vec![]);
        let steps = plan_removal(&model);
        for step in &steps {
            apply(&mut model, step);
        }
        prop_assert!(matches!(steps.last(), Some(Step::RemoveFilter)));
        prop_assert_eq!(plan_removal(&model), vec![]);
        let nothing = model.host_ends.is_empty() && model.bridge.is_none() && model.tunnel.is_none();
        prop_assert!(nothing);
    }

    #[test]
    fn overlay_plan_gives_entries_to_fast_peers_only_and_never_ahead_of_the_filter(
        first in any_intent(), second in any_intent(), damage in 0_u8..16,
    ) {
        let mut model = host_after(&first, &second, damage);
        let fast = fast(&second);
        for step in plan(&second, &model.clone()) {
            if let Step::SetTunnelEntry(_, to) | Step::AddFlood(to) = &step {
                prop_assert!(fast.contains(to), "{step}");
                prop_assert!(allowed(&mut model).contains(to), "{step} comes before the filter");
            }
            if let Step::ForbidPeers(peers) = &step {
                let tunnel = model.tunnel.as_ref().expect("a tunnel");
                let used: BTreeSet<_> = tunnel.entries.values().flatten().copied().collect();
                prop_assert!(used.is_disjoint(peers), "{step} comes before its entries are gone");
                prop_assert!(tunnel.floods.is_disjoint(peers), "{step}");
            }
            apply(&mut model, &step);
        }
        prop_assert_eq!(allowed(&mut model).clone(), fast);
    }

    #[test]
    fn overlay_plan_removes_before_it_adds_and_makes_before_it_breaks(
        first in any_intent(), second in any_intent(), damage in 0_u8..16,
    ) {
        let steps = plan(&second, &host_after(&first, &second, damage));
        let last = |wanted: fn(&Step) -> bool| steps.iter().rposition(wanted);
        let first = |wanted: fn(&Step) -> bool| steps.iter().position(wanted);
        let before = |a: Option<usize>, b: Option<usize>| a.zip(b).is_none_or(|(a, b)| a < b);
        let removal = |step: &Step| matches!(
            step,
            Step::DeleteNeighbour(_) | Step::DeleteTunnelEntry(_) | Step::DeleteBridgeEntry(_)
                | Step::DeleteLink(_)
        );
        let addition = |step: &Step| matches!(
            step,
            Step::SetNeighbour(..) | Step::SetTunnelEntry(..) | Step::SetBridgeEntry(_)
                | Step::AddFlood(_) | Step::Attach { .. }
        );
        prop_assert!(before(last(removal), first(addition)), "{steps:#?}");
        let remove_address = last(|step| matches!(step, Step::RemoveAddress(_)));
        prop_assert!(before(remove_address, first(|step| matches!(step, Step::AddAddress(_)))));
        let delete_flood = first(|step| matches!(step, Step::DeleteFlood(_)));
        let redirect = |step: &Step| matches!(step, Step::AddFlood(_) | Step::SetTunnelEntry(..));
        prop_assert!(before(last(redirect), delete_flood), "{steps:#?}");
        let attach = first(|step| matches!(step, Step::Attach { .. }));
        prop_assert!(before(last(redirect), attach), "{steps:#?}");
    }
}

#[test]
fn overlay_plan_leaves_a_container_alone_that_could_not_be_looked_into() {
    let address = Ipv4Addr::new(10, 81, 1, 1);
    let mac = Mac::of_lease(address, LeaseNumber(1));
    let attachment = Attachment {
        pid: 1,
        container_id: "c".into(),
        address,
        mac,
    };
    let own = Ipv4Addr::new(10, 81, 0, 1);
    let intent = OverlayIntent {
        vni: 7,
        supernet: "10.81.0.0/17".parse().unwrap(),
        own: OwnNode {
            address: own,
            mac: Mac::of_node(own),
            underlay: BTreeSet::new(),
        },
        mtu: 1370,
        peers: BTreeMap::new(),
        endpoints: Vec::new(),
        attachments: BTreeMap::from([(PlacementId(1), attachment)]),
    };
    let mut model = bare(&intent);
    for step in plan(&intent, &model.clone()) {
        apply(&mut model, &step);
    }
    model.containers.clear();
    model.forwarding = None;
    assert_eq!(plan(&intent, &model), vec![]);
}
