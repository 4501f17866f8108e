//! The ways between nodes, as they were measured and as they are now.

use serde_json::{Value, json};

use crate::{Master, Place, well};

#[tokio::test]
async fn the_ways_to_other_nodes_are_shown_as_they_were_measured() {
    let (place, master) = (Place::new("peers"), Master::default());
    let url = master.clone().serve().await;
    place.run(&format!("master login {url} --token t")).await;
    let want = "\
NODE  PATH    ADDRESS       RTT      LOSS  HANDSHAKE  MTU   MEASURED  PROBLEM
two   sealed  198.51.100.2  1.23 ms  25 %  2m ago     1370  2m ago    -
away  sealed  198.51.100.2  1.23 ms  25 %  2m ago     1370  2m ago    -
old   sealed  198.51.100.2  1.23 ms  25 %  2m ago     1370  2m ago    -
";
    assert_eq!(place.run("node peers one").await, well(want));
    assert_eq!(
        place.run("node rotate-key one").await.out,
        "* asking node one for a new key .. done\n\
         one begins to use its new key once every connected node knows the key, mostly within \
         30 s; `kontena node show one` has the key in use, and who is waited for\n"
    );
    assert!(master.changed("POST /v1/nodes/demo/one/key"));
}

#[tokio::test]
async fn nodes_ping_each_other_and_a_broken_way_fails() {
    let (place, master) = (Place::new("ping"), Master::default());
    let url = master.clone().serve().await;
    place.run(&format!("master login {url} --token t")).await;
    let want = "\
* pinging between one and two .. done
FROM  TO   PATH    ADDRESS       LOSS  MIN/AVG/MAX        MTU   HANDSHAKE  PROBLEM
one   two  sealed  198.51.100.2  20 %  0.21/0.25/0.29 ms  1370  2m ago     -
two   one  sealed  198.51.100.2  0 %   0.21/0.25/0.29 ms  1370  2m ago     -
";
    assert_eq!(place.run("node ping one two").await, well(want));
    assert_eq!(place.run("node ping two one -c 7").await.code, Some(0));
    let asked = |who: &str, other: &str, count: u32| {
        let change = format!("POST /v1/nodes/demo/{who}/pings");
        (change, json!({"to": other, "count": count}))
    };
    let all = [
        ("one", "two", 5),
        ("two", "one", 5),
        ("two", "one", 7),
        ("one", "two", 7),
    ];
    for (who, other, count) in all {
        let asked = asked(who, other, count);
        assert!(master.changes.lock().unwrap().contains(&asked), "{asked:?}");
    }
    assert!(place.run("node ping one one").await.err.contains("itself"));
    for count in ["0", "21", "x"] {
        let refused = place.run(&format!("node ping one two -c {count}")).await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
    }
    assert_eq!(master.changes.lock().unwrap().len(), 4);

    let url = Master {
        fails: true,
        ..Master::default()
    }
    .serve()
    .await;
    place
        .run(&format!("master login {url} --token t --name broken"))
        .await;
    let broken = place.run("node ping one two").await;
    let want = "\
* pinging between one and two .. done
FROM  TO   PATH    ADDRESS       LOSS   MIN/AVG/MAX        MTU   HANDSHAKE  PROBLEM
one   two  sealed  198.51.100.2  20 %   0.21/0.25/0.29 ms  1370  2m ago     -
two   one  sealed  198.51.100.2  100 %  -                  -     2m ago     no handshake
";
    assert_eq!((broken.out.as_str(), broken.code), (want, Some(1)));
    assert_eq!(
        broken.err,
        " [error] two does not reach one: no handshake\n"
    );
    let json = place.run("node ping one two -o json").await;
    let ways = serde_json::from_str::<Value>(&json.out).unwrap()["ways"].take();
    assert_eq!(
        (&ways[0]["from"], &ways[0]["to"]["node"]),
        (&json!("one"), &json!("two"))
    );
    assert_eq!(
        ways[0]["ping"]["result"]["round_trips"]["max_us"],
        json!(290)
    );
    assert_eq!(
        (&ways[0]["problem"], &ways[1]["problem"]),
        (&Value::Null, &json!("no handshake"))
    );
}

#[tokio::test]
async fn a_node_that_cannot_ping_is_pinged_all_the_same() {
    let (place, master) = (Place::new("half"), Master::default());
    let url = master.clone().serve().await;
    place.run(&format!("master login {url} --token t")).await;
    let away = place.run("node ping away one").await;
    let want = "\
* pinging between away and one .. done
FROM  TO    PATH    ADDRESS       LOSS  MIN/AVG/MAX        MTU   HANDSHAKE  PROBLEM
away  one   sealed  198.51.100.2  -     -                  -     2m ago     away is offline
one   away  sealed  198.51.100.2  20 %  0.21/0.25/0.29 ms  1370  2m ago     -
";
    assert_eq!((away.out.as_str(), away.code), (want, Some(1)));
    assert_eq!(away.err, " [error] away is offline\n");
    assert!(!master.changed("POST /v1/nodes/demo/away/pings"));
    let old = place.run("node ping old one").await;
    let why = "it is not known whether old reaches one: node old cannot ping; update it";
    assert_eq!((old.err, old.code), (format!(" [error] {why}\n"), Some(1)));
    assert!(old.out.contains("one   old  sealed"), "{}", old.out);
    // One that is not there is told in the Master's words, on whichever side.
    for ask in ["ping one nobody", "ping nobody one", "peers nobody"] {
        let unknown = place.run(&format!("node {ask}")).await;
        let told = (unknown.err.contains("node nobody not found"), unknown.code);
        assert_eq!(told, (true, Some(1)), "{ask}: {}", unknown.err);
    }
}
