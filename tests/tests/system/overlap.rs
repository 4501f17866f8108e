//! A host whose own network overlaps the grid's: kept out, told of, and warned of.

use std::time::Duration;

use kontena::Error;
use kontena_schema::http::grids::GridCreate;
use kontena_tests::{Grid, Host, OwnGrid, toolbox, until};

/// The supernet of the grid.
const OVERLAY: &str = "10.99.0.0/17";
/// The network that the host has as well: in the supernet, and beside every address in use.
const LAN: &str = "10.99.96.0/20";

/// An agent looks at its host once a minute, and one that was refused asks again within half of
/// that.
const KNOWN_WITHIN: Duration = Duration::from_secs(150);

/// A grid whose overlay is where the host's network is.
fn create(name: &str) -> GridCreate {
    GridCreate {
        name: name.to_owned(),
        subnet: Some("10.99.0.0/19".to_owned()),
        supernet: Some(OVERLAY.to_owned()),
        ..GridCreate::default()
    }
}

fn both() -> String {
    format!("network {LAN} on lan0 overlaps the grid's overlay network {OVERLAY}")
}

/// A node that gets such a network stays what it is.
async fn a_node_is_told_of(grid: &Grid, host: &Host) {
    let add = "ip link add lan0 type veth peer name lan1 && ip link set lan1 up && \
               ip addr add 10.99.96.1/20 dev lan0 && ip link set lan0 up";
    host.run(add).await.must();
    until(KNOWN_WITHIN, "the Master knows it", async || {
        let node = grid.client.node_show(&grid.name, &host.name).await.unwrap();
        match &node.network_overlap {
            Some(text) if text.contains(&both()) && node.connected => Ok(()),
            _ => Err(format!("{node:#?}")),
        }
    })
    .await;
    let address = grid.toolbox(host).await.ip_address.unwrap();
    let ping = format!("ping -q -c 3 -i 0.2 -W 2 {address}");
    host.run(&ping).await.must();
}

/// Another grid with these networks is created all the same.
async fn a_new_grid_is_warned_of(grid: &Grid, host: &Host) {
    const OTHER: &str = "overlap-warned";
    match grid.client.grid_remove(OTHER).await {
        Err(Error::Api(refusal)) if refusal.status == 404 => {}
        other => other.unwrap(),
    }
    let created = grid.client.grid_create(&create(OTHER)).await.unwrap();
    let node = format!("{}/{}", grid.name, host.name);
    let found = created.warnings.iter().find(|found| found.node == node);
    let found = found.unwrap_or_else(|| panic!("{:#?}", created.warnings));
    assert!(found.text.contains(&both()), "{found:?}");
    grid.client.grid_remove(OTHER).await.unwrap();
}

/// Removed, it cannot join again while it has the network, and keeps that.
async fn a_host_is_refused(grid: &Grid, host: &Host) {
    grid.client
        .node_remove(&grid.name, &host.name)
        .await
        .unwrap();
    let gone = "! ip link show kontena 2>/dev/null";
    until(
        Duration::from_secs(60),
        "the overlay is taken down",
        async || host.run(gone).await.ok(),
    )
    .await;
    host.run("docker restart kontena-agent").await.must();
    let log = format!("docker logs kontena-agent 2>&1 | grep -F \"{}\"", both());
    until(KNOWN_WITHIN, "the agent tells why", async || {
        host.run(&log).await.ok()
    })
    .await;
    let nodes = grid.client.node_list(&grid.name).await.unwrap().nodes;
    assert!(nodes.is_empty(), "{nodes:#?}");
    host.run(gone).await.must();
    let way = host.run("ip route get 10.99.96.7").await.must();
    assert!(way.contains("dev lan0"), "{way}");

    host.run("ip link del lan0").await.must();
    until(KNOWN_WITHIN, "it joins", async || {
        let nodes = grid.client.node_list(&grid.name).await.unwrap().nodes;
        match &nodes[..] {
            [node] if node.connected && node.node_number == 1 => Ok(()),
            _ => Err(format!("{nodes:#?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_host_whose_network_overlaps_the_grids_keeps_it() {
    let own = OwnGrid::make(create("overlap"), &["overlap-1"]).await;
    let (grid, host) = (&own.grid, &own.grid.hosts[0]);
    grid.service_make(&toolbox()).await;
    grid.running(None, "toolbox", 1).await;
    a_node_is_told_of(grid, host).await;
    a_new_grid_is_warned_of(grid, host).await;
    a_host_is_refused(grid, host).await;
    own.end().await;
}
