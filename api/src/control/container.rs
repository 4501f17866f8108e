//! Containers, as placements and their nodes' reports describe them.

use kontena_schema::http::containers::Container;
use kontena_schema::query;

use super::ControlError;
use crate::app::App;

/// All containers of a grid.
pub async fn container_list(app: &App, grid: &str) -> Result<Vec<Container>, ControlError> {
    super::grid::grid_show(app, grid).await?;
    Ok(app.db.all(&query::CONTAINER_LIST, &[&grid]).await?)
}
