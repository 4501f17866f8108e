//! What needs no token, and what has no route.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::HttpError;
use super::extract::request_id;
use crate::app::App;

/// `GET /`
pub async fn root() -> Json<Value> {
    Json(json!({
        "name": "Kontena Master",
        "tagline": "the grid network for Docker hosts",
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// `GET /v1/ping`: whether this replica should get requests.
pub async fn ping(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Json<Value>, HttpError> {
    let fail = |code, sentence| {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Err(HttpError::new(status, code, sentence).of(&request_id(&headers)))
    };
    if app.is_draining() {
        return fail("draining", "this replica is about to stop");
    }
    if app.db.ping().await.is_err() {
        return fail("unavailable", "the database is not available");
    }
    Ok(Json(json!({ "message": "pong" })))
}

/// What is not a path of the API.
pub async fn no_route(headers: HeaderMap) -> HttpError {
    let sentence = "there is nothing at this path";
    HttpError::new(StatusCode::NOT_FOUND, "no_route", sentence).of(&request_id(&headers))
}

/// A method that a path does not have.
pub async fn no_method(headers: HeaderMap) -> HttpError {
    let sentence = "this path does not have this method";
    HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", sentence).of(&request_id(&headers))
}
