//! Nodes.

use axum::Json;
use axum::http::StatusCode;
use kontena_schema::http::nodes::{Node, NodePeers, Nodes};
use kontena_schema::http::pings::{Ping, PingCreate};
use kontena_schema::ids::PingId;

use super::HttpError;
use super::extract::{Admin, Body, Change, NoBody, Segments};
use crate::control::grid::Empty;
use crate::control::{key, node, ping};

/// `GET /v1/grids/{grid}/nodes`
pub async fn list(
    Segments(grid): Segments<String>,
    admin: Admin,
) -> Result<Json<Nodes>, HttpError> {
    admin.answer(
        node::node_list(&admin.app, &grid)
            .await
            .map(|nodes| Nodes { nodes }),
    )
}

/// `GET /v1/nodes/{grid}/{node}`
pub async fn show(
    Segments((grid, name)): Segments<(String, String)>,
    admin: Admin,
) -> Result<Json<Node>, HttpError> {
    admin.answer(node::node_show(&admin.app, &grid, &name).await)
}

/// `GET /v1/nodes/{grid}/{node}/peers`
pub async fn peers(
    Segments((grid, name)): Segments<(String, String)>,
    admin: Admin,
) -> Result<Json<NodePeers>, HttpError> {
    admin.answer(node::node_peers(&admin.app, &grid, &name).await)
}

/// `POST /v1/nodes/{grid}/{node}/pings`
pub async fn ping(
    Segments((grid, name)): Segments<(String, String)>,
    Change {
        admin,
        call,
        body: Body(request),
    }: Change<Body<PingCreate>>,
) -> Result<(StatusCode, Json<Ping>), HttpError> {
    let ping = ping::node_ping(&admin.app, &call, &grid, &name, &request).await;
    Ok((StatusCode::CREATED, admin.answer(ping)?))
}

/// `GET /v1/nodes/{grid}/{node}/pings/{id}`
pub async fn ping_show(
    admin: Admin,
    Segments((grid, name, id)): Segments<(String, String, i64)>,
) -> Result<Json<Ping>, HttpError> {
    admin.answer(ping::node_ping_show(&admin.app, &grid, &name, PingId(id)).await)
}

/// `POST /v1/nodes/{grid}/{node}/key`
pub async fn turn_key(
    Segments((grid, name)): Segments<(String, String)>,
    Change { admin, call, .. }: Change<NoBody>,
) -> Result<Json<Empty>, HttpError> {
    admin.answer(key::node_key_turn(&admin.app, &call, &grid, &name).await)
}

/// `DELETE /v1/nodes/{grid}/{node}`
pub async fn remove(
    Segments((grid, name)): Segments<(String, String)>,
    Change { admin, call, .. }: Change<NoBody>,
) -> Result<Json<Empty>, HttpError> {
    admin.answer(node::node_remove(&admin.app, &call, &grid, &name).await)
}
