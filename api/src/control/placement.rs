//! Placements: the instances of services on nodes, which hold the leases.
//!
//! A placement does not end when it is told to but when its node says that the
//! container is gone, or is no more itself: until then its address stays its own.

use kontena_schema::ids::{NodeId, PlacementId};
use kontena_schema::query;
use serde::Deserialize;

use super::{ControlError, LockedGrid, lease};
use crate::db::Param;

/// Begins the end of placements: their nodes remove the containers, and the
/// addresses are released when they have. What no node has ends at once.
pub async fn remove(
    grid: &LockedGrid<'_, '_>,
    placements: &[PlacementId],
) -> Result<(), ControlError> {
    if placements.is_empty() {
        return Ok(());
    }
    let revision = grid.stamp().await?;
    grid.tx
        .execute(&query::PLACEMENT_REMOVE, &[&placements, &revision])
        .await?;
    Ok(())
}

/// What ends with a placement.
#[derive(Clone, Debug, Deserialize)]
pub struct Ending {
    /// The placement.
    pub id: PlacementId,
    /// Its node.
    pub node_id: Option<NodeId>,
    /// Its address.
    pub ip: Option<std::net::Ipv4Addr>,
}

/// Ends a placement whose container is gone: its lease, its endpoint, itself.
pub async fn end(
    grid: &LockedGrid<'_, '_>,
    placement: &Ending,
    reason: &str,
) -> Result<(), ControlError> {
    let revision = grid.stamp().await?;
    lease::release(grid, placement.id, placement.ip, reason).await?;
    for (kind, node) in [("endpoint", None), ("placement", placement.node_id)] {
        let params: [Param; 5] = [&grid.row.id, &kind, &placement.id, &node, &revision];
        grid.tx.execute(&query::TOMBSTONE_INSERT, &params).await?;
    }
    grid.tx
        .execute_exactly(1, &query::PLACEMENT_DELETE, &[&placement.id])
        .await?;
    Ok(())
}
