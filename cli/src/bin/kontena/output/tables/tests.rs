use serde_json::json;

use super::*;

fn at(text: &str) -> OffsetDateTime {
    OffsetDateTime::parse(text, &Rfc3339).unwrap()
}

fn parsed<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn node(name: &str, number: u8, connected: bool, since: &str) -> serde_json::Value {
    json!({
        "id": format!("demo/{name}"), "node_id": "ABCD", "name": name, "connected": connected,
        "status": if connected { "online" } else { "offline" }, "node_number": number,
        "initial_member": number == 1, "overlay_ip": format!("10.81.0.{number}"),
        "public_ip": "198.51.100.11", "private_ip": null, "region": "local", "labels": [],
        "agent_version": "0.1.0", "docker_version": "20.10.24", "kernel_version": "6.1",
        "os": "Debian", "cpus": 2, "mem_total": 1, "created_at": since,
        "connected_at": since, "disconnected_at": if connected { None } else { Some(since) },
    })
}

#[test]
fn nodes_table() {
    let nodes = parsed(json!({"nodes": [
        node("node-1", 1, true, "2026-01-01T00:00:00.000Z"),
        node("node-22", 22, false, "2026-01-03T22:59:00.123Z"),
        node("node-3", 3, true, "2026-01-04T00:00:07.000Z"),
    ]}));
    let want = "\
NAME     VERSION  STATUS      NUMBER  OVERLAY-IP  REGION
node-1   0.1.0    online 3d   1       10.81.0.1   local
node-22  0.1.0    offline 1h  22      10.81.0.22  local
node-3   0.1.0    online 0s   3       10.81.0.3   local";
    assert_eq!(super::nodes(&nodes, at("2026-01-04T00:00:02Z")), want);
}

#[test]
fn peers_table_tells_how_old_it_is() {
    let peer = |name: &str, number: u8, measured: serde_json::Value| {
        let mut peer = json!({
            "node": name, "node_number": number, "overlay_ip": format!("10.81.0.{number}"),
            "connected": true, "path": {"kind": "sealed", "to": "198.51.100.2"},
            "unreachable": null, "measured_at": null, "measure": null,
        });
        if let Some(measured_at) = measured.as_str() {
            peer["measured_at"] = json!(measured_at);
            peer["measure"] = json!({
                "node": number, "endpoint": null, "last_handshake_s": 50, "round_trip_us": 230,
                "loss": 0.25, "mtu": 1370, "sent_bytes": 1, "received_bytes": 1,
            });
        }
        peer
    };
    let all = parsed(json!({"peers": [
        peer("node-2", 2, json!("2026-01-04T00:00:00.000Z")),
        peer("node-3", 3, json!("2026-01-03T22:00:00.000Z")),
        peer("node-4", 4, json!(null)),
    ]}));
    let want = "\
NODE    PATH    ADDRESS       RTT      LOSS  HANDSHAKE  MTU   MEASURED  PROBLEM
node-2  sealed  198.51.100.2  0.23 ms  25 %  52s ago    1370  2s ago    -
node-3  sealed  198.51.100.2  0.23 ms  25 %  2h ago     1370  2h ago    -
node-4  sealed  198.51.100.2  -        -     -          -     -         -";
    assert_eq!(super::peers(&all, at("2026-01-04T00:00:02Z")), want);
    // Nothing that a node says makes it fail.
    let mut endless = peer("node-2", 2, json!("2026-01-03T22:00:00.000Z"));
    endless["measure"]["last_handshake_s"] = json!(i64::MAX);
    let endless = parsed(json!({ "peers": [endless] }));
    let table = super::peers(&endless, at("2026-01-04T00:00:02Z"));
    assert!(table.contains(" 106751991167300d ago "), "{table}");
}

#[test]
fn containers_table() {
    let container = |name: &str,
                     address: Option<&str>,
                     state: &str,
                     lease: &str,
                     error: Option<&str>| {
        json!({
            "id": format!("demo/node-1/{name}"), "name": name, "container_id": null,
            "node": address.map(|_| "node-1"), "stack": "testapp", "service": "db",
            "instance_number": 1, "image": "redis:latest", "state": state, "health": "unknown",
            "ip_address": address, "lease": 1, "lease_state": lease, "service_rev": 1, "error": error,
        })
    };
    let containers = parsed(json!({"containers": [
        container("testapp.db-1", Some("10.81.1.1"), "running", "held", None),
        container("testapp.db-2", None, "pending", "none", Some("no node fits")),
        container("testapp.db-3", None, "running", "lost", Some("node lost")),
        container("testapp.db-4", None, "running", "taken", None),
        container("testapp.db-5", None, "running", "waiting", Some("pending: grid_full_addresses (why)")),
    ]}));
    let want = "\
NAME          NODE    SERVICE     OVERLAY-IP  STATE
testapp.db-1  node-1  testapp/db  10.81.1.1   running
testapp.db-2  -       testapp/db  -           pending: no node fits
testapp.db-3  -       testapp/db  -           lost: node lost
testapp.db-4  -       testapp/db  -           taken
testapp.db-5  -       testapp/db  -           waiting: grid_full_addresses (why)";
    assert_eq!(super::containers(&containers), want);
}

#[test]
fn addresses_and_history_tables() {
    let addresses = parsed(json!({"addresses": [
        {"address": "10.81.0.1", "class": 3, "kind": "node", "holder": "node-1", "node": "node-1",
         "lease": 1, "leased_at": "2026-01-01T00:00:00.000Z"},
        {"address": "10.81.1.1", "class": 1, "kind": "placement", "holder": "testapp/db-1",
         "node": "node-1", "lease": 12, "leased_at": "2026-01-02T00:00:00.000Z"},
        {"address": "10.81.1.2", "class": 1, "kind": "reservation", "holder": "printer",
         "node": null, "lease": 3, "leased_at": "2026-01-03T00:00:00.000Z"},
    ]}));
    let want = "\
ADDRESS    HOLDER        KIND         NODE    LEASE  SINCE
10.81.0.1  node-1        node         node-1  1      2026-01-01T00:00:00.000Z
10.81.1.1  testapp/db-1  placement    node-1  12     2026-01-02T00:00:00.000Z
10.81.1.2  printer       reservation  -       3      2026-01-03T00:00:00.000Z";
    assert_eq!(super::addresses(&addresses), want);

    let step = |event: &str, at: &str, actor: &str, reason: &str| {
        json!({
            "address": "10.81.1.1", "event": event, "lease": 12, "kind": "placement",
            "holder": "testapp/db-1", "node": "node-1", "actor": actor, "reason": reason,
            "at": at, "revision": 7,
        })
    };
    let history = parsed(json!({"history": [
        step("released", "2026-01-03T00:00:00.000Z", "master", "node lost"),
        step("leased", "2026-01-02T00:00:00.000Z", "admin", "deployed"),
    ]}));
    let want = "\
AT                        EVENT     HOLDER        NODE    LEASE  BY      REASON
2026-01-03T00:00:00.000Z  released  testapp/db-1  node-1  12     master  node lost
2026-01-02T00:00:00.000Z  leased    testapp/db-1  node-1  12     admin   deployed";
    assert_eq!(super::history(&history), want);
}

#[test]
fn services_and_stacks_tables() {
    let service = |stack: Option<&str>, name: &str, ports: serde_json::Value| {
        json!({
            "id": "x", "name": name, "stack": stack, "dns": name, "instances": 2,
            "instance_counts": {"total": 2, "running": 1}, "state": "running", "revision": 1,
            "created_at": "", "updated_at": "", "image": "redis:latest", "ports": ports,
        })
    };
    let port =
        json!([{"ip": "0.0.0.0", "protocol": "udp", "node_port": 80, "container_port": 8080}]);
    let all = [
        service(Some("testapp"), "web", port),
        service(None, "db", json!([])),
    ];
    let want = "\
NAME         INSTANCES  STATE    EXPOSED PORTS
testapp/web  1 / 2      running  0.0.0.0:80->8080/udp
db           1 / 2      running  -";
    assert_eq!(super::services(&parsed(json!({"services": all}))), want);

    let stacks = parsed(json!({"stacks": [{
        "id": "demo/testapp", "name": "testapp", "stack": "kontena/testapp", "version": null,
        "state": "running", "revision": 1, "created_at": "", "updated_at": "", "services": all,
    }]}));
    let want = "\
NAME     STACK            VERSION  SERVICES  STATE
testapp  kontena/testapp  -        2         running";
    assert_eq!(super::stacks(&stacks), want);
}

#[test]
fn grids_and_masters_tables_mark_the_current_one() {
    let grid = |name: &str| {
        json!({
            "id": name, "name": name, "initial_size": 1, "subnet": "10.81.0.0/19",
            "supernet": "10.81.0.0/17", "trusted_subnets": [], "grace_s": 10, "revision": 4,
            "node_count": 3, "service_count": 2, "container_count": 3,
        })
    };
    let grids = parsed(json!({"grids": [grid("demo"), grid("other")]}));
    let want = "\
NAME    NODES  SERVICES  CONTAINERS  SUBNET
demo *  3      2         3           10.81.0.0/19
other   3      2         3           10.81.0.0/19";
    assert_eq!(super::grids(&grids, Some("demo")), want);

    let config = parsed(json!({"current_server": "a", "servers": [
        {"name": "a", "url": "https://a", "token": "t", "grid": "demo"},
        {"name": "b", "url": "https://b", "token": "t"},
    ]}));
    let want = "\
NAME  URL        GRID
a *   https://a  demo
b     https://b  -";
    assert_eq!(super::masters(&config), want);
}

#[test]
fn an_empty_table_is_its_header() {
    assert_eq!(
        super::nodes(&Nodes { nodes: Vec::new() }, at("2026-01-04T00:00:00Z")),
        "NAME  VERSION  STATUS  NUMBER  OVERLAY-IP  REGION"
    );
}

#[test]
fn only_a_terminal_gets_a_bold_header() {
    assert_eq!(with_bold_header("A\nb", false), "A\nb");
    assert_eq!(with_bold_header("A\nb", true), "\x1b[1mA\x1b[0m\nb");
}
