//! Grids.

use std::collections::BTreeMap;

use ipnetwork::Ipv4Network;
use kontena_schema::address::{DEFAULT_SUBNET, DEFAULT_SUPERNET, InnerSubnet, Plan, PlanError};
use kontena_schema::http::grids::{Grid, GridCreate, GridUpdate};
use kontena_schema::ids::{GridId, NodeId};
use kontena_schema::{name, query};

use super::subnets::{Own, each_once, judge, network, networks};
use super::{Call, Changed, ControlError, LockedGrid, change, overlap, show};
use crate::app::App;
use crate::token::TokenRow;

/// Seconds between the end of a node's session and the release of its addresses.
const DEFAULT_GRACE_S: u32 = 10;
/// The longest grace: a day.
const GRACE_S_MAX: u32 = 86_400;

/// A request to create a grid, checked.
struct Checked {
    plan: Plan,
    trusted_subnets: Vec<String>,
    initial_size: i16,
    grace_ms: i32,
}

/// Everything wrong with a request, or what it asks for.
fn check(request: &GridCreate) -> Result<Checked, ControlError> {
    let mut faults = BTreeMap::new();
    if let Err(reason) = name::check(&request.name) {
        faults.insert("name".to_owned(), reason);
    }
    let subnet = network(
        "subnet",
        request.subnet.as_deref().unwrap_or(DEFAULT_SUBNET),
        DEFAULT_SUBNET,
        &mut faults,
    );
    let supernet = match (&request.supernet, &request.subnet) {
        (Some(supernet), _) => network("supernet", supernet, DEFAULT_SUPERNET, &mut faults),
        // A subnet of one's own is its own supernet unless one is named.
        (None, Some(_)) => subnet,
        (None, None) => network("supernet", DEFAULT_SUPERNET, DEFAULT_SUPERNET, &mut faults),
    };
    let inner = match &request.inner_subnet {
        Some(text) => {
            let default = InnerSubnet::default().to_string();
            network("inner_subnet", text, &default, &mut faults)
        }
        None => Some(InnerSubnet::default().network()),
    };
    let plan = subnet.zip(supernet).zip(inner);
    let plan = plan.and_then(|((subnet, supernet), inner)| {
        let refuse = |error: PlanError| faults.insert(error.field.to_owned(), error.reason);
        Plan::new(subnet, supernet, inner).map_err(refuse).ok()
    });
    let trusted_subnets = networks(
        "trusted_subnets",
        request.trusted_subnets.as_deref().unwrap_or_default(),
        &mut faults,
    );
    if let Some(plan) = &plan {
        let own = Own {
            subnet: plan.subnet(),
            inner: plan.inner_subnet(),
            trusted: &[],
        };
        judge("trusted_subnets", &trusted_subnets, &own, &mut faults);
    }
    let initial_size = request.initial_size.unwrap_or(1);
    if !(1..=7).contains(&initial_size) {
        faults.insert(
            "initial_size".to_owned(),
            "must be between 1 and 7".to_owned(),
        );
    }
    let grace_s = request.grace_s.unwrap_or(DEFAULT_GRACE_S);
    if grace_s > GRACE_S_MAX {
        faults.insert(
            "grace_s".to_owned(),
            format!("must be at most {GRACE_S_MAX}"),
        );
    }
    match plan {
        Some(plan) if faults.is_empty() => Ok(Checked {
            plan,
            trusted_subnets: texts(&each_once(trusted_subnets)),
            initial_size: i16::try_from(initial_size).expect("it is at most 7"),
            grace_ms: i32::try_from(grace_s * 1000).expect("a day of milliseconds fits"),
        }),
        _ => Err(ControlError::Invalid(faults)),
    }
}

/// Creates a grid with its join token.
pub async fn grid_create(
    app: &App,
    call: &Call,
    request: &GridCreate,
) -> Result<Grid, ControlError> {
    let checked = check(request)?;
    let checked = &checked;
    change(app, call, "grid_create", move |tx| {
        Box::pin(async move {
            let subnet = checked.plan.subnet().to_string();
            let supernet = checked.plan.supernet().to_string();
            let inner_subnet = checked.plan.inner_subnet().to_string();
            let params: [crate::db::Param; 7] = [
                &request.name,
                &subnet,
                &supernet,
                &inner_subnet,
                &checked.trusted_subnets,
                &checked.initial_size,
                &checked.grace_ms,
            ];
            let id = tx.value::<GridId>(&query::GRID_INSERT, &params).await?;
            tx.value::<uuid::Uuid>(&query::TOKEN_INSERT, &[&"join", &id, &None::<NodeId>])
                .await?;
            let mut grid: Grid = tx.one(&query::GRID_LIST, &[&request.name]).await?;
            let token: TokenRow = tx.one(&query::TOKEN_OF, &[&id, &None::<NodeId>]).await?;
            grid.token = Some(app.signer.sign(&token));
            grid.warnings = overlap::warnings(tx, checked.plan).await?;
            Ok(Changed {
                value: grid,
                ring: None,
            })
        })
    })
    .await
}

/// All grids.
pub async fn grid_list(app: &App) -> Result<Vec<Grid>, ControlError> {
    Ok(app.db.all(&query::GRID_LIST, &[&None::<String>]).await?)
}

/// One grid, with its join token.
pub async fn grid_show(app: &App, name: &str) -> Result<Grid, ControlError> {
    let mut grid: Grid = show(&app.db, &query::GRID_LIST, &[&name], "grid", name).await?;
    let token: TokenRow = show(
        &app.db,
        &query::TOKEN_OF_GRID,
        &[&name],
        "token of grid",
        name,
    )
    .await?;
    grid.token = Some(app.signer.sign(&token));
    Ok(grid)
}

/// Changes a grid's trusted subnets.
pub async fn grid_update(
    app: &App,
    call: &Call,
    name: &str,
    request: &GridUpdate,
) -> Result<Grid, ControlError> {
    let mut faults = BTreeMap::new();
    let subnets = request
        .trusted_subnets
        .as_deref()
        .map(|new| networks("trusted_subnets", new, &mut faults));
    if !faults.is_empty() {
        return Err(ControlError::Invalid(faults));
    }
    let subnets = &subnets;
    change(app, call, "grid_update", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, name).await?;
            if let Some(subnets) = subnets {
                let mut faults = BTreeMap::new();
                judge("trusted_subnets", subnets, &grid.row.own(), &mut faults);
                if !faults.is_empty() {
                    return Err(ControlError::Invalid(faults));
                }
                set_trusted(&grid, &each_once(subnets.iter().copied())).await?;
            }
            let answer = tx.one(&query::GRID_LIST, &[&name]).await?;
            Ok(grid.changed(answer))
        })
    })
    .await
}

/// Sets a grid's trusted subnets, if they differ.
pub(super) async fn set_trusted(
    grid: &LockedGrid<'_, '_>,
    subnets: &[Ipv4Network],
) -> Result<(), ControlError> {
    if grid.row.trusted_subnets == subnets {
        return Ok(());
    }
    let revision = grid.stamp().await?;
    let params: [crate::db::Param; 3] = [&grid.row.id, &texts(subnets), &revision];
    grid.tx.execute(&query::GRID_UPDATE, &params).await?;
    Ok(())
}

/// Networks as Postgres takes them.
fn texts(networks: &[Ipv4Network]) -> Vec<String> {
    networks.iter().map(ToString::to_string).collect()
}

/// Removes a grid that has neither services nor nodes.
pub async fn grid_remove(app: &App, call: &Call, name: &str) -> Result<Empty, ControlError> {
    change(app, call, "grid_remove", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, name).await?;
            let shown: Grid = tx.one(&query::GRID_LIST, &[&name]).await?;
            let held: Option<i64> = tx.value(&query::GRID_HELD, &[&grid.row.id]).await?;
            let stacks: Vec<serde_json::Value> = tx
                .all(&query::STACK_LIST, &[&name, &None::<String>])
                .await?;
            for (what, count) in [
                ("services", shown.service_count),
                ("nodes", shown.node_count),
                ("stacks", i64::try_from(stacks.len()).unwrap_or(i64::MAX)),
                ("reserved addresses", held.unwrap_or_default()),
            ] {
                if count > 0 {
                    let message = format!("grid {name:?} still has {what}: remove them first");
                    return Err(ControlError::Conflict {
                        code: "grid_not_empty",
                        message,
                    });
                }
            }
            tx.execute(&query::GRID_ADDRESS_CLEAR, &[&grid.row.id])
                .await?;
            tx.execute(&query::GRID_DELETE, &[&grid.row.id]).await?;
            Ok(Changed {
                value: Empty {},
                ring: None,
            })
        })
    })
    .await
}

/// The answer of what answers nothing, `{}`.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Empty {}
