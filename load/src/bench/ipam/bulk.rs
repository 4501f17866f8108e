//! One deploy that leases thousands of addresses, on a grid of simulated agents.

use std::collections::BTreeSet;
use std::time::Instant;

use kontena_schema::http::grids::{Grid, GridCreate};
use kontena_schema::http::services::{Deploy, Service, ServiceCreate, ServiceSpec};
use tokio::time::{Duration, timeout};

use super::bed::Bed;
use crate::agent::Agent;
use crate::bench::BenchError;

/// How many instances: nearly all addresses of a grid.
pub(crate) const INSTANCES: u32 = 8000;

/// The longest that agents may take to learn of all of them.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// An hour: no agent counts as lost while others are measured.
const GRACE_S: u32 = 3600;

/// The seconds that the deploy takes to be answered.
pub(crate) async fn run(bed: &mut Bed<'_>, round: u16) -> Result<f64, BenchError> {
    let grid = &bed.name(&format!("bulk{round}"));
    let replicas = bed.replicas.iter().map(|target| target.address);
    let connection = &mut bed.control;
    let create = GridCreate {
        name: grid.to_owned(),
        grace_s: Some(GRACE_S),
        ..GridCreate::default()
    };
    let made: Grid = connection.call("POST", "/v1/grids", Some(&create)).await?;
    let token = made.token.unwrap_or_default();
    let mut agents = Vec::new();
    for (number, replica) in (1..).zip(replicas) {
        agents.push(Agent::join(replica, &token, &format!("bulk-{number}")).await?);
    }
    let service = ServiceCreate {
        name: "bulk".to_owned(),
        instances: Some(INSTANCES),
        spec: ServiceSpec {
            image: "kontena/none".to_owned(),
            ..ServiceSpec::default()
        },
        ..ServiceCreate::default()
    };
    let path = format!("/v1/grids/{grid}/services");
    let _: Service = connection.call("POST", &path, Some(&service)).await?;
    let path = format!("/v1/services/{grid}/null/bulk/deploy");
    let begun = Instant::now();
    let _: Deploy = connection.call("POST", &path, None::<&()>).await?;
    let took = begun.elapsed();
    for agent in &mut agents {
        let told = timeout(TOLD_WITHIN, learn(agent)).await;
        let late = |_| BenchError::Failed(format!("agents know {}", agent.endpoints.len()));
        told.map_err(late)??;
    }
    Ok(took.as_secs_f64())
}

/// Follows until every instance is known, each at an address of its own.
async fn learn(agent: &mut Agent) -> Result<(), BenchError> {
    while agent.endpoints.len() < INSTANCES as usize {
        agent.follow().await?;
    }
    let addresses: BTreeSet<_> = agent.endpoints.values().collect();
    if addresses.len() == INSTANCES as usize {
        return Ok(());
    }
    let (count, distinct) = (agent.endpoints.len(), addresses.len());
    let what = format!("WRONG: {count} instances have {distinct} addresses");
    Err(BenchError::Failed(what))
}
