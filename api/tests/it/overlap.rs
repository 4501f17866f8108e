//! Hosts whose own networks overlap a grid's.

use kontena_schema::agent::{Facts, FromAgent, Hello, close};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Closed, Master, TestAgent, facts, hello, poll};

/// Facts of a host with these networks.
fn facts_with(engine: &str, networks: &[(&str, &str)]) -> Facts {
    let one =
        |(network, interface): &(&str, &str)| json!({"network": network, "interface": interface});
    let all: Vec<Value> = networks.iter().map(one).collect();
    Facts {
        networks: Some(serde_json::from_value(all.into()).unwrap()),
        ..facts(engine)
    }
}

fn hello_with(engine: &str, networks: &[(&str, &str)]) -> Hello {
    Hello {
        facts: facts_with(engine, networks),
        ..hello(engine, None)
    }
}

async fn refused(master: &Master, token: &str, hello: &Hello) -> String {
    match TestAgent::connect(&master.replicas[0], token, hello).await {
        Err(Closed(code, reason)) => {
            assert_eq!(code, close::NETWORK_OVERLAP, "{reason}");
            reason
        }
        Ok(_) => panic!("it is let in: {:?}", hello.facts),
    }
}

#[tokio::test]
async fn a_host_that_overlaps_its_grid_is_refused_with_both_networks_and_changes_nothing() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (_a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let before = master.get("/v1/grids/demo").await;
    for (network, named) in [
        ("10.81.0.0/24", "overlay network 10.81.0.0/17"),
        // In the supernet and not in the subnet.
        ("10.81.96.0/20", "overlay network 10.81.0.0/17"),
        ("10.80.0.0/12", "overlay network 10.81.0.0/17"),
        ("100.127.81.7/32", "tunnel network 100.127.81.0/24"),
    ] {
        let networks = [("192.168.1.0/24", "eth0"), (network, "br-0123456789ab")];
        let reason = refused(&master, &token, &hello_with("b", &networks)).await;
        let both =
            format!("this host's network {network} on br-0123456789ab overlaps the grid's {named}");
        assert_eq!(reason, both);
    }
    // The longest that can be said arrives as a whole.
    let wide = json!({"name": "wide", "subnet": "192.168.128.0/17"});
    let wide = master.post("/v1/grids", wide).await;
    let networks = [("192.168.128.128/25", "br-0123456789ab")];
    let wide = wide["token"].as_str().unwrap();
    let reason = refused(&master, wide, &hello_with("b", &networks)).await;
    assert!(reason.ends_with(" 192.168.128.0/17"), "{reason}");

    // An agent of the version before tells its addresses only.
    let mut old = hello("b", None);
    old.facts.private_ip = Some("10.81.3.4".parse().unwrap());
    let reason = refused(&master, &token, &old).await;
    assert!(
        reason.starts_with("this host's address 10.81.3.4"),
        "{reason}"
    );

    assert_eq!(master.get("/v1/grids/demo").await, before);
    let sql = master.sql().await;
    let count = "select (select count(*) from nodes) + (select count(*) from sessions)";
    let rows: i64 = sql.query_one(count, &[]).await.unwrap().get(0);
    assert_eq!(rows, 2, "those of the one node");
    // The number is still free, and a host that lost the network gets it.
    let networks = [("192.168.1.0/24", "eth0"), ("10.82.0.0/16", "eth1")];
    let joined = TestAgent::connect(&master.replicas[0], &token, &hello_with("b", &networks)).await;
    assert_eq!(joined.unwrap().welcome.number.get(), 2);
}

#[tokio::test]
async fn networks_that_are_none_are_no_message() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let mut message = serde_json::to_value(FromAgent::Hello(Box::new(hello("a", None)))).unwrap();
    let good = json!({"network": "10.9.0.0/16", "interface": "eth0"});
    let many = vec![good; kontena_schema::limits::HOST_NETWORKS_MAX + 1];
    for (networks, reason) in [
        (json!([{"network": "10.9.0.1/16"}]), "networks"),
        (json!(many), "networks"),
    ] {
        message["hello"]["facts"]["networks"] = networks;
        let closed = TestAgent::say(&master.replicas[0], &token, &message.to_string()).await;
        let Err(Closed(code, said)) = closed else {
            panic!("it is taken: {message}")
        };
        assert_eq!(code, close::BAD_FRAME);
        assert!(said.contains(reason), "{said}");
    }
    assert_eq!(master.get("/v1/grids/demo").await["node_count"], 0);
}

#[tokio::test]
async fn a_node_that_gets_such_a_network_later_stays_and_is_told_of() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let (mut a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let path = "/v1/nodes/demo/host-a";
    let shown = master.get(path).await;
    assert_eq!(shown["networks"], json!([]));
    assert_eq!(shown["network_overlap"], Value::Null);
    let revision = async || master.get("/v1/grids/demo").await["revision"].clone();
    let before = revision().await;

    let networks = [("10.81.5.0/24", "eth1"), ("192.168.1.0/24", "eth0")];
    let overlapping = facts_with("a", &networks);
    a.send(&FromAgent::Facts(Box::new(overlapping))).await;
    let text = "its network 10.81.5.0/24 on eth1 overlaps the grid's overlay network 10.81.0.0/17";
    let shown = async |wanted: Value| {
        poll("the overlap is shown", async || {
            let node = master.get(path).await;
            (node["network_overlap"] == wanted).then_some(node)
        })
        .await
    };
    let node = shown(text.into()).await;
    assert_eq!(node["networks"].as_array().unwrap().len(), 2);
    assert_eq!(node["networks"][0]["interface"], "eth1");
    let nodes = master.get("/v1/grids/demo/nodes").await;
    assert_eq!(nodes["nodes"][0]["networks"], json!([]));
    // It comes back with the network, and is let in under its number.
    let token = a.welcome.node_token.clone().unwrap();
    drop(a);
    let hello = hello_with("a", &networks);
    let back = TestAgent::connect(&master.replicas[0], &token, &hello).await;
    let mut a = back.unwrap();
    assert_eq!(a.welcome.number.get(), 1);
    // What is not known now stays; what is gone is gone.
    let mut unknown = facts("a");
    unknown.cpus = 65;
    a.send(&FromAgent::Facts(Box::new(unknown))).await;
    poll("the facts arrive", async || {
        (master.get(path).await["cpus"] == 65).then_some(())
    })
    .await;
    shown(text.into()).await;
    let gone = facts_with("a", &networks[1..]);
    a.send(&FromAgent::Facts(Box::new(gone))).await;
    shown(Value::Null).await;
    assert_eq!(revision().await, before, "no agent must know of it");
}

#[tokio::test]
async fn a_new_grid_is_created_with_warnings_of_the_nodes_that_it_would_hit() {
    let master = Master::start().await;
    let token = master.grid("demo").await;
    let other = json!({"name": "other", "subnet": "172.20.0.0/19"});
    let other = master.post("/v1/grids", other).await;
    assert_eq!(other.get("warnings"), None);
    let other = other["token"].as_str().unwrap();
    for (token, engine, private_ip, networks) in [
        (&*token, "a", "10.1.0.1", &[("10.1.0.0/16", "eth0")][..]),
        (
            &*token,
            "b",
            "10.2.0.1",
            &[("10.2.0.0/16", "eth0"), ("192.168.5.0/24", "eth1")],
        ),
        // In no grid of the default networks, and all the same known.
        (other, "c", "10.81.4.4", &[("10.81.4.0/24", "eth0")]),
        (other, "d", "10.3.0.1", &[]),
    ] {
        let mut hello = hello_with(engine, networks);
        hello.facts.private_ip = Some(private_ip.parse().unwrap());
        let joined = TestAgent::connect(&master.replicas[0], token, &hello).await;
        joined.unwrap();
    }
    let create = async |body: Value| {
        let (status, grid) = master.call(Method::POST, "/v1/grids", Some(body)).await;
        assert_eq!(status, StatusCode::CREATED, "{grid}");
        let told = grid["warnings"].as_array().cloned().unwrap_or_default();
        (told, grid)
    };
    let field = |all: &[Value], name: &str| -> Vec<String> {
        all.iter()
            .map(|one| one[name].as_str().unwrap_or("-").to_owned())
            .collect()
    };

    let (told, grid) = create(json!({"name": "g1", "subnet": "10.0.0.0/12"})).await;
    assert_eq!(
        field(&told, "node"),
        ["demo/host-a", "demo/host-b", "other/host-d"]
    );
    assert_eq!(
        field(&told, "network"),
        ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.1/32"]
    );
    assert_eq!(field(&told, "interface"), ["eth0", "eth0", "-"]);
    assert_eq!(field(&told, "field"), ["supernet"; 3]);
    let text = "node demo/host-a: its network 10.1.0.0/16 on eth0 overlaps the grid's overlay \
                network 10.0.0.0/12; create the grid with another `--subnet`";
    assert_eq!(told[0]["text"], text);
    // Only who creates it is warned; it is a grid like any other.
    let mut plain = grid.clone();
    plain.as_object_mut().unwrap().remove("warnings");
    assert_eq!(master.get("/v1/grids/g1").await, plain);

    let inner = json!({"name": "g2", "subnet": "172.16.0.0/19", "inner_subnet": "192.168.5.0/24"});
    let (told, _) = create(inner).await;
    assert_eq!(field(&told, "node"), ["demo/host-b"]);
    assert_eq!(field(&told, "field"), ["inner_subnet"]);
    let (told, _) = create(json!({"name": "g3"})).await;
    assert_eq!(field(&told, "node"), ["other/host-c"]);
    let (told, _) = create(json!({"name": "g4", "subnet": "172.16.0.0/19"})).await;
    assert!(told.is_empty(), "{told:?}");
}
