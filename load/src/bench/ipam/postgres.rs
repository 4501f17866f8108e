//! What Postgres says of itself: whether it keeps what it commits, and how much it
//! writes for that.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Config, NoTls};

use crate::bench::BenchError;
use crate::stack::Stack;

/// What a comparison of speeds must say about the server.
const SETTINGS: [&str; 7] = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "shared_buffers",
    "max_connections",
    "server_version",
];

/// Without these a commit is a promise that nobody keeps.
const DURABLE: [&str; 2] = ["fsync", "synchronous_commit"];

/// A backend that fell idle counts what it wrote after ten seconds
/// (`PGSTAT_IDLE_INTERVAL` of Postgres 15).
const COUNTED_AFTER: Duration = Duration::from_secs(11);

/// The longest that backends may take to end.
const ENDED_WITHIN: Duration = Duration::from_secs(10);

/// The WAL's counters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wal {
    pub(crate) flushes: f64,
    pub(crate) records: f64,
    pub(crate) full_pages: f64,
    pub(crate) bytes: f64,
}

impl Wal {
    /// What was written between an earlier state and this one.
    pub(crate) fn since(self, earlier: Self) -> Self {
        self.zip(earlier, |now, then| now - then)
    }

    /// The share of each cycle.
    pub(crate) fn per(self, cycles: f64) -> Self {
        self.zip(self, |wrote, _| wrote / cycles)
    }

    fn zip(self, other: Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            flushes: of(self.flushes, other.flushes),
            records: of(self.records, other.records),
            full_pages: of(self.full_pages, other.full_pages),
            bytes: of(self.bytes, other.bytes),
        }
    }
}

/// A connection with the rights of a replica.
pub(crate) struct Postgres {
    client: Client,
    // Ends with it.
    _connection: JoinSet<()>,
}

impl Postgres {
    pub(crate) async fn connect(stack: &Stack) -> Result<Self, BenchError> {
        let (client, connection) = Config::new()
            .host(stack.address("postgres")?.to_string())
            .user("kontena")
            .password(stack.setting("POSTGRES_PASSWORD")?)
            .dbname("kontena")
            .connect(NoTls)
            .await?;
        let mut task = JoinSet::new();
        // Why it ended is what the next statement fails with.
        task.spawn(async move { drop(connection.await) });
        Ok(Self {
            client,
            _connection: task,
        })
    }

    /// The server's settings, if it keeps what it commits.
    pub(crate) async fn settings(&self) -> Result<Map<String, Value>, BenchError> {
        let mut settings = Map::new();
        for name in SETTINGS {
            let row = self
                .client
                .query_one("select current_setting($1)", &[&name])
                .await?;
            let value: String = row.get(0);
            if DURABLE.contains(&name) && value != "on" {
                return Err(BenchError::Failed(format!("Postgres's {name} is {value}")));
            }
            settings.insert(name.to_owned(), value.into());
        }
        Ok(settings)
    }

    /// Makes an empty database in place of the one of an earlier run.
    pub(crate) async fn database_make(&self, name: &str) -> Result<(), BenchError> {
        for verb in ["drop database if exists", "create database"] {
            self.client.batch_execute(&format!("{verb} {name}")).await?;
        }
        Ok(())
    }

    /// The counters, once every backend of a database has ended: each adds what it
    /// did when it does.
    pub(crate) async fn wal_without(&self, database: &str) -> Result<Wal, BenchError> {
        let end = Instant::now() + ENDED_WITHIN;
        loop {
            let left = "select count(*) from pg_stat_activity where datname = $1";
            let left: i64 = self.client.query_one(left, &[&database]).await?.get(0);
            if left == 0 {
                return self.wal().await;
            }
            if Instant::now() > end {
                let reason = format!("{left} connections to {database} do not end");
                return Err(BenchError::Failed(reason));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The counters, once idle backends have added what they did.
    pub(crate) async fn wal_settled(&self) -> Result<Wal, BenchError> {
        sleep(COUNTED_AFTER).await;
        self.wal().await
    }

    async fn wal(&self) -> Result<Wal, BenchError> {
        let counters = "select wal_sync::float8, wal_records::float8, wal_fpi::float8, \
            wal_bytes::float8 from pg_stat_wal";
        let row = self.client.query_one(counters, &[]).await?;
        Ok(Wal {
            flushes: row.get(0),
            records: row.get(1),
            full_pages: row.get(2),
            bytes: row.get(3),
        })
    }
}
