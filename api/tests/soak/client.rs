//! An HTTP client that never gives up before it knows. It sends a change to one
//! replica after the other, always with the same key, until one says what became of
//! it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::world::{ADMIN, World};

/// How long an attempt may take: the grid's lock may be held by a frozen replica for a
/// second. Later attempts of one request are more patient.
const ATTEMPT: Duration = Duration::from_millis(1500);
const ATTEMPT_MAX: Duration = Duration::from_secs(6);
/// The longest that a request may go without an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);
/// How long a request of which nothing was heard may still be carried out: a
/// replica waits 3 s for a connection and as long for a lock.
const SETTLED: Duration = Duration::from_secs(7);
/// How long a replica that did not answer is left alone.
const SHUNNED_MS: u64 = 1500;

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Done(Value),
    /// With its code and figures.
    Refused(String, Value),
}

impl Answer {
    /// The answer, or the code of the refusal.
    pub fn outcome(self) -> Result<Value, String> {
        match self {
            Self::Done(value) => Ok(value),
            Self::Refused(code, _) => Err(code),
        }
    }
}

/// Attempts of which nothing was heard: when each was sent and where to, and how often
/// that replica had died before.
type Unheard = Vec<(usize, u64, usize)>;

/// In place of the deaths of a replica that said itself that it could not: whatever it
/// began has ended.
const NEVER: usize = usize::MAX;

pub struct Client {
    world: Arc<World>,
    http: reqwest::Client,
    /// Replicas that did not answer, until when they are left alone.
    shunned: std::sync::Mutex<BTreeMap<usize, u64>>,
}

/// An attempt of which nothing was heard: the replica, when it was sent, and how often
/// that had died before.
pub struct Doubt(usize, u64, usize);

impl Client {
    pub fn new(world: &Arc<World>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            world: Arc::clone(world),
            http: reqwest::Client::builder()
                .no_proxy()
                .tcp_nodelay(true)
                .build()
                .unwrap(),
            shunned: std::sync::Mutex::default(),
        }
    }

    pub async fn get(&self, path: &str) -> Result<Value, String> {
        self.ask(&Method::GET, path, None).await.outcome()
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(&Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.ask(&Method::DELETE, path, None).await
    }

    async fn ask(&self, method: &Method, path: &str, body: Option<Value>) -> Answer {
        let key = Uuid::new_v4().to_string();
        let end = Instant::now() + ANSWER_WITHIN;
        let mut unheard: Unheard = Vec::new();
        let mut attempts = 0;
        loop {
            assert!(
                Instant::now() < end,
                "no answer to {method} {path} in {ANSWER_WITHIN:?}"
            );
            attempts += 1;
            let replica = self.choose();
            let died = self.world.replicas[replica].deaths.load(Ordering::SeqCst);
            let sent = self.world.now_ms();
            let patience = (ATTEMPT * attempts).min(ATTEMPT_MAX);
            let answer = self.attempt(replica, method, path, body.as_ref(), Some(&key), patience);
            match answer.await {
                Some(Some(refused @ Answer::Refused(..))) if *method != Method::GET => {
                    if !self.settle(&mut unheard).await {
                        return refused;
                    }
                }
                Some(Some(answer)) => return answer,
                Some(None) => {
                    unheard.push((replica, sent, NEVER));
                    // As it was told: to try again later.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                None => {
                    self.shun(replica);
                    unheard.push((replica, sent, died));
                    // While a connection is refused, trying again costs nothing but load.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Asks once and without a key. If nothing is heard, it may have been carried out, or
    /// may yet be.
    pub async fn once(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Doubt> {
        let replica = self.choose();
        let died = self.world.replicas[replica].deaths.load(Ordering::SeqCst);
        let doubt = Doubt(replica, self.world.now_ms(), died);
        match self
            .attempt(replica, method, path, body, None, ATTEMPT_MAX)
            .await
        {
            Some(Some(answer)) => Ok(answer),
            Some(None) => Err(doubt),
            None => {
                self.shun(replica);
                Err(doubt)
            }
        }
    }

    /// Waits until nothing that was not heard of is on its way any more.
    pub async fn certain(&self, doubts: Vec<Doubt>) {
        let attempts = doubts
            .into_iter()
            .map(|Doubt(replica, sent, died)| (replica, sent, died));
        self.settle(&mut attempts.collect()).await;
    }

    /// A refusal is not kept under the key: an earlier attempt that is still on its way
    /// may yet be carried out. Waits until there is none, and answers whether there
    /// was one.
    async fn settle(&self, unheard: &mut Unheard) -> bool {
        let doubtful = |&(replica, sent, died): &(usize, u64, usize)| {
            let replica = &self.world.replicas[replica];
            replica.deaths.load(Ordering::SeqCst) == died
                && replica.may_still_act(sent, self.world.now_ms(), SETTLED)
        };
        let before = unheard.len();
        unheard.retain(doubtful);
        let waited = !unheard.is_empty();
        while !unheard.is_empty() {
            // It ends by time alone: there is nothing to wait for but the clock.
            tokio::time::sleep(Duration::from_millis(50)).await;
            unheard.retain(doubtful);
        }
        waited || before > 0
    }

    fn choose(&self) -> usize {
        let now = self.world.now_ms();
        let shunned = self.shunned.lock().unwrap();
        let mut replica = self.world.turn();
        for _ in 1..self.world.replicas.len() {
            if shunned.get(&replica).is_none_or(|until| *until < now) {
                break;
            }
            replica = (replica + 1) % self.world.replicas.len();
        }
        replica
    }

    fn shun(&self, replica: usize) {
        let until = self.world.now_ms() + SHUNNED_MS;
        self.shunned.lock().unwrap().insert(replica, until);
    }

    /// None, if nothing was heard of it; no answer, if the replica could not give one.
    async fn attempt(
        &self,
        replica: usize,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
        patience: Duration,
    ) -> Option<Option<Answer>> {
        let address = self.world.replicas[replica].front.address;
        let mut request = self
            .http
            .request(method.clone(), format!("http://{address}{path}"))
            .timeout(patience)
            .bearer_auth(ADMIN);
        if let Some(key) = key.filter(|_| *method != Method::GET) {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.ok()?;
        let status = response.status();
        let body: Value = response.json().await.ok()?;
        if status.is_success() {
            return Some(Some(Answer::Done(body)));
        }
        let code = body["code"].as_str().unwrap_or_default().to_owned();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            let failure = format!("{method} {path}: {body}");
            self.world.fail(failure);
        }
        let later = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        Some((!later).then(|| Answer::Refused(code, body["details"].clone())))
    }
}
