//! Stacks of services.

use std::collections::{BTreeMap, BTreeSet};

use kontena_schema::http::services::{Service, ServiceCreate};
use kontena_schema::http::stacks::{Stack, StackCreate, StackDeploy};
use kontena_schema::ids::StackId;
use kontena_schema::{name, query};
use serde::Deserialize;

use super::grid::Empty;
use super::service::{self, ServiceRow};
use super::{Call, ControlError, LockedGrid, change, deploy, links};
use crate::app::App;
use crate::db::{Db, DbError, Param};

/// Most services of one stack.
const SERVICES_MAX: usize = 200;

fn check(request: &StackCreate) -> Result<(), ControlError> {
    let mut faults = BTreeMap::new();
    if let Err(reason) = name::check(&request.name) {
        faults.insert("name".to_owned(), reason);
    } else if request.name == "null" {
        faults.insert("name".to_owned(), "\"null\" stands for no stack".to_owned());
    }
    if request.services.is_empty() || request.services.len() > SERVICES_MAX {
        let reason = format!("a stack has between 1 and {SERVICES_MAX} services");
        faults.insert("services".to_owned(), reason);
    }
    let mut seen = BTreeSet::new();
    for service in &request.services {
        let prefix = format!("services.{}", service.name);
        for (field, reason) in service::faults(Some(&request.name), service) {
            faults.insert(format!("{prefix}.{field}"), reason);
        }
        if !seen.insert(&service.name) {
            faults.insert(format!("{prefix}.name"), "is there twice".to_owned());
        }
    }
    for (service, reason) in links::faults(&request.services) {
        faults.insert(format!("services.{service}.links"), reason);
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(ControlError::Invalid(faults))
    }
}

/// Creates a stack with its services; nothing runs before it is deployed.
pub async fn stack_create(
    app: &App,
    call: &Call,
    grid: &str,
    request: &StackCreate,
) -> Result<Stack, ControlError> {
    check(request)?;
    change(app, call, "stack_create", move |tx| {
        Box::pin(async move {
            let locked = LockedGrid::by_name(tx, grid).await?;
            let params: [Param; 4] = [
                &locked.row.id,
                &request.name,
                &request.stack,
                &request.version,
            ];
            let id = tx.value::<StackId>(&query::STACK_INSERT, &params).await?;
            let id = id.ok_or(DbError::NoRow(query::STACK_INSERT.name))?;
            for service in &request.services {
                insert(&locked, id, &request.name, service).await?;
            }
            let stack = locked_stack(&locked, &request.name).await?;
            Ok(locked.changed(stack))
        })
    })
    .await
}

async fn insert(
    grid: &LockedGrid<'_, '_>,
    stack: StackId,
    name: &str,
    request: &ServiceCreate,
) -> Result<(), ControlError> {
    match service::insert(grid, Some((stack, name)), request).await {
        Err(ControlError::Invalid(faults)) => Err(ControlError::Invalid(
            faults
                .into_iter()
                .map(|(field, reason)| (format!("services.{}.{field}", request.name), reason))
                .collect(),
        )),
        other => other,
    }
}

/// Changes a stack to another description: services that it no longer has are
/// removed, new ones are added. What runs follows with a deploy.
pub async fn stack_update(
    app: &App,
    call: &Call,
    grid: &str,
    request: &StackCreate,
) -> Result<Stack, ControlError> {
    check(request)?;
    change(app, call, "stack_update", move |tx| {
        Box::pin(async move {
            let locked = LockedGrid::by_name(tx, grid).await?;
            let id = stack_id(&locked, &request.name).await?;
            tx.execute(
                &query::STACK_UPDATE,
                &[&id, &request.stack, &request.version],
            )
            .await?;
            let current: Vec<ServiceRow> = tx.all(&query::SERVICE_ROWS_OF_STACK, &[&id]).await?;
            for service in &current {
                if !request
                    .services
                    .iter()
                    .any(|wanted| wanted.name == service.name)
                {
                    service::remove(&locked, service).await?;
                }
            }
            for wanted in &request.services {
                match current.iter().find(|service| service.name == wanted.name) {
                    Some(service) => service::update(&locked, service, wanted).await?,
                    None => insert(&locked, id, &request.name, wanted).await?,
                }
            }
            let stack = locked_stack(&locked, &request.name).await?;
            Ok(locked.changed(stack))
        })
    })
    .await
}

/// Deploys all services of a stack, those that others link to first.
pub async fn stack_deploy(
    app: &App,
    call: &Call,
    grid: &str,
    name: &str,
) -> Result<StackDeploy, ControlError> {
    change(app, call, "stack_deploy", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, grid).await?;
            let services = services(&grid, name).await?;
            let mut service_deploys = Vec::with_capacity(services.len());
            for service in links::in_order(services) {
                service_deploys.push(deploy::deploy(&grid, &service).await?);
            }
            let stack_id = format!("{}/{name}", grid.row.name);
            Ok(grid.changed(StackDeploy {
                stack_id,
                service_deploys,
            }))
        })
    })
    .await
}

/// Removes a stack: its services go first, and it ends with the last of them.
pub async fn stack_remove(
    app: &App,
    call: &Call,
    grid: &str,
    name: &str,
) -> Result<Empty, ControlError> {
    change(app, call, "stack_remove", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, grid).await?;
            let id = stack_id(&grid, name).await?;
            let services: Vec<ServiceRow> = tx.all(&query::SERVICE_ROWS_OF_STACK, &[&id]).await?;
            tx.execute(&query::STACK_REMOVE, &[&id]).await?;
            for service in &services {
                service::remove(&grid, service).await?;
            }
            tx.execute(&query::STACK_DELETE_EMPTY, &[&id]).await?;
            Ok(grid.changed(Empty {}))
        })
    })
    .await
}

/// A stack that is not on its way out.
async fn stack_id(grid: &LockedGrid<'_, '_>, name: &str) -> Result<StackId, ControlError> {
    let rows = grid
        .tx
        .rows(&query::STACK_ID, &[&grid.row.id, &name])
        .await?;
    let row = rows
        .first()
        .ok_or_else(|| ControlError::not_found("stack", name))?;
    if row.get(1) {
        let message = format!("stack {name:?} is being removed: wait until it is gone");
        return Err(ControlError::Conflict {
            code: "stack_removing",
            message,
        });
    }
    Ok(row.get(0))
}

/// The services of a stack of a locked grid.
async fn services(grid: &LockedGrid<'_, '_>, name: &str) -> Result<Vec<ServiceRow>, ControlError> {
    let id = stack_id(grid, name).await?;
    Ok(grid.tx.all(&query::SERVICE_ROWS_OF_STACK, &[&id]).await?)
}

/// A stack of a locked grid as it is now.
async fn locked_stack(grid: &LockedGrid<'_, '_>, name: &str) -> Result<Stack, ControlError> {
    let of = &grid.row.name;
    let rows = grid.tx.all(&query::STACK_LIST, &[of, &name]).await?;
    let services: Vec<Service> = grid
        .tx
        .all(&query::SERVICE_LIST, &[of, &name, &None::<String>])
        .await?;
    let stack = assemble(rows, &services).into_iter().next();
    stack.ok_or_else(|| ControlError::not_found("stack", name))
}

/// The stacks of a grid, all or one.
async fn stacks(db: &Db, grid: &str, name: Option<&str>) -> Result<Vec<Stack>, ControlError> {
    let rows = db.all(&query::STACK_LIST, &[&grid, &name]).await?;
    let services: Vec<Service> = db
        .all(&query::SERVICE_LIST, &[&grid, &name, &None::<String>])
        .await?;
    Ok(assemble(rows, &services))
}

/// All stacks of a grid.
pub async fn stack_list(app: &App, grid: &str) -> Result<Vec<Stack>, ControlError> {
    super::grid::grid_show(app, grid).await?;
    stacks(&app.db, grid, None).await
}

/// One stack.
pub async fn stack_show(app: &App, grid: &str, name: &str) -> Result<Stack, ControlError> {
    let found = stacks(&app.db, grid, Some(name)).await?.into_iter().next();
    found.ok_or_else(|| ControlError::not_found("stack", name))
}

/// A stack without its services.
#[derive(Deserialize)]
struct StackRow {
    id: String,
    name: String,
    stack: Option<String>,
    version: Option<String>,
    state: String,
    revision: i64,
    created_at: String,
    updated_at: String,
}

fn assemble(rows: Vec<StackRow>, services: &[Service]) -> Vec<Stack> {
    let with_services = |row: StackRow| Stack {
        services: services
            .iter()
            .filter(|service| service.stack.as_deref() == Some(&row.name))
            .cloned()
            .collect(),
        id: row.id,
        name: row.name,
        stack: row.stack,
        version: row.version,
        state: row.state,
        revision: row.revision,
        created_at: row.created_at,
        updated_at: row.updated_at,
    };
    rows.into_iter().map(with_services).collect()
}

#[cfg(test)]
mod tests {
    use kontena_schema::http::services::Link;

    use super::*;

    fn stack(services: &[(&str, &[&str])]) -> StackCreate {
        let link = |name: &&str| Link {
            name: (*name).to_owned(),
            alias: None,
        };
        let service = |(name, links): &(&str, &[&str])| ServiceCreate {
            name: (*name).to_owned(),
            spec: kontena_schema::http::services::ServiceSpec {
                image: "i".to_owned(),
                links: links.iter().map(link).collect(),
                ..Default::default()
            },
            ..Default::default()
        };
        StackCreate {
            name: "app".to_owned(),
            services: services.iter().map(service).collect(),
            ..Default::default()
        }
    }

    fn faults(request: &StackCreate) -> Vec<String> {
        match check(request) {
            Err(ControlError::Invalid(faults)) => faults.into_keys().collect(),
            Ok(()) => vec![],
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn links_must_lead_to_a_service_and_not_in_a_circle() {
        assert!(faults(&stack(&[("web", &["db", "other/db"]), ("db", &[])])).is_empty());
        assert_eq!(faults(&stack(&[("web", &["db"])])), ["services.web.links"]);
        let circle = stack(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"]), ("d", &[])]);
        let fields = ["services.a.links", "services.b.links", "services.c.links"];
        assert_eq!(faults(&circle), fields);
        assert_eq!(faults(&stack(&[("a", &["a"])])), ["services.a.links"]);
    }

    #[test]
    fn a_stack_needs_services_with_different_names() {
        assert_eq!(faults(&stack(&[])), ["services"]);
        assert_eq!(
            faults(&stack(&[("a", &[]), ("a", &[])])),
            ["services.a.name"]
        );
        let mut nameless = stack(&[("a", &[])]);
        nameless.name = "null".to_owned();
        assert_eq!(faults(&nameless), ["name"]);
    }
}
