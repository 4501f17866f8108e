//! Placements: the instances of services on nodes, which hold the leases.
//!
//! A placement does not end when it is told to but when its node says that the
//! container is gone, or is lost or no more itself: until then its address stays
//! its own.

use kontena_schema::ids::{NodeId, PlacementId, ServiceId, StackId};
use kontena_schema::query;
use serde::Deserialize;

use super::{ControlError, LockedGrid, lease, service};
use crate::db::Param;

/// What a placement has to do with its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// It holds it.
    Held,
    /// Its node was lost; the address is free.
    Lost,
    /// Its node was lost; another has the address.
    Taken,
    /// There is none for it.
    Waiting,
    /// It has none and needs none now.
    None,
}

/// What ends with a placement.
#[derive(Clone, Debug, Deserialize)]
pub struct Ending {
    /// The placement.
    pub id: PlacementId,
    /// Its node.
    pub node_id: NodeId,
    /// Its address.
    pub ip: Option<std::net::Ipv4Addr>,
    /// What it has to do with it.
    pub lease_state: LeaseState,
    /// What is wanted of it.
    pub desired: String,
    /// Its service.
    pub service_id: ServiceId,
    /// Its stack.
    pub stack_id: Option<StackId>,
}

/// Begins the end of placements: their nodes remove the containers, and the
/// addresses are released when they have. Those of lost nodes end at once.
pub async fn remove(
    grid: &LockedGrid<'_, '_>,
    placements: &[PlacementId],
    reason: &str,
) -> Result<(), ControlError> {
    if placements.is_empty() {
        return Ok(());
    }
    let revision = grid.stamp().await?;
    let tx = grid.tx;
    tx.execute(&query::PLACEMENT_UNWAIT, &[&grid.row.id, &placements])
        .await?;
    tx.execute(&query::PLACEMENT_REMOVE, &[&placements, &revision])
        .await?;
    let lost: Vec<Ending> = tx.all(&query::PLACEMENT_ON_LOST, &[&placements]).await?;
    end(grid, &lost, reason).await
}

/// Ends placements whose containers are gone: their leases, their endpoints,
/// themselves, and what was only there for them.
pub async fn end(
    grid: &LockedGrid<'_, '_>,
    placements: &[Ending],
    reason: &str,
) -> Result<(), ControlError> {
    if placements.is_empty() {
        return Ok(());
    }
    let revision = grid.stamp().await?;
    let tx = grid.tx;
    let ids: Vec<PlacementId> = placements.iter().map(|placed| placed.id).collect();
    let held = placements
        .iter()
        .filter(|placed| placed.lease_state == LeaseState::Held);
    let ips: Vec<_> = held.filter_map(|placed| placed.ip).collect();
    lease::free(grid, lease::MASTER, reason, &ips).await?;
    tx.execute(&query::PLACEMENT_UNWAIT, &[&grid.row.id, &ids])
        .await?;
    lease::forget_endpoints(grid, &ids).await?;
    let nodes: Vec<NodeId> = placements.iter().map(|placed| placed.node_id).collect();
    let nodes = Some(nodes);
    let gone: [Param; 5] = [&grid.row.id, &"placement", &ids, &revision, &nodes];
    tx.execute(&query::TOMBSTONE_INSERT_MANY, &gone).await?;
    tx.execute_exactly(ids.len(), &query::PLACEMENT_DELETE, &[&ids])
        .await?;
    let mut services: Vec<(ServiceId, Option<StackId>)> = placements
        .iter()
        .map(|placed| (placed.service_id, placed.stack_id))
        .collect();
    services.sort_unstable();
    services.dedup();
    for (service, stack) in services {
        service::ended(grid, service, stack).await?;
    }
    lease::serve(grid).await
}
