//! Sessions: who an agent is, and which of a node's connections counts.
//!
//! Every connection of a node raises its epoch. Whatever a session writes, it
//! writes under the grid's lock after checking that its epoch is still the
//! latest: an old session can change nothing.

use kontena_schema::address::InnerSubnet;
use kontena_schema::agent::{Facts, Hello, INNER_SUBNET_SINCE, PROTOCOL, Welcome};
use kontena_schema::ids::{Epoch, GridId, NodeId, Revision};
use kontena_schema::query;
use serde::Deserialize;

use super::node::{self, NodeRow};
use super::service::ServiceRow;
use super::{Changed, ControlError, LockedGrid, deploy, key, overlap, returning};
use crate::app::App;
use crate::db::{DbError, Param, Tx};
use crate::token::{TokenKind, TokenRow};

/// One connection of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionKey {
    /// Its grid.
    pub grid: GridId,
    /// The node.
    pub node: NodeId,
    /// Which of its connections.
    pub epoch: Epoch,
}

/// The row that a token stands for, if it is valid.
pub async fn token_check(app: &App, token: &str) -> Result<TokenRow, ControlError> {
    let claims = app.signer.verify(token).ok_or(ControlError::BadToken)?;
    let rows: Vec<TokenRow> = app.db.all(&query::TOKEN_SHOW, &[&claims.sub]).await?;
    let row = rows
        .into_iter()
        .next()
        .filter(|row| row.generation == claims.generation);
    row.ok_or(ControlError::BadToken)
}

/// Opens a session: finds or adds the node and makes this its latest connection.
pub async fn agent_hello(
    app: &App,
    token: &TokenRow,
    hello: &Hello,
) -> Result<(SessionKey, Welcome), ControlError> {
    let opened = app.db.tx("agent_hello", move |tx| {
        Box::pin(open(app, tx, token, hello))
    });
    let Opened {
        key,
        welcome,
        revision,
        joined,
    } = opened.await?;
    // Also what this session did not change itself: it must not be answered from
    // a cut that was made before.
    app.bell.ring(key.grid, revision);
    if joined {
        place_daemons(app, key.grid).await;
    }
    Ok((key, welcome))
}

struct Opened {
    key: SessionKey,
    welcome: Welcome,
    revision: Revision,
    joined: bool,
}

/// How a connection stands to the latest one of its node; unknown without a run.
#[derive(Default, Deserialize)]
struct Standing {
    /// Another run took over from this one, and is connected.
    duplicate: Option<bool>,
    /// The agent gave it up: a later one of the same run opened before.
    late: Option<bool>,
}

async fn open(
    app: &App,
    tx: &Tx<'_>,
    token: &TokenRow,
    hello: &Hello,
) -> Result<Opened, ControlError> {
    // A session of a replica that is taken for dead would be swept, or never be.
    if tx
        .rows(&query::REPLICA_ALIVE, &[&app.replica])
        .await?
        .is_empty()
    {
        return Err(ControlError::ReplicaLost);
    }
    let grid = LockedGrid::by_id(tx, token.grid_id).await?;
    let of_default = grid.row.inner_subnet == InnerSubnet::default();
    if hello.protocol < INNER_SUBNET_SINCE && !of_default {
        let grid = grid.row.name;
        return Err(ControlError::AgentTooOld { grid });
    }
    let (node, joined) = node_of(&grid, token, hello).await?;
    // What the session before tells of its peers is written without the grid's lock.
    tx.execute(&query::NODE_LOCK, &[&node.id]).await?;
    let connection = i64::from(hello.connection);
    let run: [Param; 3] = [&node.id, &hello.instance, &connection];
    let standing: Option<Standing> = tx.optional(&query::SESSION_STANDING, &run).await?;
    let standing = standing.unwrap_or_default();
    if standing.duplicate == Some(true) {
        return Err(ControlError::NodeDuplicate { node: node.name });
    }
    if standing.late == Some(true) {
        return Err(ControlError::StaleSession);
    }
    update_facts(&grid, node.id, &hello.facts).await?;
    let protocol = i32::try_from(hello.protocol).unwrap_or(i32::MAX);
    let params: [Param; 5] = [
        &node.id,
        &app.replica,
        &hello.instance,
        &connection,
        &protocol,
    ];
    let epoch = tx.value::<Epoch>(&query::SESSION_OPEN, &params).await?;
    let epoch = epoch.ok_or(DbError::NoRow(query::SESSION_OPEN.name))?;
    returning::restore(&grid, node.id, &hello.inventory).await?;
    let own: TokenRow = tx.one(&query::TOKEN_OF, &[&grid.row.id, &node.id]).await?;
    let key = SessionKey {
        grid: grid.row.id,
        node: node.id,
        epoch,
    };
    let welcome = Welcome {
        protocol: PROTOCOL,
        node: node.id,
        name: node.name,
        number: node.number,
        grid: grid.row.id,
        grid_name: grid.row.name.clone(),
        epoch,
        node_token: Some(app.signer.sign(&own)),
    };
    Ok(Opened {
        key,
        welcome,
        revision: grid.revision(),
        joined,
    })
}

/// The node that a token and an engine id stand for, and whether it just joined.
async fn node_of(
    grid: &LockedGrid<'_, '_>,
    token: &TokenRow,
    hello: &Hello,
) -> Result<(NodeRow, bool), ControlError> {
    let tx = grid.tx;
    let known = node::by_engine(grid, &hello.engine_id).await?;
    match (token.kind, known) {
        // A node's token belongs to its engine: a copy of it opens nothing.
        (TokenKind::Node, Some(node)) if Some(node.id) == token.node_id => {
            tx.execute(&query::TOKEN_USE, &[&token.id]).await?;
            Ok((node, false))
        }
        (TokenKind::Node, _) => Err(ControlError::BadToken),
        (TokenKind::Join, None) => {
            overlap::refuse(&grid.row, &hello.facts)?;
            Ok((node::join(grid, hello).await?, true))
        }
        (TokenKind::Join, Some(node)) => {
            let own: TokenRow = tx.one(&query::TOKEN_OF, &[&grid.row.id, &node.id]).await?;
            if own.used {
                Err(ControlError::BadToken)
            } else {
                Ok((node, false))
            }
        }
    }
}

/// A node that joins gets its instance of every daemon service. It has joined
/// already: that there is no address left is no reason to keep it out.
async fn place_daemons(app: &App, grid: GridId) {
    let placed = app.db.tx("daemons_place", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_id(tx, grid).await?;
            let daemons: Vec<ServiceRow> =
                tx.all(&query::SERVICE_ROWS_DAEMON, &[&grid.row.id]).await?;
            for service in &daemons {
                let unplaced = deploy::converge(&grid, service, "node joined").await?;
                if !unplaced.is_empty() {
                    tracing::warn!(service = %service.name, %unplaced, "not on every node");
                }
            }
            Ok::<_, ControlError>(grid.changed(()))
        })
    });
    match placed.await {
        Ok(changed) => app.bell.ring_changed(changed.ring),
        Err(error) => tracing::warn!(%grid, %error, "a node joined without its daemon services"),
    }
}

/// Keeps a node's facts; only those that its peers must know stamp the node.
async fn update_facts(
    grid: &LockedGrid<'_, '_>,
    node: NodeId,
    facts: &Facts,
) -> Result<(), ControlError> {
    let tx = grid.tx;
    let all = serde_json::to_value(facts).expect("facts are plain JSON");
    let changed = tx
        .execute(&query::NODE_UPDATE_FACTS, &[&node, &all])
        .await?;
    if changed > 0 {
        overlap::tell(&grid.row, node, facts);
    }
    let public_ip = facts.public_ip.map(|ip| ip.to_string());
    let private_ip = facts.private_ip.map(|ip| ip.to_string());
    let [region, nat]: [Param; 2] = [&facts.region, &facts.behind_nat];
    let site: [Param; 5] = [&node, region, &public_ip, &private_ip, nat];
    if tx.value(&query::NODE_SITE_DIFFERS, &site).await? == Some(true) {
        let revision = grid.stamp().await?;
        let update: [Param; 6] = [&node, region, &public_ip, &private_ip, nat, &revision];
        tx.execute_exactly(1, &query::NODE_UPDATE_SITE, &update)
            .await?;
    }
    match &facts.keys {
        Some(keys) => key::update(grid, node, keys).await,
        None => Ok(()),
    }
}

/// Changes of a node's facts during a session.
pub async fn agent_facts(app: &App, key: SessionKey, facts: &Facts) -> Result<(), ControlError> {
    let changed = app
        .db
        .tx("agent_facts", move |tx| {
            Box::pin(async move {
                let grid = LockedGrid::by_id(tx, key.grid).await?;
                require_current(&grid, key).await?;
                update_facts(&grid, key.node, facts).await?;
                Ok::<Changed<()>, ControlError>(grid.changed(()))
            })
        })
        .await?;
    app.bell.ring_changed(changed.ring);
    Ok(())
}

/// Refuses what an old session wants to write.
pub async fn require_current(
    grid: &LockedGrid<'_, '_>,
    key: SessionKey,
) -> Result<(), ControlError> {
    match grid
        .tx
        .value(&query::SESSION_CURRENT, &[&key.node, &key.epoch])
        .await?
    {
        Some(true) => Ok(()),
        _ => Err(ControlError::StaleSession),
    }
}

/// Whether a session is still its node's latest; false also once the node is
/// removed.
pub async fn is_current(app: &App, key: SessionKey) -> Result<bool, ControlError> {
    let rows = app
        .db
        .rows(&query::SESSION_CURRENT, &[&key.node, &key.epoch])
        .await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// Ends a session, unless a newer one took its place. One that ends because its
/// replica does gets time to find another, whatever the grid's grace.
pub async fn session_close(
    app: &App,
    key: SessionKey,
    replica_ends: bool,
) -> Result<(), ControlError> {
    let at_least_ms = if replica_ends {
        app.timers.replica_loss_ms()
    } else {
        0
    };
    let params: [Param; 3] = [&key.node, &key.epoch, &at_least_ms];
    app.db.execute(&query::SESSION_CLOSE, &params).await?;
    app.losses.notify_one();
    Ok(())
}

/// The latest connection of a session's node; none once the node is removed.
pub async fn latest(app: &App, key: SessionKey) -> Result<Option<Epoch>, ControlError> {
    let rows = app.db.rows(&query::SESSION_EPOCH, &[&key.node]).await?;
    Ok(rows.first().map(|row| row.get(0)))
}
