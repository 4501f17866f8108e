//! Hosts whose own networks overlap a grid's: who is kept out, who is told, and whom a new grid
//! would hit. Why that matters is in `schema/src/overlap.rs`.
//!
//! Invariant: only a host that is no node yet is refused. A node that gets such a network later
//! keeps its number, its containers and its session; `kontena node show` tells of it.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use kontena_schema::address::Plan;
use kontena_schema::agent::Facts;
use kontena_schema::http::grids::{Grid, GridWarning};
use kontena_schema::http::nodes::Node;
use kontena_schema::ids::NodeId;
use kontena_schema::limits::PAGE_MAX;
use kontena_schema::overlap::{HostNetwork, HostNetworks, Overlap, overlap};
use kontena_schema::query;
use serde::Deserialize;

use super::{ControlError, GridRow};
use crate::db::Tx;

/// All that is known of where a host is: its networks, and the addresses at which others reach
/// it. An agent of the version before tells no more than those.
fn known(networks: Option<&HostNetworks>, addresses: [Option<Ipv4Addr>; 2]) -> Vec<HostNetwork> {
    let networks = networks.into_iter().flatten().cloned();
    let addresses = addresses.into_iter().flatten();
    networks
        .chain(addresses.map(HostNetwork::of_address))
        .collect()
}

fn of_facts(grid: &GridRow, facts: &Facts) -> Option<Overlap> {
    let addresses = [facts.private_ip, facts.public_ip];
    let known = known(facts.networks.as_ref(), addresses);
    overlap(grid.supernet, grid.inner_subnet, &known)
}

/// Refuses a host that would join and cannot be in the grid.
pub(super) fn refuse(grid: &GridRow, facts: &Facts) -> Result<(), ControlError> {
    of_facts(grid, facts).map_or(Ok(()), |found| Err(ControlError::NetworkOverlap(found)))
}

/// Logs that the host of a node has a network that overlaps one of the grid.
pub(super) fn tell(grid: &GridRow, node: NodeId, facts: &Facts) {
    if let Some(overlap) = of_facts(grid, facts) {
        tracing::warn!(grid = %grid.name, %node, "the node's {overlap}");
    }
}

/// What `kontena node show` says of it.
pub(super) fn of_node(grid: &Grid, node: &Node) -> Option<String> {
    let known = known(Some(&node.networks), [node.private_ip, node.public_ip]);
    let found = overlap(grid.supernet, grid.inner_subnet, &known)?;
    Some(format!("its {found}"))
}

/// A node that a grid would hit.
#[derive(Deserialize)]
struct Hit {
    node: String,
    networks: HostNetworks,
    public_ip: Option<Ipv4Addr>,
    private_ip: Option<Ipv4Addr>,
}

/// The nodes, of whichever grid, whose hosts could not be in a grid with these networks.
pub(super) async fn warnings(tx: &Tx<'_>, plan: Plan) -> Result<Vec<GridWarning>, ControlError> {
    let networks: [Ipv4Network; 2] = [plan.supernet(), plan.inner_subnet().network()];
    let networks = networks.map(|network| network.to_string()).to_vec();
    let most = i64::from(PAGE_MAX);
    let hit: Vec<Hit> = tx.all(&query::NODE_OVERLAPS, &[&networks, &most]).await?;
    let warning = |hit: Hit| {
        let known = known(Some(&hit.networks), [hit.private_ip, hit.public_ip]);
        let found = overlap(plan.supernet(), plan.inner_subnet(), &known)?;
        Some(GridWarning::new(hit.node, found))
    };
    Ok(hit.into_iter().filter_map(warning).collect())
}
