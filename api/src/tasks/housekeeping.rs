//! What every replica does once in a while. Any of them may do it, none has to:
//! each statement takes what is there and leaves the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kontena_schema::ids::{Epoch, GridId, NodeId, Revision};
use kontena_schema::limits::HELLO_WITHIN;
use kontena_schema::query;
use tokio::time::{Instant, timeout, timeout_at};

use crate::app::App;
use crate::control::LockedGrid;
use crate::control::key::next_keys_known;
use crate::control::loss::nodes_lose;
use crate::db::{DbError, Param};

/// How often old rows are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Months of the ledger that are kept besides the current one.
const LEDGER_MONTHS: i32 = 13;
/// How long an agent may be away and still be answered with changes only.
const TOMBSTONES_KEPT: Duration = Duration::from_hours(1);
/// How long a ping can be looked at; nobody waits longer than a minute for one.
const PINGS_KEPT: Duration = Duration::from_hours(1);

/// Reads the revisions of all grids that have sessions here and wakes those that
/// are behind: the floor under everything that a lost bell costs.
pub async fn tick(app: Arc<App>) {
    let mut interval = tokio::time::interval(app.timers.tick);
    loop {
        interval.tick().await;
        if let Err(error) = look(&app).await {
            tracing::warn!(%error, "tick");
        }
    }
}

async fn look(app: &App) -> Result<(), DbError> {
    let grids = app.hub.grids();
    if grids.is_empty() {
        return Ok(());
    }
    let rows = app.db.rows(&query::GRID_REVISIONS, &[&grids]).await?;
    let known: HashMap<GridId, Revision> =
        rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for grid in grids {
        // A grid that is no more wakes its sessions too, which then end.
        app.hub
            .settle(grid, known.get(&grid).copied().unwrap_or(Revision(-1)));
    }
    let (nodes, epochs): (Vec<NodeId>, Vec<Epoch>) = app.hub.sessions().into_iter().unzip();
    for row in app
        .db
        .rows(&query::SESSION_SUPERSEDED, &[&nodes, &epochs])
        .await?
    {
        app.hub.doubt(row.get(0), row.get(1));
    }
    Ok(())
}

/// Keeps this replica's row alive, and closes its sessions when that fails for so
/// long that others may take them for lost.
pub async fn renew(app: Arc<App>) {
    let mut interval = tokio::time::interval(app.timers.renew_every());
    let mut renewed = Instant::now();
    loop {
        interval.tick().await;
        let asked = Instant::now();
        // Others may take the sessions for lost after the TTL: before that, every
        // attempt is over.
        let last = renewed + app.timers.replica_ttl - app.timers.renew_every();
        match timeout_at(last, app.db.execute(&query::REPLICA_RENEW, &[&app.replica])).await {
            Ok(Ok(_)) => {
                renewed = asked;
                app.renewed();
                continue;
            }
            Ok(Err(error)) => tracing::warn!(%error, "this replica's row is not renewed"),
            Err(_) => tracing::warn!("this replica's row was not renewed in time"),
        }
        app.renewal_failed();
        if Instant::now() + app.timers.renew_every() >= last {
            app.hub.close_all();
            renewed = Instant::now();
        }
    }
}

/// Ends what is overdue and forgets what is old.
pub async fn forget(app: Arc<App>) {
    let mut interval = tokio::time::interval(app.timers.tick);
    let mut forgotten = None;
    loop {
        interval.tick().await;
        if let Err(error) = unwritten(&app).await {
            tracing::warn!(%error, "the end of a session stays unwritten");
        }
        if let Err(error) = overdue(&app).await {
            tracing::warn!(%error, "overdue rows stay");
        }
        if let Err(error) = next_keys_known(&app).await {
            tracing::warn!(%error, "nodes wait for the word that their next keys are known");
        }
        if forgotten.is_none_or(|at: Instant| at.elapsed() >= FORGET_EVERY) {
            forgotten = Some(Instant::now());
            if let Err(error) = old(&app).await {
                tracing::warn!(%error, "old rows stay");
            }
        }
    }
}

/// Ends the sessions whose end could not be written when it came.
async fn unwritten(app: &App) -> Result<(), DbError> {
    let (nodes, epochs): (Vec<NodeId>, Vec<Epoch>) = app.hub.sessions().into_iter().unzip();
    let opening = HELLO_WITHIN.as_secs_f64();
    let at_least_ms = app.timers.replica_loss_ms();
    let params: [Param; 5] = [&app.replica, &opening, &nodes, &epochs, &at_least_ms];
    let ended = app.db.execute(&query::SESSION_FORGET, &params).await?;
    if ended > 0 {
        tracing::info!(ended, "wrote the end of sessions that ended before");
    }
    Ok(())
}

async fn overdue(app: &App) -> Result<(), DbError> {
    // After an outage everybody is late, this replica too: nobody is swept before
    // all had the time to renew.
    let ttl = app.timers.replica_ttl;
    if app.steady_for() >= ttl {
        let (dead, rest) = (ttl.as_secs_f64(), 2.0 * ttl.as_secs_f64());
        let at_least_ms = app.timers.replica_loss_ms();
        let params: [Param; 3] = [&dead, &rest, &at_least_ms];
        let sessions = app.db.execute(&query::REPLICA_SWEEP, &params).await?;
        if sessions > 0 {
            tracing::info!(sessions, "ended the sessions of replicas that are no more");
        }
    }
    app.db.execute(&query::DEPLOY_EXPIRE, &[]).await?;
    app.db.execute(&query::COMMAND_EXPIRE, &[]).await?;
    app.db.execute(&query::NODE_PING_EXPIRE, &[]).await?;
    Ok(())
}

async fn old(app: &App) -> Result<(), DbError> {
    app.db
        .execute(&query::TOMBSTONE_SWEEP, &[&TOMBSTONES_KEPT.as_secs_f64()])
        .await?;
    app.db
        .execute(&query::NODE_PING_SWEEP, &[&PINGS_KEPT.as_secs_f64()])
        .await?;
    app.db.execute(&query::IDEMPOTENCY_SWEEP, &[]).await?;
    ledger(app).await
}

/// Begins the ledger's month for grids in which nothing happens, so that no month
/// is needed for longer than it is kept.
async fn ledger(app: &App) -> Result<(), DbError> {
    app.db.rows(&query::LEDGER_PARTITIONS, &[]).await?;
    for row in app.db.rows(&query::LEDGER_UNOPENED, &[]).await? {
        let grid: GridId = row.get(0);
        let opened = app.db.tx("ledger_open", move |tx| {
            Box::pin(async move {
                if let Ok(grid) = LockedGrid::by_id(tx, grid).await {
                    tx.rows(&query::LEDGER_OPEN, &[&grid.row.id]).await?;
                }
                Ok::<_, DbError>(())
            })
        });
        if let Err(error) = opened.await {
            tracing::warn!(%grid, %error, "the ledger's month is not begun yet");
        }
    }
    app.db.rows(&query::LEDGER_DROP, &[&LEDGER_MONTHS]).await?;
    Ok(())
}

/// Declares nodes lost when their time has come: at once when a session of this
/// replica ended without grace, else by the clock, at the latest with the tick.
pub async fn lose(app: Arc<App>) {
    loop {
        let next = match nodes_lose(&app).await {
            Ok(next) => next.unwrap_or(app.timers.tick),
            Err(error) => {
                tracing::warn!(%error, "nodes are not declared lost");
                app.timers.tick
            }
        };
        // Never sooner than a millisecond: its clock and Postgres's differ.
        let wait = next.clamp(Duration::from_millis(1), app.timers.tick);
        let _ = timeout(wait, app.losses.notified()).await;
    }
}
