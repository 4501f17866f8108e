//! What agents measure.

use std::net::Ipv4Addr;

use kontena_schema::agent::{
    DataMeasure, FromAgent, HostMeasures, Measures, PathMeasure, PeerReport,
};
use kontena_schema::http::nodes::NodePeers;
use kontena_schema::ids::{NodeId, PlacementId};
use kontena_schema::path::Path;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Master, TestAgent, poll};

#[tokio::test]
async fn what_an_agent_measures_is_shown_and_stirs_nobody() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let (b, _) = TestAgent::join(&master.replicas[0], &token, "b").await;
    let path = PathMeasure {
        node: b.welcome.node,
        endpoint: Some("198.51.100.2:6783".parse().unwrap()),
        last_handshake_s: Some(7),
        round_trip_us: Some(250),
        loss: Some(0.5),
        mtu: 1370,
        sent_bytes: 1,
        received_bytes: 2,
    };
    let overlay = Measures {
        paths: vec![path.clone()],
        drops: [("dropped_in".to_owned(), 3)].into(),
    };
    let measures = HostMeasures {
        overlay,
        data: None,
    };
    let revision = async || master.get("/v1/grids/demo").await["revision"].clone();
    let before = revision().await;
    a.send(&FromAgent::Measures(Box::new(measures.clone())))
        .await;
    let shown = poll("the measures arrive", async || {
        let node = master.get("/v1/nodes/demo/host-a").await;
        node["measured_at"].is_string().then_some(node)
    })
    .await;
    assert_eq!(shown["drops"], json!({"dropped_in": 3}));
    let peers = master.get("/v1/nodes/demo/host-a/peers").await;
    let peers: NodePeers = serde_json::from_value(peers).unwrap();
    let [peer] = &peers.peers[..] else {
        panic!("{peers:?}")
    };
    assert_eq!((peer.node.as_str(), peer.node_number), ("host-b", 2));
    assert_eq!(peer.measure.as_ref(), Some(&path));
    assert_eq!((peer.path, peer.connected), (None, true));
    let back = master.get("/v1/nodes/demo/host-b/peers").await;
    assert_eq!(back["peers"][0]["measure"], Value::Null);
    assert_eq!(revision().await, before);
    let metrics = master
        .request(Method::GET, "/v1/metrics")
        .send()
        .await
        .unwrap();
    assert_eq!(metrics.status(), StatusCode::OK);
    let kind = metrics.headers()["content-type"].to_str().unwrap();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = metrics.text().await.unwrap();
    for line in [
        r#"kontena_node_dropped_total{grid="demo",node="host-a",reason="dropped_in"} 3"#,
        r#"kontena_node_connected{grid="demo",node="host-b"} 1"#,
    ] {
        assert!(text.lines().any(|one| one == line), "{line}:\n{text}");
    }
    let (status, body) = master
        .call(Method::GET, "/v1/nodes/demo/nobody/peers", None)
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
}

#[tokio::test]
async fn a_service_shows_what_its_instances_keep() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let mut agents = Vec::new();
    for engine in ["a", "b", "c"] {
        agents.push(TestAgent::join(&master.replicas[0], &token, engine).await.0);
    }
    let service = json!({"name": "db", "image": "db", "instances": 3});
    master.post("/v1/grids/demo/services", service).await;
    master
        .post("/v1/services/demo/null/db/deploy", Value::Null)
        .await;
    let shown = async || master.get("/v1/services/demo/null/db").await["data"].clone();
    let nothing = json!({"instances": 0, "bytes": 0, "unmeasured": 0, "untold": 3, "age_s": null});
    assert_eq!(shown().await, nothing);
    // One of the version before does not tell.
    for (agent, bytes) in agents.iter_mut().zip([Some(Some(4096)), Some(None), None]) {
        let placed = agent.until(|changes| changes.own.placements.first().cloned());
        let placement = placed.await.id;
        let measure = |placement, bytes: Option<u64>| DataMeasure {
            placement,
            volumes: 1,
            bytes,
            age_s: bytes.map(|_| 3600),
        };
        // Another's placement is none of this node's business.
        let another = PlacementId(placement.0 + 1);
        let data = bytes.map(|bytes| vec![measure(placement, bytes), measure(another, Some(1))]);
        let measures = HostMeasures {
            data,
            ..HostMeasures::default()
        };
        agent.send(&FromAgent::Measures(Box::new(measures))).await;
    }
    let data = poll("what they keep is shown", async || {
        let data = shown().await;
        (data["instances"] == json!(2)).then_some(data)
    })
    .await;
    assert_eq!(data["bytes"], json!(4096));
    assert_eq!(
        (&data["unmeasured"], &data["untold"]),
        (&json!(1), &json!(1))
    );
    assert!(data["age_s"].as_i64().unwrap() >= 3600, "{data}");
    let list = master.get("/v1/grids/demo/services").await;
    assert_eq!(
        list["services"][0].get("data"),
        None,
        "it would cost too much"
    );
}

fn paths(peers: &[(NodeId, Path)]) -> Vec<PeerReport> {
    let peer = |&(node, path): &(NodeId, Path)| PeerReport {
        node,
        path,
        unreachable: None,
        sealed_because: None,
        next_key: None,
    };
    peers.iter().map(peer).collect()
}

#[tokio::test]
async fn paths_are_merged_and_do_not_wait_for_what_changes_the_grid() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let elsewhere = master.grid("elsewhere").await;
    let replica = &master.replicas[0];
    let (mut a, _) = TestAgent::join(replica, &token, "a").await;
    let (b, _) = TestAgent::join(replica, &token, "b").await;
    let (c, _) = TestAgent::join(replica, &token, "c").await;
    let (d, _) = TestAgent::join(replica, &elsewhere, "d").await;
    let [b, c, d] = [b, c, d].map(|agent| agent.welcome.node);

    let mut sql = master.sql().await;
    let busy = sql.transaction().await.unwrap();
    busy.query_one("select from grids where name = 'demo' for update", &[])
        .await
        .unwrap();
    let to = Ipv4Addr::new(198, 51, 100, 2);
    let (sealed, fast) = (Path::Sealed { to }, Path::Fast { to });
    let shown = async |expected: [Option<Path>; 2]| {
        poll("the paths are shown", async || {
            let peers = master.get("/v1/nodes/demo/host-a/peers").await;
            let peers: NodePeers = serde_json::from_value(peers).unwrap();
            let paths: Vec<_> = peers.peers.iter().map(|peer| peer.path).collect();
            (paths == expected).then_some(())
        })
        .await;
    };
    a.report_peers(paths(&[(b, sealed), (d, fast), (NodeId(999), fast)]))
        .await;
    shown([Some(sealed), None]).await;
    a.report_peers(paths(&[(c, fast)])).await;
    shown([Some(sealed), Some(fast)]).await;
    a.report_peers(paths(&[(b, fast)])).await;
    shown([Some(fast), Some(fast)]).await;
    let kept: i32 = busy
        .query_one(
            "select jsonb_array_length(peers) from nodes where name = 'host-a'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(kept, 2, "only peers are kept, each once");
    // In a full grid they are 64,000; who asks for one node gets its own.
    let node = master.get("/v1/nodes/demo/host-a").await;
    assert_eq!(node["peers"].as_array().map(Vec::len), Some(2));
    let nodes = master.get("/v1/grids/demo/nodes").await;
    assert_eq!(nodes["nodes"][0]["name"], "host-a");
    assert_eq!(nodes["nodes"][0]["peers"], json!([]));
}
