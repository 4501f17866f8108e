//! Nodes: joining and removal. What a node does is its session's and report's.

use kontena_schema::agent::Hello;
use kontena_schema::http::nodes::Node;
use kontena_schema::ids::{NodeId, NodeNumber};
use kontena_schema::query;
use serde::Deserialize;

use super::grid::Empty;
use super::placement::Ending;
use super::{Call, ControlError, LockedGrid, change, placement, service, show};
use crate::app::App;
use crate::db::{DbError, Param};

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
    show(&app.db, &query::NODE_LIST, &[&grid, &name], "node", name).await
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

/// Adds a node with the lowest free number to a locked grid.
pub async fn join(grid: &LockedGrid<'_, '_>, hello: &Hello) -> Result<NodeRow, ControlError> {
    let (tx, id) = (grid.tx, grid.row.id);
    let number: Option<i16> = tx.value(&query::NODE_NUMBER_FIND, &[&id]).await?;
    let Some(number) = number else {
        return Err(ControlError::GridFullNodes {
            grid: grid.row.name.clone(),
        });
    };
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
    let params: [Param; 9] = [
        &id,
        &name,
        &number,
        &hello.engine_id,
        &all,
        &facts.region,
        &public_ip,
        &private_ip,
        &revision,
    ];
    let node = tx.value::<NodeId>(&query::NODE_INSERT, &params).await?;
    let node = node.ok_or(DbError::NoRow(query::NODE_INSERT.name))?;
    tx.value::<uuid::Uuid>(&query::TOKEN_INSERT, &[&"node", &id, &node])
        .await?;
    let number = NodeNumber::try_from(i64::from(number)).expect("the search is over 1..=254");
    Ok(NodeRow {
        id: node,
        name,
        number,
    })
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
            let node: Option<NodeRow> = tx
                .optional(&query::NODE_BY_NAME, &[&grid.row.id, &name])
                .await?;
            let node = node.ok_or_else(|| ControlError::not_found("node", name))?;
            remove(&grid, &node).await?;
            Ok(grid.changed(Empty {}))
        })
    })
    .await
}

async fn remove(grid: &LockedGrid<'_, '_>, node: &NodeRow) -> Result<(), ControlError> {
    let tx = grid.tx;
    let placements: Vec<NodePlacement> = tx.all(&query::NODE_PLACEMENTS, &[&node.id]).await?;
    for placed in &placements {
        placement::end(grid, &placed.ending, "node removed").await?;
        service::ended(grid, placed.service_id, placed.stack_id).await?;
    }
    let revision = grid.stamp().await?;
    let tombstone: [Param; 5] = [&grid.row.id, &"node", &node.id, &None::<NodeId>, &revision];
    tx.execute(&query::TOMBSTONE_INSERT, &tombstone).await?;
    tx.execute_exactly(1, &query::NODE_DELETE, &[&node.id])
        .await?;
    Ok(())
}

/// A placement of a node that goes.
#[derive(Deserialize)]
struct NodePlacement {
    #[serde(flatten)]
    ending: Ending,
    service_id: kontena_schema::ids::ServiceId,
    stack_id: Option<kontena_schema::ids::StackId>,
}
