//! A deploy waits until its instances are ready, as far as their health checks say.

use kontena_schema::agent::{Health, InstanceState};
use serde_json::{Value, json};

use crate::support::{Master, TestAgent, poll, state};

#[tokio::test]
async fn a_deploy_succeeds_when_its_instances_run_and_are_not_unhealthy() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut agent, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let service = json!({"name": "web", "image": "web"});
    master.post("/v1/grids/demo/services", service).await;
    let deploy = master
        .post("/v1/services/demo/null/web/deploy", Value::Null)
        .await;
    let path = format!("/v1/services/demo/null/web/deploys/{}", deploy["id"]);
    let placed = agent.until(|changes| changes.own.placements.first().cloned());
    let placement = placed.await.id;
    let waits = [
        (InstanceState::Starting, Health::Unknown),
        (InstanceState::Running, Health::Unhealthy),
    ];
    for (is, health) in waits {
        let mut report = state(placement, 1, is);
        report.health = health;
        agent.report(vec![report]).await;
        let listed = async || {
            let list = master.get("/v1/containers/demo").await;
            let container = list["containers"][0].clone();
            let taken = container["state"] == json!(is) && container["health"] == json!(health);
            taken.then_some(())
        };
        poll("the report is taken", listed).await;
        assert_eq!(master.get(&path).await["state"], "ongoing", "{is:?}");
    }
    let mut report = state(placement, 1, InstanceState::Running);
    report.health = Health::Healthy;
    agent.report(vec![report]).await;
    poll("the deploy succeeds", async || {
        (master.get(&path).await["state"] == "success").then_some(())
    })
    .await;
}
