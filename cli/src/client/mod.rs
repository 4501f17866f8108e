//! A typed client of the Master's HTTP API.
//!
//! One method per route, named like the route's operation. What is promised:
//! a call is tried again, for about ten seconds, while the Master cannot be
//! reached or answers 502, 503 or 504, so a replica that dies costs its callers
//! time and no error. A call that changes something carries an
//! `Idempotency-Key` that stays the same over all its tries, so it takes effect
//! at most once. Refusals (4xx) come back at once and are never retried.

mod addresses;
mod error;
mod retry;
mod routes;
mod wait;

use std::time::Duration;

pub use addresses::{AddressFilter, HistoryFilter};
pub use error::{ApiError, Error};
use reqwest::Method;
pub use retry::Retry;
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::{Host, Url};
use uuid::Uuid;
pub use wait::{DeployWait, wait_gone};

/// A connection attempt that takes longer is worth another replica.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The longest a single try may take: the Master's own transactions are bounded
/// by seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A client of one Master. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: String,
    retry: Retry,
    key: Option<Uuid>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("base", &self.base.as_str())
            .finish_non_exhaustive()
    }
}

/// What stands behind the question mark of a call's URL.
type Query<'a> = &'a [(&'static str, String)];

/// What one call is: the method, the path below `/v1`, the query and the body.
pub(crate) struct Call<'a, B: ?Sized> {
    method: Method,
    path: &'a [&'a str],
    query: Query<'a>,
    body: Option<&'a B>,
}

impl Client {
    /// A client of the Master at `url`. With `ca_pem`, one or more PEM
    /// certificates, only these are trusted; without, what the machine trusts.
    ///
    /// # Errors
    /// [`Error::Url`] and [`Error::Ca`] for arguments that cannot be used.
    pub fn new(url: &str, token: &str, ca_pem: Option<&[u8]>) -> Result<Self, Error> {
        let base = parse_url(url)?;
        // Only the first call of a process installs it; later ones are refused.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("kontena-cli/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN)
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = ca_pem {
            let certificates =
                reqwest::Certificate::from_pem_bundle(pem).map_err(|err| Error::ca(&err))?;
            if certificates.is_empty() {
                return Err(Error::Ca("it holds no PEM certificate".to_owned()));
            }
            builder = builder.tls_certs_only(certificates);
        }
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|err| Error::ca(&err))?;
        Ok(Self {
            http,
            base,
            token: token.to_owned(),
            retry: Retry::default(),
            key: None,
        })
    }

    /// The same client with another patience; [`Retry::NONE`] tries once.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The same client with one key for every change that it asks for, in place
    /// of a new one each time.
    #[must_use]
    pub fn with_idempotency_key(mut self, key: Uuid) -> Self {
        self.key = Some(key);
        self
    }

    /// The same client with another token.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        token.clone_into(&mut self.token);
        self
    }

    /// The Master's URL.
    pub fn url(&self) -> &Url {
        &self.base
    }

    /// Reads `path` below `/v1`, for routes that have no method of their own.
    ///
    /// # Errors
    /// As every call: [`Error::Api`] for a refusal, else what went wrong.
    pub async fn get<A: DeserializeOwned>(&self, path: &[&str]) -> Result<A, Error> {
        self.get_where(path, &[]).await
    }

    async fn get_where<A: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
    ) -> Result<A, Error> {
        self.send::<(), A>(Call {
            method: Method::GET,
            path,
            query,
            body: None,
        })
        .await
    }

    async fn post<B: Serialize + Sync + ?Sized, A: DeserializeOwned>(
        &self,
        path: &[&str],
        body: Option<&B>,
    ) -> Result<A, Error> {
        self.send(Call {
            method: Method::POST,
            path,
            query: &[],
            body,
        })
        .await
    }

    async fn put<B: Serialize + Sync + ?Sized, A: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<A, Error> {
        self.send(Call {
            method: Method::PUT,
            path,
            query: &[],
            body: Some(body),
        })
        .await
    }

    async fn delete(&self, path: &[&str]) -> Result<(), Error> {
        self.delete_where(path, &[]).await
    }

    async fn delete_where(&self, path: &[&str], query: Query<'_>) -> Result<(), Error> {
        let call = Call::<()> {
            method: Method::DELETE,
            path,
            query,
            body: None,
        };
        self.send::<_, serde::de::IgnoredAny>(call).await.map(drop)
    }

    fn address(&self, path: &[&str], query: Query<'_>) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("parse_url accepts only URLs with a path")
            .pop_if_empty()
            .push("v1")
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }
}

/// `https://` is added where there is no scheme.
fn parse_url(text: &str) -> Result<Url, Error> {
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let fail = |reason: String| Error::Url {
        url: text.to_owned(),
        reason,
    };
    let url = Url::parse(&full).map_err(|err| fail(err.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(fail(format!(
            "the scheme is {:?}, must be http or https",
            url.scheme()
        )));
    }
    Ok(url)
}

/// A proxy cannot reach this machine's own loopback.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_completed_and_paths_escaped() {
        for (given, want) in [
            ("master.example", "https://master.example/v1/grids/a%2Fb"),
            (
                "http://127.0.0.1:9292/",
                "http://127.0.0.1:9292/v1/grids/a%2Fb",
            ),
            ("https://x/sub/", "https://x/sub/v1/grids/a%2Fb"),
        ] {
            let client = Client::new(given, "t", None).unwrap();
            assert_eq!(client.address(&["grids", "a/b"], &[]).as_str(), want);
        }
        let client = Client::new("x", "t", None).unwrap();
        let at = [("at", "2026-01-31T12:01:00+01:00".to_owned())];
        let want = "https://x/v1/ping?at=2026-01-31T12%3A01%3A00%2B01%3A00";
        assert_eq!(client.address(&["ping"], &at).as_str(), want);
    }

    #[test]
    fn bad_urls_and_certificates_are_refused_with_a_reason() {
        for bad in ["", "ftp://x", "https://", "http://[::1"] {
            assert!(
                matches!(Client::new(bad, "t", None), Err(Error::Url { .. })),
                "{bad}"
            );
        }
        assert!(matches!(
            Client::new("https://x", "t", Some(b"none")),
            Err(Error::Ca(_))
        ));
    }

    #[test]
    fn the_token_does_not_show_in_debug() {
        let client = Client::new("https://x", "secret", None).unwrap();
        assert!(!format!("{client:?}").contains("secret"));
    }
}
