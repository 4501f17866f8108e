//! Leases of overlay addresses.
//!
//! A lease belongs to a placement. It is taken under the grid's lock, gets the
//! grid's next lease number, and each step of its life is a row of the ledger.

use std::net::Ipv4Addr;

use kontena_schema::ids::{LeaseNumber, PlacementId};
use kontena_schema::query;

use super::{ControlError, LockedGrid};
use crate::db::{DbError, Param};

/// Leases an address to each placement, or none to any.
pub async fn take(
    grid: &LockedGrid<'_, '_>,
    placements: &[PlacementId],
    reason: &str,
) -> Result<(), ControlError> {
    if placements.is_empty() {
        return Ok(());
    }
    let (tx, id) = (grid.tx, grid.row.id);
    let wanted = i64::try_from(placements.len()).expect("placements fit in memory");
    let found = tx.rows(&query::ADDRESS_FIND, &[&id, &wanted]).await?;
    if found.len() < placements.len() {
        let usage = tx.one(&query::ADDRESS_USAGE, &[&id]).await?;
        let grid = grid.row.name.clone();
        return Err(ControlError::GridFullAddresses {
            grid,
            wanted,
            usage,
        });
    }
    let last = tx
        .value::<i64>(&query::LEASE_NUMBERS, &[&id, &wanted])
        .await?;
    let last = last.ok_or(DbError::NoRow(query::LEASE_NUMBERS.name))?;
    let leases: Vec<LeaseNumber> = (last - wanted + 1..=last).map(LeaseNumber).collect();
    let addresses: Vec<String> = found.iter().map(|row| row.get(0)).collect();
    let classes: Vec<i16> = found.iter().map(|row| row.get(1)).collect();

    let count = placements.len();
    let take: [Param; 5] = [&id, &addresses, &classes, &leases, &placements];
    tx.execute_exactly(count, &query::ADDRESS_TAKE, &take)
        .await?;
    let lent: [Param; 3] = [&placements, &addresses, &leases];
    tx.execute_exactly(count, &query::PLACEMENT_LEASE, &lent)
        .await?;
    let revision = grid.stamp().await?;
    tx.execute(&query::LEDGER_LEASED, &[&placements, &reason, &revision])
        .await?;
    Ok(())
}

/// Ends the lease of a placement, if it holds one.
pub async fn release(
    grid: &LockedGrid<'_, '_>,
    placement: PlacementId,
    address: Option<Ipv4Addr>,
    reason: &str,
) -> Result<(), ControlError> {
    if address.is_none() {
        return Ok(());
    }
    let revision = grid.stamp().await?;
    grid.tx
        .execute(&query::LEDGER_RELEASED, &[&placement, &reason, &revision])
        .await?;
    grid.tx
        .execute_exactly(1, &query::ADDRESS_RELEASE, &[&placement, &revision])
        .await?;
    Ok(())
}
