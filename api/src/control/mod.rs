//! The rules: what a request or a report changes, each in one named transaction.
//!
//! A control function locks the grid, decides, writes, and stamps the rows that
//! agents must know with the grid's next revision. It knows no HTTP and no
//! sockets. Names are the same everywhere: operation, function, transaction.

pub mod address;
mod batch;
pub mod command;
pub mod container;
pub mod deploy;
mod error;
pub mod grid;
pub mod key;
pub mod lane;
pub mod lease;
mod links;
pub mod loss;
pub mod node;
mod overlap;
pub mod ping;
pub mod placement;
pub mod report;
pub mod reservation;
mod returning;
pub mod schedule;
pub mod service;
pub mod session;
pub mod stack;
mod subnets;
pub mod trust;

use std::sync::atomic::{AtomicI64, Ordering};

pub use error::{ControlError, constraint_fault};
use ipnetwork::Ipv4Network;
use kontena_schema::address::InnerSubnet;
use kontena_schema::ids::{GridId, Revision};
use kontena_schema::query;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::db::{Db, DbError, Tx, TxFuture};

/// Who asks for a change, and the key under which the answer is kept.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who asks; keys of different callers do not meet.
    pub actor: String,
    /// The `Idempotency-Key`, and what it was used for.
    pub idempotency: Option<IdempotencyKey>,
}

/// A client's key for one request.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    key: String,
    request_hash: Vec<u8>,
}

impl IdempotencyKey {
    /// The key of a request to `method` and `path` with this body.
    pub fn new(key: String, method: &str, path: &str, body: &[u8]) -> Self {
        let mut hash = Sha256::new();
        for part in [method.as_bytes(), b" ", path.as_bytes(), b"\n", body] {
            hash.update(part);
        }
        Self {
            key,
            request_hash: hash.finalize().to_vec(),
        }
    }
}

/// What a transaction answers, and the revision that it brought its grid to.
pub struct Changed<T> {
    /// The answer.
    pub value: T,
    /// The grid to wake, if agents must know.
    pub ring: Option<(GridId, Revision)>,
}

/// What the control functions need of a grid, read under its lock.
#[derive(Clone, Debug, Deserialize)]
pub struct GridRow {
    /// The grid.
    pub id: GridId,
    /// Its name.
    pub name: String,
    /// What may be allocated.
    pub subnet: Ipv4Network,
    /// The on-link prefix of overlay interfaces.
    pub supernet: Ipv4Network,
    /// The addresses of nodes inside encrypted paths.
    pub inner_subnet: InnerSubnet,
    /// Its revision before this transaction.
    pub revision: Revision,
    /// Where the overlay may run in clear.
    pub trusted_subnets: Vec<Ipv4Network>,
}

impl GridRow {
    /// What a network must not be that is to be trusted, or is already.
    fn own(&self) -> subnets::Own<'_> {
        subnets::Own {
            subnet: self.subnet,
            inner: self.inner_subnet,
            trusted: &self.trusted_subnets,
        }
    }
}

/// A locked grid inside a transaction.
pub struct LockedGrid<'a, 'env> {
    /// The transaction.
    pub tx: &'a Tx<'env>,
    /// The grid.
    pub row: GridRow,
    /// The revision of this transaction, 0 until something is stamped.
    stamp: AtomicI64,
}

impl<'a, 'env> LockedGrid<'a, 'env> {
    /// Locks a grid by its name.
    pub async fn by_name(tx: &'a Tx<'env>, name: &'env str) -> Result<Self, ControlError> {
        let row = tx.optional(&query::GRID_LOCK, &[&name]).await?;
        let row = row.ok_or_else(|| ControlError::not_found("grid", name))?;
        Ok(Self {
            tx,
            row,
            stamp: AtomicI64::new(0),
        })
    }

    /// Locks a grid by its id.
    pub async fn by_id(tx: &'a Tx<'env>, id: GridId) -> Result<Self, ControlError> {
        let row = tx.optional(&query::GRID_LOCK_BY_ID, &[&id]).await?;
        let row = row.ok_or_else(|| ControlError::not_found("grid", id.to_string()))?;
        Ok(Self {
            tx,
            row,
            stamp: AtomicI64::new(0),
        })
    }

    /// The revision of this transaction's changes; the grid's revision rises with
    /// the first call.
    pub async fn stamp(&self) -> Result<Revision, ControlError> {
        let stamped = self.stamp.load(Ordering::Relaxed);
        if stamped > 0 {
            return Ok(Revision(stamped));
        }
        let revision = self
            .tx
            .value::<i64>(&query::GRID_STAMP, &[&self.row.id])
            .await?;
        let revision = revision.ok_or(DbError::NoRow(query::GRID_STAMP.name))?;
        self.stamp.store(revision, Ordering::Relaxed);
        Ok(Revision(revision))
    }

    /// A statement stamped rows with `revision`, unless it is 0.
    pub fn stamped(&self, revision: i64) {
        self.stamp.fetch_max(revision, Ordering::Relaxed);
    }

    /// The grid's revision with what this transaction stamped.
    pub fn revision(&self) -> Revision {
        self.row
            .revision
            .max(Revision(self.stamp.load(Ordering::Relaxed)))
    }

    /// Ends the work on the grid with an answer.
    pub fn changed<T>(&self, value: T) -> Changed<T> {
        let stamp = self.stamp.load(Ordering::Relaxed);
        Changed {
            value,
            ring: (stamp > 0).then_some((self.row.id, Revision(stamp))),
        }
    }
}

/// Runs a change: the answer of an earlier request with the same key, or that of
/// `body`, which is stored in the same transaction; then rings.
pub async fn change<'env, T, F>(
    app: &App,
    call: &'env Call,
    name: &'static str,
    body: F,
) -> Result<T, ControlError>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'env,
    F: for<'a> Fn(&'a Tx<'env>) -> TxFuture<'a, Changed<T>, ControlError> + Send + Sync,
{
    let body = &body;
    let changed: Changed<T> = app
        .db
        .tx::<_, ControlError, _>(name, move |tx| {
            let run = body(tx);
            let claim = claim(tx, call);
            Box::pin(async move {
                if let Some(earlier) = claim.await? {
                    return Ok(Changed {
                        value: earlier,
                        ring: None,
                    });
                }
                let changed = run.await?;
                store(tx, call, &changed.value).await?;
                Ok(changed)
            })
        })
        .await?;
    app.bell.ring_changed(changed.ring);
    Ok(changed.value)
}

/// Takes the call's key, or reads the answer that it was used for.
async fn claim<T: DeserializeOwned>(tx: &Tx<'_>, call: &Call) -> Result<Option<T>, ControlError> {
    let Some(used) = &call.idempotency else {
        return Ok(None);
    };
    let IdempotencyKey { key, request_hash } = used;
    let claim = &query::IDEMPOTENCY_CLAIM;
    if tx.execute(claim, &[&call.actor, key, request_hash]).await? == 1 {
        return Ok(None);
    }
    replay(tx, call, used).await.map(Some)
}

/// The answer that a key was used for.
pub(crate) async fn replay<T: DeserializeOwned>(
    tx: &Tx<'_>,
    call: &Call,
    IdempotencyKey { key, request_hash }: &IdempotencyKey,
) -> Result<T, ControlError> {
    let rows = tx
        .rows(&query::IDEMPOTENCY_SHOW, &[&call.actor, key])
        .await?;
    let row = rows
        .first()
        .ok_or(DbError::NoRow(query::IDEMPOTENCY_SHOW.name))?;
    if row.get::<_, Vec<u8>>(0) != *request_hash {
        let message = "this Idempotency-Key was used for another request".to_owned();
        return Err(ControlError::Conflict {
            code: "idempotency_key_reused",
            message,
        });
    }
    let body: serde_json::Value = row.get(2);
    let answer = serde_json::from_value(body).map_err(|error| ControlError::Conflict {
        code: "idempotency_key_reused",
        message: format!(
            "the answer stored under this Idempotency-Key is of another kind: {error}"
        ),
    })?;
    Ok(answer)
}

async fn store<T: Serialize>(tx: &Tx<'_>, call: &Call, answer: &T) -> Result<(), ControlError> {
    let Some(IdempotencyKey { key, .. }) = &call.idempotency else {
        return Ok(());
    };
    let body = serde_json::to_value(answer).expect("answers are plain JSON types");
    tx.execute(
        &query::IDEMPOTENCY_STORE,
        &[&call.actor, key, &200_i16, &body],
    )
    .await?;
    Ok(())
}

/// Reads `kind` `name`, which must be there.
pub(crate) async fn show<T: DeserializeOwned>(
    db: &Db,
    query: &query::Query,
    params: &[crate::db::Param<'_>],
    kind: &'static str,
    name: &str,
) -> Result<T, ControlError> {
    let mut rows = db.all(query, params).await?;
    if rows.is_empty() {
        return Err(ControlError::not_found(kind, name));
    }
    Ok(rows.swap_remove(0))
}
