//! Grids.

use axum::Json;
use axum::http::StatusCode;
use kontena_schema::http::grids::{Grid, GridCreate, GridUpdate, Grids, Trust, TrustChange};

use super::HttpError;
use super::extract::{Admin, Body, Change, NoBody, Segments};
use crate::control::grid::{self, Empty};
use crate::control::trust;

/// `GET /v1/grids`
pub async fn list(admin: Admin) -> Result<Json<Grids>, HttpError> {
    admin.answer(
        grid::grid_list(&admin.app)
            .await
            .map(|grids| Grids { grids }),
    )
}

/// `POST /v1/grids`
pub async fn create(
    Change {
        admin,
        call,
        body: Body(request),
    }: Change<Body<GridCreate>>,
) -> Result<(StatusCode, Json<Grid>), HttpError> {
    let grid = admin.answer(grid::grid_create(&admin.app, &call, &request).await)?;
    Ok((StatusCode::CREATED, grid))
}

/// `GET /v1/grids/{grid}`
pub async fn show(Segments(name): Segments<String>, admin: Admin) -> Result<Json<Grid>, HttpError> {
    admin.answer(grid::grid_show(&admin.app, &name).await)
}

/// `PUT /v1/grids/{grid}`
pub async fn update(
    Segments(name): Segments<String>,
    Change {
        admin,
        call,
        body: Body(request),
    }: Change<Body<GridUpdate>>,
) -> Result<Json<Grid>, HttpError> {
    admin.answer(grid::grid_update(&admin.app, &call, &name, &request).await)
}

/// `DELETE /v1/grids/{grid}`
pub async fn remove(
    Segments(name): Segments<String>,
    Change { admin, call, .. }: Change<NoBody>,
) -> Result<Json<Empty>, HttpError> {
    admin.answer(grid::grid_remove(&admin.app, &call, &name).await)
}

/// `GET /v1/grids/{grid}/trusted_subnets`
pub async fn trust_show(
    Segments(name): Segments<String>,
    admin: Admin,
) -> Result<Json<Trust>, HttpError> {
    admin.answer(trust::trust_show(&admin.app, &name).await)
}

/// `POST /v1/grids/{grid}/trusted_subnets`
pub async fn trust_change(
    Segments(name): Segments<String>,
    Change {
        admin,
        call,
        body: Body(request),
    }: Change<Body<TrustChange>>,
) -> Result<Json<Trust>, HttpError> {
    admin.answer(trust::trust_change(&admin.app, &call, &name, &request).await)
}
