//! Sessions and what they must not do: release, restore or report anything wrongly.

use std::time::{Duration, Instant};

use kontena_schema::agent::{Changes, InstanceState, close};
use uuid::Uuid;

use crate::leases::Bed;
use crate::support::{Closed, TestAgent, hello, poll, state};

#[tokio::test]
async fn a_late_close_and_a_second_connection_release_nothing() {
    let bed = Bed::with_grace(2, 0).await;
    let (mut old, mut host) = bed.join("a").await;
    bed.run("web", &mut old, &mut host).await;
    let run = Uuid::new_v4();
    let mut newer = hello("a", None);
    newer.inventory.clone_from(&host.inventory);
    newer.instance = Some(run);
    let newer = TestAgent::connect(&bed.master.replicas[1], &host.token, &newer)
        .await
        .unwrap();
    // The old connection ends after the new one began.
    drop(old);
    let sql = bed.master.sql().await;
    for _ in 0..20 {
        let open = sql
            .query_one(
                "select count(*) from sessions where closed_at is null and lose_at is null",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(open.get::<_, i64>(0), 1);
        // That nothing happens can only be watched for a while: 20 looks.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bed.container("web").await["state"], "running");
    assert_eq!(bed.story("10.9.1.1").await.len(), 1);
    drop(newer);
}

#[tokio::test]
async fn a_cloned_host_is_told_and_takes_nothing() {
    let bed = Bed::new().await;
    let (mut agent, mut host) = bed.join("a").await;
    bed.run("web", &mut agent, &mut host).await;
    drop(agent);
    let (original, clone) = (Uuid::new_v4(), Uuid::new_v4());
    let first = bed.try_back(&host, Some(original)).await.ok().unwrap();
    // A later run of the same agent takes over ...
    let second = bed.try_back(&host, Some(clone)).await.ok().unwrap();
    assert!(second.welcome.epoch > first.welcome.epoch);
    // ... and the run before it that comes back is another host.
    let Closed(code, reason) = bed.try_back(&host, Some(original)).await.err().unwrap();
    assert_eq!(code, close::NODE_DUPLICATE, "{reason}");
    assert_eq!(bed.container("web").await["lease_state"], "held");
    let node = bed.master.get("/v1/nodes/g/host-a").await;
    assert_eq!(node["connected"], true, "the connected one stays");
    // The same run may reconnect as often as it likes.
    drop(bed.try_back(&host, Some(clone)).await.ok().unwrap());
    // Once the other is gone, the first may come back.
    drop(second);
    bed.in_state("web", "lost").await;
    assert!(bed.try_back(&host, Some(original)).await.is_ok());
}

#[tokio::test]
async fn a_connection_that_the_agent_gave_up_opens_nothing() {
    let bed = Bed::new().await;
    let (agent, host) = bed.join("a").await;
    drop(agent);
    let mut hello = hello("a", None);
    hello.instance = Some(Uuid::new_v4());
    hello.connection = 2;
    let replica = &bed.master.replicas[0];
    let mut current = TestAgent::connect(replica, &host.token, &hello)
        .await
        .unwrap();
    hello.connection = 1;
    let late = TestAgent::connect(replica, &host.token, &hello).await;
    assert_eq!(late.err().unwrap().0, close::SUPERSEDED);
    bed.run("web", &mut current, &mut host.clone()).await;
    hello.connection = 3;
    assert!(
        TestAgent::connect(replica, &host.token, &hello)
            .await
            .is_ok()
    );
    // Another run counts from the beginning.
    hello.instance = Some(Uuid::new_v4());
    hello.connection = 1;
    assert!(
        TestAgent::connect(replica, &host.token, &hello)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_lost_address_that_is_reserved_leaves_every_directory() {
    let bed = Bed::new().await;
    let (mut witness, _) = bed.join("w").await;
    let (mut agent, mut host) = bed.join("a").await;
    let web = bed.run("web", &mut agent, &mut host).await;
    bed.lose(agent, "web").await;
    // Without a name, so that the batch itself finds out whose it was.
    bed.fill_but(0).await;
    let gone = |changes: &Changes| {
        let gone = &changes.shared.gone_endpoints;
        gone.contains(&web.id).then_some(())
    };
    witness.until(gone).await;
    bed.in_state("web", "taken").await;
}

#[tokio::test]
async fn who_reports_in_a_session_that_was_ended_is_to_connect_again() {
    let bed = Bed::with_grace(1, 60).await;
    let (mut agent, mut host) = bed.join("a").await;
    let placement = bed.run("web", &mut agent, &mut host).await;
    let sql = bed.master.sql().await;
    let end = "update sessions set closed_at = clock_timestamp(), lose_at = clock_timestamp() + interval '1 hour'";
    sql.execute(end, &[]).await.unwrap();
    let mut exited = state(placement.id, 1, InstanceState::Stopped);
    exited.lease = placement.lease;
    agent.report(vec![exited]).await;
    let Closed(code, reason) = agent.closed().await;
    assert_eq!(code, close::TRY_LATER, "{reason}");
    assert_eq!(bed.container("web").await["state"], "running");
}

#[tokio::test]
async fn the_nodes_of_a_dead_replica_get_time_to_find_another() {
    let mut bed = Bed::with_grace(2, 0).await;
    let (mut agent, mut host) = bed.join("a").await;
    bed.run("web", &mut agent, &mut host).await;
    // Kept open, so that only the death of the replica ends the session.
    let dead = bed.master.replicas.remove(0);
    drop(dead);
    let sql = bed.master.sql().await;
    let swept = poll("the session is swept", async || {
        let query = "select extract(epoch from lose_at - closed_at)::float8 from sessions where closed_at is not null";
        sql.query_opt(query, &[]).await.unwrap().map(|row| row.get::<_, f64>(0))
    })
    .await;
    assert!(swept >= 1.49, "{swept}");
    let _agent = bed.back(&host).await;
    assert_eq!(bed.container("web").await["lease_state"], "held");
    assert_eq!(bed.story("10.9.1.1").await.len(), 1);
}

#[tokio::test]
async fn after_an_outage_nobody_is_lost_in_a_rush() {
    let mut bed = Bed::with_grace(1, 1).await;
    let (mut agent, mut host) = bed.join("a").await;
    bed.run("web", &mut agent, &mut host).await;
    drop(agent);
    bed.disconnected("a").await;
    bed.master.replicas.clear();
    // The outage itself: the whole Master is away for longer than TTL and grace.
    tokio::time::sleep(Duration::from_millis(4500)).await;
    bed.master.add_replica().await;
    let back = Instant::now();
    assert_eq!(bed.container("web").await["lease_state"], "held");
    bed.in_state("web", "lost").await;
    let after = back.elapsed();
    assert!(
        after >= Duration::from_millis(1500),
        "TTL and grace are 1.6 s: {after:?}"
    );
}
