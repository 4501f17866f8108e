//! The HTTP API: every route, and what surrounds a handler.
//!
//! A handler authenticates and parses (extractors), calls one control function
//! and answers. No SQL and no Redis here.

mod addresses;
mod agents;
mod containers;
mod error;
mod extract;
mod grids;
mod metrics;
mod nodes;
mod root;
mod services;
mod stacks;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef, MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post};
pub use error::HttpError;
use kontena_schema::limits::HTTP_BODY_BYTES_MAX;
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;
use tracing::Span;
use uuid::Uuid;

use self::extract::request_id;
use crate::agents::Feed;
use crate::app::App;

/// No request takes longer. What still waits for its turn then is not begun.
const REQUEST_WITHIN: Duration = Duration::from_secs(20);

/// Names a request in logs, in its answer and in its errors.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What handlers share.
#[derive(Clone)]
pub struct State {
    app: Arc<App>,
    feed: Arc<Feed>,
}

impl FromRef<State> for Arc<App> {
    fn from_ref(state: &State) -> Self {
        Arc::clone(&state.app)
    }
}

/// Every route of the API, with its path.
pub fn routes() -> Vec<(&'static str, MethodRouter<State>)> {
    vec![
        ("/", get(root::root)),
        ("/v1/ping", get(root::ping)),
        ("/v1/agent", get(agents::agent)),
        ("/v1/grids", get(grids::list).post(grids::create)),
        (
            "/v1/grids/{grid}",
            get(grids::show).put(grids::update).delete(grids::remove),
        ),
        (
            "/v1/grids/{grid}/trusted_subnets",
            get(grids::trust_show).post(grids::trust_change),
        ),
        (
            "/v1/grids/{grid}/addresses",
            get(addresses::list).post(addresses::take),
        ),
        (
            "/v1/grids/{grid}/addresses/{address}",
            get(addresses::show).delete(addresses::release),
        ),
        (
            "/v1/grids/{grid}/addresses/{address}/history",
            get(addresses::history),
        ),
        ("/v1/grids/{grid}/nodes", get(nodes::list)),
        (
            "/v1/nodes/{grid}/{node}",
            get(nodes::show).delete(nodes::remove),
        ),
        ("/v1/nodes/{grid}/{node}/key", post(nodes::turn_key)),
        ("/v1/nodes/{grid}/{node}/peers", get(nodes::peers)),
        ("/v1/nodes/{grid}/{node}/pings", post(nodes::ping)),
        ("/v1/nodes/{grid}/{node}/pings/{id}", get(nodes::ping_show)),
        (
            "/v1/grids/{grid}/stacks",
            get(stacks::list).post(stacks::create),
        ),
        (
            "/v1/stacks/{grid}/{stack}",
            get(stacks::show).put(stacks::update).delete(stacks::remove),
        ),
        ("/v1/stacks/{grid}/{stack}/deploy", post(stacks::deploy)),
        (
            "/v1/grids/{grid}/services",
            get(services::list).post(services::create),
        ),
        (
            "/v1/services/{grid}/{stack}/{service}",
            get(services::show).merge(delete(services::remove)),
        ),
        (
            "/v1/services/{grid}/{stack}/{service}/deploy",
            post(services::deploy),
        ),
        (
            "/v1/services/{grid}/{stack}/{service}/scale",
            post(services::scale),
        ),
        (
            "/v1/services/{grid}/{stack}/{service}/restart",
            post(services::restart),
        ),
        (
            "/v1/services/{grid}/{stack}/{service}/deploys/{deploy}",
            get(services::deploy_show),
        ),
        ("/v1/containers/{grid}", get(containers::list)),
        ("/v1/metrics", get(metrics::show)),
    ]
}

/// The API of a replica.
pub fn router(app: Arc<App>) -> Router {
    let state = State {
        app,
        feed: Arc::default(),
    };
    let mut router = Router::new();
    for (path, methods) in routes() {
        router = router.route(path, methods);
    }
    let trace = TraceLayer::new_for_http()
        .make_span_with(request_span)
        .on_request(())
        .on_failure(())
        .on_response(|response: &Response, latency: Duration, span: &Span| {
            if !span.is_disabled() {
                let latency_ms = latency.as_millis();
                tracing::info!(status = response.status().as_u16(), latency_ms, "answered");
            }
        });
    router
        .fallback(root::no_route)
        .method_not_allowed_fallback(root::no_method)
        // Together, the outermost first: each call of `layer` costs every request a box.
        .layer((
            SetRequestIdLayer::new(REQUEST_ID, NewRequestId),
            PropagateRequestIdLayer::new(REQUEST_ID),
            trace,
            TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST_WITHIN),
            DefaultBodyLimit::max(HTTP_BODY_BYTES_MAX),
        ))
        .with_state(state)
}

/// What the log says of a request. Health checks come every second and are left
/// out.
fn request_span(request: &Request) -> Span {
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("-", MatchedPath::as_str);
    if path == "/v1/ping" {
        return Span::none();
    }
    let id = request_id(request.headers());
    tracing::info_span!("http", method = %request.method(), path, request_id = id)
}

/// Names requests whose client did not.
#[derive(Clone, Copy)]
struct NewRequestId;

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        let id = Uuid::now_v7().simple().to_string();
        Some(RequestId::new(
            HeaderValue::from_str(&id).expect("hexadecimal digits are a header"),
        ))
    }
}
