//! A container's command never runs before its overlay interface is there.

use std::time::Duration;

use kontena_tests::{Grid, service, until};

const STARTS: usize = 100;
const INSTANCES: u32 = 15;
/// Docker starts a container again after 0.1 s, 0.2 s, 0.4 s and so on.
const WITHIN: Duration = Duration::from_secs(120);

/// Connects before anything else, tells how it went, and ends: Docker restarts
/// it, so every instance starts again and again, as a service does that crashes.
fn script(grid: &str) -> String {
    format!(
        "if nc -z -w 3 testapp-db.{grid}.kontena.local 6379; then echo connected; \
         else echo FAILED; ip addr show ethwe; fi"
    )
}

#[tokio::test]
async fn a_hundred_starts_connect_at_once() {
    let grid = Grid::first().await;
    let name = "starter";
    grid.service_clear(name).await;
    let mut starter = service(name, &script(&grid.name));
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
            .filter(|line| line.ends_with("connected") || line.ends_with("FAILED"));
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
