//! Our ordinary table of the packet filter: clear packets of the VXLAN device pass only
//! from and to fast peers, and containers reach no more of hosts than the grid lets them.
//!
//! The VXLAN device's UDP socket takes packets from anyone, and nothing in a packet proves
//! its sender; so this table is what keeps foreign packets out, and clear packets in. It is
//! written in one transaction before the VXLAN device exists, and it outlives the agent; but
//! it closes for all within seconds unless a live agent keeps it open (`filter_lease.rs`): a dead one does not learn that a network is no longer trusted. Drops
//! are counted in `dropped_in` and `dropped_out`. Whose frames the packets may carry is up
//! to `anti_spoofing.rs`.
//!
//! Containers are not trusted either. What one sends to a peer would leave with this host's
//! address, so nothing for the VXLAN device is forwarded, and nothing from a container for
//! the encrypted path; what one sends to this host with a peer's address arrives on an
//! interface without a route to that peer. The Master's port is closed to containers;
//! attempts are counted in `dropped_master`. All of this applies to IPv6, too, where
//! Docker's networks have it.
//!
//! The overlay's bridge gives access to the host, for containers here and, through the
//! tunnels, for those of every other host. Only what the grid put there answers: pings, the
//! named services, etcd to other nodes; the rest is counted in `dropped_host`, and so is what
//! comes to this host's addresses there from any other device: from a container by way of
//! Docker's bridge, or from the host's own network. It gives no
//! access through the host: nothing is routed between the overlay and another network but
//! what Docker's NAT sends to a published port, and the replies (`dropped_forward`). Rules
//! that match connections exist only where the kernel tracks them anyway, as it does for that
//! NAT: they would make it track every connection.
//!
//! Where WireGuard is a device (`wireguard/`), only packets of the VXLAN device and the
//! agents' heartbeats pass through it, between tunnel addresses: nothing else from a peer's
//! host, and nothing that a container would send as this host. Through any other device, a
//! tunnel address is not a peer's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::Ipv4Network;
use kontena_schema::address::InnerSubnet;
use serde_json::{Value, json};

use crate::error::Cause;
use crate::linux::fast_peers;
use crate::linux::filter_frame::{
    BRIDGES, MASTERS, MASTERS_IPV6, NODES, OWN, TABLE, TCP_SERVICES, UDP_SERVICES, frame,
};
use crate::linux::live_table::{FAST_PEERS, OPEN};
use crate::linux::nft::{Elements, Present};
use crate::model::state::{Access, EgressPolicy, Filter, FilterState, HostServices};

/// Whether the kernel tracks connections in the calling thread's namespace.
pub(crate) fn tracks_connections() -> bool {
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.is_ok_and(|count| count.trim() != "0")
}

/// Reads our table.
pub(crate) async fn observe(present: &Present) -> Result<FilterState, Cause> {
    let listing = TABLE.list(present).await?;
    Ok(listing.map_or(FilterState::Missing, |listing| state(&listing)))
}

/// Compares the table with what it should be for the tunnel subnet in its rules.
fn state(listing: &Value) -> FilterState {
    let (tunnel_subnet, tracked) = (tunnel_subnet(listing), is_tracked(listing));
    TABLE.state(listing, &frame(tunnel_subnet, tracked), |elements| {
        contents(tunnel_subnet, tracked, elements)
    })
}

/// The expressions of all rules.
fn expressions(listing: &Value) -> impl Iterator<Item = &Value> {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    objects.flat_map(|object| object["rule"]["expr"].as_array().into_iter().flatten())
}

/// The first tunnel subnet in any rule. A table without one is not ours.
fn tunnel_subnet(listing: &Value) -> InnerSubnet {
    let network = |part: &Value| {
        let prefix = &part["match"]["right"]["prefix"];
        let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
        let network = Ipv4Network::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()?;
        InnerSubnet::try_from(network).ok()
    };
    expressions(listing).find_map(network).unwrap_or_default()
}

/// Whether any rule matches connections.
fn is_tracked(listing: &Value) -> bool {
    expressions(listing).any(|part| part["match"]["left"]["ct"].is_object())
}

/// Writes our whole table, replacing whatever had its name.
pub(crate) async fn install(filter: &Filter) -> Result<(), Cause> {
    let frame = frame(filter.tunnel_subnet, filter.tracked);
    TABLE.install(&frame, all_elements(filter)).await
}

/// Changes the egress policy.
pub(crate) async fn egress(old: &EgressPolicy, new: &EgressPolicy) -> Result<(), Cause> {
    let (old, new) = (egress_elements(old), egress_elements(new));
    TABLE.change(old, new).await
}

/// Changes the overlay's access to this host.
pub(crate) async fn access(old: &Access, new: &Access) -> Result<(), Cause> {
    let (old, new) = (access_elements(old), access_elements(new));
    TABLE.change(old, new).await
}

/// Removes our table.
pub(crate) async fn remove() -> Result<(), Cause> {
    TABLE.remove().await
}

fn all_elements(filter: &Filter) -> Vec<Value> {
    let peers = TABLE.elements(FAST_PEERS, filter.peers.iter().map(|peer| json!(peer)));
    // `nft` takes whole seconds.
    let life_s = fast_peers::LIFE.as_secs();
    let udp = json!({"elem": {"val": "udp", "timeout": life_s}});
    let open = TABLE.elements(OPEN, peers.is_some().then_some(udp));
    [
        peers.into_iter().chain(open).collect(),
        access_elements(&filter.access),
        egress_elements(&filter.egress),
    ]
    .concat()
}

fn access_elements(access: &Access) -> Vec<Value> {
    let ports = |ports: &BTreeSet<u16>| -> Vec<Value> { ports.iter().map(|p| json!(p)).collect() };
    let HostServices { tcp, udp } = &access.services;
    let sets = [
        TABLE.elements(OWN, access.own.iter().map(|own| json!(own))),
        TABLE.elements(NODES, access.nodes.iter().map(|node| json!(node))),
        TABLE.elements(TCP_SERVICES, ports(tcp)),
        TABLE.elements(UDP_SERVICES, ports(udp)),
    ];
    sets.into_iter().flatten().collect()
}

fn egress_elements(egress: &EgressPolicy) -> Vec<Value> {
    let masters = |ipv6: bool| {
        let masters = egress.masters.iter().flatten();
        let masters = masters.filter(move |at| at.is_ipv6() == ipv6);
        masters.map(|at| json!({"concat": [at.ip(), at.port()]}))
    };
    let bridges = egress.bridges.iter().flatten();
    let sets = [
        TABLE.elements(MASTERS, masters(false)),
        TABLE.elements(MASTERS_IPV6, masters(true)),
        TABLE.elements(BRIDGES, bridges.map(|name| json!(name))),
    ];
    sets.into_iter().flatten().collect()
}

fn contents(tunnel_subnet: InnerSubnet, tracked: bool, elements: &Elements) -> Option<Filter> {
    let master = |element: &Value| {
        let [ip, port] = element["concat"].as_array()?.as_slice() else {
            return None;
        };
        let ip: IpAddr = ip.as_str()?.parse().ok()?;
        Some(SocketAddr::new(ip, port_of(port)?))
    };
    let mut masters: BTreeSet<_> = elements.of(MASTERS, master)?;
    masters.extend(elements.of::<_, BTreeSet<_>>(MASTERS_IPV6, master)?);
    let egress = EgressPolicy {
        masters: Some(masters),
        bridges: Some(elements.of(BRIDGES, |name| Some(name.as_str()?.to_owned()))?),
    };
    let address = |element: &Value| element.as_str()?.parse().ok();
    let access = Access {
        own: elements.of(OWN, address)?,
        nodes: elements.of(NODES, address)?,
        services: HostServices {
            tcp: elements.of(TCP_SERVICES, port_of)?,
            udp: elements.of(UDP_SERVICES, port_of)?,
        },
    };
    let peers = elements.of(FAST_PEERS, |peer| peer.as_str()?.parse().ok())?;
    let open: Vec<()> = elements.of(OPEN, |_| Some(()))?;
    // Who is in the set when it is closed, is taken out before it opens.
    let peers = if open.is_empty() {
        BTreeSet::new()
    } else {
        peers
    };
    Some(Filter {
        tunnel_subnet,
        tracked,
        peers,
        access,
        egress,
    })
}

fn port_of(element: &Value) -> Option<u16> {
    u16::try_from(element.as_u64()?).ok()
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
