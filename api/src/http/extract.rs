//! What handlers begin with: who asks, and what.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

use super::{HttpError, REQUEST_ID, State};
use crate::app::App;
use crate::control::{Call, IdempotencyKey};

/// Longest `Idempotency-Key`: a few UUIDs.
const KEY_BYTES_MAX: usize = 128;

/// The administrator, asking for something that changes nothing.
pub struct Admin {
    /// The replica.
    pub app: Arc<App>,
    request_id: String,
}

impl Admin {
    /// Turns what a control function answers into an answer.
    pub fn answer<T, E: Into<HttpError>>(
        &self,
        result: Result<T, E>,
    ) -> Result<axum::Json<T>, HttpError> {
        self.accept(result).map(axum::Json)
    }

    /// Goes on with a part of the request that could be read.
    pub fn accept<T, E: Into<HttpError>>(&self, result: Result<T, E>) -> Result<T, HttpError> {
        result.map_err(|error| error.into().of(&self.request_id))
    }
}

impl FromRequestParts<State> for Admin {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, HttpError> {
        let request_id = request_id(&parts.headers);
        let fail = |code, sentence| {
            Err(HttpError::new(StatusCode::FORBIDDEN, code, sentence).of(&request_id))
        };
        match bearer(&parts.headers) {
            Some(token) if state.app.signer.is_admin(token) => Ok(Self {
                app: Arc::clone(&state.app),
                request_id,
            }),
            Some(_) => fail("invalid_token", "the token is not valid"),
            None => fail(
                "no_token",
                "the header Authorization: Bearer <token> is missing",
            ),
        }
    }
}

/// The administrator, asking for a change with a body of `T`.
pub struct Change<T> {
    /// Who asks.
    pub admin: Admin,
    /// Under which key.
    pub call: Call,
    /// For what.
    pub body: T,
}

/// A change that has no body.
pub struct NoBody;

impl FromRequest<State> for Change<NoBody> {
    type Rejection = HttpError;

    async fn from_request(request: Request, state: &State) -> Result<Self, HttpError> {
        let (admin, call, _) = change(request, state).await?;
        Ok(Self {
            admin,
            call,
            body: NoBody,
        })
    }
}

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<State> for Change<Body<T>> {
    type Rejection = HttpError;

    async fn from_request(request: Request, state: &State) -> Result<Self, HttpError> {
        let (admin, call, bytes) = change(request, state).await?;
        match serde_json::from_slice(&bytes) {
            Ok(body) => Ok(Self {
                admin,
                call,
                body: Body(body),
            }),
            Err(error) => {
                // What is no JSON, and what is JSON of another shape.
                let (status, code) = if error.is_data() {
                    (StatusCode::UNPROCESSABLE_ENTITY, "invalid")
                } else {
                    (StatusCode::BAD_REQUEST, "bad_json")
                };
                let sentence = format!("the body cannot be read: {error}");
                Err(HttpError::new(status, code, sentence).of(&admin.request_id))
            }
        }
    }
}

async fn change(request: Request, state: &State) -> Result<(Admin, Call, Bytes), HttpError> {
    let (mut parts, body) = request.into_parts();
    let admin = Admin::from_request_parts(&mut parts, state).await?;
    let method = parts.method.clone();
    // What a request asks for is in its query too.
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let path = path.to_owned();
    let key = parts.headers.get("idempotency-key").cloned();
    let json = parts
        .headers
        .get(CONTENT_TYPE)
        .is_none_or(|kind| kind.as_bytes().starts_with(b"application/json"));
    let fail = |status, code, sentence: &str| {
        Err(HttpError::new(status, code, sentence).of(&admin.request_id))
    };
    if !json {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return fail(
            status,
            "not_json",
            "the content type must be application/json",
        );
    }
    let bytes = match Bytes::from_request(Request::from_parts(parts, body), state).await {
        Ok(bytes) => bytes,
        Err(rejection) => return fail(rejection.status(), "bad_body", &rejection.body_text()),
    };
    let idempotency = match key.as_ref().map(|key| key.to_str()) {
        None => None,
        Some(Ok(key)) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Some(IdempotencyKey::new(
            key.to_owned(),
            method.as_str(),
            &path,
            &bytes,
        )),
        Some(_) => {
            let sentence = format!("Idempotency-Key must be 1 to {KEY_BYTES_MAX} ASCII characters");
            return fail(StatusCode::BAD_REQUEST, "bad_idempotency_key", &sentence);
        }
    };
    Ok((
        admin,
        Call {
            actor: "admin".to_owned(),
            idempotency,
        },
        bytes,
    ))
}

/// Segments of the path.
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<State> for Segments<T> {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, HttpError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(rejection) => {
                let error =
                    HttpError::new(StatusCode::NOT_FOUND, "not_found", rejection.body_text());
                Err(error.of(&request_id(&parts.headers)))
            }
        }
    }
}

/// The query of a URL.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<State> for Params<T> {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, HttpError> {
        // Only who may ask is told what is wrong.
        let admin = Admin::from_request_parts(parts, state).await?;
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                let error = HttpError::new(status, "invalid", rejection.body_text());
                Err(error.of(&admin.request_id))
            }
        }
    }
}

/// The stack that a path names: `null` stands for none.
pub fn stack(segment: &str) -> Option<&str> {
    (segment != "null").then_some(segment)
}

/// The bearer token of a request.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

/// The id that the layers gave to a request.
pub fn request_id(headers: &HeaderMap) -> String {
    let id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let id = id.unwrap_or_default();
    // `to_str` lets only ASCII pass.
    id[..id.len().min(KEY_BYTES_MAX)].to_owned()
}
