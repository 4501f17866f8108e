//! Who reaches whom over the overlay.

use std::net::Ipv4Addr;
use std::time::Duration;

use kontena_schema::limits::WIREGUARD_PORT;
use kontena_tests::{Grid, TOOLBOX_PORT, docker, until};

/// Prints a line for everything that does not answer; all at once, because one
/// that does not answer takes its time.
fn script(pinged: &[Ipv4Addr], connected: &[(Ipv4Addr, u16)]) -> String {
    let mut script = String::new();
    for address in pinged {
        script +=
            &format!("(ping -q -c 1 -W 4 {address} >/dev/null || echo no ping of {address}) &\n");
    }
    for (address, port) in connected {
        script += &format!(
            "(timeout 4 bash -c 'exec 3<>/dev/tcp/{address}/{port}' || echo no TCP to {address}:{port}) &\n"
        );
    }
    script + "wait"
}

#[tokio::test]
async fn every_container_reaches_every_other_and_every_node() {
    let grid = Grid::first().await;
    let nodes = grid.client.node_list(&grid.name).await.unwrap().nodes;
    let mut pinged: Vec<_> = nodes.iter().map(|node| node.overlay_ip).collect();
    let mut connected = Vec::new();
    let mut containers = Vec::new();
    for (stack, service, port) in [
        (Some("testapp"), "db", 6379),
        (Some("testapp"), "webservice", 80),
        (None, "toolbox", TOOLBOX_PORT),
    ] {
        for container in grid.containers(Some((stack, service))).await {
            let address = container.ip_address.unwrap();
            pinged.push(address);
            connected.push((address, port));
            containers.push(container);
        }
    }
    assert_eq!((pinged.len(), connected.len()), (9, 6));
    let script = script(&pinged, &connected);
    for container in &containers {
        let host = grid.host(container.node.as_deref().unwrap());
        let failures = host.beside(&container.name, &script).await.must();
        assert_eq!(failures, "", "from {} on {}", container.name, host.name);
    }
}

#[tokio::test]
async fn every_node_reaches_every_container_and_every_node() {
    let grid = Grid::first().await;
    let nodes = grid.client.node_list(&grid.name).await.unwrap().nodes;
    let mut pinged: Vec<_> = nodes.iter().map(|node| node.overlay_ip).collect();
    for (stack, service) in [
        (Some("testapp"), "db"),
        (Some("testapp"), "webservice"),
        (None, "toolbox"),
    ] {
        let containers = grid.containers(Some((stack, service))).await;
        pinged.extend(
            containers
                .iter()
                .filter_map(|container| container.ip_address),
        );
    }
    for host in &grid.hosts {
        let failures = host.run(&script(&pinged, &[])).await.must();
        assert_eq!(failures, "", "from {}", host.name);
    }
}

#[tokio::test]
async fn a_packet_of_the_overlays_full_size_passes_unbroken() {
    let grid = Grid::first().await;
    let db = grid
        .containers(Some((Some("testapp"), "db")))
        .await
        .remove(0);
    for host in &grid.hosts {
        // 1370 bytes with the headers of IPv4 and ICMP.
        let ping = format!("ping -q -c 1 -W 4 -M do -s 1342 {}", db.ip_address.unwrap());
        grid.in_toolbox(host, &ping).await.must();
    }
}

/// The address of a part of the Master on one of its networks.
async fn address(grid: &Grid, part: &str, network: &str) -> Ipv4Addr {
    let project = &grid.settings.project;
    let of = format!("(index .NetworkSettings.Networks \"{project}_{network}\")");
    let format = format!("{{{{{of}.IPAddress}}}}");
    let name = format!("{project}-{part}");
    let line = ["inspect", "--format", &format, &name];
    docker(&line).await.must().parse().unwrap()
}

#[tokio::test]
async fn containers_do_not_reach_what_the_master_is_made_of() {
    let grid = Grid::first().await;
    let mut connected = Vec::new();
    for (part, port) in [
        ("postgres", 5432),
        ("redis", 6379),
        ("api-1", 9292),
        ("api-2", 9292),
        ("edge", 443),
    ] {
        connected.push((address(&grid, part, "master").await, port));
    }
    // Where agents reach it, and only they.
    let edge = address(&grid, "edge", "wan").await;
    connected.push((edge, 443));
    for host in &grid.hosts {
        let open = format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{edge}/443'");
        host.run(&open).await.must();
        let failures = grid.in_toolbox(host, &script(&[], &connected)).await.must();
        assert_eq!(
            failures.lines().count(),
            connected.len(),
            "{}: {failures}",
            host.name
        );
    }
}

/// Docker's default network is not the only one on a host.
#[tokio::test]
async fn containers_of_networks_that_users_made_do_not_reach_the_master_either() {
    const NETWORK: &str = "fenced";
    let grid = Grid::first().await;
    let [host, other, ..] = &grid.hosts[..] else {
        unreachable!()
    };
    let edge = address(&grid, "edge", "wan").await;
    let make = format!("docker network rm {NETWORK}; docker network create {NETWORK}");
    host.run(&make).await.must();
    let connect = async |to: &str| {
        let open = format!("timeout 4 bash -c 'exec 3<>/dev/tcp/{to}'");
        let run = format!("docker run --rm --network {NETWORK} kontena/toolbox {open}");
        host.run(&run).await
    };
    // What else is there is nobody's secret: an agent's door.
    let door = format!("{}/{WIREGUARD_PORT}", other.wan_address().await);
    connect(&door).await.must();
    let master = format!("{edge}/443");
    host.run(&format!("timeout 4 bash -c 'exec 3<>/dev/tcp/{master}'"))
        .await
        .must();
    until(
        Duration::from_secs(10),
        "it is kept from the Master",
        async || match connect(&master).await.ok() {
            Ok(_) => Err("connected".to_owned()),
            Err(_) => Ok(()),
        },
    )
    .await;
    // It stays so, and the network is whole.
    assert!(connect(&master).await.ok().is_err());
    connect(&door).await.must();
    host.run(&format!("docker network rm {NETWORK}"))
        .await
        .must();
}
