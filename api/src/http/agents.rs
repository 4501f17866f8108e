//! `GET /v1/agent`: the agents' WebSocket.

use std::sync::Arc;

use axum::extract::{State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use kontena_schema::limits::AGENT_FRAME_BYTES_MAX;

use super::extract::{bearer, request_id};
use super::{HttpError, State as Shared};
use crate::agents::{self, Connection};

/// Takes an agent's connection. A bad token is told after the upgrade, as a close
/// code that the agent understands.
pub async fn agent(
    State(state): State<Shared>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Result<Response, HttpError> {
    let request_id = request_id(&headers);
    let Some(token) = bearer(&headers).map(str::to_owned) else {
        let sentence = "the header Authorization: Bearer <token> is missing";
        return Err(HttpError::new(StatusCode::FORBIDDEN, "no_token", sentence).of(&request_id));
    };
    let Shared { app, feed } = state;
    if app.is_draining() {
        let sentence = "this replica is about to stop";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return Err(HttpError::new(status, "draining", sentence).of(&request_id));
    }
    let connection = Connection {
        app: Arc::clone(&app),
        feed,
        token,
        request_id,
    };
    Ok(upgrade
        .max_message_size(AGENT_FRAME_BYTES_MAX)
        .max_frame_size(AGENT_FRAME_BYTES_MAX)
        .on_upgrade(move |socket| agents::serve(connection, socket)))
}
