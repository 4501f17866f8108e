//! What an agent finds out about its host, and who learns of it.

use kontena_schema::agent::{Changes, FromAgent, Position};
use kontena_schema::ids::Revision;

use crate::support::{Master, TestAgent, facts, hello, poll};

#[tokio::test]
async fn facts_that_peers_need_reach_them_and_others_do_not() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let (mut b, _) = TestAgent::join(&master.replicas[0], &token, "b").await;
    let mut changed = facts("b");
    changed.cpus = 64;
    changed.public_ip = Some("203.0.113.9".parse().unwrap());
    b.send(&FromAgent::Facts(Box::new(changed.clone()))).await;
    let nodes = a
        .until(|changes| {
            let node = changes
                .shared
                .nodes
                .iter()
                .find(|n| n.id == b.welcome.node)?;
            node.site.public_ip
        })
        .await;
    assert_eq!(nodes.to_string(), "203.0.113.9");
    assert_eq!(master.get("/v1/nodes/demo/host-b").await["cpus"], 64);
    // An address that is not known any more keeps its last value.
    changed.public_ip = None;
    changed.cpus = 65;
    b.send(&FromAgent::Facts(Box::new(changed))).await;
    poll("the facts arrive", async || {
        (master.get("/v1/nodes/demo/host-b").await["cpus"] == 65).then_some(())
    })
    .await;
    assert_eq!(
        master.get("/v1/nodes/demo/host-b").await["public_ip"],
        "203.0.113.9"
    );
    assert_eq!(
        a.at,
        grid_at(&master, a.at.clone()).await,
        "no revision for what peers need not know"
    );
}

/// The position that the grid is at.
async fn grid_at(master: &Master, near: Option<Position>) -> Option<Position> {
    let revision = master.get("/v1/grids/demo").await["revision"]
        .as_i64()
        .unwrap();
    near.map(|at| Position {
        revision: Revision(revision),
        ..at
    })
}

#[tokio::test]
async fn peers_learn_who_is_behind_a_translator_of_addresses() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let mut hidden = hello("b", None);
    hidden.facts.behind_nat = Some(true);
    let joined = TestAgent::connect(&master.replicas[0], &token, &hidden).await;
    let mut b = joined.unwrap();
    let node = b.welcome.node;
    let told = |changes: &Changes, wanted: Option<bool>| {
        let mut nodes = changes.shared.nodes.iter();
        nodes
            .any(|n| n.id == node && n.behind_nat == wanted)
            .then_some(())
    };
    a.until(|changes| told(changes, Some(true))).await;
    let path = "/v1/nodes/demo/host-b";
    assert_eq!(master.get(path).await["behind_nat"], true);
    assert!(master.get("/v1/nodes/demo/host-a").await["behind_nat"].is_null());
    // An agent that does not know now, or is of the version before, says nothing of it.
    let before = a.at.clone();
    let mut facts = hidden.facts.clone();
    facts.behind_nat = None;
    facts.cpus = 65;
    b.send(&FromAgent::Facts(Box::new(facts.clone()))).await;
    poll("the facts arrive", async || {
        (master.get(path).await["cpus"] == 65).then_some(())
    })
    .await;
    assert_eq!(master.get(path).await["behind_nat"], true);
    assert_eq!(before, grid_at(&master, before.clone()).await);
    facts.behind_nat = Some(false);
    b.send(&FromAgent::Facts(Box::new(facts))).await;
    a.until(|changes| told(changes, Some(false))).await;
    assert_eq!(master.get(path).await["behind_nat"], false);
}
