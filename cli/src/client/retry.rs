//! Trying again: for how long, how often, and when not.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use uuid::Uuid;

use super::error::parse;
use super::{ApiError, Call, Client, Error};

/// How patient a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// No try begins later than this after the first one.
    pub within: Duration,
    /// The longest pause after the first try; it doubles with each.
    pub pause_first: Duration,
    /// The longest pause ever.
    pub pause_max: Duration,
}

impl Retry {
    /// One try.
    pub const NONE: Retry = Retry {
        within: Duration::ZERO,
        pause_first: Duration::ZERO,
        pause_max: Duration::ZERO,
    };

    /// The pause after try number `tries`, from 1; `chance` in 0..1 picks within the
    /// upper half of what is allowed, so that clients which failed together do
    /// not come back together.
    fn pause(&self, tries: u32, chance: f64) -> Duration {
        let doubled = self
            .pause_first
            .saturating_mul(1 << tries.saturating_sub(1).min(16));
        doubled.min(self.pause_max).mul_f64(0.5 + chance / 2.0)
    }
}

impl Default for Retry {
    /// Long enough for a replica's death and for the edge to notice it.
    fn default() -> Self {
        Self {
            within: Duration::from_secs(10),
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_secs(2),
        }
    }
}

/// How one try ended.
enum Try {
    Answer(Vec<u8>),
    Refused(ApiError),
    /// Worth another try, unless the time is over.
    Failed(Failure, Option<Duration>),
}

enum Failure {
    Status(ApiError),
    Transport(reqwest::Error),
}

impl Client {
    /// Sends a call until it is answered, refused, or the time is over.
    pub(super) async fn send<B, A>(&self, call: Call<'_, B>) -> Result<A, Error>
    where
        B: Serialize + Sync + ?Sized,
        A: DeserializeOwned,
    {
        let begun = Instant::now();
        let url = self.address(call.path, call.query);
        let request = format!("{} {}", call.method, url.path());
        let key = (call.method != Method::GET).then(|| self.key.unwrap_or_else(Uuid::new_v4));
        let mut tries = 0;
        loop {
            tries += 1;
            let (failure, asked) = match self.try_once(&call, &url, key, &request).await {
                Try::Answer(body) => return parse(request, &body),
                Try::Refused(err) => return Err(Error::Api(Box::new(err))),
                Try::Failed(failure, asked) => (failure, asked),
            };
            let pause = asked.unwrap_or_else(|| self.retry.pause(tries, fastrand::f64()));
            if begun.elapsed() + pause > self.retry.within {
                return Err(match failure {
                    Failure::Status(err) => Error::Api(Box::new(err)),
                    Failure::Transport(source) => Error::Transport {
                        request,
                        tries,
                        source,
                    },
                });
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_once<B: Serialize + Sync + ?Sized>(
        &self,
        call: &Call<'_, B>,
        url: &url::Url,
        key: Option<Uuid>,
        request: &str,
    ) -> Try {
        let mut builder = self
            .http
            .request(call.method.clone(), url.clone())
            .bearer_auth(&self.token)
            .header("accept", "application/json");
        if let Some(key) = key {
            builder = builder.header("idempotency-key", key.to_string());
        }
        if let Some(body) = call.body {
            builder = builder.json(body);
        }
        match builder.send().await {
            Ok(response) => read(response, request).await,
            Err(err) => Try::Failed(Failure::Transport(err), None),
        }
    }
}

async fn read(response: Response, request: &str) -> Try {
    let status = response.status();
    let asked = retry_after(response.headers());
    let id = response
        .headers()
        .get("x-request-id")
        .and_then(|id| id.to_str().ok());
    let request_id = id.unwrap_or_default().to_owned();
    let body = match response.bytes().await {
        Ok(body) => body,
        Err(err) => return Try::Failed(Failure::Transport(err), None),
    };
    if status.is_success() {
        return Try::Answer(body.to_vec());
    }
    let err = ApiError::new(request.to_owned(), status.as_u16(), &request_id, &body);
    match status.as_u16() {
        502..=504 => Try::Failed(Failure::Status(err), asked),
        _ => Try::Refused(err),
    }
}

/// Seconds; the header's other form, a date, is as good as none.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_never_fall_below_half() {
        let retry = Retry::default();
        let ms = |tries, chance| retry.pause(tries, chance).as_millis();
        assert_eq!(
            [ms(1, 0.0), ms(1, 1.0), ms(2, 1.0), ms(3, 1.0)],
            [50, 100, 200, 400]
        );
        assert_eq!([ms(6, 1.0), ms(40, 0.0), ms(40, 1.0)], [2000, 1000, 2000]);
    }

    #[test]
    fn retry_after_is_read_in_seconds() {
        let mut headers = HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        headers.insert(RETRY_AFTER, "3".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(3)));
        headers.insert(
            RETRY_AFTER,
            "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap(),
        );
        assert_eq!(retry_after(&headers), None);
    }
}
