//! Reports of agents: what became of the decisions.

use kontena_schema::agent::{
    CommandReport, DataMeasure, HostMeasures, InstanceState, PeerReport, PlacementReport, Report,
};
use kontena_schema::ids::{LeaseNumber, NodeId, NodeNumber};
use kontena_schema::query;
use serde::Deserialize;

use super::placement::{self, Ending, LeaseState};
use super::session::{SessionKey, require_current};
use super::{ControlError, LockedGrid};
use crate::app::App;
use crate::db::Param;

/// A placement as a report finds it.
#[derive(Debug, Deserialize)]
struct Reported {
    #[serde(flatten)]
    ending: Ending,
    state: String,
    health: String,
    lease: Option<LeaseNumber>,
}

/// Takes a report of a session. One of an older session changes nothing.
pub async fn agent_report(app: &App, key: SessionKey, report: &Report) -> Result<(), ControlError> {
    // How far the agent is, is needed by no row.
    if !report.placements.is_empty() || !report.commands.is_empty() {
        instances(app, key, report).await?;
    }
    if !report.peers.is_empty() {
        peers(app, key, &report.peers).await?;
    }
    Ok(())
}

/// Takes what became of placements and commands.
async fn instances(app: &App, key: SessionKey, report: &Report) -> Result<(), ControlError> {
    let changed = app
        .db
        .tx("agent_report", move |tx| {
            Box::pin(async move {
                let grid = LockedGrid::by_id(tx, key.grid).await?;
                require_current(&grid, key).await?;
                for placement in &report.placements {
                    apply(&grid, key.node, placement).await?;
                }
                for command in &report.commands {
                    command_report(&grid, key.node, command).await?;
                }
                Ok::<_, ControlError>(grid.changed(()))
            })
        })
        .await?;
    app.bell.ring_changed(changed.ring);
    Ok(())
}

/// Keeps what an agent measured. It is as good as lost when a newer session writes.
pub async fn agent_measures(
    app: &App,
    key: SessionKey,
    measures: &HostMeasures,
) -> Result<(), ControlError> {
    check(measures)?;
    let measures = serde_json::to_value(measures).expect("measures are plain JSON");
    let params: [Param; 3] = [&key.node, &key.epoch, &measures];
    app.db.execute(&query::NODE_MEASURE, &params).await?;
    Ok(())
}

/// Names of reasons become names of time series, of which there must not be many.
fn check(measures: &HostMeasures) -> Result<(), ControlError> {
    const REASONS_MAX: usize = 64;
    const NAME_BYTES_MAX: usize = 40;
    // As many containers as a grid can have addresses for.
    const DATA_MAX: usize = 8190;
    // What a file system can hold, and sums of it fit a bigint.
    const BYTES_MAX: u64 = 1 << 50;
    const AGE_S_MAX: u64 = 1 << 32;
    let plain = |name: &String| {
        let letters = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        name.len() <= NAME_BYTES_MAX && name.bytes().all(letters)
    };
    let HostMeasures {
        overlay: measures,
        data,
    } = measures;
    let data = data.as_deref().unwrap_or_default();
    if data.len() > DATA_MAX {
        let why = format!("at most {DATA_MAX} placements");
        return Err(ControlError::field("data", why));
    }
    let too_much = |data: &DataMeasure| {
        data.bytes.is_some_and(|bytes| bytes > BYTES_MAX)
            || data.age_s.is_some_and(|age| age > AGE_S_MAX)
    };
    if data.iter().any(too_much) {
        let why = format!("at most {BYTES_MAX} bytes, {AGE_S_MAX} s ago");
        return Err(ControlError::field("data", why));
    }
    if measures.drops.len() > REASONS_MAX || !measures.drops.keys().all(plain) {
        let why = format!("at most {REASONS_MAX} reasons of small letters, digits and _");
        return Err(ControlError::field("drops", why));
    }
    if measures.paths.len() > usize::from(NodeNumber::MAX) {
        let why = format!("a node has at most {} peers", NodeNumber::MAX);
        return Err(ControlError::field("paths", why));
    }
    Ok(())
}

async fn apply(
    grid: &LockedGrid<'_, '_>,
    node: NodeId,
    report: &PlacementReport,
) -> Result<(), ControlError> {
    let found: Option<Reported> = grid
        .tx
        .optional(&query::PLACEMENT_LOCK, &[&report.placement, &node])
        .await?;
    // Not this node's, or ended meanwhile: the feed tells the agent.
    let Some(placed) = found else {
        return Ok(());
    };
    let ending = placed.ending;
    if ending.desired == "removed" {
        if report.state == InstanceState::Removed {
            placement::end(grid, &[ending], "container removed").await?;
        }
        return Ok(());
    }
    if ending.lease_state != LeaseState::Held
        || report.lease.is_some() && report.lease != placed.lease
    {
        // About a container of an earlier lease, which the agent replaces.
        return Ok(());
    }
    let (state, health) = (word(report.state), word(report.health));
    let before = ready(&placed.state, &placed.health);
    let stamp = if before == ready(&state, &health) {
        None
    } else {
        Some(grid.stamp().await?)
    };
    let params: [Param; 8] = [
        &report.placement,
        &state,
        &health,
        &report.service_revision,
        &report.container_id,
        &report.container_name,
        &report.error,
        &stamp,
    ];
    grid.tx
        .execute_exactly(1, &query::PLACEMENT_REPORT, &params)
        .await?;
    grid.tx
        .execute(&query::DEPLOY_FINISH, &[&ending.service_id])
        .await?;
    Ok(())
}

/// Whether an instance's names answer; the feed's query says the same.
fn ready(state: &str, health: &str) -> bool {
    state == "running" && health != "unhealthy"
}

/// How a state is written in the database: as it is in JSON.
fn word<T: serde::Serialize>(state: T) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => unreachable!("states are enums without fields"),
    }
}

async fn command_report(
    grid: &LockedGrid<'_, '_>,
    node: NodeId,
    report: &CommandReport,
) -> Result<(), ControlError> {
    let state = word(report.state);
    grid.tx
        .execute(
            &query::COMMAND_REPORT,
            &[&report.command, &node, &state, &report.error],
        )
        .await?;
    Ok(())
}

/// Merges changed paths into those that the node reported before. In a grid that comes up
/// every node tells of every other one again and again; who decides by it (`key.rs`) looks
/// under the grid's lock, and for that these need not queue.
async fn peers(app: &App, key: SessionKey, changed: &[PeerReport]) -> Result<(), ControlError> {
    let changed = serde_json::to_value(changed).expect("paths are plain JSON");
    let changed = &changed;
    app.db
        .tx("node_report_peers", move |tx| {
            Box::pin(async move {
                // Who opens a session has this lock, too: no newer one comes in between.
                tx.execute(&query::NODE_LOCK, &[&key.node]).await?;
                let params: [Param; 3] = [&key.node, &key.epoch, changed];
                match tx.execute(&query::NODE_REPORT_PEERS, &params).await? {
                    0 => Err(ControlError::StaleSession),
                    _ => Ok(()),
                }
            })
        })
        .await
}

#[cfg(test)]
mod tests {
    use kontena_schema::agent::{Health, Measures};
    use kontena_schema::ids::PlacementId;

    use super::*;

    #[test]
    fn measures_with_too_many_or_strange_names_are_refused() {
        let of = |names: Vec<String>| HostMeasures {
            overlay: Measures {
                paths: vec![],
                drops: names.into_iter().map(|name| (name, 1)).collect(),
            },
            data: None,
        };
        let many = |count: usize| of((0..count).map(|n| format!("reason_{n}")).collect());
        assert!(check(&many(64)).is_ok());
        for bad in [many(65), of(vec!["A".to_owned()]), of(vec!["a".repeat(41)])] {
            let error = check(&bad).unwrap_err();
            assert!(matches!(error, ControlError::Invalid(_)), "{error:?}");
        }
    }

    #[test]
    fn more_data_than_a_host_can_have_is_refused() {
        let of = |count, bytes| {
            let data = DataMeasure {
                placement: PlacementId(1),
                volumes: 1,
                bytes: Some(bytes),
                age_s: None,
            };
            HostMeasures {
                data: Some(vec![data; count]),
                ..HostMeasures::default()
            }
        };
        assert!(check(&of(8190, 1 << 50)).is_ok());
        for bad in [of(8191, 0), of(1, u64::MAX)] {
            let error = check(&bad).unwrap_err();
            assert!(matches!(error, ControlError::Invalid(_)), "{error:?}");
        }
    }

    #[test]
    fn states_are_written_as_in_json() {
        assert_eq!(word(InstanceState::Running), "running");
        assert_eq!(word(Health::Unhealthy), "unhealthy");
    }
}
