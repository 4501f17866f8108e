//! The plan against a model of the kernel: random intents from random states.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use kontena_schema::address::InnerSubnet;
use kontena_schema::ids::{LeaseNumber, NodeId, PlacementId};
use kontena_schema::path::Path;
use proptest::prelude::*;

use super::intents::{any_intent, any_state, tunnel_subnet, underlay};
use super::kernel_model::{DOCKER_USER, allowed, apply, bare, forward};
use super::*;
use crate::model::intent::{Attachment, OwnNode, PeerIntent, Reach};
use crate::model::peer::{Clear, Ends, PeerState};
use crate::model::state::{EgressPolicy, HostServices, MulticastLimit, TunnelRoute};
use crate::plan::failures::Failures;
use crate::process::Process;

/// A host that was configured for one grid and then joined another, with some damage in between.
fn host_after(first: &OverlayIntent, second: &OverlayIntent, damage: u16) -> Observed {
    let mut model = bare(first);
    for step in plan(first, &model.clone()) {
        apply(&mut model, &step);
    }
    let old = std::mem::take(&mut model.containers);
    let end = |id: &PlacementId| old.get(id).cloned().unwrap_or_default();
    model.containers = second.attachments().map(|(id, _)| (id, end(&id))).collect();
    // A restarted container has no interface; its host end is still there.
    if damage & 1 != 0 {
        model.containers.values_mut().for_each(|end| *end = None);
    }
    if damage & 2 != 0 {
        model.filter = FilterState::Broken;
        forward(&mut model).insert(DOCKER_USER, 2);
    }
    if damage & 4 != 0 {
        let vxlan = model.vxlan.as_mut().expect("made above");
        vxlan
            .entries
            .insert(Mac([2; 6]), BTreeSet::from([underlay(1), underlay(99)]));
        vxlan.port.isolated = false;
        let ends = model.host_ends.values_mut();
        ends.for_each(|end| end.port.locked = false);
        let entries = model.remote.values_mut();
        entries.for_each(|entry| entry.pinned = false);
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
    if damage & 16 != 0 {
        model.anti_spoofing = AntiSpoofingState::Broken;
    }
    // The ports' filters were taken away, or are of other devices.
    if damage & 256 != 0 {
        let ends = model.host_ends.values_mut();
        ends.for_each(|end| end.filter = None);
        model.stale_port_filters = Some(BTreeSet::from([PlacementId(77)]));
    }
    // An older version created it.
    if damage & 128 != 0 {
        let vxlan = model.vxlan.as_mut().expect("made above");
        vxlan.identity.proxy = false;
    }
    if damage & 64 != 0
        && let Some(link) = &mut model.inside.link
    {
        link.up = false;
        link.addresses = BTreeSet::from(["100.127.81.99/32".parse().unwrap()]);
        model.inside.routes =
            BTreeSet::from([TunnelRoute::Unreachable(tunnel_subnet("10.8.8.0/24"))]);
    }
    // The agent was restarted, or its encrypted path ended.
    if damage & 32 != 0 || first.encryption != second.encryption {
        if let Some(device) = &mut model.inside.device {
            device.named.clear();
        }
        model.inside.hears = None;
        model.sleeve = None;
        model.tap = None;
        model.remote.retain(|_, entry| entry.port != Port::Tap);
    }
    model
}

/// The underlay addresses of peers that are at least so clear.
fn clear(intent: &OverlayIntent, least: Clear) -> BTreeSet<Ipv4Addr> {
    let of = |peer: &PeerIntent| match peer.path {
        Path::Fast { to } if !intent.own.underlay.contains(&to) => {
            let keyed = peer.keys.is_some() && peer.state.clear >= least;
            keyed.then_some(to)
        }
        _ => None,
    };
    intent.peers.values().filter_map(of).collect()
}

/// The tunnel address at which WireGuard reaches a peer.
fn inner_of(model: &Observed, peer: &PeerIntent) -> Option<Ipv4Addr> {
    let device = &model.inside.device.as_ref()?.device;
    let network = IpNetwork::from(IpAddr::from(peer.tunnel_address));
    let reached = device
        .peers
        .values()
        .any(|peer| peer.allowed.contains(&network));
    reached.then_some(peer.tunnel_address)
}

/// The tunnel addresses that the VXLAN device may send to.
fn tunnel_address(intent: &OverlayIntent) -> BTreeSet<Ipv4Addr> {
    let peers = intent.peers.values();
    let encrypts = intent.encryption == Encryption::WireGuard;
    peers
        .filter(|_| encrypts)
        .map(|peer| peer.tunnel_address)
        .collect()
}

/// The MACs of an intent that are on other nodes, and their node.
fn remote_macs(intent: &OverlayIntent) -> BTreeMap<Mac, NodeId> {
    let nodes = intent.peers.iter();
    let nodes = nodes.map(|(&node, peer)| (Mac::of_node(peer.overlay_address), node));
    let endpoints = intent.endpoints.iter().map(|e| (e.mac, e.node));
    nodes.chain(endpoints).collect()
}

proptest! {
    #[test]
    fn overlay_plan_leaves_nothing_to_do(
        first in any_intent(), second in any_intent(), damage in 0_u16..512,
    ) {
        let mut model = host_after(&first, &second, damage);
        for step in plan(&second, &model.clone()) {
            apply(&mut model, &step);
        }
        prop_assert_eq!(plan(&second, &model), vec![]);
        let FilterState::Sound(filter) = &model.filter else { panic!("no filter") };
        prop_assert_eq!(&filter.egress, &second.egress);
        prop_assert_eq!(&filter.access.services, &second.services);
        prop_assert_eq!(model.live_table, LiveTable::Present);
        let tunnel_address = second.tunnel_subnet;
        prop_assert_eq!(filter.tunnel_subnet, tunnel_address);
        let routes = match second.encryption {
            Encryption::WireGuard => BTreeSet::from([TunnelRoute::Unreachable(tunnel_address), TunnelRoute::Through(tunnel_address)]),
            Encryption::Sleeve => BTreeSet::new(),
        };
        prop_assert_eq!(&model.inside.routes, &routes);
        let steps = plan_removal(&model);
        for step in &steps {
            apply(&mut model, step);
        }
        prop_assert!(matches!(steps.last(), Some(Step::Filter(FilterStep::Remove))));
        prop_assert_eq!(plan_removal(&model), vec![]);
        prop_assert_eq!(&model.anti_spoofing, &AntiSpoofingState::Missing);
        prop_assert_eq!(&model.stale_port_filters, &None);
        prop_assert!(model.inside.link.is_none() && model.inside.routes.is_empty());
        let nothing = model.host_ends.is_empty() && model.bridge.is_none() && model.vxlan.is_none();
        prop_assert!(nothing && model.sleeve.is_none() && model.tap.is_none());
    }

    #[test]
    fn overlay_plan_adds_entries_for_fast_peers_only_and_after_the_filter(
        first in any_intent(), second in any_intent(), damage in 0_u16..512,
    ) {
        let mut model = host_after(&first, &second, damage);
        let (fast, accepted) = (clear(&second, Clear::Send), clear(&second, Clear::Accept));
        for step in plan(&second, &model.clone()) {
            let inside = |to: &Ipv4Addr| tunnel_address(&second).contains(to);
            if let Step::Entry(EntryStep::SetVxlanEntry(_, to)) | Step::Entry(EntryStep::AddFlood(to)) = &step {
                let open = allowed(&mut model);
                prop_assert!(inside(to) || fast.contains(to), "{step}");
                prop_assert!(inside(to) || open.contains(to), "{step} comes before the filter");
            }
            let encrypts = match &step {
                Step::Entry(EntryStep::SetBridgeEntry(_, Port::Tap)) | Step::Entry(EntryStep::DeleteFlood(_)) => true,
                Step::Entry(EntryStep::SetVxlanEntry(_, to)) => inside(to),
                _ => false,
            };
            if encrypts {
                let open = allowed(&mut model);
                prop_assert!(open.is_subset(&accepted), "{step} comes before the filter closes");
            }
            apply(&mut model, &step);
        }
        prop_assert_eq!(allowed(&mut model).clone(), accepted);
    }

    /// Also for the grid that the host was in before.
    #[test]
    fn overlay_plan_sends_to_tunnel_addresses_only_behind_an_unreachable_route(
        first in any_intent(), second in any_intent(),
    ) {
        let mut model = host_after(&first, &second, 0);
        for step in plan(&second, &model.clone()) {
            apply(&mut model, &step);
            let vxlan = model.vxlan.iter();
            let to = vxlan.flat_map(|vxlan| vxlan.entries.values().flatten().chain(&vxlan.floods));
            let subnets = [first.tunnel_subnet, second.tunnel_subnet];
            for to in to {
                let mut of = subnets.iter().filter(|subnet| subnet.contains(*to));
                let fenced = of.all(|&of| model.inside.routes.contains(&TunnelRoute::Unreachable(of)));
                prop_assert!(fenced, "{to} after {step}");
            }
        }
    }

    #[test]
    fn overlay_plan_accepts_the_directory_s_senders_and_no_former_holder_beside_a_new_one(
        first in any_intent(), second in any_intent(), damage in 0_u16..512,
    ) {
        let mut model = host_after(&first, &second, damage);
        let senders = Entries::of(&second).senders;
        for step in plan(&second, &model.clone()) {
            apply(&mut model, &step);
            if matches!(step, Step::Entry(EntryStep::SetNeighbour(..))) {
                let AntiSpoofingState::Sound(present) = &model.anti_spoofing else { panic!("no anti-spoofing filter") };
                prop_assert!(present.is_subset(&senders));
            }
        }
        prop_assert_eq!(&model.anti_spoofing, &AntiSpoofingState::Sound(senders.clone()));
        let entries = &model.vxlan.as_ref().expect("a vxlan").entries;
        prop_assert!(entries.keys().all(|mac| senders.contains(mac)));
    }

    /// While a peer changes its path, a frame for it always has one, and flooded frames reach it;
    /// a frame for an encrypted peer never gets to the VXLAN device.
    #[test]
    fn overlay_plan_leaves_no_peer_without_a_path_in_between(
        first in any_intent(), changes in proptest::collection::vec(any_state(), 5),
    ) {
        let mut second = first.clone();
        for (peer, state) in second.peers.values_mut().zip(changes) {
            let ends = peer.state.ends;
            let key = state.key.and(peer.keys.and_then(|keys| keys.next));
            peer.state = PeerState { ends, key, ..state };
        }
        let mut model = host_after(&first, &second, 0);
        let macs = remote_macs(&first);
        for step in plan(&second, &model.clone()) {
            apply(&mut model, &step);
            let vxlan = model.vxlan.as_ref().unwrap();
            for (mac, node) in &macs {
                let Some(peer) = second.peers.get(node) else { continue };
                if matches!(second.reach(peer), Reach::None(_)) {
                    continue;
                }
                let table = model.sleeve.as_ref().map(|sleeve| &sleeve.table);
                let encrypted = match table {
                    Some(table) => table.owners.get(mac).copied(),
                    None => inner_of(&model, peer),
                };
                prop_assert_eq!(encrypted, Some(peer.tunnel_address), "{}", &step);
                let floods = table.map_or(&vxlan.floods, |table| &table.floods);
                let flooded = floods.contains(&peer.tunnel_address)
                    || matches!(peer.path, Path::Fast { to } if vxlan.floods.contains(&to));
                prop_assert!(flooded, "{}", &step);
                let port = model.remote[mac].port;
                let target = vxlan.entries.get(mac);
                prop_assert!(port == Port::Tap || target.is_some(), "{} has no target: {}", mac, &step);
                let under = target == Some(&BTreeSet::from([peer.tunnel_address]));
                let clear = port == Port::Vxlan && !under;
                let may = [&first, &second].map(|of| matches!(of.reach(&of.peers[node]), Reach::Fast(_)));
                prop_assert!(!clear || may.contains(&true), "{}", &step);
            }
        }
        for (mac, node) in &macs {
            let Some(peer) = second.peers.get(node) else { continue };
            let wanted = match (second.reach(peer), second.encryption) {
                (Reach::None(_), _) => None,
                (Reach::Fast(to), _) => Some(to),
                (_, Encryption::WireGuard) => Some(peer.tunnel_address),
                (_, Encryption::Sleeve) => None,
            };
            let there = model.remote.get(mac).map(|entry| entry.port == Port::Vxlan);
            prop_assert!(there.is_none_or(|there| there == wanted.is_some()));
            let vxlan = model.vxlan.as_ref().unwrap();
            let target = vxlan.entries.get(mac).cloned();
            prop_assert_eq!(target, wanted.map(|to| BTreeSet::from([to])));
        }
        if let Some(sleeve) = model.sleeve {
            prop_assert_eq!(&sleeve.table, &Entries::of(&second).table);
        }
    }

    #[test]
    fn overlay_plan_opens_no_path_once_a_protecting_step_failed(
        first in any_intent(), second in any_intent(), damage in 0_u16..512, failing in 0_usize..6,
    ) {
        let mut model = host_after(&first, &second, damage);
        let before = model.vxlan.clone();
        let mut failures = Failures::default();
        let steps = plan(&second, &model.clone());
        let protects = steps.iter().enumerate().filter(|(_, step)| step.protects_paths());
        let failing = protects.map(|(index, _)| index).nth(failing);
        for (index, step) in steps.iter().enumerate() {
            if Some(index) == failing {
                failures.note(step);
            } else if !failures.forbid(step) {
                apply(&mut model, step);
            } else if let Some(vxlan) = &model.vxlan {
                let old = before.as_ref().map(|t| t.floods.clone()).unwrap_or_default();
                prop_assert!(vxlan.floods.is_subset(&old), "{step}");
            }
        }
        prop_assert!(failing.is_none() || failures.forbidden == 0 || failures.protection);
    }

    /// Whatever was there before: what a container can send from is filtered, but for what
    /// somebody took away, and that is mended before anything new can be reached.
    #[test]
    fn overlay_plan_lets_no_frame_leave_a_container_without_its_filter(
        first in any_intent(), second in any_intent(), damage in 0_u16..512, failing in 0_usize..4,
    ) {
        let mut model = host_after(&first, &second, damage);
        let filters = |step: &Step| matches!(step, Step::SetPortFilters(_));
        let steps = plan(&second, &model.clone());
        let failing = steps.iter().enumerate().filter(|(_, step)| filters(step)).map(|(at, _)| at).nth(failing);
        let before = model.host_ends.clone();
        let mut failures = Failures::default();
        for (at, step) in steps.iter().enumerate() {
            if Some(at) == failing {
                failures.note(step);
            } else if !failures.forbid(step) {
                // Where a port comes up, the model wants its filter.
                apply(&mut model, step);
            }
        }
        for (id, end) in &model.host_ends {
            let to = second.attachment(*id).expect("it is asked for");
            let filter = end.filter.map(|filter| (filter.mac, filter.address));
            let filtered = filter == Some((to.mac, to.address));
            let was_up = before.get(id).is_some_and(|end| end.port.up);
            prop_assert!(filtered || !end.port.up || failing.is_some() && was_up, "{id}");
        }
        prop_assert!(failing.is_some() || model.stale_port_filters.is_none_or(|stale| stale.is_empty()));
    }

    #[test]
    fn overlay_plan_removes_before_it_adds_and_makes_before_it_breaks(
        first in any_intent(), second in any_intent(), damage in 0_u16..512,
    ) {
        let steps = plan(&second, &host_after(&first, &second, damage));
        let last = |wanted: fn(&Step) -> bool| steps.iter().rposition(wanted);
        let first = |wanted: fn(&Step) -> bool| steps.iter().position(wanted);
        let before = |a: Option<usize>, b: Option<usize>| a.zip(b).is_none_or(|(a, b)| a < b);
        let removal = |step: &Step| matches!(
            step,
            Step::Entry(EntryStep::DeleteNeighbour(_)) | Step::Entry(EntryStep::DeleteBridgeEntry(..)) | Step::DeleteLink(_)
        );
        let addition = |step: &Step| matches!(
            step,
            Step::Entry(EntryStep::SetNeighbour(..)) | Step::Entry(EntryStep::SetVxlanEntry(..)) | Step::Entry(EntryStep::SetBridgeEntry(..))
                | Step::Entry(EntryStep::AddFlood(_)) | Step::Attach { .. }
        );
        prop_assert!(before(last(removal), first(addition)), "{steps:#?}");
        let remove = last(|step| matches!(step, Step::RemoveAddress(Link::Bridge, _)));
        let add = first(|step| matches!(step, Step::AddAddress(Link::Bridge, _)));
        prop_assert!(before(remove, add), "{steps:#?}");
        let remove = last(|step| matches!(step, Step::RemoveAddress(Link::WireGuard, _)));
        let add = first(|step| matches!(step, Step::AddAddress(Link::WireGuard, _)));
        prop_assert!(before(remove, add), "{steps:#?}");
        let delete_flood = first(|step| matches!(step, Step::Entry(EntryStep::DeleteFlood(_))));
        let redirect = |step: &Step| matches!(step, Step::Entry(EntryStep::AddFlood(_)) | Step::Entry(EntryStep::SetVxlanEntry(..)));
        prop_assert!(before(last(redirect), delete_flood), "{steps:#?}");
        let moved = last(|step| matches!(step, Step::Entry(EntryStep::SetBridgeEntry(..))));
        prop_assert!(before(moved, delete_flood), "{steps:#?}");
        prop_assert!(before(last(|step| matches!(step, Step::Entry(EntryStep::SetVxlanEntry(..)))), moved));
        let attach = first(|step| matches!(step, Step::Attach { .. }));
        prop_assert!(before(last(redirect), attach), "{steps:#?}");
    }
}

proptest! {
    /// A proof for two addresses says nothing about any other.
    #[test]
    fn overlay_plan_sends_nothing_in_clear_to_an_address_that_was_not_proven(
        mut intent in any_intent(),
    ) {
        for peer in intent.peers.values_mut() {
            peer.state.ends = Some(Ends { peer: underlay(77), own: underlay(78) });
        }
        let entries = Entries::of(&intent);
        prop_assert!(entries.accepted.is_empty());
        let inside = tunnel_address(&intent);
        prop_assert!(entries.floods.is_subset(&inside));
        prop_assert!(entries.targets.values().all(|to| inside.contains(to)));
        prop_assert!(entries.senders.is_empty() || !inside.is_empty());
    }
}

#[test]
fn overlay_plan_leaves_a_container_alone_that_cannot_be_inspected() {
    let address = Ipv4Addr::new(10, 81, 1, 1);
    let mac = Mac::of_lease(address, LeaseNumber(1));
    let attachment = Attachment {
        process: Process { pid: 1, started: 0 },
        container_id: "c".into(),
        address,
        mac,
    };
    let own = Ipv4Addr::new(10, 81, 0, 1);
    let intent = OverlayIntent {
        vni: 7,
        supernet: "10.81.0.0/17".parse().unwrap(),
        tunnel_subnet: InnerSubnet::default(),
        own: OwnNode {
            address: own,
            mac: Mac::of_node(own),
            tunnel_address: Ipv4Addr::new(100, 127, 81, 1),
            underlay: BTreeSet::new(),
            behind_nat: false,
        },
        mtu: 1370,
        keys: vec![],
        encryption: Encryption::Sleeve,
        services: HostServices::default(),
        egress: EgressPolicy::default(),
        multicast: MulticastLimit::default(),
        peers: BTreeMap::new(),
        endpoints: Vec::new(),
        attachments: Some(BTreeMap::from([(PlacementId(1), attachment)])),
    };
    let mut model = bare(&intent);
    for step in plan(&intent, &model.clone()) {
        apply(&mut model, &step);
    }
    model.containers.clear();
    model.forwarding = None;
    // The Master's name cannot be resolved: its last address stays closed.
    let FilterState::Sound(filter) = &mut model.filter else {
        panic!("no filter")
    };
    let bridges = Some(BTreeSet::from(["kontena".to_owned()]));
    assert_eq!(filter.egress.bridges, bridges, "what is surely one");
    filter.egress.masters = Some(BTreeSet::from([SocketAddr::new(underlay(5).into(), 443)]));
    // Nor can the engine be asked for its networks.
    filter.egress.bridges = Some(BTreeSet::from(["br-0123456789ab".to_owned()]));
    assert_eq!(plan(&intent, &model), vec![]);
}
