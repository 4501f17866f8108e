//! Nodes: joining and removal. What a node does is its session's and report's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use kontena_schema::agent::Hello;
use kontena_schema::http::addresses::HolderKind;
use kontena_schema::http::grids::Grid;
use kontena_schema::http::nodes::{Node, NodePeers};
use kontena_schema::ids::{NodeId, NodeNumber, PlacementId};
use kontena_schema::query;
use serde::Deserialize;

use super::grid::Empty;
use super::lease::{self, Holder, Lease, Step, Tenant};
use super::placement::Ending;
use super::{Call, ControlError, LockedGrid, change, overlap, placement, returning, show};
use crate::app::App;
use crate::db::{DbError, Param};

/// The class of the addresses of node numbers.
const NODE_RANGE_CLASS: i16 = 3;

/// A node as the rules see it.
#[derive(Clone, Debug, Deserialize)]
pub struct NodeRow {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: NodeNumber,
}

/// What is counted of a node.
#[derive(Clone, Debug, Deserialize)]
pub struct NodeMetrics {
    /// Its grid.
    pub grid: String,
    /// Its name.
    pub node: String,
    /// Whether its agent has a session.
    pub connected: bool,
    /// How many packets and frames its host dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// How many other nodes it reaches on which path, or not at all.
    pub peers: BTreeMap<String, i64>,
}

/// What is counted of all nodes of all grids.
pub async fn node_metrics(app: &App) -> Result<Vec<NodeMetrics>, ControlError> {
    Ok(app.db.all(&query::NODE_METRICS, &[]).await?)
}

/// The nodes of a grid.
pub async fn node_list(app: &App, grid: &str) -> Result<Vec<Node>, ControlError> {
    super::grid::grid_show(app, grid).await?;
    Ok(app
        .db
        .all(&query::NODE_LIST, &[&grid, &None::<String>])
        .await?)
}

/// One node.
pub async fn node_show(app: &App, grid: &str, name: &str) -> Result<Node, ControlError> {
    let mut node: Node = show(&app.db, &query::NODE_LIST, &[&grid, &name], "node", name).await?;
    let grid: Grid = show(&app.db, &query::GRID_LIST, &[&grid], "grid", grid).await?;
    node.network_overlap = overlap::of_node(&grid, &node);
    Ok(node)
}

/// How one node reaches the others.
pub async fn node_peers(app: &App, grid: &str, name: &str) -> Result<NodePeers, ControlError> {
    node_show(app, grid, name).await?;
    let peers = app.db.all(&query::NODE_PEER_LIST, &[&grid, &name]).await?;
    Ok(NodePeers { peers })
}

/// The node of an engine in a locked grid.
pub async fn by_engine(
    grid: &LockedGrid<'_, '_>,
    engine_id: &str,
) -> Result<Option<NodeRow>, ControlError> {
    Ok(grid
        .tx
        .optional(&query::NODE_BY_ENGINE, &[&grid.row.id, &engine_id])
        .await?)
}

/// The node of a name in a locked grid.
pub async fn by_name(grid: &LockedGrid<'_, '_>, name: &str) -> Result<NodeRow, ControlError> {
    let named: [Param; 2] = [&grid.row.id, &name];
    let node = grid.tx.optional(&query::NODE_BY_NAME, &named).await?;
    node.ok_or_else(|| ControlError::not_found("node", name))
}

/// The number for a node that joins: the lowest whose address nobody holds, else
/// the lowest that an instance has to give back.
async fn number(grid: &LockedGrid<'_, '_>) -> Result<(i16, Option<PlacementId>), ControlError> {
    let rows = grid
        .tx
        .rows(&query::NODE_NUMBER_FIND, &[&grid.row.id])
        .await?;
    let row = rows.first().ok_or_else(|| ControlError::GridFullNodes {
        grid: grid.row.name.clone(),
    })?;
    Ok((row.get(0), row.get(1)))
}

/// Gives a node the address of its number; an instance that has it moves.
async fn settle(
    grid: &LockedGrid<'_, '_>,
    node: &NodeRow,
    lent_to: Option<PlacementId>,
) -> Result<(), ControlError> {
    let tx = grid.tx;
    let number = i64::from(node.number.get());
    let params: [Param; 2] = [&grid.row.id, &number];
    let ip: Option<String> = tx.value(&query::NODE_NUMBER_ADDRESS, &params).await?;
    let ip = ip.and_then(|ip| ip.parse().ok());
    let ip = ip.ok_or(DbError::NoRow(query::NODE_NUMBER_ADDRESS.name))?;
    let mut moving = Vec::new();
    if let Some(lent_to) = lent_to {
        let tenant: Tenant = tx.one(&query::PLACEMENT_BY_ID, &[&lent_to]).await?;
        let reason = format!("{ip} is the address of node {} now", node.name);
        lease::free(grid, lease::MASTER, &reason, &[ip]).await?;
        returning::dispossess(grid, tenant, reason, &mut moving).await?;
    }
    let lease = Lease {
        ip,
        class: NODE_RANGE_CLASS,
        number: lease::next_number(grid).await?,
    };
    let step = Step {
        event: "leased",
        kind: HolderKind::Node,
        actor: &node.name,
        reason: "node joined",
    };
    let holder = Holder {
        name: &node.name,
        node: Some(&node.name),
        placement: None,
        node_id: Some(node.id),
    };
    lease::hold(grid, &step, &[lease], &[holder]).await?;
    lease::give(grid, &moving).await
}

/// Adds a node with the lowest free number to a locked grid.
pub async fn join(grid: &LockedGrid<'_, '_>, hello: &Hello) -> Result<NodeRow, ControlError> {
    let (tx, id) = (grid.tx, grid.row.id);
    let (number, lent_to) = number(grid).await?;
    let facts = &hello.facts;
    let proposed = if facts.hostname.is_empty() {
        "node"
    } else {
        &facts.hostname
    };
    let name: Option<String> = tx.value(&query::NODE_NAME_FIND, &[&id, &proposed]).await?;
    let name = name.ok_or(DbError::NoRow(query::NODE_NAME_FIND.name))?;
    let revision = grid.stamp().await?;
    let all = serde_json::to_value(facts).expect("facts are plain JSON");
    let public_ip = facts.public_ip.map(|ip| ip.to_string());
    let private_ip = facts.private_ip.map(|ip| ip.to_string());
    let params: [Param; 10] = [
        &id,
        &name,
        &number,
        &hello.engine_id,
        &all,
        &facts.region,
        &public_ip,
        &private_ip,
        &facts.behind_nat,
        &revision,
    ];
    let node = tx.value::<NodeId>(&query::NODE_INSERT, &params).await?;
    let node = node.ok_or(DbError::NoRow(query::NODE_INSERT.name))?;
    tx.value::<uuid::Uuid>(&query::TOKEN_INSERT, &[&"node", &id, &node])
        .await?;
    let number = NodeNumber::try_from(i64::from(number)).expect("the search is over 1..=254");
    let node = NodeRow {
        id: node,
        name,
        number,
    };
    settle(grid, &node, lent_to).await?;
    Ok(node)
}

/// Removes a node: its placements end, and its number is free again.
pub async fn node_remove(
    app: &App,
    call: &Call,
    grid: &str,
    name: &str,
) -> Result<Empty, ControlError> {
    change(app, call, "node_remove", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, grid).await?;
            let node = by_name(&grid, name).await?;
            remove(&grid, &node).await?;
            Ok(grid.changed(Empty {}))
        })
    })
    .await
}

async fn remove(grid: &LockedGrid<'_, '_>, node: &NodeRow) -> Result<(), ControlError> {
    let tx = grid.tx;
    let placements: Vec<Ending> = tx
        .all(&query::NODE_PLACEMENTS, &[&[node.id].as_slice()])
        .await?;
    let revision = grid.stamp().await?;
    placement::end(grid, &placements, "node removed").await?;
    let params: [Param; 2] = [&grid.row.id, &i64::from(node.number.get())];
    let own: Option<String> = tx.value(&query::NODE_NUMBER_ADDRESS, &params).await?;
    let own: Vec<Ipv4Addr> = own.iter().filter_map(|ip| ip.parse().ok()).collect();
    lease::free(grid, lease::MASTER, "node removed", &own).await?;
    let tombstone: [Param; 5] = [&grid.row.id, &"node", &node.id, &None::<NodeId>, &revision];
    tx.execute(&query::TOMBSTONE_INSERT, &tombstone).await?;
    tx.execute_exactly(1, &query::NODE_DELETE, &[&node.id])
        .await?;
    lease::serve(grid).await
}
