//! The body of every answer that is no success.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a client reads: the original's `error`, and beside it what a program
/// can rely on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A sentence, or a sentence per field.
    pub error: ErrorText,
    /// A stable word for this kind of error, such as `grid_full_nodes`.
    pub code: String,
    /// The HTTP status.
    pub status: u16,
    /// The id under which the Master logged the request.
    pub request_id: String,
    /// Figures of this kind of error, such as a grid's size and use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

/// One sentence, or one per field (`services.web.image`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ErrorText {
    /// About the whole request.
    Sentence(String),
    /// By field.
    Fields(BTreeMap<String, String>),
}
