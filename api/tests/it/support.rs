//! A Master per test.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use kontena_api::config::{DatabaseConfig, ServeConfig, Timers};
use kontena_api::db;
use kontena_api::serve::Replica;
use kontena_schema::agent::{
    Changes, Facts, FromAgent, Health, Hello, InstanceState, PROTOCOL, PeerReport, PlacementReport,
    Position, Report, ToAgent, Welcome,
};
use kontena_schema::ids::{PlacementId, Revision};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use uuid::Uuid;

pub const ADMIN: &str = "admin-token-of-the-tests";

/// The longest that anything here may take.
const WITHIN: Duration = Duration::from_secs(20);

fn setting(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set; run the tests with make test"))
}

/// A database of its own. It stays until the stack of the tests goes: dropping one
/// waits for every process of the server, which took up to a minute (Postgres 15,
/// wait event ProcSignalBarrier).
pub struct Database {
    pub url: String,
}

impl Database {
    pub async fn create() -> Self {
        let admin = setting("KONTENA_TEST_DATABASE_URL");
        let template = template(&admin).await;
        let name = format!("test_{}", Uuid::new_v4().simple());
        let client = connect(&admin).await;
        // Cloning needs the template for itself: others may be cloning it now.
        client
            .execute("select pg_advisory_lock(7041777)", &[])
            .await
            .unwrap();
        let create = format!("create database {name} template {template}");
        client.batch_execute(&create).await.unwrap();
        let url = with_database(&admin, &name);
        Self { url }
    }
}

pub async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn with_database(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

/// The migrated template of exactly these migrations.
async fn template(admin: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/migrations");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(std::fs::read(file).unwrap());
    }
    let digest: String = hash.finalize()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = format!("template_{digest}");
    let client = connect(admin).await;
    client
        .execute("select pg_advisory_lock(7041778)", &[])
        .await
        .unwrap();
    let done = client
        .query("select from pg_database where datname = $1", &[&name])
        .await
        .unwrap();
    if done.is_empty() {
        let building = format!("{name}_building");
        client
            .batch_execute(&format!("drop database if exists {building}"))
            .await
            .unwrap();
        client
            .batch_execute(&format!("create database {building}"))
            .await
            .unwrap();
        db::migrate(&with_database(admin, &building)).await.unwrap();
        let rename = format!("alter database {building} rename to {name}");
        poll("the template is free", async || {
            client.batch_execute(&rename).await.ok()
        })
        .await;
    }
    name
}

/// Asks until there is an answer.
pub async fn poll<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + WITHIN;
    loop {
        if let Some(value) = ask().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < end, "in vain: {what}");
        // Between two looks at a state, which have a bound.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A running replica.
pub struct TestReplica {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl TestReplica {
    /// Stops as on SIGTERM and waits until it has.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(WITHIN, &mut self.serving)
            .await
            .unwrap()
            .unwrap();
    }
}

impl Drop for TestReplica {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A Master with its own database and Redis prefix.
pub struct Master {
    pub replicas: Vec<TestReplica>,
    timers: Timers,
    pub redis_prefix: String,
    redis_url: String,
    client: reqwest::Client,
    pub database: Database,
}

impl Master {
    pub async fn start() -> Self {
        Self::with_replicas(1, &setting("KONTENA_TEST_REDIS_URL")).await
    }

    /// A Master that loses nodes and replicas within seconds: shorter, and a busy
    /// machine makes a replica give up its sessions.
    pub async fn quick(replicas: usize) -> Self {
        let mut master = Self::with_replicas(0, &setting("KONTENA_TEST_REDIS_URL")).await;
        master.timers = Timers {
            replica_ttl: Duration::from_millis(2500),
            tick: Duration::from_millis(50),
            replica_loss: Duration::from_millis(1500),
        };
        for _ in 0..replicas {
            master.add_replica().await;
        }
        master
    }

    pub async fn with_replicas(count: usize, redis_url: &str) -> Self {
        let database = Database::create().await;
        let redis_prefix = format!("test-{}", Uuid::new_v4().simple());
        let client = http_client();
        let redis_url = redis_url.to_owned();
        let mut master = Self {
            replicas: vec![],
            timers: Timers::default(),
            redis_prefix,
            redis_url,
            client,
            database,
        };
        for _ in 0..count {
            master.add_replica().await;
        }
        master
    }

    pub async fn add_replica(&mut self) {
        let config = ServeConfig {
            database: DatabaseConfig {
                database_url: self.database.url.clone().into(),
            },
            database_connections: 6,
            redis_url: self.redis_url.clone().into(),
            redis_prefix: self.redis_prefix.clone(),
            secret: "a secret of the tests, long enough to sign"
                .to_owned()
                .into(),
            admin_token: ADMIN.to_owned().into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            timers: self.timers,
        };
        let replica = Replica::start(&config).await.unwrap();
        let address = replica.address().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stop = async { drop(stopped.await) };
            replica.serve(stop).await.unwrap();
        });
        self.replicas.push(TestReplica {
            address,
            stop: Some(stop),
            serving,
        });
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.request_to(&self.replicas[0], method, path)
    }

    pub fn request_to(
        &self,
        replica: &TestReplica,
        method: Method,
        path: &str,
    ) -> reqwest::RequestBuilder {
        let address = replica.address;
        self.client
            .request(method, format!("http://{address}{path}"))
            .bearer_auth(ADMIN)
    }

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(Method::POST, path, Some(body)).await;
        assert!(status.is_success(), "{path}: {status} {answer}");
        answer
    }

    pub async fn delete(&self, path: &str) -> Value {
        let (status, answer) = self.call(Method::DELETE, path, None).await;
        assert!(status.is_success(), "{path}: {status} {answer}");
        answer
    }

    /// Creates a grid and answers its join token.
    pub async fn grid(&self, name: &str) -> String {
        let grid = self
            .post("/v1/grids", serde_json::json!({ "name": name }))
            .await;
        grid["token"].as_str().unwrap().to_owned()
    }

    pub async fn sql(&self) -> tokio_postgres::Client {
        connect(&self.database.url).await
    }
}

/// A client without a proxy; TLS is not used but must be chosen.
pub fn http_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(WITHIN)
        .no_proxy()
        .build()
        .unwrap()
}

pub async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    (status, response.json().await.unwrap_or(Value::Null))
}

/// An agent that speaks the real protocol and has no host.
pub struct TestAgent {
    pub socket: WebSocketStream<TcpStream>,
    pub welcome: Welcome,
    pub at: Option<Position>,
}

pub fn hello(engine: &str, position: Option<Position>) -> Hello {
    Hello {
        protocol: PROTOCOL,
        engine_id: engine.to_owned(),
        boot_id: "boot".to_owned(),
        instance: None,
        connection: 0,
        position,
        facts: facts(engine),
        inventory: vec![],
    }
}

pub fn facts(engine: &str) -> Facts {
    Facts {
        hostname: format!("host-{engine}"),
        agent_version: "0.1.0".to_owned(),
        docker_version: "20.10".to_owned(),
        kernel_version: "6.1".to_owned(),
        os: "Debian".to_owned(),
        labels: vec!["region=fi".to_owned()],
        region: "fi".to_owned(),
        public_ip: None,
        private_ip: Some("10.1.0.1".parse().unwrap()),
        behind_nat: None,
        cpus: 2,
        mem_total_bytes: 1 << 30,
        keys: None,
        networks: None,
    }
}

/// The close code that a connection ended with.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed(pub u16, pub String);

impl TestAgent {
    pub async fn connect(
        replica: &TestReplica,
        token: &str,
        hello: &Hello,
    ) -> Result<Self, Closed> {
        let text = serde_json::to_string(&FromAgent::Hello(Box::new(hello.clone()))).unwrap();
        let at = hello.position.clone();
        let agent = Self::say(replica, token, &text).await?;
        Ok(Self { at, ..agent })
    }

    /// Begins with a text, which need not be a `hello`.
    pub async fn say(replica: &TestReplica, token: &str, text: &str) -> Result<Self, Closed> {
        let mut request = format!("ws://{}/v1/agent", replica.address)
            .into_client_request()
            .unwrap();
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        let stream = TcpStream::connect(replica.address).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
            .await
            .unwrap();
        // A bad token is told by a close, perhaps before this is read.
        let _ = socket.send(Message::text(text)).await;
        match receive(&mut socket).await? {
            ToAgent::Welcome(welcome) => Ok(Self {
                socket,
                welcome: *welcome,
                at: None,
            }),
            ToAgent::Changes(changes) => panic!("changes before welcome: {changes:?}"),
        }
    }

    /// Joins with a token and takes the first answer.
    pub async fn join(replica: &TestReplica, token: &str, engine: &str) -> (Self, Changes) {
        let mut agent = Self::connect(replica, token, &hello(engine, None))
            .await
            .unwrap();
        let changes = agent.changes().await;
        assert_eq!(changes.from, Revision::ZERO);
        (agent, changes)
    }

    pub async fn changes(&mut self) -> Changes {
        match receive(&mut self.socket).await.unwrap() {
            ToAgent::Changes(changes) => {
                let at = self.at.as_ref().map_or(Revision::ZERO, |at| at.revision);
                assert!(
                    changes.from == at || changes.from == Revision::ZERO,
                    "{changes:?}"
                );
                assert!(
                    changes.to > at || changes.from == Revision::ZERO,
                    "{changes:?}"
                );
                self.at = Some(Position {
                    grid: self.welcome.grid,
                    timeline: changes.timeline.clone(),
                    revision: changes.to,
                });
                *changes
            }
            ToAgent::Welcome(_) => panic!("a second welcome"),
        }
    }

    /// Takes changes until they hold what is looked for.
    pub async fn until<T>(&mut self, mut found: impl FnMut(&Changes) -> Option<T>) -> T {
        loop {
            if let Some(value) = found(&self.changes().await) {
                return value;
            }
        }
    }

    pub async fn send(&mut self, message: &FromAgent) {
        let text = serde_json::to_string(message).unwrap();
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// Reports the state of placements.
    pub async fn report(&mut self, placements: Vec<PlacementReport>) {
        self.tell(placements, vec![]).await;
    }

    /// Reports paths to peers.
    pub async fn report_peers(&mut self, peers: Vec<PeerReport>) {
        self.tell(vec![], peers).await;
    }

    async fn tell(&mut self, placements: Vec<PlacementReport>, peers: Vec<PeerReport>) {
        let applied = self.at.as_ref().map_or(Revision::ZERO, |at| at.revision);
        let report = Report {
            applied,
            placements,
            commands: vec![],
            peers,
        };
        self.send(&FromAgent::Report(Box::new(report))).await;
    }

    pub async fn closed(&mut self) -> Closed {
        loop {
            match receive(&mut self.socket).await {
                Ok(_) => {}
                Err(closed) => return closed,
            }
        }
    }
}

pub fn state(placement: PlacementId, revision: i64, state: InstanceState) -> PlacementReport {
    PlacementReport {
        placement,
        service_revision: kontena_schema::ids::ServiceRevision(revision),
        lease: None,
        state,
        health: Health::Unknown,
        container_id: None,
        container_name: None,
        error: None,
    }
}

async fn receive(socket: &mut WebSocketStream<TcpStream>) -> Result<ToAgent, Closed> {
    let frame = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err(Closed(frame.code.into(), frame.reason.to_string()));
                }
                Some(Ok(_)) => {}
                other => return Err(Closed(0, format!("{other:?}"))),
            }
        }
    };
    tokio::time::timeout(WITHIN, frame)
        .await
        .expect("a frame in time")
}
