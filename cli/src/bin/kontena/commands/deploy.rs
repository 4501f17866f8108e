//! Watching deploys until they end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kontena::Client;
use kontena::client::{DeployWait, wait_gone};
use kontena_schema::http::services::{Deploy, InstanceDeploy};

use crate::args::Wait;
use crate::failure::Failure;
use crate::session::Session;

/// The state of a deploy that went well.
const SUCCESS: &str = "success";

/// Waits for deploys, one after another, and answers them as they ended. One that
/// failed does not keep the others from being waited for.
pub(super) async fn wait_all(
    session: &Session,
    client: &Client,
    begun: Vec<Deploy>,
    wait: Wait,
) -> Result<Vec<Deploy>, Failure> {
    if wait.no_wait {
        return Ok(begun);
    }
    let end = Instant::now() + Duration::from_secs(wait.timeout);
    let (mut ended, mut failed) = (Vec::new(), Vec::new());
    for deploy in begun {
        let left = end.saturating_duration_since(Instant::now());
        match wait_one(session, client, &deploy, left).await? {
            Ok(deploy) => ended.push(deploy),
            Err(reason) => failed.push(reason),
        }
    }
    if failed.is_empty() {
        Ok(ended)
    } else {
        Err(Failure::Deploy(failed.join("\n")))
    }
}

/// Waits until what was removed is gone.
pub(super) async fn gone<T>(
    what: &str,
    wait: Wait,
    show: impl AsyncFn() -> Result<T, kontena::Error>,
) -> Result<(), Failure> {
    if wait.no_wait {
        return Ok(());
    }
    wait_gone(what, Duration::from_secs(wait.timeout), show).await?;
    Ok(())
}

/// Waits for one deploy; the reason if it failed.
async fn wait_one(
    session: &Session,
    client: &Client,
    begun: &Deploy,
    within: Duration,
) -> Result<Result<Deploy, String>, Failure> {
    let unknown = || Failure::Deploy(format!("{:?} names no service", begun.service_id));
    let wait = DeployWait::of(begun).ok_or_else(unknown)?;
    let label = wait.label();
    let mut step = session.out.step(format!("deploying {label}"));
    let seen = |deploy: &Deploy| step.update(&counts(deploy));
    let deploy = match client.deploy_wait(&wait, within, seen).await {
        Ok(deploy) => deploy,
        Err(late @ kontena::Error::DeployLate { .. }) => return Ok(Err(late.to_string())),
        Err(err) => return Err(err.into()),
    };
    if deploy.state != SUCCESS {
        return Ok(Err(failure(&label, &deploy)));
    }
    for instance in &deploy.instance_deploys {
        step.note(instance_line(&label, instance));
    }
    step.done();
    Ok(Ok(deploy))
}

/// `2 running, 1 pulling`.
fn counts(deploy: &Deploy) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for instance in &deploy.instance_deploys {
        *counts.entry(&instance.state).or_default() += 1;
    }
    let shown: Vec<_> = counts
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    if shown.is_empty() {
        deploy.state.clone()
    } else {
        shown.join(", ")
    }
}

/// `testapp/db-1 on node-2: running`.
fn instance_line(label: &str, instance: &InstanceDeploy) -> String {
    let node = match &instance.node {
        Some(node) => format!("on {node}"),
        None => "on no node".to_owned(),
    };
    let line = format!(
        "{label}-{} {node}: {}",
        instance.instance_number, instance.state
    );
    match &instance.error {
        Some(error) => format!("{line}: {error}"),
        None => line,
    }
}

fn failure(label: &str, deploy: &Deploy) -> String {
    let reason = deploy.reason.as_deref().unwrap_or(&deploy.state);
    let mut lines = vec![format!("the deploy of {label} failed: {reason}")];
    lines.extend(
        deploy
            .instance_deploys
            .iter()
            .map(|i| instance_line(label, i)),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy() -> Deploy {
        let instance = |instance_number, node: Option<&str>, state: &str, error: Option<&str>| {
            let (node, error) = (node.map(str::to_owned), error.map(str::to_owned));
            InstanceDeploy {
                instance_number,
                node,
                state: state.to_owned(),
                error,
            }
        };
        Deploy {
            id: 1,
            service_id: "demo/testapp/db".to_owned(),
            state: "error".to_owned(),
            reason: Some("2 of 3 instances do not run".to_owned()),
            created_at: String::new(),
            finished_at: None,
            instance_deploys: vec![
                instance(1, Some("node-1"), "running", None),
                instance(2, Some("node-2"), "failed", Some("no such image")),
                instance(3, None, "pending", Some("grid_full_addresses")),
            ],
        }
    }

    #[test]
    fn a_failed_deploy_tells_the_reason_of_every_instance() {
        let want = "the deploy of testapp/db failed: 2 of 3 instances do not run
testapp/db-1 on node-1: running
testapp/db-2 on node-2: failed: no such image
testapp/db-3 on no node: pending: grid_full_addresses";
        assert_eq!(failure("testapp/db", &deploy()), want);
    }

    #[test]
    fn instances_are_counted_by_state() {
        assert_eq!(counts(&deploy()), "1 failed, 1 pending, 1 running");
    }
}
