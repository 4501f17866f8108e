//! What a node that was lost gets back when it returns
//! (`infra/adr/0004-leases.md`).
//!
//! All of it happens in the transaction of `hello`, before the agent is welcomed.
//! What it is sent afterwards is right for what it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use kontena_schema::agent::InventoryEntry;
use kontena_schema::http::addresses::HolderKind;
use kontena_schema::ids::{LeaseNumber, NodeId, PlacementId};
use kontena_schema::query;

use super::lease::{self, AddressRow, Holder, Lease, MASTER, Step, Tenant};
use super::{ControlError, LockedGrid};

/// What becomes of a placement whose node returns.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Its address is free: it has it again.
    Restore,
    /// Another instance has its address and gives it back.
    TakeBack(PlacementId),
    /// It gets another address, and is told why.
    Move(String),
}

/// Decides for one placement. `now` is what is known of its former address, and
/// `runs` whether the node has a container of the lease.
fn fate(lease: LeaseNumber, ip: Ipv4Addr, now: Option<&AddressRow>, runs: bool) -> Fate {
    let Some((now, held)) = now.and_then(|row| Some((row, row.lease?))) else {
        return Fate::Restore;
    };
    let holder = now.holder.as_deref().unwrap_or("somebody");
    match (now.kind, now.placement_id) {
        // Two former holders: the older lease wins.
        (Some(HolderKind::Placement), Some(other)) if runs && lease < held => Fate::TakeBack(other),
        (Some(HolderKind::Node), _) => {
            Fate::Move(format!("{ip} is the address of node {holder} now"))
        }
        _ => Fate::Move(format!(
            "{ip} was given to {holder} while the node was lost"
        )),
    }
}

/// Restores the leases of a node that returns, or gives its placements other ones.
pub async fn restore(
    grid: &LockedGrid<'_, '_>,
    node: NodeId,
    inventory: &[InventoryEntry],
) -> Result<(), ControlError> {
    let tx = grid.tx;
    let back: Vec<Tenant> = tx.all(&query::PLACEMENT_RETURNING, &[&node]).await?;
    if back.is_empty() {
        return Ok(());
    }
    // The agent's word counts only where the placement's row says the same.
    let running: BTreeSet<(PlacementId, LeaseNumber)> = inventory
        .iter()
        .filter(|entry| entry.node == node)
        .map(|entry| (entry.placement, entry.lease))
        .collect();
    let ips: Vec<Ipv4Addr> = back.iter().filter_map(|tenant| tenant.ip).collect();
    let rows = lease::rows(grid, &ips).await?;
    let now: BTreeMap<Ipv4Addr, &AddressRow> = rows.iter().map(|row| (row.ip, row)).collect();

    // Otherwise the ledger's steps would be a revision too early.
    let revision = grid.stamp().await?;
    let mut restored: Vec<(&Tenant, Lease)> = Vec::new();
    let mut moving: Vec<(Tenant, String)> = Vec::new();
    for tenant in &back {
        let (Some(ip), Some(number)) = (tenant.ip, tenant.lease) else {
            let reason = "the node returned and there was no address before".to_owned();
            moving.push((tenant.clone(), reason));
            continue;
        };
        let row = now.get(&ip).copied();
        let class = row.map_or(1, |row| row.class);
        let lease = Lease { ip, class, number };
        match fate(number, ip, row, running.contains(&(tenant.id, number))) {
            Fate::Restore => restored.push((tenant, lease)),
            Fate::TakeBack(other) => {
                let other: Tenant = tx.one(&query::PLACEMENT_BY_ID, &[&other]).await?;
                let reason = format!("{ip} returned to {} of node {}", tenant.holder, tenant.node);
                lease::free(grid, MASTER, &reason, &[ip]).await?;
                restored.push((tenant, lease));
                dispossess(grid, other, reason, &mut moving).await?;
            }
            Fate::Move(reason) => moving.push((tenant.clone(), reason)),
        }
    }

    let ids: Vec<PlacementId> = restored.iter().map(|(tenant, _)| tenant.id).collect();
    tx.execute_exactly(ids.len(), &query::PLACEMENT_RESTORE, &[&ids, &revision])
        .await?;
    let step = Step {
        event: "restored",
        kind: HolderKind::Placement,
        actor: MASTER,
        reason: "the node returned",
    };
    let leases: Vec<Lease> = restored.iter().map(|(_, lease)| *lease).collect();
    let holders: Vec<Holder<'_>> = restored
        .iter()
        .map(|(tenant, _)| (*tenant).into())
        .collect();
    lease::hold(grid, &step, &leases, &holders).await?;
    lease::give(grid, &moving).await
}

/// What a placement does that lost its address to another: it moves, unless it is
/// about to go anyway.
pub async fn dispossess(
    grid: &LockedGrid<'_, '_>,
    tenant: Tenant,
    reason: String,
    moving: &mut Vec<(Tenant, String)>,
) -> Result<(), ControlError> {
    let revision = grid.stamp().await?;
    let robbed: [crate::db::Param; 2] = [&tenant.id, &revision];
    grid.tx
        .execute_exactly(1, &query::PLACEMENT_DISPOSSESS, &robbed)
        .await?;
    lease::forget_endpoints(grid, &[tenant.id]).await?;
    if tenant.desired != "removed" {
        moving.push((tenant, reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 81, 1, 1);

    fn row(lease: Option<i64>, kind: Option<HolderKind>) -> AddressRow {
        AddressRow {
            ip: IP,
            class: 1,
            lease: lease.map(LeaseNumber),
            kind,
            holder: kind.map(|_| "app/db-1".to_owned()),
            node: None,
            placement_id: (kind == Some(HolderKind::Placement)).then_some(PlacementId(9)),
        }
    }

    fn of(lease: i64, now: Option<&AddressRow>, runs: bool) -> Fate {
        fate(LeaseNumber(lease), IP, now, runs)
    }

    #[test]
    fn what_is_free_is_restored_whether_a_container_is_there_or_not() {
        for runs in [true, false] {
            assert_eq!(of(5, Some(&row(None, None)), runs), Fate::Restore);
            assert_eq!(of(5, None, runs), Fate::Restore);
        }
    }

    #[test]
    fn of_two_instances_the_older_lease_keeps_the_address() {
        let placed = |lease| row(Some(lease), Some(HolderKind::Placement));
        assert_eq!(
            of(5, Some(&placed(6)), true),
            Fate::TakeBack(PlacementId(9))
        );
        assert!(matches!(of(5, Some(&placed(4)), true), Fate::Move(_)));
    }

    #[test]
    fn without_a_container_of_the_lease_nobody_has_to_move() {
        let placed = row(Some(6), Some(HolderKind::Placement));
        assert!(matches!(of(5, Some(&placed), false), Fate::Move(_)));
    }

    #[test]
    fn reservations_and_node_numbers_stay() {
        for kind in [HolderKind::Reservation, HolderKind::Node] {
            let held = row(Some(6), Some(kind));
            assert!(
                matches!(of(5, Some(&held), true), Fate::Move(_)),
                "{kind:?}"
            );
        }
    }
}
