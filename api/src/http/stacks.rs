//! Stacks.

use axum::Json;
use axum::http::StatusCode;
use kontena_schema::http::stacks::{Stack, StackCreate, StackDeploy, Stacks};

use super::HttpError;
use super::extract::{Admin, Body, Change, NoBody, Segments};
use crate::control::grid::Empty;
use crate::control::{ControlError, stack};

/// `GET /v1/grids/{grid}/stacks`
pub async fn list(
    Segments(grid): Segments<String>,
    admin: Admin,
) -> Result<Json<Stacks>, HttpError> {
    admin.answer(
        stack::stack_list(&admin.app, &grid)
            .await
            .map(|stacks| Stacks { stacks }),
    )
}

/// `POST /v1/grids/{grid}/stacks`
pub async fn create(
    Segments(grid): Segments<String>,
    Change {
        admin,
        call,
        body: Body(request),
    }: Change<Body<StackCreate>>,
) -> Result<(StatusCode, Json<Stack>), HttpError> {
    let stack = admin.answer(stack::stack_create(&admin.app, &call, &grid, &request).await)?;
    Ok((StatusCode::CREATED, stack))
}

/// `GET /v1/stacks/{grid}/{stack}`
pub async fn show(
    Segments((grid, name)): Segments<(String, String)>,
    admin: Admin,
) -> Result<Json<Stack>, HttpError> {
    admin.answer(stack::stack_show(&admin.app, &grid, &name).await)
}

/// `PUT /v1/stacks/{grid}/{stack}`
pub async fn update(
    Segments((grid, name)): Segments<(String, String)>,
    Change {
        admin,
        call,
        body: Body(request),
    }: Change<Body<StackCreate>>,
) -> Result<Json<Stack>, HttpError> {
    if request.name != name {
        let reason = format!("is {:?} in the body and {name:?} in the path", request.name);
        return admin.answer(Err(ControlError::field("name", reason)));
    }
    admin.answer(stack::stack_update(&admin.app, &call, &grid, &request).await)
}

/// `DELETE /v1/stacks/{grid}/{stack}`
pub async fn remove(
    Segments((grid, name)): Segments<(String, String)>,
    Change { admin, call, .. }: Change<NoBody>,
) -> Result<Json<Empty>, HttpError> {
    admin.answer(stack::stack_remove(&admin.app, &call, &grid, &name).await)
}

/// `POST /v1/stacks/{grid}/{stack}/deploy`
pub async fn deploy(
    Segments((grid, name)): Segments<(String, String)>,
    Change { admin, call, .. }: Change<NoBody>,
) -> Result<Json<StackDeploy>, HttpError> {
    admin.answer(stack::stack_deploy(&admin.app, &call, &grid, &name).await)
}
