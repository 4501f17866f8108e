//! What is removed leaves nothing behind.

use std::time::Duration;

use kontena_schema::http::containers::Container;
use kontena_schema::http::services::Strategy;
use kontena_tests::{Grid, Host, service, until};

/// One service container and the hardware address of its `ethwe`.
struct Trace {
    container: Container,
    mac: String,
}

async fn trace(grid: &Grid, container: Container) -> Trace {
    let host = grid.host(container.node.as_deref().unwrap());
    let mac = host
        .beside(
            &container.name,
            "ip -o link show dev ethwe | grep -oP 'link/ether \\K[^ ]+'",
        )
        .await
        .must();
    Trace { container, mac }
}

/// Everything on a host that speaks of these containers.
async fn left(host: &Host, traces: &[Trace]) -> String {
    let mut patterns = Vec::new();
    for Trace { container, mac } in traces {
        let address = container.ip_address.unwrap();
        let address = address.to_string().replace('.', "[.]");
        patterns.extend([mac.clone(), format!("(^|[^0-9.]){address}([^0-9]|$)")]);
    }
    let script = format!(
        "{{ docker ps -a --format '{{{{.Names}}}}' --filter label=io.kontena.service.name={}; \
         {{ ip -d link; ip addr; bridge fdb; ip neigh; ip route; }} | grep -E '{}'; }} || true",
        traces[0].container.service,
        patterns.join("|")
    );
    host.run(&script).await.must()
}

/// The names of the host's ends of containers' interfaces.
async fn host_ends(host: &Host) -> Vec<String> {
    let names = host.run("ls /sys/class/net").await.must();
    names
        .lines()
        .filter(|name| name.starts_with("vethwe"))
        .map(str::to_owned)
        .collect()
}

/// Every service container has one interface, and every interface a container.
async fn interfaces_match_containers(host: &Host) {
    let list = "docker ps -q --filter label=io.kontena.container.type=container";
    let what = format!("{} has one overlay interface for each container", host.name);
    until(Duration::from_secs(20), &what, async || {
        let containers = host.run(list).await.must().lines().count();
        let ends = host_ends(host).await;
        if containers == ends.len() {
            Ok(())
        } else {
            Err(format!("{containers} containers, {ends:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_removed_service_leaves_no_container_interface_entry_or_lease() {
    let grid = Grid::first().await;
    let name = "leaver";
    grid.service_clear(name).await;
    let mut leaver = service(name, "exec sleep infinity");
    leaver.spec.strategy = Strategy::Daemon;
    grid.service_make(&leaver).await;
    let mut traces = Vec::new();
    for container in grid.running(None, name, 3).await {
        traces.push(trace(&grid, container).await);
    }
    for host in &grid.hosts {
        let what = format!("{} knows every container of {name}", host.name);
        until(Duration::from_secs(10), &what, async || {
            let seen = left(host, &traces).await;
            let all = traces.iter().all(|trace| seen.contains(&trace.mac));
            if all { Ok(()) } else { Err(seen) }
        })
        .await;
    }
    assert_eq!(leases(&grid, &traces).await, "3");

    grid.service_clear(name).await;
    assert_eq!(grid.containers(Some((None, name))).await, []);
    assert_eq!(leases(&grid, &traces).await, "0");
    assert_eq!(releases(&grid, &traces).await, "3");
    for host in &grid.hosts {
        let what = format!("{} has forgotten {name}", host.name);
        until(Duration::from_secs(10), &what, async || {
            let left = left(host, &traces).await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        interfaces_match_containers(host).await;
        let dig = format!("dig +tries=1 +time=3 {name}.{}.kontena.local", grid.name);
        let answer = grid.in_toolbox(host, &dig).await.must();
        assert!(answer.contains("status: NXDOMAIN"), "{answer}");
    }
}

fn lease_list(traces: &[Trace]) -> String {
    let leases: Vec<_> = traces
        .iter()
        .map(|trace| trace.container.lease.unwrap().to_string())
        .collect();
    leases.join(", ")
}

async fn leases(grid: &Grid, traces: &[Trace]) -> String {
    let query = "select count(*) from addresses join grids on grids.id = grid_id \
                 where grids.name = '{grid}' and lease in ({leases})";
    ask(grid, query, traces).await
}

async fn releases(grid: &Grid, traces: &[Trace]) -> String {
    let query = "select count(*) from ledger join grids on grids.id = grid_id \
                 where grids.name = '{grid}' and event = 'released' and lease in ({leases})";
    ask(grid, query, traces).await
}

async fn ask(grid: &Grid, query: &str, traces: &[Trace]) -> String {
    let query = query
        .replace("{grid}", &grid.name)
        .replace("{leases}", &lease_list(traces));
    grid.master.sql(&query).await
}
