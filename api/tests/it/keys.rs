//! The public keys of nodes: told, passed on, changed.

use kontena_schema::agent::{Changes, FromAgent, NodeEntry, PeerReport, close};
use kontena_schema::ids::{KeyTurn, NodeId, Revision};
use kontena_schema::key::{PublicKey, PublicKeys};
use kontena_schema::path::Path;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::{Closed, Master, TestAgent, answer, facts, hello};

fn keys(current: u8, next: Option<u8>) -> PublicKeys {
    let key = |n| PublicKey([n; 32]);
    PublicKeys {
        current: key(current),
        next: next.map(key),
    }
}

/// Joins with a key.
async fn join(
    master: &Master,
    replica: usize,
    token: &str,
    (engine, key): (&str, u8),
) -> Result<TestAgent, Closed> {
    let mut hello = hello(engine, None);
    hello.facts.keys = Some(keys(key, None));
    let mut agent = TestAgent::connect(&master.replicas[replica], token, &hello).await?;
    let changes = agent.changes().await;
    assert_eq!(changes.from, Revision::ZERO);
    let own = entry(&changes, agent.welcome.node).unwrap();
    assert_eq!(own.keys, Some(keys(key, None)));
    Ok(agent)
}

fn entry(changes: &Changes, node: NodeId) -> Option<&NodeEntry> {
    changes.shared.nodes.iter().find(|entry| entry.id == node)
}

async fn tell(agent: &mut TestAgent, engine: &str, keys: PublicKeys) {
    let mut told = facts(engine);
    told.keys = Some(keys);
    agent.send(&FromAgent::Facts(Box::new(told))).await;
}

/// Says that an agent is ready for a peer's next key.
async fn ready(agent: &mut TestAgent, peer: NodeId, next: u8) {
    let peer = PeerReport {
        node: peer,
        path: Path::Unknown,
        unreachable: None,
        sealed_because: None,
        next_key: Some(PublicKey([next; 32])),
    };
    agent.report_peers(vec![peer]).await;
}

#[tokio::test]
async fn a_next_key_is_used_when_every_connected_peer_is_ready() {
    let master = Master::quick(2).await;
    let token = master.grid("demo").await;
    let mut a = join(&master, 0, &token, ("a", 1)).await.unwrap();
    let mut b = join(&master, 1, &token, ("b", 2)).await.unwrap();
    let mut c = join(&master, 0, &token, ("c", 3)).await.unwrap();
    let node = a.welcome.node;

    tell(&mut a, "a", keys(1, Some(11))).await;
    for agent in [&mut b, &mut c] {
        let seen = agent.until(|changes| {
            entry(changes, node)?
                .keys?
                .next
                .map(|_| entry(changes, node).cloned())
        });
        let seen = seen.await.unwrap();
        assert_eq!(seen.keys, Some(keys(1, Some(11))));
        assert!(!seen.next_key_known);
    }
    ready(&mut b, node, 11).await;
    // About another key: it does not count.
    ready(&mut c, node, 12).await;
    let known = async |agent: &mut TestAgent| {
        let known = agent.until(|changes| entry(changes, node)?.next_key_known.then_some(()));
        known.await;
    };
    let early = tokio::time::timeout(std::time::Duration::from_secs(3), known(&mut a)).await;
    assert!(early.is_err(), "one of the peers is not ready");
    let waits_for = async || {
        let shown = master.get("/v1/nodes/demo/host-a").await;
        shown["next_key_waits_for"].clone()
    };
    assert_eq!(waits_for().await, json!(["host-c"]));
    // A peer that leaves is not waited for.
    drop(c);
    known(&mut a).await;
    assert_eq!(waits_for().await, json!([]));

    tell(&mut a, "a", keys(11, None)).await;
    let now = b.until(|changes| {
        entry(changes, node)?
            .keys
            .filter(|keys| keys.next.is_none())
    });
    assert_eq!(now.await, keys(11, None));
    let shown = master.get("/v1/nodes/demo/host-a").await;
    assert_eq!(shown["public_key"], json!(PublicKey([11; 32])));
}

#[tokio::test]
async fn a_key_that_another_node_of_the_grid_has_is_refused() {
    let master = Master::quick(2).await;
    let token = master.grid("demo").await;
    let mut a = join(&master, 0, &token, ("a", 1)).await.unwrap();
    tell(&mut a, "a", keys(1, Some(11))).await;
    let node = a.welcome.node;
    a.until(|changes| entry(changes, node)?.keys?.next).await;
    for taken in [1, 11] {
        let Err(Closed(code, reason)) = join(&master, 1, &token, ("b", taken)).await else {
            panic!("key {taken} was taken twice")
        };
        assert_eq!(code, close::KEY_TAKEN);
        assert!(reason.contains("public key"), "{reason}");
    }
    assert_eq!(
        master.get("/v1/grids/demo/nodes").await["nodes"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    join(&master, 1, &token, ("b", 2)).await.unwrap();
    // In another grid it is another node's business.
    let other = master.grid("other").await;
    join(&master, 1, &other, ("c", 1)).await.unwrap();
}

#[tokio::test]
async fn a_change_of_key_can_be_asked_for() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let mut a = join(&master, 0, &token, ("a", 1)).await.unwrap();
    let node = a.welcome.node;
    let (status, body) = answer(master.request(Method::POST, "/v1/nodes/demo/host-a/key")).await;
    assert_eq!((status, body), (StatusCode::OK, json!({})));
    let turn = a.until(|changes| Some(entry(changes, node)?.key_turn));
    assert_eq!(turn.await, KeyTurn(1));
    let (status, body) = answer(master.request(Method::POST, "/v1/nodes/demo/nobody/key")).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
}
