//! The difference between the wanted and the actual state, as ordered steps.
//!
//! The order is what matters. The packet filter comes before the VXLAN device, and the anti-spoofing
//! filter before the VXLAN device is up, a container's filter before its port is; what is wrong is removed before anything new uses the same
//! address or MAC; containers come last, when everything that they may want to reach is reachable.
//! A peer that changes between encrypted and clear gets its new path before it loses the old one:
//! flooding first, then the MACs one by one, then the old path is removed. Only the packet filter
//! closes before the MACs move: an agent that is killed in between leaves a host that sends
//! nothing, not one that sends in clear (infra/adr/0006-peers.md).

pub(crate) mod containers;
pub(crate) mod failures;
pub(crate) mod step;
pub(crate) mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use kontena_schema::limits::VXLAN_PORT;
use kontena_schema::mac::Mac;
use kontena_sleeve::Table;

use containers::{attach, detach, filter_ports};
use step::{EntryStep, FilterStep, Step};

use crate::model::devices::{BRIDGE, Link};
use crate::model::entries::Entries;
use crate::model::intent::OverlayIntent;
use crate::model::state::{
    Access, AntiSpoofingState, Bridge, BridgeSettings, EgressPolicy, Encryption, Filter,
    FilterState, Forwarding, LiveTable, Observed, PathProbeIdentity, Port, PortSettings,
    RemoteEntry, SleeveIdentity, SleeveState, Vxlan, VxlanIdentity,
};

/// The steps from `observed` to `intent`; none if they agree.
pub(crate) fn plan(intent: &OverlayIntent, observed: &Observed) -> Vec<Step> {
    let entries = Entries::of(intent);
    let vxlan = observed
        .vxlan
        .as_ref()
        .filter(|t| t.identity == vxlan_identity(intent));
    let sleeve = observed
        .sleeve
        .as_ref()
        .filter(|sleeve| sleeve.identity == sleeve_identity(intent));
    // The kernel deletes these with their device.
    let remote: BTreeMap<Mac, RemoteEntry> = observed
        .remote
        .iter()
        .filter(|(_, entry)| match entry.port {
            Port::Vxlan => vxlan.is_some(),
            Port::Tap => sleeve.is_some(),
        })
        .map(|(&mac, &entry)| (mac, entry))
        .collect();
    let mut steps = Vec::new();

    let filter = wanted_filter(intent, &entries, observed);
    open_filter(&filter, observed, &mut steps);
    wireguard::egress(intent, &observed.inside, &mut steps);
    if observed.vxlan.is_some() && vxlan.is_none() {
        steps.push(Step::DeleteLink(Link::Vxlan));
    }
    detach(intent, observed, &mut steps);
    filter_ports(intent, observed, &mut steps);
    // While the containers are unknown, a neighbour may be one of them.
    let known = observed.bridge.as_ref();
    let known = known.filter(|_| intent.attachments.is_some());
    remove_entries(&entries, known, (vxlan, &remote), &mut steps);
    set_bridge(intent, observed.bridge.as_ref(), &mut steps);
    listen_for_path_probes(intent, observed.path_probes, &mut steps);
    create_vxlan(intent, vxlan, &mut steps);
    protect_vxlan(&entries.senders, vxlan, &observed.anti_spoofing, &mut steps);
    let port = remote_port(intent);
    if vxlan.is_none_or(|t| t.port != port) {
        steps.push(Step::SetVxlan(port));
    }
    let retable = match intent.encryption {
        Encryption::Sleeve => encrypt(
            intent,
            entries.table.clone(),
            (sleeve, observed.tap),
            &mut steps,
        ),
        Encryption::WireGuard => {
            wireguard::encrypt(intent, &observed.inside, &mut steps);
            None
        }
    };
    add_floods(&entries, vxlan, &mut steps);
    // From here on nothing passes in clear that must not, even if the following steps fail or this
    // agent dies.
    close_filter(&filter, &observed.filter, &mut steps);
    // With another MAC the bridge loses its neighbours.
    let kept = observed
        .bridge
        .as_ref()
        .filter(|bridge| bridge.mac == intent.own.mac);
    add_entries(&entries, kept, (vxlan, &remote), &mut steps);
    steps.extend(retable);
    wireguard::remove_unreachable(intent, &observed.inside, &mut steps);
    allow_forwarding(observed.forwarding.as_ref(), &mut steps);
    attach(intent, observed, &mut steps);
    announce(observed, &mut steps);
    steps
}

/// The steps that remove everything of ours from the host, the filters last.
pub(crate) fn plan_removal(observed: &Observed) -> Vec<Step> {
    let ends = observed
        .host_ends
        .keys()
        .map(|&placement| Link::HostEnd(placement));
    let vxlan = observed.vxlan.as_ref().map(|_| Link::Vxlan);
    let bridge = observed.bridge.as_ref().map(|_| Link::Bridge);
    let links = vxlan.into_iter().chain(ends).chain(bridge);
    let sleeve = observed.sleeve.as_ref().map(|_| Step::StopSleeve);
    let mut steps: Vec<Step> = sleeve.into_iter().collect();
    steps.extend(links.map(Step::DeleteLink));
    steps.extend(wireguard::remove(&observed.inside));
    for (&place, &count) in observed.forwarding.iter().flat_map(|f| &f.present) {
        steps.extend(std::iter::repeat_n(Step::ForgetForwarding(place), count));
    }
    if observed.stale_port_filters.is_some() {
        steps.push(Step::RemovePortFilters);
    }
    if observed.anti_spoofing != AntiSpoofingState::Missing {
        steps.push(Step::RemoveAntiSpoofing);
    }
    if observed.live_table == LiveTable::Present {
        steps.push(Step::Filter(FilterStep::StopLive));
    }
    if observed.filter != FilterState::Missing {
        steps.push(Step::Filter(FilterStep::Remove));
    }
    steps
}

/// The filter that is wanted. What is not known of the egress stays as it was.
fn wanted_filter(intent: &OverlayIntent, entries: &Entries, observed: &Observed) -> Filter {
    let nodes = intent.peers.values().map(|peer| peer.overlay_address);
    let present = match &observed.filter {
        FilterState::Sound(present) => present.clone(),
        _ => Filter::default(),
    };
    let mut wanted = Filter {
        tunnel_subnet: intent.tunnel_subnet,
        // Where rules go by connections, those are tracked at least for them.
        tracked: observed.tracked || present.tracked,
        peers: entries.accepted.clone(),
        access: Access {
            own: BTreeSet::from([intent.own.address, intent.own.tunnel_address]),
            nodes: nodes.collect(),
            services: intent.services.clone(),
        },
        egress: intent.egress.clone(),
    };
    let present = present.egress;
    let EgressPolicy { masters, bridges } = &mut wanted.egress;
    *masters = Some(masters.take().or(present.masters).unwrap_or_default());
    let bridge = || BTreeSet::from([BRIDGE.to_owned()]);
    *bridges = Some(bridges.take().or(present.bridges).unwrap_or_else(bridge));
    wanted
}

fn open_filter(wanted: &Filter, observed: &Observed, steps: &mut Vec<Step>) {
    let open = change_filter(wanted, &observed.filter, steps);
    if observed.live_table == LiveTable::Missing {
        // It closes with the other one, not before.
        steps.push(Step::Filter(FilterStep::StartLive(open)));
    }
}

/// Opens the filter for what is wanted; for whom it is open then.
fn change_filter(
    wanted: &Filter,
    filter: &FilterState,
    steps: &mut Vec<Step>,
) -> BTreeSet<Ipv4Addr> {
    let present = match filter {
        FilterState::Sound(present) if has_the_rules(present, wanted) => present,
        _ => {
            steps.push(Step::Filter(FilterStep::Install(wanted.clone())));
            return wanted.peers.clone();
        }
    };
    let new: BTreeSet<_> = wanted.peers.difference(&present.peers).copied().collect();
    if !new.is_empty() {
        steps.push(Step::Filter(FilterStep::AllowPeers(new)));
    }
    if present.access != wanted.access {
        steps.push(Step::Filter(FilterStep::SetAccess {
            old: present.access.clone(),
            new: wanted.access.clone(),
        }));
    }
    if present.egress != wanted.egress {
        steps.push(Step::Filter(FilterStep::SetEgressPolicy {
            old: present.egress.clone(),
            new: wanted.egress.clone(),
        }));
    }
    &present.peers | &wanted.peers
}

/// Whether two filters differ only in what stands in sets, and not in rules. Who was let
/// in with another tunnel subnet was of another grid.
fn has_the_rules(present: &Filter, wanted: &Filter) -> bool {
    (present.tunnel_subnet, present.tracked) == (wanted.tunnel_subnet, wanted.tracked)
}

fn close_filter(wanted: &Filter, filter: &FilterState, steps: &mut Vec<Step>) {
    let fast = &wanted.peers;
    // With other rules it is another table, which has nobody else already.
    if let FilterState::Sound(present) = filter
        && has_the_rules(present, wanted)
    {
        let old: BTreeSet<_> = present.peers.difference(fast).copied().collect();
        if !old.is_empty() {
            steps.push(Step::Filter(FilterStep::ForbidPeers(old)));
        }
    }
}

/// Removes entries of addresses and MACs that no longer exist. A peer that only changes its path
/// keeps its entries until the new ones are there.
fn remove_entries(
    entries: &Entries,
    bridge: Option<&Bridge>,
    (vxlan, remote): (Option<&Vxlan>, &BTreeMap<Mac, RemoteEntry>),
    steps: &mut Vec<Step>,
) {
    if let Some(bridge) = bridge {
        let stale = bridge
            .neighbours
            .keys()
            .filter(|ip| !entries.neighbours.contains_key(ip));
        steps.extend(stale.map(|&ip| Step::Entry(EntryStep::DeleteNeighbour(ip))));
    }
    let stale = remote
        .iter()
        .filter(|(mac, _)| !entries.ports.contains_key(mac));
    steps.extend(
        stale.map(|(&mac, entry)| Step::Entry(EntryStep::DeleteBridgeEntry(mac, entry.port))),
    );
    // An entry with several targets cannot be replaced as a whole.
    let known = vxlan.iter().flat_map(|vxlan| &vxlan.entries);
    let stale =
        known.filter(|(mac, targets)| !entries.ports.contains_key(mac) || targets.len() > 1);
    steps.extend(stale.map(|(&mac, _)| Step::Entry(EntryStep::DeleteVxlanEntry(mac))));
}

fn set_bridge(intent: &OverlayIntent, bridge: Option<&Bridge>, steps: &mut Vec<Step>) {
    let wanted = BridgeSettings {
        mtu: intent.mtu,
        up: true,
        stp: false,
        multicast_snooping: false,
    };
    let mac = intent.own.mac;
    let address = intent.on_link(intent.own.address);
    match bridge {
        None => steps.push(Step::CreateBridge {
            mac,
            mtu: wanted.mtu,
        }),
        Some(bridge) if bridge.mac != mac => steps.push(Step::SetBridgeMac(mac)),
        Some(_) => {}
    }
    if bridge.is_none_or(|b| b.settings != wanted) {
        steps.push(Step::SetBridge(wanted));
    }
    let present = bridge.map(|b| b.addresses.clone()).unwrap_or_default();
    steps.extend(
        present
            .iter()
            .filter(|a| **a != address)
            .map(|a| Step::RemoveAddress(Link::Bridge, *a)),
    );
    if !present.contains(&address) {
        steps.push(Step::AddAddress(Link::Bridge, address));
    }
}

fn vxlan_identity(intent: &OverlayIntent) -> VxlanIdentity {
    VxlanIdentity {
        vni: intent.vni,
        udp_port: VXLAN_PORT,
        learning: false,
        proxy: true,
        bound: false,
    }
}

fn create_vxlan(intent: &OverlayIntent, vxlan: Option<&Vxlan>, steps: &mut Vec<Step>) {
    if vxlan.is_none() {
        steps.push(Step::CreateVxlan {
            vni: intent.vni,
            mtu: intent.mtu,
        });
    }
}

/// The anti-spoofing filter is attached to the device: a new device needs a new one.
fn protect_vxlan(
    senders: &BTreeSet<Mac>,
    vxlan: Option<&Vxlan>,
    anti_spoofing: &AntiSpoofingState,
    steps: &mut Vec<Step>,
) {
    let (Some(_), AntiSpoofingState::Sound(present)) = (vxlan, anti_spoofing) else {
        return steps.push(Step::InstallAntiSpoofing(senders.clone()));
    };
    let (old, new) = (present - senders, senders - present);
    if !old.is_empty() || !new.is_empty() {
        steps.push(Step::ChangeAntiSpoofing { old, new });
    }
}

fn sleeve_identity(intent: &OverlayIntent) -> SleeveIdentity {
    SleeveIdentity {
        vni: intent.vni,
        tunnel_address: intent.own.tunnel_address,
    }
}

fn listen_for_path_probes(
    intent: &OverlayIntent,
    present: Option<PathProbeIdentity>,
    steps: &mut Vec<Step>,
) {
    let wanted = PathProbeIdentity {
        vni: intent.vni,
        mac: intent.own.mac,
        mtu: intent.mtu,
    };
    if present != Some(wanted) {
        steps.push(Step::ListenForPathProbes(wanted));
    }
}

/// A port of the bridge towards other hosts.
fn remote_port(intent: &OverlayIntent) -> PortSettings {
    PortSettings {
        mtu: intent.mtu,
        up: true,
        on_bridge: true,
        learning: false,
        // Frames for a MAC that no longer exists must not reach its former host.
        flood: false,
        isolated: true,
        // The sender's MAC is checked before, by the anti-spoofing filter and the sleeve.
        locked: false,
        neigh_suppress: true,
    }
}

/// Starts the sleeve and sets its table; peers that get flooded frames keep getting them encrypted
/// until they get them in clear. Returns the table to set after that.
fn encrypt(
    intent: &OverlayIntent,
    wanted: Table,
    (sleeve, tap): (Option<&SleeveState>, Option<PortSettings>),
    steps: &mut Vec<Step>,
) -> Option<Step> {
    if sleeve.is_none() {
        steps.push(Step::StartSleeve(sleeve_identity(intent)));
    }
    let mut table = wanted.clone();
    let present = sleeve.map(|sleeve| &sleeve.table);
    let before = present.iter().flat_map(|table| &table.floods);
    let still = before.filter(|tunnel_address| wanted.peers.contains_key(tunnel_address));
    table.floods.extend(still);
    if present != Some(&table) {
        steps.push(Step::SetTable(Box::new(table.clone())));
    }
    let port = remote_port(intent);
    if sleeve.is_none() || tap != Some(port) {
        steps.push(Step::SetTap(port));
    }
    (table != wanted).then(|| Step::SetTable(Box::new(wanted)))
}

/// Adds new targets of flooding before old ones are removed.
fn add_floods(entries: &Entries, vxlan: Option<&Vxlan>, steps: &mut Vec<Step>) {
    let there = |to: &&Ipv4Addr| vxlan.is_some_and(|vxlan| vxlan.floods.contains(to));
    let new = entries.floods.iter().filter(|to| !there(to));
    steps.extend(new.map(|&to| Step::Entry(EntryStep::AddFlood(to))));
}

/// Moves the MACs; old targets are removed last.
fn add_entries(
    entries: &Entries,
    bridge: Option<&Bridge>,
    (vxlan, remote): (Option<&Vxlan>, &BTreeMap<Mac, RemoteEntry>),
    steps: &mut Vec<Step>,
) {
    let present = |mac: &Mac| vxlan.and_then(|vxlan| vxlan.entries.get(mac));
    for (mac, &to) in &entries.targets {
        if present(mac).is_none_or(|now| *now != BTreeSet::from([to])) {
            steps.push(Step::Entry(EntryStep::SetVxlanEntry(*mac, to)));
        }
    }
    for (&mac, &port) in &entries.ports {
        let wanted = RemoteEntry { port, pinned: true };
        if remote.get(&mac) != Some(&wanted) {
            steps.push(Step::Entry(EntryStep::SetBridgeEntry(mac, port)));
        }
    }
    for (&ip, &mac) in &entries.neighbours {
        if bridge.and_then(|b| b.neighbours.get(&ip)) != Some(&mac) {
            steps.push(Step::Entry(EntryStep::SetNeighbour(ip, mac)));
        }
    }
    let encrypted_now = |mac: &&Mac| present(mac).is_some_and(|targets| targets.len() == 1);
    let unused = entries
        .ports
        .keys()
        .filter(|mac| !entries.targets.contains_key(mac))
        .filter(encrypted_now);
    steps.extend(unused.map(|&mac| Step::Entry(EntryStep::DeleteVxlanEntry(mac))));
    let floods = vxlan.iter().flat_map(|vxlan| &vxlan.floods);
    let old = floods.filter(|to| !entries.floods.contains(to));
    steps.extend(old.map(|&to| Step::Entry(EntryStep::DeleteFlood(to))));
}

fn allow_forwarding(forwarding: Option<&Forwarding>, steps: &mut Vec<Step>) {
    let Some(Forwarding { place, present }) = forwarding else {
        return;
    };
    if !present.contains_key(place) {
        steps.push(Step::AllowForwarding(*place));
    }
    for (&other, &count) in present {
        let wanted = usize::from(other == *place);
        let extra = count.saturating_sub(wanted);
        steps.extend(std::iter::repeat_n(Step::ForgetForwarding(other), extra));
    }
}

/// Running containers may have cached the former holder of an address that is set now.
fn announce(observed: &Observed, steps: &mut Vec<Step>) {
    let set = |step: &Step| match step {
        Step::Entry(EntryStep::SetNeighbour(ip, mac)) => Some((*ip, *mac)),
        _ => None,
    };
    let holders: BTreeMap<_, _> = steps.iter().filter_map(set).collect();
    if !observed.host_ends.is_empty() && !holders.is_empty() {
        steps.push(Step::Announce(holders));
    }
}

#[cfg(test)]
mod intents;
#[cfg(test)]
mod kernel_model;
#[cfg(test)]
mod tests;
