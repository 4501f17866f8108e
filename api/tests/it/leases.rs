//! The life of a lease: loss, return, conflict, waiting, node numbers, sessions.

use kontena_schema::agent::{InstanceState, InventoryEntry, Placement, close};
use kontena_schema::ids::NodeId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Closed, Master, TestAgent, hello, poll, state};

/// A Master and a grid of 510 addresses whose lost nodes get no grace.
pub struct Bed {
    pub master: Master,
    token: String,
}

/// A host whose agent was there: what it comes back with.
#[derive(Clone)]
pub struct Host {
    engine: String,
    pub token: String,
    node: NodeId,
    pub inventory: Vec<InventoryEntry>,
}

impl Bed {
    pub async fn with_grace(replicas: usize, grace_s: u32) -> Self {
        let master = Master::quick(replicas).await;
        let grid = json!({ "name": "g", "subnet": "10.9.0.0/23", "grace_s": grace_s });
        let grid = master.post("/v1/grids", grid).await;
        let token = grid["token"].as_str().unwrap().to_owned();
        Self { master, token }
    }

    pub async fn new() -> Self {
        Self::with_grace(1, 0).await
    }

    pub async fn join(&self, engine: &str) -> (TestAgent, Host) {
        let (agent, _) = TestAgent::join(&self.master.replicas[0], &self.token, engine).await;
        let host = Host {
            engine: engine.to_owned(),
            token: agent.welcome.node_token.clone().unwrap(),
            node: agent.welcome.node,
            inventory: vec![],
        };
        (agent, host)
    }

    pub async fn back(&self, host: &Host) -> TestAgent {
        self.try_back(host, None).await.unwrap()
    }

    pub async fn try_back(&self, host: &Host, instance: Option<Uuid>) -> Result<TestAgent, Closed> {
        let mut hello = hello(&host.engine, None);
        hello.inventory.clone_from(&host.inventory);
        hello.instance = instance;
        TestAgent::connect(&self.master.replicas[0], &host.token, &hello).await
    }

    /// Deploys a service of one instance on a node and has the agent run it.
    pub async fn run(&self, service: &str, agent: &mut TestAgent, host: &mut Host) -> Placement {
        self.deploy(service, &host.engine).await;
        let placement = placement(agent).await;
        host.inventory.push(entry(&placement, host.node));
        let mut running = state(placement.id, 1, InstanceState::Running);
        running.lease = placement.lease;
        agent.report(vec![running]).await;
        poll("it runs", async || {
            (self.container(service).await["state"] == "running").then_some(())
        })
        .await;
        placement
    }

    async fn deploy(&self, service: &str, engine: &str) {
        let affinity = format!("node==host-{engine}");
        let service_body = json!({ "name": service, "image": "i", "affinity": [affinity] });
        self.master.post("/v1/grids/g/services", service_body).await;
        let path = format!("/v1/services/g/null/{service}/deploy");
        self.master.post(&path, Value::Null).await;
    }

    pub async fn container(&self, service: &str) -> Value {
        let list = self.master.get("/v1/containers/g").await;
        let list = list["containers"].as_array().unwrap().clone();
        let found = list.into_iter().find(|c| c["service"] == service);
        found.unwrap_or(Value::Null)
    }

    pub async fn in_state(&self, service: &str, lease_state: &str) -> Value {
        poll(&format!("{service} is {lease_state}"), async || {
            let container = self.container(service).await;
            (container["lease_state"] == lease_state).then_some(container)
        })
        .await
    }

    /// Waits until a host's session is over.
    pub async fn disconnected(&self, engine: &str) {
        let path = format!("/v1/nodes/g/host-{engine}");
        poll("the session ended", async || {
            (self.master.get(&path).await["connected"] == false).then_some(())
        })
        .await;
    }

    pub async fn lose(&self, agent: TestAgent, service: &str) {
        drop(agent);
        self.in_state(service, "lost").await;
    }

    async fn reserve(&self, body: Value) -> Vec<String> {
        let taken = self.master.post("/v1/grids/g/addresses", body).await;
        let taken = taken["addresses"].as_array().unwrap().clone();
        taken
            .iter()
            .map(|address| address["address"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Takes all addresses but so many. What is released afterwards is free alone.
    pub async fn fill_but(&self, left: u64) {
        let probe = json!({ "name": "probe", "count": 510 });
        let (_, full) = self.try_reserve(probe).await;
        let used = full["details"]["leased"].as_u64().unwrap()
            + full["details"]["nodes"].as_u64().unwrap();
        self.reserve(json!({ "name": "filler", "count": 510 - used - left }))
            .await;
    }

    async fn try_reserve(&self, body: Value) -> (StatusCode, Value) {
        self.master
            .call(Method::POST, "/v1/grids/g/addresses", Some(body))
            .await
    }

    async fn release(&self, ip: &str) {
        self.master
            .delete(&format!("/v1/grids/g/addresses/{ip}"))
            .await;
    }

    /// What happened to an address, in order.
    pub async fn story(&self, ip: &str) -> Vec<(String, String)> {
        let path = format!("/v1/grids/g/addresses/{ip}/history");
        let history = self.master.get(&path).await["history"].clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let steps = history.as_array().unwrap().iter().rev();
        steps
            .map(|step| (text(&step["event"]), text(&step["holder"])))
            .collect()
    }
}

fn entry(placement: &Placement, node: NodeId) -> InventoryEntry {
    InventoryEntry {
        placement: placement.id,
        node,
        lease: placement.lease.unwrap(),
        address: placement.address.unwrap(),
    }
}

async fn placement(agent: &mut TestAgent) -> Placement {
    agent
        .until(|changes| changes.own.placements.first().cloned())
        .await
}

fn steps(story: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(event, holder): &(&str, &str)| ((*event).to_owned(), (*holder).to_owned());
    story.iter().map(own).collect()
}

#[tokio::test]
async fn a_lost_node_gets_back_what_is_still_free() {
    let bed = Bed::new().await;
    let (mut witness, _) = bed.join("w").await;
    let (mut agent, mut host) = bed.join("a").await;
    let before = bed.run("web", &mut agent, &mut host).await;
    assert_eq!(before.address.unwrap().to_string(), "10.9.1.1");
    let ready = |ready: bool| {
        move |changes: &kontena_schema::agent::Changes| {
            let endpoint = changes
                .shared
                .endpoints
                .iter()
                .find(|e| e.service == "web")?;
            (endpoint.ready == ready).then(|| endpoint.clone())
        }
    };
    witness.until(ready(true)).await;
    bed.lose(agent, "web").await;
    let lost = witness.until(ready(false)).await;
    assert_eq!(
        Some(lost.address),
        before.address,
        "peers keep the entry while nobody has the address"
    );
    assert_eq!(bed.container("web").await["ip_address"], Value::Null);

    let mut agent = bed.back(&host).await;
    let after = placement(&mut agent).await;
    assert_eq!((after.address, after.lease), (before.address, before.lease));
    assert_eq!(bed.container("web").await["lease_state"], "held");
    let mut running = state(after.id, 1, InstanceState::Running);
    running.lease = after.lease;
    agent.report(vec![running]).await;
    witness.until(ready(true)).await;
    let story = bed.story("10.9.1.1").await;
    assert_eq!(
        story,
        steps(&[
            ("leased", "web-1"),
            ("released", "web-1"),
            ("restored", "web-1")
        ])
    );
}

#[tokio::test]
async fn a_session_that_resumes_within_the_grace_loses_nothing() {
    let bed = Bed::with_grace(2, 3600).await;
    let (mut agent, mut host) = bed.join("a").await;
    bed.run("web", &mut agent, &mut host).await;
    drop(agent);
    bed.disconnected("a").await;
    assert_eq!(bed.container("web").await["lease_state"], "held");
    let _agent = bed.back(&host).await;
    assert_eq!(
        bed.container("web").await["state"],
        "running",
        "its name never vanished"
    );
    assert_eq!(bed.story("10.9.1.1").await, steps(&[("leased", "web-1")]));
}

#[tokio::test]
async fn in_a_conflict_the_returning_container_stays_and_the_other_alone_moves() {
    let bed = Bed::new().await;
    let (mut a, mut host_a) = bed.join("a").await;
    let (mut b, mut host_b) = bed.join("b").await;
    let first = bed.run("web", &mut a, &mut host_a).await;
    let bystander = bed.run("calm", &mut b, &mut host_b).await;
    bed.fill_but(0).await;
    bed.lose(a, "web").await;
    let second = bed.run("other", &mut b, &mut host_b).await;
    assert_eq!(second.address, first.address);
    bed.in_state("web", "taken").await;

    let mut a = bed.back(&host_a).await;
    let back = placement(&mut a).await;
    assert_eq!((back.address, back.lease), (first.address, first.lease));
    // Nothing is free: the other waits, visibly.
    let waiting = bed.in_state("other", "waiting").await;
    assert_eq!(
        (&waiting["state"], &waiting["ip_address"]),
        (&json!("pending"), &Value::Null)
    );
    let error = waiting["error"].as_str().unwrap();
    assert!(error.starts_with("pending: grid_full_addresses"), "{error}");
    assert!(
        error.contains("10.9.1.1 returned to web-1 of node host-a"),
        "{error}"
    );
    let told = b
        .until(|changes| {
            changes
                .own
                .placements
                .iter()
                .find(|p| p.id == second.id)
                .cloned()
        })
        .await;
    assert_eq!((told.address, told.lease), (None, None));
    // What becomes free is for those that wait.
    bed.release("10.9.1.9").await;
    let moved = bed.in_state("other", "held").await;
    assert_eq!(moved["ip_address"], "10.9.1.9");
    let (status, _) = bed.try_reserve(json!({ "name": "x" })).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let given = b
        .until(|changes| {
            let found = changes.own.placements.iter().find(|p| p.id == second.id);
            found.filter(|p| p.address.is_some()).cloned()
        })
        .await;
    let reason = given.lease_reason.unwrap();
    assert!(reason.contains("returned to web-1"), "{reason}");
    assert_eq!(
        bed.container("calm").await["ip_address"],
        json!(bystander.address.unwrap())
    );
    assert_eq!(
        bed.story("10.9.1.1").await,
        steps(&[
            ("leased", "web-1"),
            ("released", "web-1"),
            ("leased", "other-1"),
            ("released", "other-1"),
            ("restored", "web-1"),
        ])
    );
}

#[tokio::test]
async fn of_several_former_holders_the_oldest_lease_wins() {
    let bed = Bed::new().await;
    let (mut a, mut host_a) = bed.join("a").await;
    let (mut b, mut host_b) = bed.join("b").await;
    let (mut c, mut host_c) = bed.join("c").await;
    bed.run("one", &mut a, &mut host_a).await;
    bed.fill_but(0).await;
    bed.lose(a, "one").await;
    bed.run("two", &mut b, &mut host_b).await;
    bed.lose(b, "two").await;
    let third = bed.run("three", &mut c, &mut host_c).await;
    assert_eq!(third.address.unwrap().to_string(), "10.9.1.1");

    let _b = bed.back(&host_b).await;
    assert_eq!(bed.container("two").await["ip_address"], "10.9.1.1");
    bed.in_state("three", "waiting").await;
    let _a = bed.back(&host_a).await;
    assert_eq!(bed.container("one").await["ip_address"], "10.9.1.1");
    bed.in_state("two", "waiting").await;
    // The longest waiting is served first.
    bed.release("10.9.1.7").await;
    bed.release("10.9.1.8").await;
    assert_eq!(bed.container("three").await["ip_address"], "10.9.1.7");
    assert_eq!(bed.container("two").await["ip_address"], "10.9.1.8");
}

#[tokio::test]
async fn a_reservation_stays_and_the_returning_container_moves() {
    let bed = Bed::new().await;
    let (mut agent, mut host) = bed.join("a").await;
    let before = bed.run("web", &mut agent, &mut host).await;
    bed.lose(agent, "web").await;
    assert_eq!(
        bed.reserve(json!({ "name": "printer", "address": "10.9.1.1" }))
            .await,
        ["10.9.1.1"]
    );
    bed.in_state("web", "taken").await;
    let mut agent = bed.back(&host).await;
    let after = placement(&mut agent).await;
    assert_eq!(after.address.unwrap().to_string(), "10.9.1.2");
    assert!(after.lease > before.lease);
    let reason = after.lease_reason.unwrap();
    assert!(reason.contains("10.9.1.1 was given to printer"), "{reason}");
    let shown = bed.master.get("/v1/grids/g/addresses/10.9.1.1").await;
    assert_eq!(
        (&shown["kind"], &shown["holder"]),
        (&json!("reservation"), &json!("printer"))
    );
}

#[tokio::test]
async fn a_stale_inventory_moves_nobody() {
    let bed = Bed::new().await;
    let (mut a, mut host_a) = bed.join("a").await;
    let (mut b, mut host_b) = bed.join("b").await;
    bed.run("web", &mut a, &mut host_a).await;
    bed.fill_but(0).await;
    bed.lose(a, "web").await;
    bed.run("other", &mut b, &mut host_b).await;
    // A container of another lease, of another node, and none: no reason to move.
    host_a.inventory[0].lease.0 += 1000;
    let mut foreign = host_a.inventory[0].clone();
    foreign.node = host_b.node;
    host_a.inventory.push(foreign);
    let mut a = bed.back(&host_a).await;
    assert_eq!(placement(&mut a).await.address, None);
    assert_eq!(bed.container("other").await["ip_address"], "10.9.1.1");
    bed.in_state("web", "waiting").await;
}

#[tokio::test]
async fn a_node_number_is_taken_back_from_a_container_but_not_from_a_reservation() {
    let bed = Bed::new().await;
    let (mut a, mut host_a) = bed.join("a").await;
    // All of the node range is lent: to a container only the lowest, 10.9.0.2.
    bed.fill_but(1).await;
    bed.run("web", &mut a, &mut host_a).await;
    assert_eq!(bed.container("web").await["ip_address"], "10.9.0.2");
    let (b, _) = bed.join("b").await;
    assert_eq!(b.welcome.number.get(), 2);
    let waiting = bed.in_state("web", "waiting").await;
    let error = waiting["error"].as_str().unwrap();
    assert!(
        error.contains("10.9.0.2 is the address of node host-b now"),
        "{error}"
    );
    let refused = TestAgent::connect(&bed.master.replicas[0], &bed.token, &hello("c", None)).await;
    assert_eq!(refused.err().unwrap().0, close::GRID_FULL_NODES);
    // A node that leaves frees its number for those that wait.
    bed.master.delete("/v1/nodes/g/host-b").await;
    assert_eq!(bed.in_state("web", "held").await["ip_address"], "10.9.0.2");
    assert_eq!(
        bed.story("10.9.0.2").await,
        steps(&[
            ("leased", "web-1"),
            ("released", "web-1"),
            ("leased", "host-b"),
            ("released", "host-b"),
            ("leased", "web-1"),
        ])
    );
}

#[tokio::test]
async fn what_was_to_go_ends_with_its_node_and_its_container_is_removed_later() {
    let bed = Bed::new().await;
    let (mut agent, mut host) = bed.join("a").await;
    let web = bed.run("web", &mut agent, &mut host).await;
    let db = bed.run("db", &mut agent, &mut host).await;
    bed.master.delete("/v1/services/g/null/web").await;
    assert_eq!(
        bed.container("web").await["lease_state"],
        "held",
        "until the container is gone"
    );
    bed.lose(agent, "db").await;
    assert_eq!(bed.container("web").await, Value::Null);
    // And what is removed while the node is lost ends at once.
    bed.master.delete("/v1/services/g/null/db").await;
    assert_eq!(bed.container("db").await, Value::Null);
    let mut agent = bed.back(&host).await;
    let all = agent.changes().await;
    assert!(
        all.own.placements.is_empty(),
        "neither {} nor {}",
        web.id,
        db.id
    );
    let held = bed.master.get("/v1/grids/g/addresses").await;
    assert_eq!(
        held["addresses"].as_array().unwrap().len(),
        1,
        "the node's own: {held}"
    );
}

#[tokio::test]
async fn what_a_lost_node_frees_is_not_for_its_own_who_waited() {
    let bed = Bed::new().await;
    let (mut agent, mut host) = bed.join("a").await;
    let web = bed.run("web", &mut agent, &mut host).await;
    bed.run("db", &mut agent, &mut host).await;
    bed.fill_but(0).await;
    bed.lose(agent, "web").await;
    let address = web.address.unwrap().to_string();
    bed.reserve(json!({ "name": "x", "address": address }))
        .await;
    let agent = bed.back(&host).await;
    bed.in_state("web", "waiting").await;
    assert_eq!(bed.container("db").await["lease_state"], "held");
    bed.master.delete("/v1/services/g/null/db").await;
    drop(agent);
    bed.in_state("web", "none").await;
    assert_eq!(bed.container("db").await, Value::Null);
    let request = json!({ "name": "y" });
    assert_eq!(bed.try_reserve(request).await.0, StatusCode::CREATED);
    let _agent = bed.back(&host).await;
    bed.in_state("web", "waiting").await;
    bed.release(&address).await;
    assert_eq!(bed.container("web").await["ip_address"], address);
}

#[tokio::test]
async fn a_host_whose_node_was_removed_joins_as_a_new_one() {
    let bed = Bed::new().await;
    let (mut agent, mut host) = bed.join("a").await;
    bed.run("web", &mut agent, &mut host).await;
    drop(agent);
    bed.master.delete("/v1/nodes/g/host-a").await;
    let (other, _) = bed.join("b").await;
    assert_eq!(other.welcome.number.get(), 1, "the number is given away");
    let refused = bed.try_back(&host, None).await;
    assert_eq!(refused.err().unwrap().0, close::BAD_TOKEN);
    host.token.clone_from(&bed.token);
    let mut agent = bed.back(&host).await;
    assert_eq!(agent.welcome.number.get(), 2);
    assert_ne!(agent.welcome.node, host.node);
    assert!(agent.changes().await.own.placements.is_empty());
}
