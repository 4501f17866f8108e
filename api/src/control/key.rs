//! The nodes' public keys: told by the nodes, passed on to their peers.
//!
//! A node that changes its key first tells the next one. Once every connected peer
//! has reported that it is ready for it, the node learns so and begins to use it;
//! what it tells then has that key as the current one. Nobody waits here: a peer
//! that is not connected learns the keys when it comes back.

use kontena_schema::ids::{GridId, NodeId};
use kontena_schema::key::PublicKeys;
use kontena_schema::query;

use super::grid::Empty;
use super::{Call, ControlError, LockedGrid, change, node};
use crate::app::App;
use crate::db::Param;

/// Takes the keys that a node tells. Two nodes with one key would take each other's
/// frames, so the second one is refused.
pub async fn update(
    grid: &LockedGrid<'_, '_>,
    node: NodeId,
    keys: &PublicKeys,
) -> Result<(), ControlError> {
    let tx = grid.tx;
    let current = keys.current.to_string();
    let next = keys.next.filter(|next| *next != keys.current);
    let next = next.map(|key| key.to_string());
    let told: [Param; 3] = [&node, &current, &next];
    if tx.value(&query::NODE_KEYS_DIFFER, &told).await? != Some(true) {
        return Ok(());
    }
    let both: Vec<&str> = [Some(&current), next.as_ref()]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let others: [Param; 3] = [&grid.row.id, &node, &both];
    if tx.value(&query::NODE_KEY_TAKEN, &others).await? == Some(true) {
        return Err(ControlError::KeyTaken);
    }
    let revision = grid.stamp().await?;
    let update: [Param; 4] = [&node, &current, &next, &revision];
    tx.execute_exactly(1, &query::NODE_UPDATE_KEYS, &update)
        .await?;
    Ok(())
}

/// Asks a node for a new key; it changes it in its own time.
pub async fn node_key_turn(
    app: &App,
    call: &Call,
    grid: &str,
    name: &str,
) -> Result<Empty, ControlError> {
    change(app, call, "node_key_turn", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, grid).await?;
            let node = node::by_name(&grid, name).await?;
            let revision = grid.stamp().await?;
            tx.execute_exactly(1, &query::NODE_TURN_KEY, &[&node.id, &revision])
                .await?;
            Ok(grid.changed(Empty {}))
        })
    })
    .await
}

/// Tells the nodes for whose next keys all peers are ready that they are.
pub async fn next_keys_known(app: &App) -> Result<(), ControlError> {
    // After an outage not everybody who is there is connected yet.
    if app.steady_for() < app.timers.replica_ttl {
        return Ok(());
    }
    let grids = app.db.rows(&query::NODE_NEXT_KEYS_AWAITED, &[]).await?;
    for grid in grids.iter().map(|row| row.get::<_, GridId>(0)) {
        // What costs something is asked without the lock; mostly somebody is missing.
        let candidates = app.db.rows(&query::NODE_NEXT_KEYS_KNOWN, &[&grid]).await?;
        if candidates.is_empty() {
            continue;
        }
        if let Err(error) = next_keys_trust(app, grid).await {
            tracing::warn!(%grid, %error, "nodes wait for the word that their next keys are known");
        }
    }
    Ok(())
}

async fn next_keys_trust(app: &App, grid: GridId) -> Result<(), ControlError> {
    let changed = app
        .db
        .tx("next_keys_known", move |tx| {
            Box::pin(async move {
                let grid = LockedGrid::by_id(tx, grid).await?;
                let ready = tx
                    .rows(&query::NODE_NEXT_KEYS_KNOWN, &[&grid.row.id])
                    .await?;
                let ready: Vec<NodeId> = ready.iter().map(|row| row.get(0)).collect();
                if !ready.is_empty() {
                    let revision = grid.stamp().await?;
                    tx.execute(&query::NODE_TRUST_NEXT_KEYS, &[&ready, &revision])
                        .await?;
                }
                Ok::<_, ControlError>(grid.changed(()))
            })
        })
        .await?;
    app.bell.ring_changed(changed.ring);
    Ok(())
}
