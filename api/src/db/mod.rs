//! The one door to Postgres.
//!
//! [`Db::tx`] opens a named transaction, runs its body and commits; the name
//! shows in the log. It runs the body again only where that is certain
//! to be right: after a serialisation failure, a deadlock or a connection that
//! failed before COMMIT was sent. A single statement outside of it is a transaction
//! of its own and never run again: whether it was done is open when its answer
//! does not come.
//!
//! Statements come from `schema/queries`. Those that answer things answer one
//! column of JSON, which becomes a type of `schema` or of the caller; those that
//! answer a few plain values have columns.

mod error;
mod migrate;

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
pub use error::DbError;
use kontena_schema::query::{self, Query};
pub use migrate::migrate;
use serde::de::DeserializeOwned;
use tokio_postgres::types::{FromSqlOwned, Json, ToSql};
use tokio_postgres::{NoTls, Row};

/// A parameter of a statement.
pub type Param<'a> = &'a (dyn ToSql + Sync);

/// A boxed future that may borrow the transaction it runs in.
pub type TxFuture<'a, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// How long a request waits for a connection before it is told to come later.
const POOL_WAIT: Duration = Duration::from_secs(3);
/// A transaction that lost this often against others loses for good.
const ATTEMPTS_MAX: u32 = 4;

/// Settings of every connection: no statement and no lock holds others up for
/// long, and a replica that freezes inside a transaction frees its grid.
const SESSION_OPTIONS: &str = "-c statement_timeout=5s -c lock_timeout=3s \
     -c idle_in_transaction_session_timeout=1s -c jit=off -c timezone=UTC";

/// A pool of connections.
#[derive(Clone)]
pub struct Db {
    pool: Pool,
}

impl Db {
    /// A pool for the database at `url` with at most `connections`; it connects
    /// when it is used.
    pub fn new(url: &str, connections: usize) -> Result<Self, DbError> {
        let mut config = tokio_postgres::Config::from_str(url)?;
        config
            .options(SESSION_OPTIONS)
            .application_name("kontena-api");
        config
            .connect_timeout(POOL_WAIT)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3);
        config.tcp_user_timeout(Duration::from_secs(10));
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let pool = Pool::builder(Manager::from_config(config, NoTls, recycling))
            .max_size(connections)
            .wait_timeout(Some(POOL_WAIT))
            .create_timeout(Some(POOL_WAIT))
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a runtime is set, which is all that building can miss");
        Ok(Self { pool })
    }

    /// Runs `body` in the transaction `name` and commits what it did, unless it
    /// fails.
    pub async fn tx<'env, T, E, F>(&self, name: &'static str, body: F) -> Result<T, E>
    where
        E: From<DbError> + Retryable,
        F: for<'a> Fn(&'a Tx<'env>) -> TxFuture<'a, T, E> + Send + Sync,
        T: Send,
    {
        let start = Instant::now();
        let mut attempt = 1;
        loop {
            let outcome = self.attempt(&body).await;
            let retry = attempt < ATTEMPTS_MAX && outcome.as_ref().is_err_and(Retryable::retryable);
            tracing::debug!(tx = name, attempt, ok = outcome.is_ok(), retry, took = ?start.elapsed());
            if !retry {
                return outcome;
            }
            attempt += 1;
        }
    }

    async fn attempt<'env, T, E, F>(&self, body: &F) -> Result<T, E>
    where
        E: From<DbError>,
        F: for<'a> Fn(&'a Tx<'env>) -> TxFuture<'a, T, E>,
    {
        let tx = Tx::new(self.pool.get().await.map_err(DbError::from)?);
        match body(&tx).await {
            Ok(value) => {
                tx.commit().await?;
                Ok(value)
            }
            Err(error) => {
                tx.rollback().await;
                Err(error)
            }
        }
    }

    /// The rows of a single statement outside of any transaction.
    pub async fn all<T: DeserializeOwned>(
        &self,
        query: &Query,
        params: &[Param<'_>],
    ) -> Result<Vec<T>, DbError> {
        self.rows(query, params).await?.iter().map(json).collect()
    }

    /// The raw rows of a single statement outside of any transaction.
    pub async fn rows(&self, query: &Query, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(query.sql).await?;
        Ok(client.query(&statement, params).await?)
    }

    /// Runs a single statement and counts the rows that it changed.
    pub async fn execute(&self, query: &Query, params: &[Param<'_>]) -> Result<u64, DbError> {
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(query.sql).await?;
        Ok(client.execute(&statement, params).await?)
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), DbError> {
        self.rows(&query::PING, &[]).await.map(drop)
    }
}

/// Whether running a whole transaction again is right after an error.
pub trait Retryable {
    /// True for failures that another attempt can mend.
    fn retryable(&self) -> bool;
}

impl Retryable for DbError {
    fn retryable(&self) -> bool {
        self.is_retryable()
    }
}

/// An open transaction. `'env` is what its body may borrow from outside.
pub struct Tx<'env> {
    /// None once the transaction has ended.
    client: Option<Object>,
    /// Whether BEGIN was sent.
    begun: AtomicBool,
    /// Whether COMMIT went through already.
    committed: AtomicBool,
    /// Contravariant: a transaction with a shorter environment serves a body that
    /// may borrow for longer.
    env: PhantomData<fn(&'env ())>,
}

impl Tx<'_> {
    fn new(client: Object) -> Self {
        Self {
            client: Some(client),
            begun: AtomicBool::new(false),
            committed: AtomicBool::new(false),
            env: PhantomData,
        }
    }

    /// Runs a statement. BEGIN travels with the first one: both are on their way
    /// before either is answered.
    async fn begun<T>(
        &self,
        statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DbError> {
        if self.begun.swap(true, Ordering::Relaxed) {
            return Ok(statement.await?);
        }
        let begin = self.client().batch_execute("begin");
        let (begun, done) = futures_util::join!(begin, statement);
        begun?;
        Ok(done?)
    }

    /// A failure from here on leaves open whether the change was made; it is not
    /// tried again, and the client's idempotency key settles it.
    async fn commit(mut self) -> Result<(), DbError> {
        if !self.begun.load(Ordering::Relaxed) || self.committed.load(Ordering::Relaxed) {
            self.client = None;
            return Ok(());
        }
        self.client()
            .batch_execute("commit")
            .await
            .map_err(DbError::commit)?;
        self.client = None;
        Ok(())
    }

    async fn rollback(mut self) {
        if !self.begun.load(Ordering::Relaxed)
            || self.client().batch_execute("rollback").await.is_ok()
        {
            self.client = None;
        }
    }

    fn client(&self) -> &Object {
        self.client
            .as_ref()
            .expect("it is taken only by what consumes or drops the transaction")
    }

    /// All rows of a statement.
    pub async fn all<T: DeserializeOwned>(
        &self,
        query: &Query,
        params: &[Param<'_>],
    ) -> Result<Vec<T>, DbError> {
        self.rows(query, params).await?.iter().map(json).collect()
    }

    /// The row of a statement, if there is one.
    pub async fn optional<T: DeserializeOwned>(
        &self,
        query: &Query,
        params: &[Param<'_>],
    ) -> Result<Option<T>, DbError> {
        self.rows(query, params)
            .await?
            .first()
            .map(json)
            .transpose()
    }

    /// The row of a statement that always answers one.
    pub async fn one<T: DeserializeOwned>(
        &self,
        query: &Query,
        params: &[Param<'_>],
    ) -> Result<T, DbError> {
        self.optional(query, params)
            .await?
            .ok_or(DbError::NoRow(query.name))
    }

    /// The first column of the row of a statement, if there is one.
    pub async fn value<T: FromSqlOwned>(
        &self,
        query: &Query,
        params: &[Param<'_>],
    ) -> Result<Option<T>, DbError> {
        Ok(self
            .rows(query, params)
            .await?
            .first()
            .map(|row| row.try_get(0))
            .transpose()?)
    }

    /// The first column of all rows of a statement.
    pub async fn values<T: FromSqlOwned>(
        &self,
        query: &Query,
        params: &[Param<'_>],
    ) -> Result<Vec<T>, DbError> {
        let rows = self.rows(query, params).await?;
        Ok(rows
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?)
    }

    /// The raw rows of a statement.
    pub async fn rows(&self, query: &Query, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let statement = self.client().prepare_cached(query.sql).await?;
        self.begun(self.client().query(&statement, params)).await
    }

    /// The raw rows of the transaction's last statement. COMMIT is on its way before
    /// they are answered, so the body must not fail after it.
    pub async fn rows_and_commit(
        &self,
        query: &Query,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, DbError> {
        let statement = self.client().prepare_cached(query.sql).await?;
        let last = self.begun(self.client().query(&statement, params));
        let commit = self.client().batch_execute("commit");
        let (rows, committed) = futures_util::join!(last, commit);
        // Postgres turns the COMMIT of a failed transaction into a rollback; what it did not
        // answer at all may have been done.
        let rows = rows.map_err(|error| match error {
            DbError::Statement(error) => DbError::commit(error),
            other => other,
        })?;
        committed.map_err(DbError::commit)?;
        self.committed.store(true, Ordering::Relaxed);
        Ok(rows)
    }

    /// Runs a statement that must change exactly so many rows. Another count means
    /// that something was written without its lock: the transaction is undone.
    pub async fn execute_exactly(
        &self,
        expected: usize,
        query: &Query,
        params: &[Param<'_>],
    ) -> Result<(), DbError> {
        let changed = self.execute(query, params).await?;
        if usize::try_from(changed).ok() == Some(expected) {
            return Ok(());
        }
        Err(DbError::RowCount {
            query: query.name,
            changed,
            expected,
        })
    }

    /// Runs a statement and counts the rows that it changed.
    pub async fn execute(&self, query: &Query, params: &[Param<'_>]) -> Result<u64, DbError> {
        let statement = self.client().prepare_cached(query.sql).await?;
        self.begun(self.client().execute(&statement, params)).await
    }
}

impl Drop for Tx<'_> {
    /// A transaction that did not end takes its connection with it: the server
    /// rolls back, and the pool never lends out a connection inside one.
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            drop(Object::take(client));
        }
    }
}

fn json<T: DeserializeOwned>(row: &Row) -> Result<T, DbError> {
    let Json(value) = row.try_get::<_, Json<T>>(0)?;
    Ok(value)
}
