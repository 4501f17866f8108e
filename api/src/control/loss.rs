//! The loss of nodes: a session ended and did not resume within the grace.
//!
//! Any replica does it, under the grid's lock and after looking again. What the
//! node's instances held is free then, and stays known to its peers until it is
//! given away.

use std::net::Ipv4Addr;
use std::time::Duration;

use kontena_schema::ids::{GridId, NodeId, PlacementId};
use kontena_schema::query;

use super::placement::{self, Ending, LeaseState};
use super::{ControlError, LockedGrid, lease};
use crate::app::App;
use crate::db::Param;

/// Declares the nodes lost whose time has come; answers when the next one's comes,
/// if one's does.
pub async fn nodes_lose(app: &App) -> Result<Option<Duration>, ControlError> {
    let steady = millis(app.steady_for());
    let ttl = millis(app.timers.replica_ttl);
    let params: [Param; 2] = [&steady, &ttl];
    let rows = app.db.rows(&query::LOSS_DUE, &params).await?;
    for row in &rows {
        let (grid, in_s): (GridId, f64) = (row.get(0), row.get(1));
        if in_s > 0.0 {
            return Ok(Some(Duration::from_secs_f64(in_s.min(3600.0))));
        }
        // One grid that is locked for long is not to keep the others waiting.
        if let Err(error) = grid_lose(app, grid).await {
            tracing::warn!(%grid, %error, "nodes are not declared lost yet");
        }
    }
    Ok(None)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

async fn grid_lose(app: &App, grid: GridId) -> Result<(), ControlError> {
    let lost = app.db.tx("nodes_lose", move |tx| {
        Box::pin(async move {
            let grid = match LockedGrid::by_id(tx, grid).await {
                // Removed meanwhile.
                Err(ControlError::NotFound { .. }) => return Ok(None),
                grid => grid?,
            };
            let nodes = tx
                .values::<NodeId>(&query::LOSS_TAKE, &[&grid.row.id])
                .await?;
            if !nodes.is_empty() {
                lose(&grid, &nodes).await?;
            }
            Ok::<_, ControlError>(Some((grid.changed(()), nodes)))
        })
    });
    if let Some((changed, nodes)) = lost.await? {
        app.bell.ring_changed(changed.ring);
        for node in nodes {
            tracing::warn!(%grid, %node, "node lost: its session ended and did not resume");
        }
    }
    Ok(())
}

/// Releases what nodes hold, their own addresses apart.
async fn lose(grid: &LockedGrid<'_, '_>, nodes: &[NodeId]) -> Result<(), ControlError> {
    let left: Vec<Ending> = grid.tx.all(&query::NODE_PLACEMENTS, &[&nodes]).await?;
    if left.is_empty() {
        return Ok(());
    }
    let revision = grid.stamp().await?;
    // Nobody is there to say that the container of one that was to go is gone.
    let (going, staying): (Vec<_>, Vec<_>) = left
        .into_iter()
        .partition(|placed| placed.desired == "removed");
    let held = |placed: &&Ending| placed.lease_state == LeaseState::Held;
    let ips: Vec<Ipv4Addr> = going
        .iter()
        .chain(&staying)
        .filter(held)
        .filter_map(|placed| placed.ip)
        .collect();
    let ids: Vec<PlacementId> = staying.iter().map(|placed| placed.id).collect();
    grid.tx
        .execute(&query::PLACEMENT_UNWAIT, &[&grid.row.id, &ids])
        .await?;
    grid.tx
        .execute_exactly(ids.len(), &query::PLACEMENT_LOSE, &[&ids, &revision])
        .await?;
    lease::free(grid, lease::MASTER, "node lost", &ips).await?;
    let going: Vec<Ending> = going
        .into_iter()
        .map(|placed| Ending {
            lease_state: LeaseState::Lost,
            ..placed
        })
        .collect();
    placement::end(grid, &going, "node lost").await?;
    lease::serve(grid).await
}
