//! Containers.

use axum::Json;
use kontena_schema::http::containers::Containers;

use super::HttpError;
use super::extract::{Admin, Segments};
use crate::control::container;

/// `GET /v1/containers/{grid}`
pub async fn list(
    Segments(grid): Segments<String>,
    admin: Admin,
) -> Result<Json<Containers>, HttpError> {
    let containers = container::container_list(&admin.app, &grid).await;
    admin.answer(containers.map(|containers| Containers { containers }))
}
