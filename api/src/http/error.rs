//! From errors to answers, in one exhaustive match.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kontena_schema::http::error::{ErrorBody, ErrorText};

use crate::control::{ControlError, constraint_fault};
use crate::db::DbError;

/// Seconds after which a refused client may try again.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// What a client reads instead of an answer.
#[derive(Debug)]
pub struct HttpError {
    status: StatusCode,
    code: &'static str,
    text: ErrorText,
    details: Option<serde_json::Value>,
    /// Names the request; set by the extractors, which all handlers begin with.
    request_id: String,
}

impl HttpError {
    /// An error with one sentence.
    pub fn new(status: StatusCode, code: &'static str, sentence: impl Into<String>) -> Self {
        let text = ErrorText::Sentence(sentence.into());
        Self {
            status,
            code,
            text,
            details: None,
            request_id: String::new(),
        }
    }

    /// Errors by field.
    fn fields(fields: BTreeMap<String, String>) -> Self {
        let text = ErrorText::Fields(fields);
        let (status, code) = (StatusCode::UNPROCESSABLE_ENTITY, "invalid");
        Self {
            status,
            code,
            text,
            details: None,
            request_id: String::new(),
        }
    }

    /// Says which request it answers.
    #[must_use]
    pub fn of(mut self, request_id: &str) -> Self {
        request_id.clone_into(&mut self.request_id);
        self
    }
}

impl From<ControlError> for HttpError {
    fn from(error: ControlError) -> Self {
        let sentence = error.to_string();
        match error {
            ControlError::NotFound { .. } => {
                Self::new(StatusCode::NOT_FOUND, "not_found", sentence)
            }
            ControlError::Invalid(fields) => Self::fields(fields),
            ControlError::Conflict { code, .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, sentence)
            }
            ControlError::GridFullNodes { .. } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "grid_full_nodes",
                sentence,
            ),
            ControlError::GridFullAddresses { usage, .. } => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                let full = Self::new(status, "grid_full_addresses", sentence);
                Self {
                    details: Some(usage),
                    ..full
                }
            }
            ControlError::Busy { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", sentence)
            }
            ControlError::NodeDuplicate { .. } => {
                Self::new(StatusCode::CONFLICT, "node_duplicate", sentence)
            }
            ControlError::AgentTooOld { .. } => {
                Self::new(StatusCode::CONFLICT, "agent_too_old", sentence)
            }
            ControlError::NetworkOverlap(_) => {
                Self::new(StatusCode::CONFLICT, "network_overlap", sentence)
            }
            ControlError::KeyTaken => Self::new(StatusCode::CONFLICT, "key_taken", sentence),
            ControlError::ReplicaLost | ControlError::Unavailable => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", sentence)
            }
            ControlError::StaleSession => {
                Self::new(StatusCode::CONFLICT, "stale_session", sentence)
            }
            ControlError::BadToken => Self::new(StatusCode::FORBIDDEN, "invalid_token", sentence),
            ControlError::Db(error) => database(&error),
        }
    }
}

fn database(error: &DbError) -> HttpError {
    if let Some((field, reason)) = error.constraint().and_then(constraint_fault) {
        return HttpError::fields(BTreeMap::from([(field.to_owned(), reason.to_owned())]));
    }
    if error.is_bad_text() {
        let sentence = "a text holds a character that cannot be stored (NUL)";
        return HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", sentence);
    }
    if error.is_unavailable() {
        tracing::warn!(%error, "the database does not serve");
        let sentence = "the database is not available, try again";
        return HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", sentence);
    }
    tracing::error!(%error, source = ?error, "a request failed");
    HttpError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "the Master failed; its log says why",
    )
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            error: self.text,
            code: self.code.to_owned(),
            status: self.status.as_u16(),
            request_id: self.request_id,
            details: self.details,
        };
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_S);
        }
        response
    }
}
