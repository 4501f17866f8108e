//! Deploys: from a service's description to placements with addresses.
//!
//! All decisions of a deploy fall in one transaction: where each instance runs,
//! which address it has, which placements end. What is left is the agents' work;
//! their reports end the deploy, or its deadline does.

use std::collections::BTreeMap;

use kontena_schema::http::services::{Deploy, ServiceScale};
use kontena_schema::ids::{DeployId, LeaseNumber, NodeId, PlacementId};
use kontena_schema::limits::INSTANCES_MAX;
use kontena_schema::query;

use super::lease::{self, Holder, Step};
use super::schedule::{self, Candidate, Placed};
use super::service::{self, ServiceRow};
use super::{Call, ControlError, LockedGrid, change, placement, reservation, show};
use crate::app::App;
use crate::db::{DbError, Param};

/// How long the instances of a deploy may take until all run, pulls included.
const DEADLINE_S: f64 = 300.0;

/// Deploys a service.
pub async fn service_deploy(
    app: &App,
    call: &Call,
    grid: &str,
    stack: Option<&str>,
    name: &str,
) -> Result<Deploy, ControlError> {
    change(app, call, "service_deploy", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, grid).await?;
            let service = service::row(&grid, stack, name).await?;
            let deploy = deploy(&grid, &service).await?;
            Ok(grid.changed(deploy))
        })
    })
    .await
}

/// Changes the number of a service's instances and deploys it.
pub async fn service_scale(
    app: &App,
    call: &Call,
    grid: &str,
    stack: Option<&str>,
    name: &str,
    request: ServiceScale,
) -> Result<Deploy, ControlError> {
    if request.instances > INSTANCES_MAX {
        return Err(ControlError::field(
            "instances",
            format!("must be at most {INSTANCES_MAX}"),
        ));
    }
    change(app, call, "service_scale", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, grid).await?;
            let mut service = service::row(&grid, stack, name).await?;
            let stack = service.stack.as_deref();
            kontena_schema::name::check_labels(stack, name, request.instances.max(1))
                .map_err(|reason| ControlError::field("instances", reason))?;
            service.instances = request.instances;
            let instances = i32::try_from(request.instances).unwrap_or(i32::MAX);
            tx.execute(&query::SERVICE_SCALE, &[&service.id, &instances])
                .await?;
            let deploy = deploy(&grid, &service).await?;
            Ok(grid.changed(deploy))
        })
    })
    .await
}

/// One deploy of a service.
pub async fn deploy_show(
    app: &App,
    grid: &str,
    stack: Option<&str>,
    name: &str,
    id: DeployId,
) -> Result<Deploy, ControlError> {
    let params: [Param; 4] = [&id, &grid, &stack, &name];
    show(
        &app.db,
        &query::DEPLOY_SHOW,
        &params,
        "deploy",
        &id.to_string(),
    )
    .await
}

/// Deploys a service of a locked grid.
pub async fn deploy(
    grid: &LockedGrid<'_, '_>,
    service: &ServiceRow,
) -> Result<Deploy, ControlError> {
    let tx = grid.tx;
    let params: [Param; 3] = [&service.id, &service.revision, &DEADLINE_S];
    let id = tx.value::<DeployId>(&query::DEPLOY_INSERT, &params).await?;
    let id = id.ok_or(DbError::NoRow(query::DEPLOY_INSERT.name))?;
    tx.execute_exactly(1, &query::SERVICE_DEPLOYED, &[&service.id])
        .await?;
    let unplaced = converge(grid, service, "deployed").await?;
    if unplaced.is_empty() {
        tx.execute(&query::DEPLOY_FINISH, &[&service.id]).await?;
    } else {
        tx.execute(&query::DEPLOY_FAIL, &[&id, &unplaced]).await?;
    }
    let (name, stack) = (&service.name, &service.stack);
    Ok(tx
        .one(&query::DEPLOY_SHOW, &[&id, &grid.row.name, stack, name])
        .await?)
}

/// Makes a service's placements agree with its description and the nodes that
/// are connected; answers which instances could not be placed, and why.
pub async fn converge(
    grid: &LockedGrid<'_, '_>,
    service: &ServiceRow,
    reason: &str,
) -> Result<String, ControlError> {
    let tx = grid.tx;
    let nodes: Vec<Candidate> = tx.all(&query::NODE_CANDIDATES, &[&grid.row.id]).await?;
    let placed: Vec<Placed> = tx.all(&query::PLACEMENT_ROWS, &[&service.id]).await?;
    let decision = schedule::plan(
        service.id,
        &service.spec,
        service.instances,
        &nodes,
        &placed,
    );

    placement::remove(grid, &decision.remove, reason).await?;
    let behind =
        |p: &Placed| p.service_revision != service.revision && !decision.remove.contains(&p.id);
    if placed.iter().any(behind) {
        let revision = grid.stamp().await?;
        let keep: [Param; 3] = [&service.id, &service.revision, &revision];
        tx.execute(&query::PLACEMENT_KEEP, &keep).await?;
    }
    place(grid, service, &nodes, &decision.place, reason).await?;
    let unplaced = decision
        .unplaced
        .iter()
        .map(|(instance, why)| format!("{instance}: {why}"));
    Ok(unplaced.collect::<Vec<_>>().join("; "))
}

/// Adds placements, each with its address; all or none.
async fn place(
    grid: &LockedGrid<'_, '_>,
    service: &ServiceRow,
    nodes: &[Candidate],
    wanted: &[(i32, NodeId)],
    reason: &str,
) -> Result<(), ControlError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let tx = grid.tx;
    let Some(leases) = lease::pick(grid, wanted.len()).await? else {
        return Err(reservation::full(tx, &grid.row.name, wanted.len()).await?);
    };
    let revision = grid.stamp().await?;
    let (instances, on): (Vec<i32>, Vec<NodeId>) = wanted.iter().copied().unzip();
    let ips: Vec<String> = leases.iter().map(|lease| lease.ip.to_string()).collect();
    let numbers: Vec<LeaseNumber> = leases.iter().map(|lease| lease.number).collect();
    let insert: [Param; 8] = [
        &grid.row.id,
        &service.id,
        &service.revision,
        &revision,
        &instances,
        &on,
        &ips,
        &numbers,
    ];
    let placements = tx
        .values::<PlacementId>(&query::PLACEMENT_INSERT, &insert)
        .await?;
    let stack = service
        .stack
        .as_ref()
        .map_or(String::new(), |stack| format!("{stack}/"));
    let names: Vec<String> = instances
        .iter()
        .map(|instance| format!("{stack}{}-{instance}", service.name))
        .collect();
    let node_names: BTreeMap<NodeId, &str> = nodes
        .iter()
        .map(|node| (node.id, node.name.as_str()))
        .collect();
    let holders: Vec<Holder<'_>> = (names.iter().zip(&on).zip(&placements))
        .map(|((name, node), placement)| Holder {
            name,
            node: node_names.get(node).copied(),
            placement: Some(*placement),
            node_id: None,
        })
        .collect();
    lease::hold(
        grid,
        &Step::placed(lease::MASTER, reason),
        &leases,
        &holders,
    )
    .await
}
