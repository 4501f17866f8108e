//! What agents measure.

use kontena_schema::agent::{FromAgent, Measures, PathMeasure};
use kontena_schema::http::nodes::NodePeers;
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
    let measures = Measures {
        paths: vec![path.clone()],
        drops: [("dropped_in".to_owned(), 3)].into(),
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
