//! The difference between what is to be and what is, as ordered steps.
//!
//! The order is the point. The filter comes before the VXLAN device, the anti_spoofing before the
//! VXLAN device is up; what is wrong is removed before anything new uses the same address
//! or MAC; containers come last, when all that they may want to reach can be
//! reached. A peer that changes between encrypted and clear has its new path before it
//! loses the old one: the way for everybody's frames first, then the MACs one by
//! one, then the old way ends. Only the filter closes before the MACs move: an agent
//! that is killed in between leaves a host that says nothing, not one that says it in
//! clear (infra/adr/0006-pairs.md).

pub(crate) mod containers;
pub(crate) mod failures;
pub(crate) mod step;
pub(crate) mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use kontena_schema::limits::VXLAN_PORT;
use kontena_schema::mac::Mac;
use kontena_sleeve::Table;

use containers::{attach, detach};
use step::{EntryStep, Step};

use crate::model::devices::{BRIDGE, Link};
use crate::model::entries::Entries;
use crate::model::intent::OverlayIntent;
use crate::model::state::{
    AntiSpoofingState, Bridge, BridgeSettings, EgressPolicy, Encryption, Filter, FilterState,
    Forwarding, Observed, PathProbeIdentity, Port, PortSettings, RemoteEntry, SleeveIdentity,
    SleeveState, Vxlan, VxlanIdentity,
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
    // What is bound to another device goes with it.
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

    let filter = wanted_filter(intent, &entries, &observed.filter);
    open_filter(&filter, &observed.filter, &mut steps);
    wireguard::egress(intent, &observed.inside, &mut steps);
    if observed.vxlan.is_some() && vxlan.is_none() {
        steps.push(Step::DeleteLink(Link::Vxlan));
    }
    detach(intent, observed, &mut steps);
    // While the containers are not known, a neighbour may be one of them.
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
    // From here on nobody gets or gives in clear who should not, whatever becomes of
    // the steps that follow and of this agent.
    close_filter(&filter, &observed.filter, &mut steps);
    // With another MAC the bridge forgets its neighbours.
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

/// The steps that leave nothing of ours on the host, the filters last.
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
    if observed.anti_spoofing != AntiSpoofingState::Missing {
        steps.push(Step::RemoveAntiSpoofing);
    }
    if observed.filter != FilterState::Missing {
        steps.push(Step::RemoveFilter);
    }
    steps
}

/// The filter that is wanted. What is not known of the egress stays as it was.
fn wanted_filter(intent: &OverlayIntent, entries: &Entries, filter: &FilterState) -> Filter {
    let mut wanted = Filter {
        tunnel_subnet: intent.tunnel_subnet,
        peers: entries.accepted.clone(),
        egress: intent.egress.clone(),
    };
    let present = match filter {
        FilterState::Sound(present) => present.egress.clone(),
        _ => EgressPolicy::default(),
    };
    let EgressPolicy { masters, bridges } = &mut wanted.egress;
    *masters = Some(masters.take().or(present.masters).unwrap_or_default());
    let bridge = || BTreeSet::from([BRIDGE.to_owned()]);
    *bridges = Some(bridges.take().or(present.bridges).unwrap_or_else(bridge));
    wanted
}

fn open_filter(wanted: &Filter, filter: &FilterState, steps: &mut Vec<Step>) {
    let FilterState::Sound(present) = filter else {
        return steps.push(Step::InstallFilter(wanted.clone()));
    };
    // It stands in rules, and not in a set. Who was let in was of another grid.
    if present.tunnel_subnet != wanted.tunnel_subnet {
        return steps.push(Step::InstallFilter(wanted.clone()));
    }
    let new: BTreeSet<_> = wanted.peers.difference(&present.peers).copied().collect();
    if !new.is_empty() {
        steps.push(Step::AllowPeers(new));
    }
    if present.egress != wanted.egress {
        steps.push(Step::SetEgressPolicy {
            old: present.egress.clone(),
            new: wanted.egress.clone(),
        });
    }
}

fn close_filter(wanted: &Filter, filter: &FilterState, steps: &mut Vec<Step>) {
    let fast = &wanted.peers;
    // Another tunnel subnet is another table, which has nobody else already.
    if let FilterState::Sound(present) = filter
        && present.tunnel_subnet == wanted.tunnel_subnet
    {
        let old: BTreeSet<_> = present.peers.difference(fast).copied().collect();
        if !old.is_empty() {
            steps.push(Step::ForbidPeers(old));
        }
    }
}

/// Takes away what nobody has any more. What only changes its path keeps its
/// entries until the new one is there.
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

/// A anti_spoofing belongs to its device: a new one needs it anew.
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

/// A port of the bridge that leads to other hosts.
fn remote_port(intent: &OverlayIntent) -> PortSettings {
    PortSettings {
        mtu: intent.mtu,
        up: true,
        on_bridge: true,
        learning: false,
        // What is for a MAC that nobody has any more must not reach who had it.
        flood: false,
        isolated: true,
        // Each sender's MAC is looked at before, by the anti_spoofing and the sleeve.
        locked: false,
        neigh_suppress: true,
    }
}

/// Starts the sleeve and says who is at the other ends; who gets what is for all keeps
/// getting it encrypted until it gets it in clear. What is to be advertised after that.
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

/// What is for all has its new way before any loses its old one.
fn add_floods(entries: &Entries, vxlan: Option<&Vxlan>, steps: &mut Vec<Step>) {
    let there = |to: &&Ipv4Addr| vxlan.is_some_and(|vxlan| vxlan.floods.contains(to));
    let new = entries.floods.iter().filter(|to| !there(to));
    steps.extend(new.map(|&to| Step::Entry(EntryStep::AddFlood(to))));
}

/// The MACs move; the old targets go last.
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

/// Containers that were here before may remember a former holder of an address
/// that gets a new one now.
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
