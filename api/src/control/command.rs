//! Commands: what a node is to do once, in order, started at most once.

use kontena_schema::query;

use super::grid::Empty;
use super::{Call, ControlError, LockedGrid, change, service};
use crate::app::App;

/// A command that its node has not begun by then is never begun.
const EXPIRES_AFTER_S: f64 = 60.0;

/// Restarts the containers of a service.
pub async fn service_restart(
    app: &App,
    call: &Call,
    grid: &str,
    stack: Option<&str>,
    name: &str,
) -> Result<Empty, ControlError> {
    change(app, call, "service_restart", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, grid).await?;
            let service = service::row(&grid, stack, name).await?;
            let revision = grid.stamp().await?;
            let params: [crate::db::Param; 4] =
                [&service.id, &"restart", &revision, &EXPIRES_AFTER_S];
            tx.execute(&query::COMMAND_INSERT, &params).await?;
            Ok(grid.changed(Empty {}))
        })
    })
    .await
}
