//! Pings: asked for, told to the node, answered by it; or refused, or given up.

use kontena_schema::agent::{
    FromAgent, HostMeasures, Measures, PINGS_SINCE, Ping, PingReport, PingResult, PingState,
    RoundTrips, close,
};
use kontena_schema::http::pings::Ping as Shown;
use kontena_schema::ids::PingId;
use kontena_schema::path::Path;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Closed, Master, TestAgent, answer, hello, poll};

const PINGS: &str = "/v1/nodes/demo/host-a/pings";

/// A grid with agents a and b.
async fn grid(master: &Master) -> (String, TestAgent, TestAgent) {
    let token = master.grid("demo").await;
    let last = master.replicas.last().unwrap();
    let (a, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let (b, _) = TestAgent::join(last, &token, "b").await;
    (token, a, b)
}

async fn ask(master: &Master) -> Shown {
    let asked = master.post(PINGS, json!({"to": "host-b"})).await;
    serde_json::from_value(asked).unwrap()
}

async fn show(master: &Master, id: PingId) -> Shown {
    let shown = master.get(&format!("{PINGS}/{id}")).await;
    serde_json::from_value(shown).unwrap()
}

/// Waits until a ping is in this state.
async fn until(master: &Master, id: PingId, state: &str) -> Shown {
    poll(state, async || {
        let shown = show(master, id).await;
        (shown.state == state).then_some(shown)
    })
    .await
}

async fn tell(agent: &mut TestAgent, ping: PingId, state: PingState) {
    let report = PingReport { ping, state };
    agent.send(&FromAgent::Pings(vec![report])).await;
}

/// What an agent tells is taken in order: waits until this was.
async fn all_taken(master: &Master, agent: &mut TestAgent, node: &str, count: u64) {
    let overlay = Measures {
        drops: [("seen".to_owned(), count)].into(),
        ..Measures::default()
    };
    let measures = HostMeasures {
        overlay,
        data: None,
    };
    agent.send(&FromAgent::Measures(Box::new(measures))).await;
    poll("what was told is taken", async || {
        let node = master.get(&format!("/v1/nodes/demo/{node}")).await;
        (node["drops"]["seen"] == json!(count)).then_some(())
    })
    .await;
}

fn failed(why: &str) -> PingState {
    let error = why.to_owned();
    PingState::Failed { error }
}

fn result() -> PingResult {
    PingResult {
        path: Path::Fast {
            to: "10.1.0.2".parse().unwrap(),
        },
        sent: 3,
        received: 2,
        round_trips: Some(RoundTrips {
            min_us: 210,
            avg_us: 250,
            max_us: 290,
        }),
        mtu: 1370,
        full_size_passes: true,
    }
}

#[tokio::test]
async fn a_ping_reaches_its_node_once_and_its_result_comes_back() {
    let master = Master::quick(2).await;
    let (token, mut a, mut b) = grid(&master).await;
    let (status, asked) = answer(
        master
            .request_to(&master.replicas[1], Method::POST, PINGS)
            .json(&json!({"to": "host-b", "count": "3"})),
    )
    .await;
    assert_eq!(status, StatusCode::CREATED, "{asked}");
    let asked: Shown = serde_json::from_value(asked).unwrap();
    assert_eq!(
        (asked.from.as_str(), asked.to.as_str()),
        ("host-a", "host-b")
    );
    assert_eq!((asked.count, asked.state.as_str()), (3, "queued"));
    assert_eq!((&asked.result, &asked.finished_at), (&None, &None));

    let seen = a.until(|changes| changes.own.pings.first().copied()).await;
    let wanted = Ping {
        id: asked.id,
        peer: b.welcome.node,
        count: 3,
    };
    assert_eq!(seen, wanted);
    // Who is to answer is not asked; it only hears that the grid moved on.
    let at = a.at.clone().unwrap().revision;
    let other = b.until(|changes| (changes.to >= at).then_some(changes.own.pings.len()));
    assert_eq!(other.await, 0);

    tell(&mut a, asked.id, PingState::Started).await;
    let started = until(&master, asked.id, "started").await;
    assert_eq!((started.finished_at, started.result), (None, None));
    tell(&mut a, asked.id, PingState::Done { result: result() }).await;
    let done = until(&master, asked.id, "done").await;
    assert_eq!(done.result, Some(result()));
    assert!(
        done.finished_at.is_some() && done.error.is_none(),
        "{done:?}"
    );

    // What has ended stays so, whoever says otherwise.
    tell(&mut a, asked.id, PingState::Started).await;
    tell(&mut a, asked.id, failed("late")).await;
    all_taken(&master, &mut a, "host-a", 1).await;
    assert_eq!(show(&master, asked.id).await, done);
    // A later connection is not told of it again.
    let (_again, changes) = TestAgent::join(&master.replicas[0], &token, "a").await;
    assert!(changes.own.pings.is_empty());
    // The number of echoes that everybody gets.
    assert_eq!(ask(&master).await.count, 5);
}

#[tokio::test]
async fn a_ping_that_fails_says_why_and_only_its_own_node_can_tell() {
    let master = Master::start().await;
    let (_, mut a, mut b) = grid(&master).await;
    let asked = ask(&master).await;
    tell(&mut b, asked.id, failed("not mine")).await;
    all_taken(&master, &mut b, "host-b", 1).await;
    assert_eq!(show(&master, asked.id).await, asked);
    tell(&mut a, asked.id, failed("no address")).await;
    let failed = until(&master, asked.id, "failed").await;
    assert_eq!(failed.error.as_deref(), Some("no address"));
    assert_eq!(failed.result, None);
    // It is no ping of the other node, nor of another grid.
    master.grid("other").await;
    for other in ["demo/host-b", "other/host-a"] {
        let path = format!("/v1/nodes/{other}/pings/{}", asked.id);
        let (status, body) = master.call(Method::GET, &path, None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
    }
}

/// Node, body, status, code, and the field or what else is named.
type Refusal = (&'static str, &'static str, u16, &'static str, &'static str);

const TOO_OLD: &str = "node host-d runs agent version 0.1.0, which cannot ping; update it";

#[rustfmt::skip]
const REFUSALS: &[Refusal] = &[
    ("nobody/host-a", r#"{"to": "host-b"}"#, 404, "not_found", "nobody"),
    ("demo/nobody", r#"{"to": "host-b"}"#, 404, "not_found", "nobody"),
    ("demo/host-a", r#"{"to": "nobody"}"#, 404, "not_found", "nobody"),
    ("demo/host-a", r#"{"to": "host-a"}"#, 422, "invalid", "to"),
    ("demo/host-a", r#"{"to": "host-b", "count": 0}"#, 422, "invalid", "count"),
    ("demo/host-a", r#"{"to": "host-b", "count": 21}"#, 422, "invalid", "count"),
    ("demo/host-a", r#"{"to": "host-b", "size": 9}"#, 422, "invalid", "size"),
    ("demo/host-a", r#"{"count": 3}"#, 422, "invalid", "to"),
    ("demo/host-c", r#"{"to": "host-a"}"#, 422, "node_offline", "node host-c is offline"),
    ("demo/host-d", r#"{"to": "host-a"}"#, 422, "cannot_ping", TOO_OLD),
];

#[tokio::test]
async fn what_cannot_be_pinged_is_refused_and_changes_nothing() {
    let master = Master::quick(1).await;
    let (token, mut a, _b) = grid(&master).await;
    let (c, _) = TestAgent::join(&master.replicas[0], &token, "c").await;
    drop(c);
    let mut old = hello("d", None);
    old.protocol = PINGS_SINCE - 1;
    let mut d = TestAgent::connect(&master.replicas[0], &token, &old)
        .await
        .unwrap();
    d.changes().await;
    poll("c is offline", async || {
        let node = master.get("/v1/nodes/demo/host-c").await;
        (node["status"] == "offline").then_some(())
    })
    .await;
    let revision = async || master.get("/v1/grids/demo").await["revision"].clone();
    let before = revision().await;

    for &(node, body, status, code, about) in REFUSALS {
        let at = format!("/v1/nodes/{node}/pings");
        let body: Value = serde_json::from_str(body).unwrap();
        let (got, answer) = master.call(Method::POST, &at, Some(body.clone())).await;
        assert_eq!(got.as_u16(), status, "{at} {body}: {answer}");
        assert_eq!(answer["code"], code, "{at} {body}: {answer}");
        let named = match &answer["error"] {
            Value::Object(fields) => fields.keys().any(|field| field == about),
            sentence => sentence.as_str().unwrap().contains(about),
        };
        assert!(named, "{at} {body}: {answer}");
    }
    let sql = master.sql().await;
    let rows = sql.query("select from pings", &[]).await.unwrap();
    assert!(rows.is_empty());
    assert_eq!(revision().await, before);

    // One that is offline can be pinged: its kernel answers, and that is worth asking.
    let asked = master.post(PINGS, json!({"to": "host-c"})).await;
    let seen = a.until(|changes| changes.own.pings.first().copied()).await;
    assert_eq!(json!(seen.id), asked["id"]);
}

#[tokio::test]
async fn a_node_has_few_pings_at_a_time() {
    let master = Master::start().await;
    let (_, mut a, _b) = grid(&master).await;
    let mut asked = Vec::new();
    for _ in 0..8 {
        asked.push(ask(&master).await.id);
    }
    // However long this takes, none of them expires.
    let later = "update pings set expires_at = expires_at + interval '1 hour'";
    master.sql().await.execute(later, &[]).await.unwrap();
    let one_more = async || {
        master
            .call(Method::POST, PINGS, Some(json!({"to": "host-b"})))
            .await
    };
    tell(&mut a, asked[0], PingState::Started).await;
    until(&master, asked[0], "started").await;
    let (status, answer) = one_more().await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert_eq!(answer["code"], "too_many_pings");
    // The other node has its own.
    let back = json!({"to": "host-a"});
    master.post("/v1/nodes/demo/host-b/pings", back).await;
    tell(&mut a, asked[0], PingState::Done { result: result() }).await;
    until(&master, asked[0], "done").await;
    assert_eq!(one_more().await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn a_ping_that_is_not_begun_or_not_ended_in_time_is_given_up() {
    let master = Master::start().await;
    let (token, mut a, _b) = grid(&master).await;
    let sql = master.sql().await;
    let [queued, started] = [ask(&master).await.id, ask(&master).await.id];
    tell(&mut a, started, PingState::Started).await;
    until(&master, started, "started").await;
    let row = "select extract(epoch from expires_at - created_at)::float8 from pings where id = $1";
    let left = async |id: PingId| {
        let row = sql.query_one(row, &[&id.0]).await.unwrap();
        row.get::<_, f64>(0)
    };
    assert!((9.9..10.1).contains(&left(queued).await));
    assert!(left(started).await > 30.0, "it has time to end");
    // The time is over.
    sql.execute("update pings set expires_at = clock_timestamp()", &[])
        .await
        .unwrap();
    let expired = until(&master, queued, "expired").await;
    assert!(expired.error.unwrap().contains("did not start it in time"));
    assert!(expired.finished_at.is_some());
    let given_up = until(&master, started, "interrupted").await;
    assert!(given_up.error.unwrap().contains("did not tell in time"));
    // It is too late now, and nobody is told of it any more.
    tell(&mut a, queued, PingState::Done { result: result() }).await;
    all_taken(&master, &mut a, "host-a", 1).await;
    assert_eq!(show(&master, queued).await.state, "expired");
    let (_again, changes) = TestAgent::join(&master.replicas[0], &token, "a").await;
    assert!(changes.own.pings.is_empty());
}

#[tokio::test]
async fn old_pings_are_forgotten() {
    let mut master = Master::start().await;
    let (_, _a, _b) = grid(&master).await;
    let sql = master.sql().await;
    let [old, new] = [ask(&master).await.id, ask(&master).await.id];
    let age = "update pings set created_at = created_at - interval '61 minutes' where id = $1";
    sql.execute(age, &[&old.0]).await.unwrap();
    // A replica begins with what is old.
    master.add_replica().await;
    poll("the old one is forgotten", async || {
        let path = format!("{PINGS}/{old}");
        let (status, _) = master.call(Method::GET, &path, None).await;
        (status == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
    show(&master, new).await;
}

#[tokio::test]
async fn either_node_of_a_ping_can_be_removed() {
    let master = Master::start().await;
    for gone in ["host-a", "host-b"] {
        let (_, a, b) = grid(&master).await;
        let asked = ask(&master).await.id;
        master.delete(&format!("/v1/nodes/demo/{gone}")).await;
        let path = format!("{PINGS}/{asked}");
        let (status, body) = master.call(Method::GET, &path, None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
        drop((a, b));
        let other = if gone == "host-a" { "host-b" } else { "host-a" };
        master.delete(&format!("/v1/nodes/demo/{other}")).await;
        master.delete("/v1/grids/demo").await;
    }
}

#[tokio::test]
async fn a_session_that_is_over_tells_nothing_of_pings() {
    let master = Master::start().await;
    let (_, mut a, _b) = grid(&master).await;
    let asked = ask(&master).await;
    let sql = master.sql().await;
    let newer = "update sessions set epoch = epoch + 1 where node_id = $1";
    sql.execute(newer, &[&a.welcome.node.0]).await.unwrap();
    tell(&mut a, asked.id, PingState::Started).await;
    let Closed(code, _) = a.closed().await;
    assert_eq!(code, close::SUPERSEDED);
    assert_eq!(show(&master, asked.id).await, asked);
}

#[tokio::test]
async fn replicas_and_agents_of_the_version_before_work_beside() {
    /// `session_open` as the version before has it.
    const BEFORE: &str =
        "insert into sessions (node_id, epoch, replica_id, opened_at, instance, connection)
        values ($1, 1, $2, clock_timestamp(), $3, $4)
        on conflict (node_id) do update
        set epoch = sessions.epoch + 1, replica_id = excluded.replica_id,
            opened_at = excluded.opened_at, closed_at = null, lose_at = null, lost_at = null,
            instance = excluded.instance, connection = excluded.connection
        returning epoch";
    let master = Master::start().await;
    let (token, a, _b) = grid(&master).await;
    let asked = ask(&master).await.id;
    // The agent moves to a replica of the version before, which tells nothing of protocols.
    let sql = master.sql().await;
    let (node, replica) = (a.welcome.node.0, uuid::Uuid::new_v4());
    let open: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
        [&node, &replica, &None::<uuid::Uuid>, &0_i64];
    sql.query_one(BEFORE, &open).await.unwrap();
    let body = json!({"to": "host-b"});
    let (status, refused) = master.call(Method::POST, PINGS, Some(body.clone())).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    assert_eq!(refused["code"], "cannot_ping");
    let why = refused["error"].as_str().unwrap();
    assert!(why.contains("a replica of the version before"), "{why}");

    // And then it is an agent of the version before: it reads what it is sent, the ping
    // that waits for it included, which it leaves unread.
    let mut old = hello("a", None);
    old.protocol = PINGS_SINCE - 1;
    let mut agent = TestAgent::connect(&master.replicas[0], &token, &old)
        .await
        .unwrap();
    let changes = agent.changes().await;
    assert_eq!(changes.own.pings.len(), 1);
    assert!(changes.own.commands.is_empty());
    let (_, refused) = master.call(Method::POST, PINGS, Some(body)).await;
    let why = refused["error"].as_str().unwrap();
    assert!(why.contains("which cannot ping; update it"), "{why}");
    assert_eq!(show(&master, asked).await.state, "queued");

    // Updated, it can.
    let (mut agent, _) = TestAgent::join(&master.replicas[0], &token, "a").await;
    let again = ask(&master).await.id;
    let seen = agent.until(|changes| {
        changes
            .own
            .pings
            .iter()
            .map(|p| p.id)
            .find(|id| *id == again)
    });
    assert_eq!(seen.await, again);
}
