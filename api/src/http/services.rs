//! Services.

use axum::Json;
use axum::http::StatusCode;
use kontena_schema::http::services::{Deploy, Service, ServiceCreate, ServiceScale, Services};
use kontena_schema::ids::DeployId;
use serde::Deserialize;

use super::HttpError;
use super::extract::{Admin, Body, Change, NoBody, Params, Segments, stack};
use crate::control::grid::Empty;
use crate::control::{command, deploy, service};

/// Grid, stack (`null` for none) and service of a path.
type ServicePath = Segments<(String, String, String)>;

/// What a list may be narrowed to.
#[derive(Deserialize)]
pub struct Filter {
    stack: Option<String>,
}

/// `GET /v1/grids/{grid}/services`
pub async fn list(
    Segments(grid): Segments<String>,
    Params(filter): Params<Filter>,
    admin: Admin,
) -> Result<Json<Services>, HttpError> {
    let services = service::service_list(&admin.app, &grid, filter.stack.as_deref()).await;
    admin.answer(services.map(|services| Services { services }))
}

/// `POST /v1/grids/{grid}/services`
pub async fn create(
    Segments(grid): Segments<String>,
    Change {
        admin,
        call,
        body: Body(request),
    }: Change<Body<ServiceCreate>>,
) -> Result<(StatusCode, Json<Service>), HttpError> {
    let service =
        admin.answer(service::service_create(&admin.app, &call, &grid, &request).await)?;
    Ok((StatusCode::CREATED, service))
}

/// `GET /v1/services/{grid}/{stack}/{service}`
pub async fn show(
    Segments((grid, of, name)): ServicePath,
    admin: Admin,
) -> Result<Json<Service>, HttpError> {
    admin.answer(service::service_show(&admin.app, &grid, stack(&of), &name).await)
}

/// `DELETE /v1/services/{grid}/{stack}/{service}`
pub async fn remove(
    Segments((grid, of, name)): ServicePath,
    Change { admin, call, .. }: Change<NoBody>,
) -> Result<Json<Empty>, HttpError> {
    admin.answer(service::service_remove(&admin.app, &call, &grid, stack(&of), &name).await)
}

/// `POST /v1/services/{grid}/{stack}/{service}/deploy`
pub async fn deploy(
    Segments((grid, of, name)): ServicePath,
    Change { admin, call, .. }: Change<NoBody>,
) -> Result<Json<Deploy>, HttpError> {
    admin.answer(deploy::service_deploy(&admin.app, &call, &grid, stack(&of), &name).await)
}

/// `POST /v1/services/{grid}/{stack}/{service}/scale`
pub async fn scale(
    Segments((grid, of, name)): ServicePath,
    Change {
        admin,
        call,
        body: Body(request),
    }: Change<Body<ServiceScale>>,
) -> Result<Json<Deploy>, HttpError> {
    let scaled = deploy::service_scale(&admin.app, &call, &grid, stack(&of), &name, request).await;
    admin.answer(scaled)
}

/// `POST /v1/services/{grid}/{stack}/{service}/restart`
pub async fn restart(
    Segments((grid, of, name)): ServicePath,
    Change { admin, call, .. }: Change<NoBody>,
) -> Result<Json<Empty>, HttpError> {
    admin.answer(command::service_restart(&admin.app, &call, &grid, stack(&of), &name).await)
}

/// `GET /v1/services/{grid}/{stack}/{service}/deploys/{deploy}`
pub async fn deploy_show(
    Segments((grid, of, name, id)): Segments<(String, String, String, i64)>,
    admin: Admin,
) -> Result<Json<Deploy>, HttpError> {
    let id = DeployId(id);
    admin.answer(deploy::deploy_show(&admin.app, &grid, stack(&of), &name, id).await)
}
