//! Grids over HTTP.

use ipnetwork::Ipv4Network;
use kontena_schema::address::InnerSubnet;
use kontena_schema::agent::{INNER_SUBNET_SINCE, close};
use kontena_schema::http::grids::{Grid, Grids};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Closed, Master, TestAgent, hello};

#[tokio::test]
async fn a_grid_has_the_models_defaults() {
    let master = Master::start().await;
    let created = master
        .post("/v1/grids", json!({ "name": "demo", "initial_size": "3" }))
        .await;
    let grid: Grid = serde_json::from_value(created).unwrap();
    assert_eq!(grid.subnet.to_string(), "10.81.0.0/19");
    assert_eq!(grid.supernet.to_string(), "10.81.0.0/17");
    assert_eq!(grid.inner_subnet.to_string(), "100.127.81.0/24");
    assert_eq!((grid.initial_size, grid.grace_s), (3, 10));
    assert!(grid.trusted_subnets.is_empty());

    let shown: Grid = serde_json::from_value(master.get("/v1/grids/demo").await).unwrap();
    assert_eq!(shown, grid);
    let list: Grids = serde_json::from_value(master.get("/v1/grids").await).unwrap();
    assert_eq!(list.grids.len(), 1);
    assert_eq!(list.grids[0].token, None, "a list does not hand out tokens");
}

#[tokio::test]
async fn bad_grids_name_the_field_and_change_nothing() {
    let master = Master::start().await;
    master.grid("taken").await;
    let inner = |subnet: &str| json!({ "name": "a", "inner_subnet": subnet });
    for (body, field) in [
        (json!({ "name": "taken" }), "name"),
        (json!({ "name": "Bad_Name" }), "name"),
        (json!({ "name": "a", "subnet": "10.81.0.0/24" }), "subnet"),
        (json!({ "name": "a", "subnet": "nonsense" }), "subnet"),
        (
            json!({ "name": "a", "subnet": "10.1.0.0/16", "supernet": "10.2.0.0/16" }),
            "supernet",
        ),
        (inner("nonsense"), "inner_subnet"),
        (inner("10.9.9.1/24"), "inner_subnet"),
        (inner("10.9.0.0/16"), "inner_subnet"),
        (inner("198.51.100.0/24"), "inner_subnet"),
        (inner("10.81.40.0/24"), "inner_subnet"),
        (json!({ "name": "a", "initial_size": 8 }), "initial_size"),
        (json!({ "name": "a", "grace_s": 90_000 }), "grace_s"),
        (
            json!({ "name": "a", "trusted_subnets": ["10.0.0.0/8", "10.0.0.1/8"] }),
            "trusted_subnets.1",
        ),
        (
            json!({ "name": "a", "trusted_subnets": ["10.0.0.0/8", "10.81.4.0/24"] }),
            "trusted_subnets.1",
        ),
    ] {
        let (status, answer) = master
            .call(Method::POST, "/v1/grids", Some(body.clone()))
            .await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}: {answer}");
        assert!(answer["error"][field].is_string(), "{body}: {answer}");
        assert!(
            answer["request_id"]
                .as_str()
                .is_some_and(|id| !id.is_empty()),
            "{answer}"
        );
    }
    assert_eq!(
        master.get("/v1/grids").await["grids"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn agents_are_told_the_inner_subnet_of_their_grid_and_old_ones_kept_out_of_others() {
    let master = Master::start().await;
    let body = json!({ "name": "narrow", "inner_subnet": "10.9.9.0/24" });
    let created = master.post("/v1/grids", body).await;
    assert_eq!(created["inner_subnet"], "10.9.9.0/24");
    assert_eq!(master.get("/v1/grids/narrow").await, created);
    let tokens = [
        created["token"].as_str().unwrap().to_owned(),
        master.grid("demo").await,
    ];

    let told = ["10.9.9.0/24", "100.127.81.0/24"];
    for (token, told) in tokens.iter().zip(told) {
        let (_, changes) = TestAgent::join(&master.replicas[0], token, "new").await;
        let grid = changes.shared.grid.unwrap();
        assert_eq!(grid.inner_subnet.to_string(), told);
    }
    // One of the version before has the default, which is right where that is the grid's.
    let mut old = hello("old", None);
    old.protocol = INNER_SUBNET_SINCE - 1;
    let [narrow, demo] = &tokens;
    let refused = TestAgent::connect(&master.replicas[0], narrow, &old).await;
    let Err(Closed(code, reason)) = refused else {
        panic!("it is let in")
    };
    assert_eq!(code, close::VERSION);
    assert!(reason.contains("inner subnet"), "{reason}");
    assert_eq!(master.get("/v1/grids/narrow").await["node_count"], 1);
    assert!(
        TestAgent::connect(&master.replicas[0], demo, &old)
            .await
            .is_ok()
    );

    // It does not change.
    let update = json!({ "inner_subnet": "10.9.8.0/24" });
    let (status, _) = master
        .call(Method::PUT, "/v1/grids/narrow", Some(update))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let shown = master.get("/v1/grids/narrow").await;
    assert_eq!(shown["inner_subnet"], "10.9.9.0/24");
}

/// As a replica of the version before does.
#[tokio::test]
async fn a_grid_that_is_made_without_an_inner_subnet_has_the_default() {
    let master = Master::start().await;
    let insert = "insert into grids (name, subnet, supernet, initial_size, grace_ms)
                  values ('old', '10.81.0.0/19', '10.81.0.0/17', 1, 10000)";
    master.sql().await.batch_execute(insert).await.unwrap();
    let list: Grids = serde_json::from_value(master.get("/v1/grids").await).unwrap();
    assert_eq!(list.grids[0].inner_subnet, InnerSubnet::default());
}

#[tokio::test]
async fn trusted_subnets_change_and_stamp_only_when_they_differ() {
    let master = Master::start().await;
    master.grid("demo").await;
    let update = json!({ "trusted_subnets": ["10.0.0.0/8", "10.0.0.0/8"] });
    let before = master.get("/v1/grids/demo").await["revision"]
        .as_i64()
        .unwrap();
    for _ in 0..2 {
        let (status, grid) = master
            .call(Method::PUT, "/v1/grids/demo", Some(update.clone()))
            .await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(grid["trusted_subnets"], json!(["10.0.0.0/8"]));
        assert_eq!(grid["revision"].as_i64(), Some(before + 1));
    }
    let bad = json!({ "trusted_subnets": ["10.0.0.0/8", "127.0.0.0/8"] });
    let (status, answer) = master.call(Method::PUT, "/v1/grids/demo", Some(bad)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer["error"]["trusted_subnets.1"].is_string(), "{answer}");
    assert_eq!(master.get("/v1/grids/demo").await["revision"], before + 1);
}

#[tokio::test]
async fn a_change_of_trust_tells_which_pairs_move_and_a_dry_run_moves_none() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let mut agents = Vec::new();
    for (engine, private_ip) in [("a", "10.1.0.1"), ("b", "10.1.0.2"), ("c", "10.2.0.3")] {
        let mut hello = hello(engine, None);
        hello.facts.private_ip = Some(private_ip.parse().unwrap());
        let agent = TestAgent::connect(&master.replicas[0], &token, &hello).await;
        agents.push(agent.unwrap());
    }
    let path = "/v1/grids/demo/trusted_subnets";
    let told = |trust: &Value| {
        let names = ["fast_pairs", "sealed_pairs", "to_fast", "to_sealed"];
        names.map(|name| trust[name].as_u64().unwrap())
    };
    assert_eq!(told(&master.get(path).await), [0, 3, 0, 0]);

    let before = master.get("/v1/grids/demo").await;
    let dry = json!({ "add": ["10.1.0.0/16"], "dry_run": true });
    let trust = change(&master, dry).await;
    assert_eq!(trust["trusted_subnets"], json!(["10.1.0.0/16"]));
    assert_eq!(told(&trust), [1, 2, 1, 0]);
    assert_eq!(master.get("/v1/grids/demo").await, before);

    // Twice, as somebody does who is not sure: the second changes nothing.
    for moved in [1, 0] {
        let trust = change(&master, json!({ "add": ["10.1.0.0/16"] })).await;
        assert_eq!(told(&trust), [1, 2, moved, 0]);
    }
    let first: Ipv4Network = "10.1.0.0/16".parse().unwrap();
    let subnets = agents[0]
        .until(|changes| {
            let grid = changes.shared.grid.as_ref()?;
            Some(grid.trusted_subnets.clone()).filter(|subnets| !subnets.is_empty())
        })
        .await;
    assert_eq!(subnets, [first]);
    let trust = change(&master, json!({ "add": ["10.2.0.0/16"] })).await;
    assert_eq!(told(&trust), [3, 0, 2, 0]);
    let trust = change(&master, json!({ "remove": ["10.1.0.0/16"] })).await;
    assert_eq!(trust["trusted_subnets"], json!(["10.2.0.0/16"]));
    assert_eq!(told(&trust), [0, 3, 0, 3]);
    assert_eq!(
        master.get(path).await["trusted_subnets"],
        json!(["10.2.0.0/16"])
    );

    for (body, field) in [
        (json!({ "add": ["10.2.0.1/16"] }), "add.0"),
        (json!({ "add": ["10.3.0.0/16", "nowhere"] }), "add.1"),
        (json!({ "add": ["0.0.0.0/0"] }), "add.0"),
        (json!({ "add": ["10.2.0.0/16", "10.81.0.0/19"] }), "add.1"),
        (json!({ "add": ["100.127.81.0/24"] }), "add.0"),
        (json!({ "remove": ["10.1.0.0/16"] }), "remove.0"),
        (
            json!({ "add": ["10.3.0.0/16"], "remove": ["10.3.0.0/16"] }),
            "remove",
        ),
    ] {
        let (status, answer) = master.call(Method::POST, path, Some(body.clone())).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}: {answer}");
        assert!(answer["error"][field].is_string(), "{body}: {answer}");
    }
    assert_eq!(
        master.get(path).await["trusted_subnets"],
        json!(["10.2.0.0/16"])
    );
}

/// What a version before let pass is no reason to refuse other changes.
#[tokio::test]
async fn a_network_that_is_trusted_already_stays_and_can_be_removed() {
    let master = Master::start().await;
    master.grid("demo").await;
    let update = "update grids set trusted_subnets = '{0.0.0.0/0}' where name = 'demo'";
    master.sql().await.batch_execute(update).await.unwrap();
    let both = json!(["0.0.0.0/0", "10.1.0.0/16"]);
    let trust = change(&master, json!({ "add": ["10.1.0.0/16", "0.0.0.0/0"] })).await;
    assert_eq!(trust["trusted_subnets"], both);
    let put = json!({ "trusted_subnets": both });
    let (status, grid) = master.call(Method::PUT, "/v1/grids/demo", Some(put)).await;
    assert_eq!((status, &grid["trusted_subnets"]), (StatusCode::OK, &both));
    let trust = change(&master, json!({ "remove": ["0.0.0.0/0"] })).await;
    assert_eq!(trust["trusted_subnets"], json!(["10.1.0.0/16"]));
    // It does not come back.
    let path = "/v1/grids/demo/trusted_subnets";
    let again = json!({ "add": ["0.0.0.0/0"] });
    let (status, _) = master.call(Method::POST, path, Some(again)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

async fn change(master: &Master, body: Value) -> Value {
    let path = "/v1/grids/demo/trusted_subnets";
    let (status, answer) = master.call(Method::POST, path, Some(body)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

#[tokio::test]
async fn a_grid_is_removed_when_it_is_empty() {
    let master = Master::start().await;
    master.grid("demo").await;
    master
        .post(
            "/v1/grids/demo/services",
            json!({ "name": "web", "image": "nginx" }),
        )
        .await;
    let (status, answer) = master.call(Method::DELETE, "/v1/grids/demo", None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answer["code"], "grid_not_empty");
    master.delete("/v1/services/demo/null/web").await;
    assert_eq!(master.delete("/v1/grids/demo").await, json!({}));
    let (status, _) = master.call(Method::GET, "/v1/grids/demo", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
