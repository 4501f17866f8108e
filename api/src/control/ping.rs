//! Pings: one node is asked whether its frames reach another one.
//!
//! A ping is a row that the node learns of like everything else, and its result comes
//! as a report. Who asked looks at the row until it has ended, and end it does: by the
//! node, or by the clock. What cannot be begun now is refused at once.
//!
//! Absent on purpose: whether the node that is to answer has a session. Frames pass
//! while the Master is out of reach of an agent, and that is worth asking too.

use kontena_schema::agent::{PINGS_SINCE, PingReport, PingState};
use kontena_schema::http::pings::{Ping, PingCreate};
use kontena_schema::ids::{NodeId, PingId};
use kontena_schema::limits::{PING_COUNT_MAX, PINGS_MAX};
use kontena_schema::query;
use serde::Deserialize;

use super::session::SessionKey;
use super::{Call, ControlError, LockedGrid, change, node, show};
use crate::app::App;
use crate::db::{DbError, Param};

/// Echoes of a ping, if the number is not given.
const COUNT: u32 = 5;

/// A ping that its node has not begun by then is never begun: who asked is waiting.
const EXPIRES_AFTER_S: f64 = 10.0;

/// A ping that was begun is given up after that; the longest takes 8 s, and its agent
/// may have to connect again before it can tell.
const ENDS_AFTER_S: f64 = 30.0;

/// Longest reason that is taken of an agent.
const ERROR_BYTES_MAX: usize = 1000;

/// A node that is to ping another.
#[derive(Debug, Deserialize)]
struct Pinger {
    id: NodeId,
    connected: bool,
    /// What its agent speaks; none if its session was opened by a replica of the
    /// version before.
    protocol: Option<u32>,
    agent_version: String,
    /// How many of its pings have not ended.
    open: usize,
}

impl Pinger {
    /// Whether it can be asked now.
    fn check(&self, name: &str) -> Result<(), ControlError> {
        let conflict = |code, message| Err(ControlError::Conflict { code, message });
        let Self { agent_version, .. } = self;
        if !self.connected {
            return conflict("node_offline", format!("node {name} is offline"));
        }
        match self.protocol {
            Some(protocol) if protocol >= PINGS_SINCE => {}
            Some(_) => {
                let why = format!("runs agent version {agent_version}, which cannot ping");
                return conflict("cannot_ping", format!("node {name} {why}; update it"));
            }
            None => {
                let why = "is connected to a replica of the version before, which cannot ask it to";
                let then = "try again when all replicas are updated";
                return conflict("cannot_ping", format!("node {name} {why} ping; {then}"));
            }
        }
        if self.open >= PINGS_MAX {
            let why = format!("{PINGS_MAX} pings of node {name} have not ended yet");
            return conflict("too_many_pings", format!("{why}; try again when they have"));
        }
        Ok(())
    }
}

/// Asks a node to ping another one.
pub async fn node_ping(
    app: &App,
    call: &Call,
    grid: &str,
    from: &str,
    request: &PingCreate,
) -> Result<Ping, ControlError> {
    let count = request.count.unwrap_or(COUNT);
    if !(1..=u32::from(PING_COUNT_MAX)).contains(&count) {
        let why = format!("must be between 1 and {PING_COUNT_MAX}");
        return Err(ControlError::field("count", why));
    }
    let count = i16::try_from(count).unwrap_or(i16::MAX);
    let to = &request.to;
    if from == to {
        let why = "must be another node: there is no way from a node to itself";
        return Err(ControlError::field("to", why));
    }
    change(app, call, "node_ping", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, grid).await?;
            let named: [Param; 2] = [&grid.row.id, &from];
            let pinger: Option<Pinger> = tx.optional(&query::NODE_PINGER, &named).await?;
            let pinger = pinger.ok_or_else(|| ControlError::not_found("node", from))?;
            let peer = node::by_name(&grid, to).await?;
            pinger.check(from)?;
            let revision = grid.stamp().await?;
            let insert: [Param; 6] = [
                &grid.row.id,
                &pinger.id,
                &peer.id,
                &count,
                &revision,
                &EXPIRES_AFTER_S,
            ];
            let id = tx.value::<PingId>(&query::NODE_PING_INSERT, &insert);
            let id = id
                .await?
                .ok_or(DbError::NoRow(query::NODE_PING_INSERT.name))?;
            let shown: [Param; 3] = [&id, &grid.row.name, &from];
            let ping: Ping = tx.one(&query::NODE_PING_SHOW, &shown).await?;
            Ok(grid.changed(ping))
        })
    })
    .await
}

/// A ping of a node.
pub async fn node_ping_show(
    app: &App,
    grid: &str,
    from: &str,
    id: PingId,
) -> Result<Ping, ControlError> {
    let params: [Param; 3] = [&id, &grid, &from];
    let name = id.to_string();
    show(&app.db, &query::NODE_PING_SHOW, &params, "ping", &name).await
}

/// Takes what a session tells of its node's pings. It changes nothing that agents must
/// know, so it takes no lock; one of an older session changes nothing at all.
pub async fn agent_pings(
    app: &App,
    key: SessionKey,
    reports: &[PingReport],
) -> Result<(), ControlError> {
    check(reports)?;
    let told = serde_json::to_value(reports).expect("reports are plain JSON");
    let params: [Param; 4] = [&key.node, &key.epoch, &told, &ENDS_AFTER_S];
    app.db.execute(&query::NODE_PING_REPORT, &params).await?;
    Ok(())
}

/// What is kept must be small, whoever tells it.
fn check(reports: &[PingReport]) -> Result<(), ControlError> {
    // An agent keeps the last ones in mind, twice as many as may be open.
    if reports.len() > 2 * PINGS_MAX {
        let why = format!("at most {} are told at once", 2 * PINGS_MAX);
        return Err(ControlError::field("pings", why));
    }
    let fits = |report: &PingReport| match &report.state {
        PingState::Started => true,
        PingState::Done { result } => {
            result.received <= result.sent && result.sent <= PING_COUNT_MAX
        }
        PingState::Failed { error } | PingState::Interrupted { error } => {
            error.len() <= ERROR_BYTES_MAX
        }
    };
    match reports.iter().find(|report| !fits(report)) {
        None => Ok(()),
        Some(report) => {
            let field = format!("pings.{}", report.ping);
            Err(ControlError::field(field, "it counts or says too much"))
        }
    }
}

#[cfg(test)]
mod tests {
    use kontena_schema::agent::PingResult;
    use kontena_schema::path::Path;

    use super::*;

    fn report(state: PingState) -> PingReport {
        let ping = PingId(7);
        PingReport { ping, state }
    }

    #[test]
    fn reports_that_cannot_be_true_or_are_too_large_are_refused() {
        let failed = |length| PingState::Failed {
            error: "x".repeat(length),
        };
        let done = |sent, received| PingState::Done {
            result: PingResult {
                path: Path::Unknown,
                sent,
                received,
                round_trips: None,
                mtu: 1370,
                full_size_passes: false,
            },
        };
        for good in [PingState::Started, failed(1000), done(20, 20), done(5, 0)] {
            check(&[report(good)]).unwrap();
        }
        for bad in [failed(1001), done(21, 1), done(5, 6)] {
            let error = check(&[report(bad)]).unwrap_err();
            let ControlError::Invalid(fields) = error else {
                panic!("{error:?}")
            };
            assert!(fields.contains_key("pings.7"), "{fields:?}");
        }
        let many = |count| vec![report(PingState::Started); count];
        check(&many(16)).unwrap();
        assert!(matches!(check(&many(17)), Err(ControlError::Invalid(_))));
    }
}
