//! Leases of overlay addresses: who holds which (`infra/adr/0004-leases.md`).
//!
//! All of it happens under the grid's lock. An address is chosen with the next
//! lease number, then held; each step is a row of the ledger, written by the same
//! statement. What frees addresses serves those that wait before it ends.

use std::net::Ipv4Addr;

use kontena_schema::http::addresses::HolderKind;
use kontena_schema::ids::{LeaseNumber, NodeId, PlacementId, Revision};
use kontena_schema::query;
use serde::Deserialize;

use super::{ControlError, LockedGrid};
use crate::db::{DbError, Param};

/// Who did it, where it was nobody from outside.
pub const MASTER: &str = "master";

/// An address with the number of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub ip: Ipv4Addr,
    /// In which order it is given out.
    pub class: i16,
    /// The number.
    pub number: LeaseNumber,
}

/// A placement, as leases know it.
#[derive(Clone, Debug, Deserialize)]
pub struct Tenant {
    /// The placement.
    pub id: PlacementId,
    /// `stack/service-n`.
    pub holder: String,
    /// Its node.
    pub node_id: NodeId,
    /// Its node's name.
    pub node: String,
    /// The address that it has, or had.
    pub ip: Option<Ipv4Addr>,
    /// The lease that it has, or had.
    pub lease: Option<LeaseNumber>,
    /// `running`, `stopped` or `removed`.
    pub desired: String,
}

/// What is known of an address.
#[derive(Clone, Debug, Deserialize)]
pub struct AddressRow {
    /// The address.
    pub ip: Ipv4Addr,
    /// In which order it is given out.
    pub class: i16,
    /// Its lease; none while it is free.
    pub lease: Option<LeaseNumber>,
    /// What holds it.
    pub kind: Option<HolderKind>,
    /// Who holds it.
    pub holder: Option<String>,
    /// On which node.
    pub node: Option<String>,
    /// The placement that holds it.
    pub placement_id: Option<PlacementId>,
}

/// One step of several leases with the same story.
pub struct Step<'a> {
    /// `leased` or `restored`.
    pub event: &'a str,
    /// What kind of holder.
    pub kind: HolderKind,
    /// Who did it.
    pub actor: &'a str,
    /// Why.
    pub reason: &'a str,
}

impl<'a> Step<'a> {
    /// New leases of placements.
    pub fn placed(actor: &'a str, reason: &'a str) -> Self {
        let kind = HolderKind::Placement;
        Self {
            event: "leased",
            kind,
            actor,
            reason,
        }
    }
}

/// Who is to hold an address.
pub struct Holder<'a> {
    /// As the ledger names it.
    pub name: &'a str,
    /// On which node.
    pub node: Option<&'a str>,
    /// The placement.
    pub placement: Option<PlacementId>,
    /// The node, for the address of its number.
    pub node_id: Option<NodeId>,
}

impl<'a> From<&'a Tenant> for Holder<'a> {
    fn from(tenant: &'a Tenant) -> Self {
        Self {
            name: &tenant.holder,
            node: Some(&tenant.node),
            placement: Some(tenant.id),
            node_id: None,
        }
    }
}

/// Chooses the next free addresses; all or none.
pub async fn pick(
    grid: &LockedGrid<'_, '_>,
    wanted: usize,
) -> Result<Option<Vec<Lease>>, ControlError> {
    let count = i64::try_from(wanted).expect("what is asked for fits in memory");
    let params: [Param; 2] = [&grid.row.id, &count];
    let rows = grid.tx.rows(&query::ADDRESS_PICK, &params).await?;
    if rows.len() < wanted {
        return Ok(None);
    }
    let lease = |row: &tokio_postgres::Row| Lease {
        ip: parse(row.get(0)),
        class: row.get(1),
        number: row.get(2),
    };
    Ok(Some(rows.iter().map(lease).collect()))
}

fn parse(text: &str) -> Ipv4Addr {
    text.parse().expect("Postgres's host() writes an address")
}

/// Gives chosen addresses to their holders.
pub async fn hold(
    grid: &LockedGrid<'_, '_>,
    step: &Step<'_>,
    leases: &[Lease],
    holders: &[Holder<'_>],
) -> Result<(), ControlError> {
    let reasons = vec![step.reason; leases.len()];
    hold_each(grid, step, &reasons, leases, holders).await
}

/// Gives chosen addresses to their holders, each for a reason of its own.
async fn hold_each(
    grid: &LockedGrid<'_, '_>,
    step: &Step<'_>,
    reasons: &[&str],
    leases: &[Lease],
    holders: &[Holder<'_>],
) -> Result<(), ControlError> {
    if leases.is_empty() {
        return Ok(());
    }
    let revision = grid.revision();
    let kind = step.kind.as_str();
    let ips: Vec<String> = leases.iter().map(|lease| lease.ip.to_string()).collect();
    let classes: Vec<i16> = leases.iter().map(|lease| lease.class).collect();
    let numbers: Vec<LeaseNumber> = leases.iter().map(|lease| lease.number).collect();
    let names: Vec<&str> = holders.iter().map(|holder| holder.name).collect();
    let nodes: Vec<Option<&str>> = holders.iter().map(|holder| holder.node).collect();
    let placements: Vec<_> = holders.iter().map(|holder| holder.placement).collect();
    let node_ids: Vec<_> = holders.iter().map(|holder| holder.node_id).collect();
    let params: [Param; 13] = [
        &grid.row.id,
        &revision,
        &step.event,
        &step.actor,
        &reasons,
        &kind,
        &ips,
        &classes,
        &numbers,
        &names,
        &nodes,
        &placements,
        &node_ids,
    ];
    let robbed: Option<Vec<PlacementId>> = grid.tx.value(&query::ADDRESS_HOLD, &params).await?;
    let robbed = robbed.ok_or(DbError::NoRow(query::ADDRESS_HOLD.name))?;
    forget_endpoints(grid, &robbed).await
}

/// The number of the next lease, which nobody has had.
pub async fn next_number(grid: &LockedGrid<'_, '_>) -> Result<LeaseNumber, ControlError> {
    let params: [Param; 1] = [&grid.row.id];
    let next = grid.tx.value(&query::ADDRESS_NEXT_LEASE, &params).await?;
    Ok(next.ok_or(DbError::NoRow(query::ADDRESS_NEXT_LEASE.name))?)
}

/// Takes placements whose address is another's now out of every directory.
pub async fn forget_endpoints(
    grid: &LockedGrid<'_, '_>,
    placements: &[PlacementId],
) -> Result<(), ControlError> {
    if placements.is_empty() {
        return Ok(());
    }
    let revision = grid.stamp().await?;
    let nodes = None::<Vec<NodeId>>;
    let gone: [Param; 5] = [&grid.row.id, &"endpoint", &placements, &revision, &nodes];
    grid.tx
        .execute(&query::TOMBSTONE_INSERT_MANY, &gone)
        .await?;
    Ok(())
}

/// Ends the leases of addresses, all of which are held.
pub async fn free(
    grid: &LockedGrid<'_, '_>,
    actor: &str,
    reason: &str,
    ips: &[Ipv4Addr],
) -> Result<(), ControlError> {
    if ips.is_empty() {
        return Ok(());
    }
    let text: Vec<String> = ips.iter().map(ToString::to_string).collect();
    let revision = grid.revision();
    let params: [Param; 5] = [&grid.row.id, &revision, &actor, &reason, &text];
    grid.tx.rows(&query::ADDRESS_FREE, &params).await?;
    Ok(())
}

/// What is known of addresses, by address; none of those that were never used.
pub async fn rows(
    grid: &LockedGrid<'_, '_>,
    ips: &[Ipv4Addr],
) -> Result<Vec<AddressRow>, ControlError> {
    let text: Vec<String> = ips.iter().map(ToString::to_string).collect();
    Ok(grid
        .tx
        .all(&query::ADDRESS_ROWS, &[&grid.row.id, &text])
        .await?)
}

/// How many placements wait, and how many addresses are free.
struct Room {
    waiting: i64,
    free: i64,
}

async fn room(grid: &LockedGrid<'_, '_>, served: i64) -> Result<Room, ControlError> {
    let params: [Param; 2] = [&grid.row.id, &served];
    let rows = grid.tx.rows(&query::PLACEMENT_SERVED, &params).await?;
    let row = rows
        .first()
        .ok_or(DbError::NoRow(query::PLACEMENT_SERVED.name))?;
    Ok(Room {
        waiting: row.get(0),
        free: row.get(1),
    })
}

/// Gives placements that hold nothing another address; those for which there is
/// none wait. Both are told why.
pub async fn give(
    grid: &LockedGrid<'_, '_>,
    tenants: &[(Tenant, String)],
) -> Result<(), ControlError> {
    if tenants.is_empty() {
        return Ok(());
    }
    let free = usize::try_from(room(grid, 0).await?.free).unwrap_or(0);
    let revision = grid.stamp().await?;
    let (served, late) = tenants.split_at(free.min(tenants.len()));
    let picked = pick(grid, served.len()).await?;
    let picked = picked.ok_or(DbError::NoRow(query::ADDRESS_PICK.name))?;
    let moving: Vec<_> = (served.iter())
        .map(|(tenant, reason)| (tenant, Some(reason.as_str())))
        .collect();
    move_to(grid, &moving, &picked, revision).await?;
    if late.is_empty() {
        return Ok(());
    }
    let ids: Vec<PlacementId> = late.iter().map(|(tenant, _)| tenant.id).collect();
    let reasons: Vec<&str> = late.iter().map(|(_, reason)| reason.as_str()).collect();
    let wait: [Param; 4] = [&grid.row.id, &ids, &reasons, &revision];
    grid.tx
        .execute_exactly(ids.len(), &query::PLACEMENT_WAIT, &wait)
        .await?;
    forget_endpoints(grid, &ids).await
}

/// Gives placements the addresses that were chosen for them, and tells them why, if
/// that is new.
async fn move_to(
    grid: &LockedGrid<'_, '_>,
    moving: &[(&Tenant, Option<&str>)],
    leases: &[Lease],
    revision: Revision,
) -> Result<(), ControlError> {
    if moving.is_empty() {
        return Ok(());
    }
    let ids: Vec<PlacementId> = moving.iter().map(|(tenant, _)| tenant.id).collect();
    let ips: Vec<String> = leases.iter().map(|lease| lease.ip.to_string()).collect();
    let numbers: Vec<LeaseNumber> = leases.iter().map(|lease| lease.number).collect();
    let told: Vec<Option<&str>> = moving.iter().map(|(_, reason)| *reason).collect();
    let give: [Param; 5] = [&ids, &ips, &numbers, &told, &revision];
    grid.tx
        .execute_exactly(ids.len(), &query::PLACEMENT_GIVE, &give)
        .await?;
    let reason = "an address became free";
    let reasons: Vec<&str> = told.iter().map(|told| told.unwrap_or(reason)).collect();
    let holders: Vec<Holder<'_>> = moving.iter().map(|(tenant, _)| (*tenant).into()).collect();
    let step = Step::placed(MASTER, reason);
    hold_each(grid, &step, &reasons, leases, &holders).await
}

/// Gives what is free to those that wait, the longest first. Whatever frees
/// addresses ends with this.
pub async fn serve(grid: &LockedGrid<'_, '_>) -> Result<(), ControlError> {
    let Room { waiting, free } = room(grid, 0).await?;
    let count = waiting.min(free);
    if count <= 0 {
        return Ok(());
    }
    let revision = grid.stamp().await?;
    let params: [Param; 2] = [&grid.row.id, &count];
    let tenants: Vec<Tenant> = grid.tx.all(&query::PLACEMENT_WAITING, &params).await?;
    let picked = pick(grid, tenants.len()).await?;
    let picked = picked.ok_or(DbError::NoRow(query::ADDRESS_PICK.name))?;
    let moving: Vec<_> = tenants.iter().map(|tenant| (tenant, None)).collect();
    move_to(grid, &moving, &picked, revision).await?;
    room(grid, count).await?;
    Ok(())
}
