//! Reservations and capacity.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Master, TestAgent, answer};

pub const ALL: &str = "/v1/grids/g/addresses";

pub async fn small(replicas: usize) -> Master {
    let redis = std::env::var("KONTENA_TEST_REDIS_URL").unwrap();
    let master = Master::with_replicas(replicas, &redis).await;
    let grid = json!({ "name": "g", "subnet": "10.9.0.0/23" });
    master.post("/v1/grids", grid).await;
    master
}

pub async fn reserve(master: &Master, body: Value) -> (StatusCode, Value) {
    master.call(Method::POST, ALL, Some(body)).await
}

pub fn ips(answer: &Value) -> Vec<&str> {
    let addresses = answer["addresses"].as_array().unwrap();
    addresses
        .iter()
        .map(|a| a["address"].as_str().unwrap())
        .collect()
}

/// The middle one: other tests share the processors.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A full grid says so without waiting for anything.
async fn refused_at_once(master: &Master) {
    let mut refusals = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        let (status, _) = reserve(master, json!({ "name": "late" })).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        refusals.push(begun.elapsed());
    }
    let refused = median(refusals);
    assert!(
        refused < Duration::from_millis(50),
        "a full grid refused after {refused:?}"
    );
}

/// Many clients take what there is over several replicas, then give it back.
async fn everything_once(master: &Arc<Master>, size: usize, clients: usize) {
    let take = |client: usize| {
        let master = Arc::clone(master);
        async move {
            let mut taken = Vec::new();
            loop {
                let replica = &master.replicas[client % master.replicas.len()];
                let request = master.request_to(replica, Method::POST, ALL);
                let name = json!({ "name": format!("client-{client}") });
                let begun = Instant::now();
                let (status, body) = answer(request.json(&name)).await;
                match status {
                    StatusCode::CREATED => taken.push(ips(&body)[0].parse::<Ipv4Addr>().unwrap()),
                    _ => break (taken, status, body, begun.elapsed()),
                }
            }
        }
    };
    let ends = join_all((0..clients).map(|client| tokio::spawn(take(client)))).await;
    let mut seen = BTreeSet::new();
    for end in ends {
        let (taken, status, body, _) = end.unwrap();
        for ip in taken {
            assert!(seen.insert(ip), "{ip} was given twice");
        }
        assert_eq!(
            (status, &body["code"]),
            (
                StatusCode::UNPROCESSABLE_ENTITY,
                &json!("grid_full_addresses")
            )
        );
        assert_eq!(body["details"]["size"], size);
        assert_eq!(body["details"]["leased"], size);
        assert!(
            !body["details"]["biggest_holders"]
                .as_array()
                .unwrap()
                .is_empty()
        );
    }
    assert_eq!(seen.len(), size);
    refused_at_once(master).await;
    let seen: Arc<Vec<Ipv4Addr>> = Arc::new(seen.into_iter().collect());
    let give = |client: usize| {
        let (master, seen) = (Arc::clone(master), Arc::clone(&seen));
        async move {
            let replica = &master.replicas[client % master.replicas.len()];
            for ip in seen.iter().skip(client).step_by(clients) {
                let request = master.request_to(replica, Method::DELETE, &format!("{ALL}/{ip}"));
                assert_eq!(answer(request).await.0, StatusCode::OK, "{ip}");
            }
        }
    };
    for end in join_all((0..clients).map(|client| tokio::spawn(give(client)))).await {
        end.unwrap();
    }
    assert_eq!(
        master.get(ALL).await["addresses"],
        json!([]),
        "nothing is leaked"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_take_every_address_once_twenty_times() {
    let master = Arc::new(small(3).await);
    for _ in 0..20 {
        everything_once(&master, 510, 100).await;
    }
    let sql = master.sql().await;
    let row = sql
        .query_one("select held, lease_last, release_last from pools", &[])
        .await
        .unwrap();
    let counts: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(counts, (0, 20 * 510, 20 * 510));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_take_every_address_of_a_default_grid_once() {
    let redis = std::env::var("KONTENA_TEST_REDIS_URL").unwrap();
    let master = Arc::new(Master::with_replicas(3, &redis).await);
    master.grid("g").await;
    everything_once(&master, 8190, 100).await;
}

#[tokio::test]
async fn addresses_go_by_class_and_the_never_used_before_the_longest_free() {
    let master = small(1).await;
    let (_, first) = reserve(&master, json!({ "name": "one" })).await;
    assert_eq!(ips(&first), ["10.9.1.1"]);
    master.delete(&format!("{ALL}/10.9.1.1")).await;
    let (_, class1) = reserve(&master, json!({ "name": "class 1", "count": 253 })).await;
    assert_eq!(
        (ips(&class1)[0], *ips(&class1).last().unwrap()),
        ("10.9.1.2", "10.9.1.254")
    );
    let (_, again) = reserve(&master, json!({ "name": "again" })).await;
    assert_eq!(
        ips(&again),
        ["10.9.1.1"],
        "what was used before a further class"
    );
    let (_, class2) = reserve(&master, json!({ "name": "class 2", "count": 2 })).await;
    assert_eq!(ips(&class2), ["10.9.0.255", "10.9.1.0"]);
    let (_, class3) = reserve(&master, json!({ "name": "class 3", "count": 2 })).await;
    assert_eq!(
        ips(&class3),
        ["10.9.0.253", "10.9.0.254"],
        "from the top down"
    );
    for ip in ["10.9.1.9", "10.9.1.7", "10.9.1.8"] {
        master.delete(&format!("{ALL}/{ip}")).await;
    }
    for ip in ["10.9.1.9", "10.9.1.7", "10.9.1.8"] {
        let (_, next) = reserve(&master, json!({ "name": "longest free first" })).await;
        assert_eq!(ips(&next), [ip]);
    }
}

#[tokio::test]
async fn what_left_the_queue_of_the_free_by_name_is_passed_over_there() {
    let master = small(1).await;
    let (_, all) = reserve(&master, json!({ "name": "all", "count": 510 })).await;
    let ip = |n: usize| ips(&all)[255 + n].to_owned();
    assert_eq!(ip(1), "10.9.1.1");
    for n in 1..=60 {
        master.delete(&format!("{ALL}/{}", ip(n))).await;
    }
    // Every other one goes by its name; one comes back and is the longest free no more.
    for n in (1..=59).step_by(2) {
        let (status, _) = reserve(&master, json!({ "name": "this", "address": ip(n) })).await;
        assert_eq!(status, StatusCode::CREATED);
    }
    master.delete(&format!("{ALL}/{}", ip(1))).await;
    let (_, taken) = reserve(&master, json!({ "name": "next", "count": 2 })).await;
    assert_eq!(ips(&taken), [ip(2), ip(4)]);
    let (_, taken) = reserve(&master, json!({ "name": "rest", "count": 29 })).await;
    assert!(
        ips(&taken).contains(&ip(1).as_str()),
        "the last that is free"
    );
    assert_eq!(ips(&taken).len(), 29);
    refused_at_once(&master).await;
    master.delete(&format!("{ALL}/{}", ip(7))).await;
    let (_, taken) = reserve(&master, json!({ "name": "one" })).await;
    assert_eq!(ips(&taken), [ip(7)]);

    let sql = master.sql().await;
    let faults = "select fault from address_faults((select id from grids)) fault";
    let found = sql.query(faults, &[]).await.unwrap();
    assert!(found.is_empty(), "{:?}", found[0].get::<_, String>(0));
    // What it is for: each of these is found.
    for wrong in [
        "update pools set held = held - 1",
        "update addresses set holder = null where ip = '10.9.1.9'",
        "update addresses set lease = null, kind = null, holder = null, leased_at = null, released = 1
         where ip = '10.9.1.9'",
    ] {
        let wrong = format!("begin; {wrong}");
        sql.batch_execute(&wrong).await.unwrap();
        let found = sql.query(faults, &[]).await.unwrap();
        sql.batch_execute("rollback").await.unwrap();
        assert!(!found.is_empty(), "{wrong}");
    }
}

#[tokio::test]
async fn a_certain_address_can_be_asked_for() {
    let master = small(1).await;
    let (status, taken) =
        reserve(&master, json!({ "name": "printer", "address": "10.9.1.2" })).await;
    assert_eq!(
        (status, ips(&taken)),
        (StatusCode::CREATED, vec!["10.9.1.2"])
    );
    let (status, held) =
        reserve(&master, json!({ "name": "scanner", "address": "10.9.1.2" })).await;
    assert_eq!(
        (status, &held["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("address_held"))
    );
    assert!(
        held["error"].as_str().unwrap().contains("printer"),
        "{held}"
    );
    let (_, next) = reserve(&master, json!({ "name": "next", "count": 2 })).await;
    assert_eq!(ips(&next), ["10.9.1.1", "10.9.1.3"], "it is stepped over");
    for outside in ["10.9.0.0", "10.9.1.255", "10.9.2.1", "192.0.2.1"] {
        let (status, body) = reserve(&master, json!({ "name": "x", "address": outside })).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{outside}");
        assert!(body["error"]["address"].is_string(), "{outside}: {body}");
    }
    // A node steps over it too.
    reserve(&master, json!({ "name": "low", "address": "10.9.0.1" })).await;
    let token = master.get("/v1/grids/g").await["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let (agent, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    assert_eq!(agent.welcome.number.get(), 2);
}

#[tokio::test]
async fn bad_requests_name_the_field_and_take_nothing() {
    let master = small(1).await;
    for (body, field) in [
        (json!({ "name": "" }), "name"),
        (json!({ "name": "a\nb" }), "name"),
        (json!({ "name": "x".repeat(256) }), "name"),
        (json!({ "name": "x", "count": 0 }), "count"),
        (json!({ "name": "x", "count": 8191 }), "count"),
        (
            json!({ "name": "x", "count": 2, "address": "10.9.1.1" }),
            "count",
        ),
    ] {
        let (status, answer) = reserve(&master, body.clone()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert!(answer["error"][field].is_string(), "{body}: {answer}");
    }
    for query in ["?limit=0", "?limit=1001", "?at=yesterday"] {
        let path = format!("{ALL}/10.9.1.1/history{query}");
        let (status, _) = master.call(Method::GET, &path, None).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{query}");
    }
    let (status, _) = master
        .call(
            Method::POST,
            "/v1/grids/none/addresses",
            Some(json!({ "name": "x" })),
        )
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, answer) = master
        .call(Method::GET, &format!("{ALL}/10.9.2.1"), None)
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{answer}");
    assert_eq!(master.get(ALL).await["addresses"], json!([]));
}

#[tokio::test]
async fn only_a_reservation_can_be_released_and_only_the_lease_that_is_meant() {
    let master = small(1).await;
    let (_, taken) = reserve(&master, json!({ "name": "x" })).await;
    let lease = taken["addresses"][0]["lease"].as_i64().unwrap();
    let other = format!("{ALL}/10.9.1.1?lease={}", lease + 1);
    assert_eq!(
        master.call(Method::DELETE, &other, None).await.0,
        StatusCode::NOT_FOUND
    );
    master
        .delete(&format!("{ALL}/10.9.1.1?lease={lease}"))
        .await;
    let (status, _) = master
        .call(Method::DELETE, &format!("{ALL}/10.9.1.1"), None)
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND, "a second time");
    let token = master.get("/v1/grids/g").await["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let _agent = TestAgent::join(&master.replicas[0], &token, "a").await;
    let (status, body) = master
        .call(Method::DELETE, &format!("{ALL}/10.9.0.1"), None)
        .await;
    assert_eq!(
        (status, &body["code"]),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            &json!("address_not_reserved")
        )
    );
    // What is meant and misspelt is not done without it.
    reserve(&master, json!({ "name": "y", "address": "10.9.1.7" })).await;
    let path = format!("{ALL}/10.9.1.7?lease_number=5");
    let (status, _) = master.call(Method::DELETE, &path, None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    master.delete(&format!("{ALL}/10.9.1.7")).await;
    // A grid with reservations stays.
    master.delete("/v1/nodes/g/host-a").await;
    reserve(&master, json!({ "name": "x" })).await;
    let (status, body) = master.call(Method::DELETE, "/v1/grids/g", None).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("grid_not_empty"))
    );
}

#[tokio::test]
async fn a_repeated_key_gets_the_same_addresses_from_any_replica() {
    let master = small(2).await;
    let take = |replica: usize, key: &str, body: Value| {
        let request = master.request_to(&master.replicas[replica], Method::POST, ALL);
        answer(
            request
                .header("idempotency-key", key.to_owned())
                .json(&body),
        )
    };
    let one = json!({ "name": "x" });
    // Together, so that some share a batch and some wait for each other.
    let together = (0..12).map(|n| take(n % 2, "key", one.clone()));
    let answers = join_all(together).await;
    for (status, body) in &answers {
        assert_eq!((*status, body), (StatusCode::CREATED, &answers[0].1));
    }
    assert_eq!(
        master.get(ALL).await["addresses"].as_array().unwrap().len(),
        1
    );
    let (status, body) = take(1, "key", json!({ "name": "y" })).await;
    assert_eq!(
        (status, &body["code"]),
        (
            StatusCode::UNPROCESSABLE_ENTITY,
            &json!("idempotency_key_reused")
        )
    );
    // A release that means another lease is another request.
    let lease = answers[0].1["addresses"][0]["lease"].as_i64().unwrap();
    let release = |lease: i64| {
        let path = format!("{ALL}/10.9.1.1?lease={lease}");
        let request = master.request_to(&master.replicas[0], Method::DELETE, &path);
        answer(request.header("idempotency-key", "release"))
    };
    assert_eq!(release(lease).await.0, StatusCode::OK);
    let (_, body) = release(lease + 1).await;
    assert_eq!(body["code"], "idempotency_key_reused");
    let (_, again) = reserve(&master, json!({ "name": "x", "address": "10.9.1.1" })).await;
    assert_eq!(ips(&again), ["10.9.1.1"]);
    // What was refused is not kept: it may go through later.
    reserve(&master, json!({ "name": "rest", "count": 509 })).await;
    assert_eq!(
        take(0, "later", one.clone()).await.1["code"],
        "grid_full_addresses"
    );
    master.delete(&format!("{ALL}/10.9.1.5")).await;
    let (status, body) = take(0, "later", one).await;
    assert_eq!(
        (status, ips(&body)),
        (StatusCode::CREATED, vec!["10.9.1.5"])
    );
}

#[tokio::test]
async fn a_batch_in_which_one_fails_serves_the_others() {
    let master = small(1).await;
    let good = (0..20).map(|n| reserve(&master, json!({ "name": format!("good {n}") })));
    let sql = master.sql().await;
    sql.batch_execute(
        "create function refuse() returns trigger language plpgsql as
             $$ begin if new.holder = 'bad' then raise exception 'refused'; end if; return new; end $$;
         create trigger refuse before insert on addresses for each row execute function refuse();",
    )
    .await
    .unwrap();
    let bad = reserve(&master, json!({ "name": "bad" }));
    // While the first waits for the lock, all others come together.
    sql.batch_execute("begin; select from grids for update")
        .await
        .unwrap();
    let unlock = async {
        // Nothing outside of the replica tells how many wait in its lane.
        tokio::time::sleep(Duration::from_millis(300)).await;
        sql.batch_execute("commit").await.unwrap();
    };
    let (good, bad, ()) = futures_util::join!(join_all(good), bad, unlock);
    assert_eq!(bad.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(
        good.iter()
            .all(|(status, _)| *status == StatusCode::CREATED)
    );
    assert_eq!(
        master.get(ALL).await["addresses"].as_array().unwrap().len(),
        20
    );
    let alone = "select count(distinct xmin::text) from addresses";
    let alone: i64 = sql.query_one(alone, &[]).await.unwrap().get(0);
    assert_eq!(alone, 20, "each in a transaction of its own");
}

#[tokio::test]
async fn lists_are_narrowed_and_come_in_pages() {
    let master = small(1).await;
    let token = master.get("/v1/grids/g").await["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let _agent = TestAgent::join(&master.replicas[0], &token, "a").await;
    reserve(&master, json!({ "name": "printers", "count": 5 })).await;
    master
        .post(
            "/v1/grids/g/services",
            json!({ "name": "web", "image": "i", "instances": 3 }),
        )
        .await;
    master
        .post("/v1/services/g/null/web/deploy", Value::Null)
        .await;
    let list = async |query: &str| {
        let answer = master.get(&format!("{ALL}?{query}")).await;
        let found: Vec<String> = ips(&answer).into_iter().map(str::to_owned).collect();
        (found, answer["next"].as_str().map(str::to_owned))
    };
    assert_eq!(list("").await.0.len(), 9);
    assert_eq!(list("kind=node").await.0, ["10.9.0.1"]);
    assert_eq!(list("kind=reservation").await.0.len(), 5);
    assert_eq!(list("holder=printers").await.0.len(), 5);
    assert_eq!(
        list("holder=web").await.0,
        ["10.9.1.6", "10.9.1.7", "10.9.1.8"]
    );
    assert_eq!(list("holder=web-2").await.0.len(), 1);
    assert_eq!(list("node=host-a").await.0.len(), 4);
    let (page, next) = list("kind=reservation&limit=3").await;
    assert_eq!((page.len(), next.as_deref()), (3, Some("10.9.1.3")));
    let (page, next) = list("kind=reservation&limit=3&after=10.9.1.3").await;
    assert_eq!((page.len(), next), (2, None));
    let free = master.get(&format!("{ALL}/10.9.1.0")).await;
    assert_eq!(
        (&free["class"], &free["holder"], &free["lease"]),
        (&json!(2), &Value::Null, &Value::Null)
    );
    let held = master.get(&format!("{ALL}/10.9.1.6")).await;
    assert_eq!(
        (&held["kind"], &held["holder"], &held["node"]),
        (&json!("placement"), &json!("web-1"), &json!("host-a"))
    );
}
