//! From a stack to placements with addresses, and back to nothing.

use kontena_schema::agent::{Changes, Desired, InstanceState, Placement};
use kontena_schema::http::stacks::StackDeploy;
use kontena_schema::ids::PlacementId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Master, TestAgent, poll, state};

fn testapp() -> Value {
    json!({ "name": "testapp", "services": [
        { "name": "webservice", "image": "web", "instances": 2, "links": [{ "name": "db" }] },
        { "name": "db", "image": "redis" },
    ] })
}

/// Master, and three agents that joined the grid `demo`.
async fn three_nodes(master: &Master) -> Vec<TestAgent> {
    let token = master.grid("demo").await;
    let mut agents = Vec::new();
    for engine in ["a", "b", "c"] {
        agents.push(TestAgent::join(&master.replicas[0], &token, engine).await.0);
    }
    agents
}

fn placement(changes: &Changes) -> Option<Placement> {
    changes.own.placements.first().cloned()
}

async fn containers(master: &Master) -> Vec<Value> {
    let list = master.get("/v1/containers/demo").await;
    list["containers"].as_array().unwrap().clone()
}

#[tokio::test]
async fn nodes_and_containers_get_the_models_addresses() {
    let master = Master::start().await;
    let mut agents = three_nodes(&master).await;
    let nodes = master.get("/v1/grids/demo/nodes").await;
    let numbered: Vec<(i64, &str)> = nodes["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            (
                node["node_number"].as_i64().unwrap(),
                node["overlay_ip"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        numbered,
        [(1, "10.81.0.1"), (2, "10.81.0.2"), (3, "10.81.0.3")]
    );

    master.post("/v1/grids/demo/stacks", testapp()).await;
    assert!(
        containers(&master).await.is_empty(),
        "nothing runs before the deploy"
    );
    let deploy = master
        .post("/v1/stacks/demo/testapp/deploy", Value::Null)
        .await;
    let deploy: StackDeploy = serde_json::from_value(deploy).unwrap();
    let services: Vec<&str> = deploy
        .service_deploys
        .iter()
        .map(|deploy| deploy.service_id.as_str())
        .collect();
    assert_eq!(
        services,
        ["demo/testapp/db", "demo/testapp/webservice"],
        "links first"
    );

    // The seed's own example: db first, each on a node of its own.
    for (agent, address) in agents
        .iter_mut()
        .zip(["10.81.1.1", "10.81.1.2", "10.81.1.3"])
    {
        let placement = agent.until(placement).await;
        assert_eq!(placement.address.unwrap().to_string(), address);
        let endpoint = master.get("/v1/containers/demo").await;
        assert!(
            endpoint["containers"]
                .as_array()
                .unwrap()
                .iter()
                .any(|c| c["ip_address"] == address)
        );
        agent
            .report(vec![state(placement.id, 1, InstanceState::Running)])
            .await;
    }
    for deploy in &deploy.service_deploys {
        let name = deploy.service_id.rsplit('/').next().unwrap();
        let path = format!("/v1/services/demo/testapp/{name}/deploys/{}", deploy.id);
        poll("the deploy succeeds", async || {
            (master.get(&path).await["state"] == "success").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_failed_instance_ends_its_deploy_with_the_reason() {
    let master = Master::start().await;
    let mut agents = three_nodes(&master).await;
    master
        .post(
            "/v1/grids/demo/services",
            json!({ "name": "web", "image": "nowhere" }),
        )
        .await;
    let deploy = master
        .post("/v1/services/demo/null/web/deploy", Value::Null)
        .await;
    assert_eq!(deploy["state"], "ongoing");
    let placement = agents[0].until(placement).await;
    let mut failed = state(placement.id, 1, InstanceState::Failed);
    failed.error = Some("no such image".to_owned());
    agents[0].report(vec![failed]).await;
    let path = format!("/v1/services/demo/null/web/deploys/{}", deploy["id"]);
    let ended = poll("the deploy ends", async || {
        let deploy = master.get(&path).await;
        (deploy["state"] != "ongoing").then_some(deploy)
    })
    .await;
    assert_eq!(
        (&ended["state"], &ended["reason"]),
        (&json!("error"), &json!("1: no such image"))
    );
    assert!(ended["finished_at"].is_string());
}

#[tokio::test]
async fn a_grid_without_nodes_says_why_nothing_is_placed() {
    let master = Master::start().await;
    master.grid("demo").await;
    master
        .post(
            "/v1/grids/demo/services",
            json!({ "name": "web", "image": "web" }),
        )
        .await;
    let deploy = master
        .post("/v1/services/demo/null/web/deploy", Value::Null)
        .await;
    assert_eq!(deploy["state"], "error");
    assert_eq!(deploy["reason"], "1: no node is connected");
}

/// Removes the stack; each agent says that its containers are gone.
async fn remove_testapp(master: &Master, agents: &mut [TestAgent]) {
    master.delete("/v1/stacks/demo/testapp").await;
    for agent in agents {
        let gone: Vec<PlacementId> = agent
            .until(|changes| {
                let placements = changes.own.placements.iter();
                let gone = placements
                    .filter(|p| p.desired == Desired::Removed)
                    .map(|p| p.id);
                Some(gone.collect::<Vec<_>>()).filter(|gone| !gone.is_empty())
            })
            .await;
        let reports = gone.iter().map(|id| state(*id, 1, InstanceState::Removed));
        agent.report(reports.collect()).await;
    }
}

#[tokio::test]
async fn scaling_keeps_what_runs_and_removal_leaves_nothing() {
    let master = Master::start().await;
    let mut agents = three_nodes(&master).await;
    master.post("/v1/grids/demo/stacks", testapp()).await;
    master
        .post("/v1/stacks/demo/testapp/deploy", Value::Null)
        .await;
    let before = containers(&master).await;
    let scale = "/v1/services/demo/testapp/webservice/scale";
    master.post(scale, json!({ "instances": "4" })).await;
    let after = containers(&master).await;
    assert_eq!((before.len(), after.len()), (3, 5));
    for container in &before {
        let same = |c: &&Value| {
            c["ip_address"] == container["ip_address"] && c["node"] == container["node"]
        };
        assert!(after.iter().any(|c| same(&c)), "{container} moved");
    }

    remove_testapp(&master, &mut agents).await;
    poll("everything is gone", async || {
        containers(&master).await.is_empty().then_some(())
    })
    .await;
    assert_eq!(
        master.get("/v1/grids/demo/stacks").await,
        json!({ "stacks": [] })
    );
    assert_eq!(
        master.get("/v1/grids/demo/services").await,
        json!({ "services": [] })
    );
    let sql = master.sql().await;
    let leased = sql
        .query_one(
            "select count(*) from addresses where lease is not null and kind <> 'node'",
            &[],
        )
        .await;
    assert_eq!(leased.unwrap().get::<_, i64>(0), 0, "no lease is left");
    let ledger = sql
        .query(
            "select event, count(*) from ledger where kind = 'placement' group by event order by event",
            &[],
        )
        .await
        .unwrap();
    let steps: Vec<(String, i64)> = ledger.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(
        steps,
        [("leased".to_owned(), 5), ("released".to_owned(), 5)]
    );
}

#[tokio::test]
async fn a_changed_description_keeps_the_address_and_the_node() {
    let master = Master::start().await;
    let mut agents = three_nodes(&master).await;
    master.post("/v1/grids/demo/stacks", testapp()).await;
    master
        .post("/v1/stacks/demo/testapp/deploy", Value::Null)
        .await;
    let first = agents[0].until(placement).await;
    let mut changed = testapp();
    changed["services"][1]["env"] = json!(["A=1"]);
    let (status, answer) = master
        .call(Method::PUT, "/v1/stacks/demo/testapp", Some(changed))
        .await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    master
        .post("/v1/stacks/demo/testapp/deploy", Value::Null)
        .await;
    let second = agents[0]
        .until(|changes| placement(changes).filter(|p| p.service_revision.0 == 2))
        .await;
    assert_eq!(
        (second.id, second.address, second.lease),
        (first.id, first.address, first.lease)
    );
    assert_eq!(second.spec.env, ["A=1"]);
}

#[tokio::test]
async fn names_that_would_meet_are_refused() {
    let master = Master::start().await;
    master.grid("demo").await;
    let stack = |name: &str, service: &str| json!({ "name": name, "services": [{ "name": service, "image": "i" }] });
    master
        .post("/v1/grids/demo/stacks", stack("a-b", "c"))
        .await;
    master
        .post("/v1/grids/demo/stacks", stack("x", "web"))
        .await;
    for (clash, field) in [
        (stack("a", "b-c"), "services.b-c.name"),
        (stack("x-web", "1"), "services.1.name"),
    ] {
        let (status, answer) = master
            .call(Method::POST, "/v1/grids/demo/stacks", Some(clash))
            .await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
        assert!(answer["error"][field].is_string(), "{answer}");
    }
    // The other way round: instances of a new service would meet an old one.
    master
        .post(
            "/v1/grids/demo/services",
            json!({ "name": "api-2", "image": "i" }),
        )
        .await;
    let web = json!({ "name": "api", "image": "i" });
    let (status, answer) = master
        .call(Method::POST, "/v1/grids/demo/services", Some(web))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        answer["error"]["name"].as_str().unwrap().contains("api-2"),
        "{answer}"
    );
    assert_eq!(
        master.get("/v1/grids/demo/stacks").await["stacks"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn a_daemon_service_follows_the_nodes() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (_a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let tool = json!({ "name": "tool", "image": "tool", "strategy": "daemon" });
    master.post("/v1/grids/demo/services", tool).await;
    master
        .post("/v1/services/demo/null/tool/deploy", Value::Null)
        .await;
    let (_b, changes) = TestAgent::join(&master.replicas[0], &token, "b").await;
    assert_eq!(changes.own.placements.len(), 1, "{changes:?}");
    let nodes: Vec<Value> = containers(&master)
        .await
        .iter()
        .map(|c| c["node"].clone())
        .collect();
    assert_eq!(nodes, ["host-a", "host-b"]);
}

#[tokio::test]
async fn a_full_grid_refuses_at_once_with_its_figures() {
    let master = Master::start().await;
    let small = json!({ "name": "demo", "subnet": "10.9.0.0/23" });
    let grid = master.post("/v1/grids", small).await;
    let token = grid["token"].as_str().unwrap().to_owned();
    let _agent = TestAgent::join(&master.replicas[0], &token, "a").await;
    let service = json!({ "name": "web", "image": "i", "instances": 509 });
    master.post("/v1/grids/demo/services", service).await;
    let deploy = master
        .post("/v1/services/demo/null/web/deploy", Value::Null)
        .await;
    assert_eq!(deploy["state"], "ongoing", "510 usable, one node");
    let scale = Some(json!({ "instances": 510 }));
    let path = "/v1/services/demo/null/web/scale";
    let (status, answer) = master.call(Method::POST, path, scale).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert_eq!(answer["code"], "grid_full_addresses");
    assert_eq!(answer["details"]["size"], 510);
    assert_eq!(answer["details"]["leased"], 509);
    assert_eq!(answer["details"]["nodes"], 1);
    assert_eq!(
        answer["details"]["biggest_holders"][0],
        json!({ "kind": "placement", "holder": "web", "addresses": 509 })
    );
    assert_eq!(
        master.get("/v1/services/demo/null/web").await["instances"],
        509,
        "nothing changed"
    );
}

#[tokio::test]
async fn a_failure_of_an_earlier_revision_does_not_end_a_later_deploy() {
    let master = Master::start().await;
    let mut agents = three_nodes(&master).await;
    let stack =
        |image: &str| json!({ "name": "app", "services": [{ "name": "web", "image": image }] });
    master.post("/v1/grids/demo/stacks", stack("typo")).await;
    master.post("/v1/stacks/demo/app/deploy", Value::Null).await;
    let id = agents[0].until(placement).await.id;
    agents[0]
        .report(vec![state(id, 1, InstanceState::Failed)])
        .await;
    poll("the first deploy fails", async || {
        (containers(&master).await[0]["state"] == "failed").then_some(())
    })
    .await;
    let update = Some(stack("right"));
    let (status, _) = master
        .call(Method::PUT, "/v1/stacks/demo/app", update)
        .await;
    assert_eq!(status, StatusCode::OK);
    let deploy = master.post("/v1/stacks/demo/app/deploy", Value::Null).await;
    let deploy = &deploy["service_deploys"][0];
    assert_eq!(deploy["state"], "ongoing", "{deploy}");
    agents[0]
        .report(vec![state(id, 2, InstanceState::Running)])
        .await;
    let path = format!("/v1/services/demo/app/web/deploys/{}", deploy["id"]);
    poll("the second deploy succeeds", async || {
        (master.get(&path).await["state"] == "success").then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_nobody_deployed_does_not_run() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let stack = |image: &str| {
        json!({ "name": "app", "services": [
            { "name": "tool", "image": image, "strategy": "daemon" }
        ] })
    };
    master.post("/v1/grids/demo/stacks", stack("one")).await;
    master.post("/v1/stacks/demo/app/deploy", Value::Null).await;
    a.until(placement).await;
    let (status, _) = master
        .call(Method::PUT, "/v1/stacks/demo/app", Some(stack("two")))
        .await;
    assert_eq!(status, StatusCode::OK);
    // Neither an agent that is told everything nor a node that joins runs it.
    let (_again, all) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let old = &all.own.placements[0];
    assert_eq!(
        (old.spec.image.as_str(), old.service_revision.0),
        ("one:latest", 1)
    );
    let (_b, joined) = TestAgent::join(&master.replicas[0], &token, "b").await;
    let new = &joined.own.placements[0];
    assert_eq!(
        (new.spec.image.as_str(), new.service_revision.0),
        ("one:latest", 1)
    );
}

#[tokio::test]
async fn another_number_of_instances_is_no_other_description() {
    let master = Master::start().await;
    let _agents = three_nodes(&master).await;
    master.post("/v1/grids/demo/stacks", testapp()).await;
    let mut more = testapp();
    more["services"][0]["instances"] = json!(5);
    let (status, stack) = master
        .call(Method::PUT, "/v1/stacks/demo/testapp", Some(more))
        .await;
    assert_eq!(status, StatusCode::OK, "{stack}");
    let web = master.get("/v1/services/demo/testapp/webservice").await;
    assert_eq!(
        (&web["instances"], &web["revision"]),
        (&json!(5), &json!(1))
    );
}

#[tokio::test]
async fn a_stack_on_its_way_out_takes_no_changes() {
    let master = Master::start().await;
    let _agents = three_nodes(&master).await;
    master.post("/v1/grids/demo/stacks", testapp()).await;
    master
        .post("/v1/stacks/demo/testapp/deploy", Value::Null)
        .await;
    master.delete("/v1/stacks/demo/testapp").await;
    assert_eq!(
        master.get("/v1/stacks/demo/testapp").await["state"],
        "removing"
    );
    for (method, path, body) in [
        (Method::PUT, "/v1/stacks/demo/testapp", Some(testapp())),
        (Method::POST, "/v1/stacks/demo/testapp/deploy", None),
    ] {
        let (status, answer) = master.call(method, path, body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
        assert_eq!(answer["code"], "stack_removing");
    }
}

#[tokio::test]
async fn a_full_grid_still_takes_nodes() {
    let master = Master::start().await;
    let small = json!({ "name": "demo", "subnet": "10.9.0.0/23" });
    let token = master.post("/v1/grids", small).await["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let (_a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let tool = json!({ "name": "tool", "image": "i", "strategy": "daemon" });
    master.post("/v1/grids/demo/services", tool).await;
    master
        .post("/v1/services/demo/null/tool/deploy", Value::Null)
        .await;
    let service = json!({ "name": "web", "image": "i", "instances": 507 });
    master.post("/v1/grids/demo/services", service).await;
    master
        .post("/v1/services/demo/null/web/deploy", Value::Null)
        .await;
    // One address is left, which is the second node's own.
    let (b, _) = TestAgent::join(&master.replicas[0], &token, "b").await;
    assert_eq!(b.welcome.number.get(), 2);
}
