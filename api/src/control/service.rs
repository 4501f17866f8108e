//! Services: their descriptions. What runs follows with a deploy.

use std::collections::BTreeMap;

use kontena_schema::http::services::{Service, ServiceCreate, ServiceSpec};
use kontena_schema::ids::{PlacementId, ServiceId, ServiceRevision, StackId};
use kontena_schema::limits::{INFRASTRUCTURE_PORTS, INSTANCES_MAX, SPEC_BYTES_MAX};
use kontena_schema::{name, query};
use serde::Deserialize;

use super::grid::Empty;
use super::schedule::{Placed, clash, parse_affinity};
use super::{Call, ControlError, LockedGrid, change, placement, show};
use crate::app::App;

/// A service as the rules see it.
#[derive(Clone, Debug, Deserialize)]
pub struct ServiceRow {
    /// The service.
    pub id: ServiceId,
    /// Its name.
    pub name: String,
    /// Its stack.
    pub stack_id: Option<StackId>,
    /// Its stack's name.
    pub stack: Option<String>,
    /// How its containers are run.
    pub spec: ServiceSpec,
    /// Instances wanted.
    pub instances: u32,
    /// `initialized`, `running` or `removing`.
    pub state: String,
    /// The version of the description.
    pub revision: ServiceRevision,
}

/// Everything wrong with a description, by field.
pub fn faults(stack: Option<&str>, request: &ServiceCreate) -> BTreeMap<String, String> {
    let mut faults = BTreeMap::new();
    let mut fault = |field: &str, reason: String| {
        faults.entry(field.to_owned()).or_insert(reason);
    };
    let instances = request.instances.unwrap_or(1);
    if instances > INSTANCES_MAX {
        fault("instances", format!("must be at most {INSTANCES_MAX}"));
    }
    let named = name::check(&request.name)
        .and_then(|()| name::check_labels(stack, &request.name, instances.max(1)));
    if let Err(reason) = named {
        fault("name", reason);
    }
    for field in request.unknown.keys() {
        fault(field, "is not a field of a service".to_owned());
    }
    let spec = &request.spec;
    let bytes = serde_json::to_vec(spec).map_or(usize::MAX, |json| json.len());
    if bytes > SPEC_BYTES_MAX {
        fault(
            "spec",
            format!("the description has {bytes} bytes, at most {SPEC_BYTES_MAX} fit"),
        );
    }
    if spec.image.trim().is_empty() || spec.image.contains(char::is_whitespace) {
        fault("image", "must name an image".to_owned());
    }
    for (index, variable) in spec.env.iter().enumerate() {
        if variable
            .split_once('=')
            .is_none_or(|(name, _)| name.is_empty())
        {
            fault(&format!("env.{index}"), "is not NAME=value".to_owned());
        }
    }
    for (index, port) in spec.ports.iter().enumerate() {
        let field = format!("ports.{index}");
        if port.node_port == 0 || port.container_port == 0 {
            fault(&field, "a port is between 1 and 65535".to_owned());
        } else if INFRASTRUCTURE_PORTS.contains(&port.node_port) {
            let ports = INFRASTRUCTURE_PORTS;
            fault(
                &field,
                format!(
                    "{} is a port of the node itself ({ports:?})",
                    port.node_port
                ),
            );
        } else if spec.ports[..index].iter().any(|other| clash(port, other)) {
            fault(&field, format!("{} is published twice", port.node_port));
        }
    }
    for (index, condition) in spec.affinity.iter().enumerate() {
        if let Err(reason) = parse_affinity(condition) {
            fault(&format!("affinity.{index}"), reason);
        }
    }
    faults
}

/// The description with what the request left out.
fn completed(request: &ServiceCreate) -> ServiceSpec {
    let mut spec = request.spec.clone();
    let last = spec.image.rsplit('/').next().unwrap_or_default();
    if !last.contains([':', '@']) {
        spec.image.push_str(":latest");
    }
    spec
}

/// Adds a service whose description has no faults to a locked grid.
pub async fn insert(
    grid: &LockedGrid<'_, '_>,
    stack: Option<(StackId, &str)>,
    request: &ServiceCreate,
) -> Result<(), ControlError> {
    let label = name::service_label(stack.map(|(_, name)| name), &request.name);
    let base = name::instance_of(&label).unwrap_or_default();
    let clashes = grid
        .tx
        .rows(&query::SERVICE_LABEL_CLASH, &[&grid.row.id, &label, &base])
        .await?;
    if let Some(clash) = clashes.first() {
        let (other, removing): (String, bool) = (clash.get(0), clash.get(1));
        let still = if removing {
            ", which is still being removed"
        } else {
            ""
        };
        let reason =
            format!("the DNS names of {label:?} and its instances meet those of {other:?}{still}");
        return Err(ControlError::field("name", reason));
    }
    let spec = serde_json::to_value(completed(request)).expect("a description is plain JSON");
    let instances = i32::try_from(request.instances.unwrap_or(1)).unwrap_or(i32::MAX);
    let stack_id = stack.map(|(id, _)| id);
    let params: [crate::db::Param; 6] = [
        &grid.row.id,
        &stack_id,
        &request.name,
        &label,
        &spec,
        &instances,
    ];
    grid.tx.rows(&query::SERVICE_INSERT, &params).await?;
    Ok(())
}

/// Changes the description of a service to one that has no faults.
pub async fn update(
    grid: &LockedGrid<'_, '_>,
    service: &ServiceRow,
    request: &ServiceCreate,
) -> Result<(), ControlError> {
    let spec = serde_json::to_value(completed(request)).expect("a description is plain JSON");
    let instances = request
        .instances
        .map(|count| i32::try_from(count).unwrap_or(i32::MAX));
    grid.tx
        .execute(&query::SERVICE_UPDATE, &[&service.id, &spec, &instances])
        .await?;
    Ok(())
}

/// A service of a locked grid that is not on its way out.
pub async fn row(
    grid: &LockedGrid<'_, '_>,
    stack: Option<&str>,
    name: &str,
) -> Result<ServiceRow, ControlError> {
    let row: Option<ServiceRow> = grid
        .tx
        .optional(&query::SERVICE_ROW, &[&grid.row.id, &stack, &name])
        .await?;
    row.filter(|service| service.state != "removing")
        .ok_or_else(|| ControlError::not_found("service", path(stack, name)))
}

fn path(stack: Option<&str>, name: &str) -> String {
    format!("{}/{name}", stack.unwrap_or("null"))
}

/// Creates a service that belongs to no stack.
pub async fn service_create(
    app: &App,
    call: &Call,
    grid: &str,
    request: &ServiceCreate,
) -> Result<Service, ControlError> {
    let faults = faults(None, request);
    if !faults.is_empty() {
        return Err(ControlError::Invalid(faults));
    }
    change(app, call, "service_create", move |tx| {
        Box::pin(async move {
            let locked = LockedGrid::by_name(tx, grid).await?;
            insert(&locked, None, request).await?;
            let answer = tx
                .one(&query::SERVICE_LIST, &[&grid, &"null", &request.name])
                .await?;
            Ok(locked.changed(answer))
        })
    })
    .await
}

/// The services of a grid, of all stacks or of one (`null` for none).
pub async fn service_list(
    app: &App,
    grid: &str,
    stack: Option<&str>,
) -> Result<Vec<Service>, ControlError> {
    super::grid::grid_show(app, grid).await?;
    Ok(app
        .db
        .all(&query::SERVICE_LIST, &[&grid, &stack, &None::<String>])
        .await?)
}

/// One service.
pub async fn service_show(
    app: &App,
    grid: &str,
    stack: Option<&str>,
    name: &str,
) -> Result<Service, ControlError> {
    let stack = stack.unwrap_or("null");
    let query = &query::SERVICE_LIST;
    show(
        &app.db,
        query,
        &[&grid, &stack, &name],
        "service",
        &path(Some(stack), name),
    )
    .await
}

/// Removes a service: its containers go first, and it ends with the last of them.
pub async fn service_remove(
    app: &App,
    call: &Call,
    grid: &str,
    stack: Option<&str>,
    name: &str,
) -> Result<Empty, ControlError> {
    change(app, call, "service_remove", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, grid).await?;
            let service = row(&grid, stack, name).await?;
            remove(&grid, &service).await?;
            Ok(grid.changed(Empty {}))
        })
    })
    .await
}

/// Begins the end of a service of a locked grid.
pub async fn remove(grid: &LockedGrid<'_, '_>, service: &ServiceRow) -> Result<(), ControlError> {
    grid.tx
        .execute(&query::SERVICE_REMOVING, &[&service.id])
        .await?;
    let placed: Vec<Placed> = grid.tx.all(&query::PLACEMENT_ROWS, &[&service.id]).await?;
    let ids: Vec<PlacementId> = placed.iter().map(|placement| placement.id).collect();
    placement::remove(grid, &ids, "service removed").await?;
    ended(grid, service.id, service.stack_id).await
}

/// Deletes a service on its way out, and its stack, if nothing of them is left.
pub async fn ended(
    grid: &LockedGrid<'_, '_>,
    service: ServiceId,
    stack: Option<StackId>,
) -> Result<(), ControlError> {
    let gone = grid
        .tx
        .execute(&query::SERVICE_DELETE_EMPTY, &[&service])
        .await?;
    if let (1, Some(stack)) = (gone, stack) {
        grid.tx
            .execute(&query::STACK_DELETE_EMPTY, &[&stack])
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> ServiceCreate {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn every_fault_is_told_with_its_field() {
        let request = request(
            r#"{"name":"Web","image":"","instances":"9000","env":["A=1","B"],"colour":"red",
                "ports":[{"node_port":"53","container_port":"53"},
                         {"node_port":80,"container_port":80},{"node_port":80,"container_port":81},
                         {"node_port":0,"container_port":80}],
                "affinity":["node==a","zone","disk==x"]}"#,
        );
        let faults = faults(None, &request);
        let fields: Vec<&str> = faults.keys().map(String::as_str).collect();
        assert_eq!(
            fields,
            [
                "affinity.1",
                "affinity.2",
                "colour",
                "env.1",
                "image",
                "instances",
                "name",
                "ports.0",
                "ports.2",
                "ports.3"
            ]
        );
    }

    #[test]
    fn a_good_description_has_none() {
        let request = request(
            r#"{"name":"web","image":"nginx","env":["A="],"ports":[{"node_port":"80","container_port":"80"}]}"#,
        );
        assert_eq!(faults(Some("app"), &request), BTreeMap::new());
    }

    #[test]
    fn an_image_without_tag_gets_latest() {
        for (image, complete) in [
            ("nginx", "nginx:latest"),
            ("nginx:1", "nginx:1"),
            ("reg:5000/nginx", "reg:5000/nginx:latest"),
            ("nginx@sha256:0", "nginx@sha256:0"),
        ] {
            let request = request(&format!(r#"{{"name":"web","image":"{image}"}}"#));
            assert_eq!(completed(&request).image, complete);
        }
    }
}
