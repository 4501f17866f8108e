//! A node that does not hear the Master, and one that is no node any more.

use std::time::{Duration, Instant};

use kontena_schema::http::grids::{GridCreate, TrustChange};
use kontena_schema::path::Path;
use kontena_tests::{Capture, Grid, Host, OwnGrid, Settings, toolbox, until};

/// What connected agents know within moments.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

async fn begin() -> OwnGrid {
    let create = GridCreate {
        name: "leave".to_owned(),
        trusted_subnets: Some(vec![Settings::read().wan.to_string()]),
        ..GridCreate::default()
    };
    let own = OwnGrid::make(create, &["leave-1", "leave-2"]).await;
    own.grid.service_make(&toolbox()).await;
    own.grid.running(None, "toolbox", 2).await;
    own
}

/// The path from one host to the only other one, as the Master shows it.
async fn path(grid: &Grid, host: &Host) -> Result<Path, String> {
    let peers = grid.client.node_peers(&grid.name, &host.name).await;
    let peer = peers.unwrap().peers.remove(0);
    match (peer.path, peer.unreachable) {
        (Some(path), None) => Ok(path),
        other => Err(format!("{other:?}")),
    }
}

/// The pings from one toolbox to the other must be answered.
async fn reaches(grid: &Grid, from: &Host, to: &Host) {
    let address = grid.toolbox(to).await.ip_address.unwrap();
    let ping = format!("ping -q -c 5 -i 0.2 -W 2 {address}");
    grid.in_toolbox(from, &ping).await.must();
}

/// One end does not hear that trust is withdrawn, but its peer does.
async fn withdrawn_while_one_end_is_cut_off(grid: &Grid) {
    let [a, b] = &grid.hosts[..] else { panic!() };
    until(KNOWN_WITHIN * 2, "a clear pair", async || {
        match [path(grid, a).await?, path(grid, b).await?] {
            [Path::Fast { .. }, Path::Fast { .. }] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // Addresses are asked of the Master, which is to hear of one of them no more.
    let to = grid.toolbox(b).await.ip_address.unwrap();
    b.cut_off().await;
    let change = TrustChange {
        remove: vec![grid.settings.wan.to_string()],
        ..TrustChange::default()
    };
    grid.client.trust_change(&grid.name, &change).await.unwrap();
    until(KNOWN_WITHIN, "a sealed pair", async || {
        match path(grid, a).await? {
            Path::Sealed { .. } => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let mut captures = Vec::new();
    for host in [a, b] {
        captures.push(Capture::begin(host, "withdrawn", "eth0", "udp port 6784").await);
    }
    let ping = format!("ping -q -c 20 -i 0.1 -W 2 {to}");
    grid.in_toolbox(a, &ping).await.must();
    for capture in captures {
        let packets = capture.end().await;
        assert!(packets.is_empty(), "{packets:#?}");
    }
    b.reconnect().await;
}

/// What a host has of the overlay.
async fn traces(host: &Host) -> String {
    let list = "ip -o link | grep -E ' (kontena|vethwe)'; nft list tables | grep kontena; \
                docker ps -q --filter label=io.kontena.container.type=container; true";
    host.run(list).await.must()
}

#[tokio::test]
async fn a_node_that_is_cut_off_is_sealed_and_one_that_is_removed_leaves_nothing() {
    let own = begin().await;
    let grid = &own.grid;
    withdrawn_while_one_end_is_cut_off(grid).await;
    let [a, b] = &grid.hosts[..] else { panic!() };
    until(
        Duration::from_secs(20),
        "it hears the Master again",
        async || {
            let node = grid.client.node_show(&grid.name, &b.name).await.unwrap();
            if node.connected {
                Ok(())
            } else {
                Err(node.status)
            }
        },
    )
    .await;
    reaches(grid, a, b).await;

    let node = grid.client.node_show(&grid.name, &b.name).await.unwrap();
    let entries = format!("ip neigh show {} dev kontena", node.overlay_ip);
    assert!(!a.run(&entries).await.must().is_empty());
    grid.client.node_remove(&grid.name, &b.name).await.unwrap();
    let removed = Instant::now();
    until(
        Duration::from_secs(1),
        "its peer knows nobody there",
        async || match a.run(&entries).await.must() {
            nothing if nothing.is_empty() => Ok(()),
            entry => Err(format!("{entry} after {:?}", removed.elapsed())),
        },
    )
    .await;
    until(
        Duration::from_secs(30),
        "nothing of the grid is left",
        async || match traces(b).await {
            nothing if nothing.is_empty() => Ok(()),
            traces => Err(traces),
        },
    )
    .await;
    own.end().await;
}
