//! Who held an address, and when.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::addresses::{ALL, ips, median, reserve, small};

#[tokio::test]
async fn the_ledger_tells_who_what_why_and_when() {
    let master = small(1).await;
    let path = format!("{ALL}/10.9.1.1/history");
    for name in ["first", "second"] {
        let body = json!({ "name": name, "address": "10.9.1.1" });
        assert_eq!(reserve(&master, body).await.0, StatusCode::CREATED);
        master.delete(&format!("{ALL}/10.9.1.1")).await;
    }
    let all = master.get(&path).await["history"]
        .as_array()
        .unwrap()
        .clone();
    let step = |n: usize| {
        (
            all[n]["event"].as_str().unwrap(),
            all[n]["holder"].as_str().unwrap(),
        )
    };
    assert_eq!(
        (0..4).map(step).collect::<Vec<_>>(),
        [
            ("released", "second"),
            ("leased", "second"),
            ("released", "first"),
            ("leased", "first")
        ]
    );
    assert_eq!(
        (&all[0]["actor"], &all[3]["reason"]),
        (&json!("admin"), &json!("reserved"))
    );
    assert!(all[0]["revision"].is_i64() && all[0]["at"].as_str().unwrap().ends_with('Z'));
    let page = master.get(&format!("{path}?limit=3")).await;
    let rest = master
        .get(&format!("{path}?limit=3&before={}", page["next"]))
        .await;
    assert_eq!(rest["history"].as_array().unwrap().len(), 1);
    // At the moment of a step, that step; before all, nothing.
    let at = async |n: usize| {
        let at = all[n]["at"].as_str().unwrap().replace('Z', "999Z");
        master.get(&format!("{path}?at={at}")).await["history"][0].clone()
    };
    for n in [0, 1, 2, 3] {
        let found = at(n).await;
        assert!(
            all.contains(&found) && found["at"] == all[n]["at"],
            "{n}: {found}"
        );
    }
    let before = master.get(&format!("{path}?at=2020-01-01T00:00:00Z")).await;
    let west = format!("{path}?at=2020-01-01T00:00:00-23:00");
    assert_eq!(master.get(&west).await, before);
    for nonsense in [
        "0000-01-01T00:00:00Z",
        "yesterday",
        "9999-12-31T23:59:59-23:00",
    ] {
        let path = format!("{path}?at={nonsense}");
        let (status, answer) = master.call(Method::GET, &path, None).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
        assert!(answer["error"]["at"].is_string(), "{answer}");
    }
    assert_eq!(before["history"], json!([]));
}

#[tokio::test]
async fn a_month_opens_with_the_leases_in_force_and_old_months_go() {
    let master = small(1).await;
    let (_, taken) = reserve(&master, json!({ "name": "long", "count": 2 })).await;
    assert_eq!(ips(&taken), ["10.9.1.1", "10.9.1.2"]);
    // As if all of it had been two months ago.
    let sql = master.sql().await;
    sql.batch_execute(
        "select ledger_partition_make(ledger_month(clock_timestamp() - interval '2 months'));
         update ledger set at = at - interval '2 months';
         update pools set ledger_opened = ledger_month(clock_timestamp() - interval '2 months');",
    )
    .await
    .unwrap();
    let month = "select iso(ledger_month(clock_timestamp()))";
    let month: String = sql.query_one(month, &[]).await.unwrap().get(0);
    let path = format!("{ALL}/10.9.1.1/history?at={month}");
    let before = master.get(&path).await["history"][0].clone();
    assert_eq!(before["event"], "leased", "found in the month that knows");
    master.delete(&format!("{ALL}/10.9.1.2")).await;
    let after = master.get(&path).await["history"][0].clone();
    assert_eq!(
        (&after["event"], &after["holder"], &after["at"]),
        (&json!("opened"), &json!("long"), &json!(month))
    );
    // The month in between was never begun: the Master was away.
    let away = "select iso(ledger_month(clock_timestamp()) - interval '10 days')";
    let away: String = sql.query_one(away, &[]).await.unwrap().get(0);
    let away = format!("{ALL}/10.9.1.1/history?at={away}");
    let away = master.get(&away).await["history"][0].clone();
    assert_eq!(
        (&away["event"], &away["holder"]),
        (&json!("leased"), &json!("long"))
    );
    let gone = master.get(&format!("{ALL}/10.9.1.2/history")).await["history"].clone();
    let events: Vec<&str> = gone
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["event"].as_str().unwrap())
        .collect();
    assert_eq!(events, ["released", "opened", "leased"]);
    let dropped: i64 = sql
        .query_one("select ledger_drop(1)", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(dropped, 1);
    assert_eq!(
        master.get(&path).await["history"][0],
        after,
        "what is in force is still known"
    );
    // Never a month that a grid has not left.
    sql.batch_execute(
        "update pools set ledger_opened = ledger_month(clock_timestamp() - interval '3 months')",
    )
    .await
    .unwrap();
    let dropped: i64 = sql
        .query_one("select ledger_drop(0)", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(dropped, 0);
}

#[tokio::test]
async fn a_past_holder_is_found_at_once_among_a_million_steps() {
    let master = small(1).await;
    let sql = master.sql().await;
    sql.batch_execute(
        "insert into ledger (grid_id, ip, lease, kind, holder, event, actor, reason, revision, at)
         select g.id, grid_base(g.subnet) + (1 + n % 510), n / 2, 'reservation', 'holder-' || n / 1020,
             case when n % 1020 < 510 then 'leased' else 'released' end, 'admin', 'test', 1,
             ledger_month(clock_timestamp()) + n * interval '1 second'
         from grids g, generate_series(0, 999999) n",
    )
    .await
    .unwrap();
    let query =
        "select iso(ledger_month(clock_timestamp()) + interval '1 second' * (1020 * 500 + 400))";
    let moment: String = sql.query_one(query, &[]).await.unwrap().get(0);
    let mut times = Vec::new();
    for n in 1..=50 {
        let begun = Instant::now();
        let path = format!("{ALL}/10.9.0.{n}/history?at={moment}");
        let found = master.get(&path).await["history"][0].clone();
        times.push(begun.elapsed());
        assert_eq!(
            (&found["event"], &found["holder"]),
            (&json!("leased"), &json!("holder-500")),
            "{n}"
        );
    }
    let found = median(times);
    assert!(found < Duration::from_millis(100), "{found:?}");
}
