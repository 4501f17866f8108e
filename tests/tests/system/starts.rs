//! A container's command never runs before its overlay interface is there.

use std::net::Ipv4Addr;
use std::time::Duration;

use kontena_tests::{Grid, service, until};

const STARTS: usize = 100;
const INSTANCES: u32 = 15;
/// Docker starts a container again after 0.1 s, 0.2 s, 0.4 s and so on.
const WITHIN: Duration = Duration::from_secs(120);

/// Looks for its interface and its way to db before anything else, with what
/// the shell itself can do, then connects, tells how it went, and ends: Docker
/// restarts it, so every instance starts again and again, as a service does that
/// crashes. That it connects is not enough: without `ethwe` the packets would go
/// by Docker's bridge and the host, and arrive as well.
fn script(grid: &str, db: Ipv4Addr) -> String {
    format!(
        r#"
read -r state </sys/class/net/ethwe/operstate
route=$(ip -4 route get {db} 2>&1)
nc -z -w 3 testapp-db.{grid}.kontena.local 6379 && answer=answers
case "$state, $route, $answer" in
  "up, "*" dev ethwe src 10.81."*", answers") echo connected ;;
  *) echo "FAILED: $state, $route, $answer" ;;
esac"#
    )
}

#[tokio::test]
async fn a_hundred_starts_connect_at_once() {
    let grid = Grid::first().await;
    let name = "starter";
    grid.service_clear(name).await;
    let db = grid
        .containers(Some((Some("testapp"), "db")))
        .await
        .remove(0);
    let script = script(&grid.name, db.ip_address.unwrap());
    let mut starter = service(name, &script);
    starter.instances = Some(INSTANCES);
    grid.client
        .service_create(&grid.name, &starter)
        .await
        .unwrap();
    grid.client
        .service_deploy(&grid.name, None, name)
        .await
        .unwrap();

    let what = format!("{STARTS} starts of {name}");
    let outputs = until(WITHIN, &what, async || {
        let outputs = outputs(&grid, name).await;
        let starts = outputs
            .iter()
            .filter(|line| line.ends_with("connected") || line.contains("FAILED: "));
        let starts = starts.count();
        if starts >= STARTS {
            Ok(outputs)
        } else {
            Err(format!("{starts} starts"))
        }
    })
    .await;
    let failures: Vec<_> = outputs
        .iter()
        .filter(|line| !line.ends_with("connected"))
        .collect();
    assert!(failures.is_empty(), "{failures:#?}");
    grid.service_clear(name).await;
}

/// What every container of a service has printed over all its starts.
async fn outputs(grid: &Grid, name: &str) -> Vec<String> {
    let script = format!(
        "for id in $(docker ps -aq --filter label=io.kontena.service.name={name}); do \
         docker logs $id 2>&1 | sed \"s/^/$id /\"; done"
    );
    let mut lines = Vec::new();
    for host in &grid.hosts {
        let output = host.run(&script).await.must();
        lines.extend(output.lines().map(|line| format!("{} {line}", host.name)));
    }
    lines
}
