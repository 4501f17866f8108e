//! Why a call failed: what the Master answered, or why there is no answer.

use std::fmt;

use kontena_schema::http::addresses::{AddressUsage, HolderKind};
use kontena_schema::http::error::{ErrorBody, ErrorText};
use serde::Deserialize;
use serde::de::Error as _;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Master's URL cannot be used.
    #[error("{url:?} is no URL of a Master: {reason}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The CA certificates cannot be used.
    #[error("the CA certificates cannot be used: {0}")]
    Ca(String),
    /// The Master refused.
    #[error(transparent)]
    Api(Box<ApiError>),
    /// There was no answer, however often it was tried.
    #[error(
        "no answer from the Master to {request} after {tries} tries: {}",
        causes(source)
    )]
    Transport {
        /// Method and path.
        request: String,
        /// How often it was tried.
        tries: u32,
        /// Why the last try failed.
        source: reqwest::Error,
    },
    /// An answer of success that is not what it should be.
    #[error("the Master's answer to {request} cannot be read: {source}")]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Something that was removed was still there at the deadline.
    #[error(
        "{what} was not gone within {seconds} s: its containers go when their nodes are connected"
    )]
    RemovalLate {
        /// What was removed.
        what: String,
        /// The bound.
        seconds: u64,
    },
    /// A ping did not end, although the Master ends every one.
    #[error("the ping of {to} by {from} did not end within a minute; last state: {state}")]
    PingLate {
        /// Who sends the echoes.
        from: String,
        /// Who answers them.
        to: String,
        /// Its state.
        state: String,
    },
    /// A deploy did not end in time.
    #[error("the deploy of {service} did not end within {seconds} s; last state: {last}")]
    DeployLate {
        /// `stack/service`.
        service: String,
        /// The bound.
        seconds: u64,
        /// Its state and that of its instances.
        last: String,
    },
}

/// A refusal of the Master.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// Method and path of the call.
    pub request: String,
    /// The HTTP status.
    pub status: u16,
    /// The body; made from the status where the answer came from something
    /// between here and the Master.
    pub body: ErrorBody,
}

impl Error {
    pub(super) fn ca(err: &reqwest::Error) -> Self {
        Self::Ca(causes(err))
    }

    /// The Master's refusal, if it is one.
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(err) => Some(err),
            _ => None,
        }
    }

    /// Whether the Master says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        self.api().is_some_and(|err| err.status == 404)
    }

    /// The figures of `grid_full_addresses`: size, use and the biggest holders.
    pub fn address_usage(&self) -> Option<AddressUsage> {
        self.api()?.address_usage()
    }

    /// The stable word of a refusal, such as `grid_full_nodes`.
    pub fn code(&self) -> Option<&str> {
        self.api().map(|err| err.body.code.as_str())
    }
}

impl ApiError {
    pub(super) fn new(request: String, status: u16, request_id: &str, body: &[u8]) -> Self {
        let body = serde_json::from_slice(body).unwrap_or_else(|_| ErrorBody {
            error: ErrorText::Sentence(sentence(status, body)),
            code: format!("http_{status}"),
            status,
            request_id: request_id.to_owned(),
            details: None,
        });
        Self {
            request,
            status,
            body,
        }
    }

    fn address_usage(&self) -> Option<AddressUsage> {
        (self.body.code == "grid_full_addresses")
            .then(|| AddressUsage::deserialize(self.body.details.as_ref()?).ok())
            .flatten()
    }

    /// Fields at fault with their reasons; empty if the error is about the whole
    /// request.
    pub fn fields(&self) -> Vec<(&str, &str)> {
        match &self.body.error {
            ErrorText::Sentence(_) => Vec::new(),
            ErrorText::Fields(fields) => fields
                .iter()
                .map(|(field, reason)| (field.as_str(), reason.as_str()))
                .collect(),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} : ", self.status)?;
        match &self.body.error {
            ErrorText::Sentence(text) => write!(f, "{text} ({})", self.request)?,
            ErrorText::Fields(fields) => {
                write!(f, "invalid ({})", self.request)?;
                for (field, reason) in fields {
                    write!(f, "\n{field}: {reason}")?;
                }
            }
        }
        if let Some(usage) = self.address_usage() {
            write_usage(f, &usage)?;
        }
        write!(f, "\ncode: {}", self.body.code)?;
        if !self.body.request_id.is_empty() {
            write!(f, "\nrequest: {}", self.body.request_id)?;
        }
        Ok(())
    }
}

impl std::error::Error for ApiError {}

/// Where a grid's addresses are, and who may have some to spare.
fn write_usage(f: &mut fmt::Formatter<'_>, usage: &AddressUsage) -> fmt::Result {
    let AddressUsage {
        size,
        nodes,
        leased,
        biggest_holders,
    } = usage;
    let free = size - nodes - leased;
    write!(
        f,
        "\naddresses: {size}, of nodes {nodes}, leased {leased}, free {free}"
    )?;
    for holder in biggest_holders {
        let kind = match holder.kind {
            HolderKind::Placement => "service",
            HolderKind::Reservation => "reservation",
            HolderKind::Node => "node",
        };
        write!(f, "\n{kind} {}: {}", holder.holder, holder.addresses)?;
    }
    Ok(())
}

/// A short text answer is worth showing, a page of HTML is not.
fn sentence(status: u16, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body).trim().to_owned();
    if !text.is_empty() && text.len() <= 200 && !text.contains('<') {
        return text;
    }
    match reqwest::StatusCode::from_u16(status)
        .ok()
        .and_then(|code| code.canonical_reason())
    {
        Some(reason) => reason.to_owned(),
        None => "no reason given".to_owned(),
    }
}

/// An error with everything below it, which is where a TLS error says what is
/// wrong. Causes that only repeat what is above them are left out.
fn causes(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut next = err.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Reads an answer of success.
pub(super) fn parse<A: serde::de::DeserializeOwned>(
    request: String,
    body: &[u8],
) -> Result<A, Error> {
    // DELETE of the original answers 200 with `{}`; a 204 means the same.
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|source| {
        let source = match body.first() {
            Some(b'<') => serde_json::Error::custom("it is a web page: is this a Master's URL?"),
            _ => source,
        };
        Error::Answer { request, source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_show_one_a_line() {
        let body = br#"{"error":{"services.web.image":"is required","name":"is empty"},
            "code":"invalid","status":422,"request_id":"r1"}"#;
        let err = ApiError::new("POST /v1/grids/demo/stacks".into(), 422, "", body);
        let want = "422 : invalid (POST /v1/grids/demo/stacks)\nname: is empty\n\
            services.web.image: is required\ncode: invalid\nrequest: r1";
        assert_eq!(err.to_string(), want);
        assert_eq!(
            err.fields(),
            [("name", "is empty"), ("services.web.image", "is required")]
        );
    }

    #[test]
    fn a_full_grid_tells_who_has_its_addresses() {
        let body =
            br#"{"error":"grid \"demo\" has no 2 addresses left","code":"grid_full_addresses",
            "status":409,"request_id":"r1","details":{"size":510,"nodes":3,"leased":506,
            "biggest_holders":[{"kind":"reservation","holder":"filler","addresses":500},
            {"kind":"placement","holder":"testapp/db","addresses":6}]}}"#;
        let err = ApiError::new("POST /v1/grids/demo/addresses".into(), 409, "", body);
        let want = "409 : grid \"demo\" has no 2 addresses left (POST /v1/grids/demo/addresses)\n\
            addresses: 510, of nodes 3, leased 506, free 1\nreservation filler: 500\n\
            service testapp/db: 6\ncode: grid_full_addresses\nrequest: r1";
        assert_eq!(err.to_string(), want);
    }

    #[test]
    fn an_answer_that_is_not_the_masters_keeps_its_status() {
        let err = ApiError::new("GET /v1/ping".into(), 503, "r2", b"<html>No server</html>");
        assert_eq!(err.body.code, "http_503");
        let want = "503 : Service Unavailable (GET /v1/ping)\ncode: http_503\nrequest: r2";
        assert_eq!(err.to_string(), want);
    }
}
