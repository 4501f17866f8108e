//! Agents over the real WebSocket.

use kontena_schema::agent::{FromAgent, InstanceState, PROTOCOL, Position, close};
use kontena_schema::ids::Revision;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Closed, Master, TestAgent, hello, poll, state};

#[tokio::test]
async fn the_first_answer_holds_everything_and_later_ones_the_difference() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut a, first) = TestAgent::join(&master.replicas[0], &token, "a").await;
    assert_eq!(first.shared.grid.as_ref().unwrap().name, "demo");
    assert_eq!(first.shared.nodes.len(), 1);
    assert_eq!(first.shared.nodes[0].address.to_string(), "10.81.0.1");

    let (b, second) = TestAgent::join(&master.replicas[0], &token, "b").await;
    assert_eq!(second.shared.nodes.len(), 2);
    let difference = a.changes().await;
    assert_eq!(difference.shared.grid, None);
    assert_eq!(difference.shared.nodes.len(), 1);
    assert_eq!(difference.shared.nodes[0].id, b.welcome.node);
}

#[tokio::test]
async fn a_change_reaches_agents_of_another_replica() {
    let redis = std::env::var("KONTENA_TEST_REDIS_URL").unwrap();
    // With Redis by the bell; without it, by the tick.
    for redis in [redis.as_str(), "redis://127.0.0.1:1"] {
        let master = Master::with_replicas(2, redis).await;
        let token = master.grid("demo").await;
        let (mut agent, _) = TestAgent::join(&master.replicas[1], &token, "a").await;
        let update = json!({ "trusted_subnets": ["10.0.0.0/8"] });
        master
            .call(Method::PUT, "/v1/grids/demo", Some(update))
            .await;
        let changes = agent.changes().await;
        let grid = changes.shared.grid.unwrap();
        assert_eq!(grid.trusted_subnets[0].to_string(), "10.0.0.0/8");
    }
}

#[tokio::test]
async fn an_agent_goes_on_from_where_it_was_and_else_from_nothing() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut agent, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let node_token = agent.welcome.node_token.clone().unwrap();
    let at = agent.at.clone().unwrap();
    agent.socket.close(None).await.unwrap();
    let _b = TestAgent::join(&master.replicas[0], &token, "b").await;

    let here = hello("a", Some(at.clone()));
    let mut agent = TestAgent::connect(&master.replicas[0], &node_token, &here)
        .await
        .unwrap();
    let changes = agent.changes().await;
    assert_eq!(changes.from, at.revision);
    assert_eq!(
        changes.shared.nodes.len(),
        1,
        "only the node that joined meanwhile"
    );

    for elsewhere in [
        Position {
            timeline: "another".to_owned(),
            ..at.clone()
        },
        Position {
            revision: Revision(1_000_000),
            ..at.clone()
        },
        Position {
            grid: kontena_schema::ids::GridId(999),
            ..at.clone()
        },
    ] {
        let hello = hello("a", Some(elsewhere.clone()));
        let agent = TestAgent::connect(&master.replicas[0], &node_token, &hello).await;
        let changes = agent.unwrap().changes().await;
        assert_eq!(changes.from, Revision::ZERO, "{elsewhere:?}");
        assert_eq!(changes.shared.nodes.len(), 2);
    }
}

#[tokio::test]
async fn node_numbers_stay_through_reconnects() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let (b, _) = TestAgent::join(&master.replicas[0], &token, "b").await;
    assert_eq!((a.welcome.number.get(), b.welcome.number.get()), (1, 2));
    drop(a);
    let (a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    assert_eq!(a.welcome.number.get(), 1);
    assert_eq!(a.welcome.epoch.0, 2);
}

#[tokio::test]
async fn tokens_open_what_they_stand_for_and_nothing_else() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let other = master.grid("other").await;
    let replica = &master.replicas[0];
    let bad = TestAgent::connect(replica, "nonsense", &hello("a", None)).await;
    assert!(matches!(bad, Err(Closed(close::BAD_TOKEN, _))));

    let (a, _) = TestAgent::join(replica, &token, "a").await;
    let node_token = a.welcome.node_token.unwrap();
    // A copy of a node's token on another host opens nothing.
    let copied = TestAgent::connect(replica, &node_token, &hello("b", None)).await;
    assert!(matches!(copied, Err(Closed(close::BAD_TOKEN, _))));
    // Once the node used its own token, the join token is no key to it any more.
    TestAgent::connect(replica, &node_token, &hello("a", None))
        .await
        .unwrap();
    let again = TestAgent::connect(replica, &token, &hello("a", None)).await;
    assert!(matches!(again, Err(Closed(close::BAD_TOKEN, _))));
    // The same host may join another grid with that grid's token.
    let (elsewhere, changes) = TestAgent::join(replica, &other, "a").await;
    assert_eq!(elsewhere.welcome.grid_name, "other");
    assert_eq!(changes.shared.nodes.len(), 1);
}

#[tokio::test]
async fn an_old_session_can_change_nothing() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut old, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    master
        .post(
            "/v1/grids/demo/services",
            json!({ "name": "web", "image": "i" }),
        )
        .await;
    master
        .post("/v1/services/demo/null/web/deploy", Value::Null)
        .await;
    let placement = old
        .until(|changes| changes.own.placements.first().map(|p| p.id))
        .await;
    let (_new, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    old.report(vec![state(placement, 1, InstanceState::Running)])
        .await;
    assert_eq!(old.closed().await.0, close::SUPERSEDED);
    let containers = master.get("/v1/containers/demo").await;
    assert_eq!(containers["containers"][0]["state"], "pending");
    let node = master.get("/v1/nodes/demo/host-a").await;
    assert_eq!(
        node["status"], "online",
        "the old session's end is not the node's"
    );
}

#[tokio::test]
async fn the_255th_node_is_refused() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    for number in 1..254 {
        let (agent, _) = TestAgent::join(&master.replicas[0], &token, &format!("e{number}")).await;
        assert_eq!(agent.welcome.number.get(), number);
    }
    let (last, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    assert_eq!(last.welcome.number.get(), 254);
    let refused = TestAgent::connect(&master.replicas[0], &token, &hello("b", None)).await;
    let Err(Closed(code, reason)) = refused else {
        panic!("a 255th node joined")
    };
    assert_eq!(code, close::GRID_FULL_NODES);
    assert!(reason.contains("254"), "{reason}");
}

#[tokio::test]
async fn ready_endpoints_follow_the_reports() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let (mut b, _) = TestAgent::join(&master.replicas[0], &token, "b").await;
    master
        .post(
            "/v1/grids/demo/services",
            json!({ "name": "web", "image": "i" }),
        )
        .await;
    master
        .post("/v1/services/demo/null/web/deploy", Value::Null)
        .await;
    let id = a
        .until(|changes| changes.own.placements.first().map(|p| p.id))
        .await;
    for (report, ready) in [
        (InstanceState::Running, true),
        (InstanceState::Stopped, false),
    ] {
        a.report(vec![state(id, 1, report)]).await;
        b.until(|changes| {
            changes
                .shared
                .endpoints
                .iter()
                .any(|e| e.placement == id && e.ready == ready)
                .then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_removed_node_is_told_and_leaves_nothing() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    master
        .post(
            "/v1/grids/demo/services",
            json!({ "name": "web", "image": "i" }),
        )
        .await;
    master
        .post("/v1/services/demo/null/web/deploy", Value::Null)
        .await;
    let (mut b, _) = TestAgent::join(&master.replicas[0], &token, "b").await;
    master.delete("/v1/nodes/demo/host-a").await;
    assert_eq!(a.closed().await.0, close::NODE_REMOVED);
    let gone = b.until(|c| c.shared.gone_nodes.first().copied()).await;
    assert_eq!(gone, a.welcome.node);
    assert_eq!(
        master.get("/v1/containers/demo").await["containers"],
        json!([])
    );
    // The host may join again, as a new node with the lowest number.
    let node_token = a.welcome.node_token.unwrap();
    let refused = TestAgent::connect(&master.replicas[0], &node_token, &hello("a", None)).await;
    assert!(matches!(refused, Err(Closed(close::BAD_TOKEN, _))));
    let (again, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    assert_eq!(again.welcome.number.get(), 1);
    assert_ne!(again.welcome.node, a.welcome.node);
}

#[tokio::test]
async fn grids_with_the_same_subnet_share_nothing() {
    let master = Master::start().await;
    let (one, two) = (master.grid("one").await, master.grid("two").await);
    let (mut a, first) = TestAgent::join(&master.replicas[0], &one, "a").await;
    let (_b, second) = TestAgent::join(&master.replicas[0], &two, "b").await;
    let (vni_one, vni_two) = (
        first.shared.grid.unwrap().vni,
        second.shared.grid.unwrap().vni,
    );
    assert_ne!(vni_one, vni_two);
    assert_eq!(second.shared.nodes.len(), 1);
    for grid in ["one", "two"] {
        master
            .post(
                &format!("/v1/grids/{grid}/services"),
                json!({ "name": "web", "image": "i" }),
            )
            .await;
        master
            .post(&format!("/v1/services/{grid}/null/web/deploy"), Value::Null)
            .await;
        let containers = master.get(&format!("/v1/containers/{grid}")).await;
        assert_eq!(containers["containers"][0]["ip_address"], "10.81.1.1");
    }
    let endpoints = a
        .until(|c| Some(c.shared.endpoints.clone()).filter(|e| !e.is_empty()))
        .await;
    assert!(
        endpoints
            .iter()
            .all(|endpoint| endpoint.node == a.welcome.node)
    );
}

#[tokio::test]
async fn a_restart_reaches_the_node_once() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    master
        .post(
            "/v1/grids/demo/services",
            json!({ "name": "web", "image": "i" }),
        )
        .await;
    master
        .post("/v1/services/demo/null/web/deploy", Value::Null)
        .await;
    master
        .post("/v1/services/demo/null/web/restart", Value::Null)
        .await;
    let command = a.until(|c| c.own.commands.first().cloned()).await;
    let done = kontena_schema::agent::CommandReport {
        command: command.id,
        state: kontena_schema::agent::CommandState::Done,
        error: None,
    };
    let report = kontena_schema::agent::Report {
        applied: Revision::ZERO,
        placements: vec![],
        commands: vec![done],
        peers: vec![],
    };
    a.send(&FromAgent::Report(Box::new(report))).await;
    let sql = master.sql().await;
    poll("the command is done", async || {
        let row = sql
            .query_one("select state from commands", &[])
            .await
            .unwrap();
        (row.get::<_, String>(0) == "done").then_some(())
    })
    .await;
    // A later connection is not told again.
    let (_again, changes) = TestAgent::join(&master.replicas[0], &token, "a").await;
    assert!(changes.own.commands.is_empty());
}

#[tokio::test]
async fn nonsense_ends_the_session_with_a_reason() {
    use futures_util::SinkExt;
    use tokio_tungstenite::tungstenite::Message;
    let master = Master::start().await;
    let token = master.grid("demo").await;
    for frame in [
        Message::text("{"),
        Message::text(r#"{"unknown":{}}"#),
        Message::binary(vec![1]),
    ] {
        let (mut a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
        a.socket.send(frame).await.unwrap();
        assert_eq!(a.closed().await.0, close::BAD_FRAME);
    }
    let mut ancient = hello("a", None);
    for protocol in [PROTOCOL - 2, PROTOCOL + 2] {
        ancient.protocol = protocol;
        let refused = TestAgent::connect(&master.replicas[0], &token, &ancient).await;
        assert!(matches!(refused, Err(Closed(close::VERSION, _))));
    }
    ancient.protocol = PROTOCOL - 1;
    let before = TestAgent::connect(&master.replicas[0], &token, &ancient).await;
    assert!(before.is_ok(), "the version before");
}

#[tokio::test]
async fn the_end_of_a_session_that_could_not_be_written_is_written_later() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    // As after an outage: the row says open, opened long ago, by this replica.
    let sql = master.sql().await;
    let stale = "update sessions set opened_at = opened_at - interval '1 hour', epoch = epoch + 1";
    assert_eq!(sql.execute(stale, &[]).await.unwrap(), 1);
    poll("the node is offline", async || {
        (master.get("/v1/nodes/demo/host-a").await["status"] == "offline").then_some(())
    })
    .await;
    drop(a);
}

#[tokio::test]
async fn an_idle_session_learns_of_a_newer_one() {
    let master = Master::with_replicas(2, &std::env::var("KONTENA_TEST_REDIS_URL").unwrap()).await;
    let token = master.grid("demo").await;
    let (mut old, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let (_new, _) = TestAgent::join(&master.replicas[1], &token, "a").await;
    assert_eq!(old.closed().await.0, close::SUPERSEDED);
}

#[tokio::test]
async fn a_bell_that_lies_does_not_deafen() {
    let redis = std::env::var("KONTENA_TEST_REDIS_URL").unwrap();
    let master = Master::with_replicas(1, &redis).await;
    let token = master.grid("demo").await;
    let (mut agent, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let client = redis::Client::open(redis).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let channel = format!("{}:grid:{}", master.redis_prefix, agent.welcome.grid);
    let mut publish = redis::cmd("PUBLISH");
    let heard: i64 = publish
        .arg(channel)
        .arg(1_000_000)
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(heard, 1, "the replica listens");
    let update = json!({ "trusted_subnets": ["10.0.0.0/8"] });
    master
        .call(Method::PUT, "/v1/grids/demo", Some(update))
        .await;
    let changes = agent.changes().await;
    assert_eq!(changes.shared.grid.unwrap().trusted_subnets.len(), 1);
}

#[tokio::test]
async fn a_replica_that_stops_says_goodbye_and_ends_its_sessions() {
    let mut master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut agent, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    master.add_replica().await;
    let stopping = master.replicas.remove(0);
    stopping.stop().await;
    assert_eq!(agent.closed().await.0, close::GOING_AWAY);
    assert_eq!(
        master.get("/v1/nodes/demo/host-a").await["status"],
        "offline"
    );
}
