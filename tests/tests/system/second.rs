//! A second grid with the same addresses on the same network: nothing crosses.
//! And how peers are reached whose network is not trusted.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use kontena_schema::agent::PingResult;
use kontena_schema::http::grids::GridUpdate;
use kontena_schema::http::pings::PingCreate;
use kontena_schema::path::Path;
use kontena_tests::{Capture, Grid, Host, docker, until};
use tokio::time::timeout;

/// The length of the IPv4 packet that `ping -s` sends.
const HEADERS: u16 = 28;

async fn addresses(grid: &Grid) -> BTreeSet<Ipv4Addr> {
    let nodes = grid.client.node_list(&grid.name).await.unwrap().nodes;
    let mut all: BTreeSet<_> = nodes.iter().map(|node| node.overlay_ip).collect();
    all.extend(
        grid.containers(None)
            .await
            .iter()
            .filter_map(|container| container.ip_address),
    );
    all
}

/// Pings addresses from the toolbox of each host, with a length of its own, and
/// answers those that answered anywhere.
async fn pinged(grid: &Grid, addresses: &BTreeSet<Ipv4Addr>, size: u16) -> BTreeSet<Ipv4Addr> {
    let ping: String = addresses
        .iter()
        .map(|ip| format!("(ping -q -c 2 -i 0.2 -W 1 -s {size} {ip} >/dev/null && echo {ip}) &\n"))
        .collect();
    let mut answered = BTreeSet::new();
    for host in &grid.hosts {
        let output = grid.in_toolbox(host, &(ping.clone() + "wait")).await.must();
        answered.extend(output.lines().map(|line| line.parse::<Ipv4Addr>().unwrap()));
    }
    answered
}

/// Listens on the overlay and on the wan of every host of a grid.
async fn listen(grid: &Grid, name: &str, size: u16, others: &[Ipv4Addr]) -> Vec<Capture> {
    let pings = format!("icmp and ip[2:2] == {}", size + HEADERS);
    let others: Vec<_> = others.iter().map(|ip| format!("host {ip}")).collect();
    let tunnel = format!("udp and portrange 6783-6784 and ({})", others.join(" or "));
    let mut captures = Vec::new();
    for host in &grid.hosts {
        captures.push(Capture::begin(host, name, "kontena", &pings).await);
        captures.push(Capture::begin(host, name, "eth0", &tunnel).await);
    }
    captures
}

async fn wan(grid: &Grid) -> Vec<Ipv4Addr> {
    let mut addresses = Vec::new();
    for host in &grid.hosts {
        addresses.push(host.wan_address().await);
    }
    addresses
}

#[tokio::test]
async fn both_grids_have_the_same_addresses_and_no_packet_crosses() {
    let (first, second) = (Grid::first().await, Grid::second().await);
    let (ours, theirs) = (addresses(&first).await, addresses(&second).await);
    let expected = [
        "10.81.0.1",
        "10.81.0.2",
        "10.81.1.1",
        "10.81.1.2",
        "10.81.1.3",
    ];
    for address in expected.map(|text| text.parse().unwrap()) {
        assert!(
            ours.contains(&address) && theirs.contains(&address),
            "{ours:?} {theirs:?}"
        );
    }
    let all: BTreeSet<Ipv4Addr> = &ours | &theirs;
    assert!(
        all.len() > theirs.len(),
        "nothing exists in the first grid alone"
    );

    let (from_second, from_first) = (333, 334);
    let mut captures = listen(&first, "crossing", from_second, &wan(&second).await).await;
    captures.extend(listen(&second, "crossing", from_first, &wan(&first).await).await);
    // Other tests may have removed services meanwhile: what answers must exist.
    let answered = pinged(&second, &all, from_second).await;
    assert_eq!(
        answered, theirs,
        "the second grid reaches its own and nothing else"
    );
    let answered = pinged(&first, &all, from_first).await;
    assert!(answered.is_superset(&(&ours & &theirs)), "{answered:?}");
    for capture in captures {
        let packets = capture.end().await;
        assert!(packets.is_empty(), "{packets:#?}");
    }
}

#[tokio::test]
async fn no_name_crosses() {
    let grids = [Grid::first().await, Grid::second().await];
    for (here, there) in [(&grids[0], &grids[1]), (&grids[1], &grids[0])] {
        let host = &here.hosts[0];
        for name in [
            "testapp-db",
            "testapp-webservice-2",
            "db.testapp",
            "toolbox-1",
            "toolbox",
        ] {
            for how in ["+notcp", "+tcp"] {
                let dig = format!(
                    "dig {how} +tries=1 +time=3 {name}.{}.kontena.local",
                    there.name
                );
                let answer = here.in_toolbox(host, &dig).await.must();
                assert!(
                    answer.contains("status: NXDOMAIN"),
                    "in {}: {answer}",
                    here.name
                );
            }
        }
        // The name without a grid is each grid's own.
        let own: BTreeSet<_> = here
            .containers(Some((None, "toolbox")))
            .await
            .iter()
            .filter_map(|container| container.ip_address)
            .collect();
        let answer = here
            .in_toolbox(host, "dig +short toolbox.kontena.local")
            .await
            .must();
        let found: BTreeSet<Ipv4Addr> = answer.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(found, own);
    }
    let containers = grids[1].containers(None).await;
    assert!(
        containers.iter().all(|c| c
            .node
            .as_deref()
            .is_some_and(|node| ["node-4", "node-5"].contains(&node))),
        "{containers:#?}"
    );
}

/// What our packet filter on a host has dropped.
async fn dropped(host: &Host, counter: &str) -> u64 {
    let list = format!("nft list counter inet kontena {counter} | grep -oP 'packets \\K[0-9]+'");
    host.run(&list).await.must().parse().unwrap()
}

#[tokio::test]
async fn a_strangers_frame_with_the_grids_own_number_is_dropped() {
    let grid = Grid::first().await;
    let vni = format!("select vni from grids where name = '{}'", grid.name);
    let vni = grid.master.sql(&vni).await;
    let project = &grid.settings.project;
    let host = &grid.hosts[0];
    let target = grid.toolbox(host).await.ip_address.unwrap();
    let size = 335;
    let send = format!(
        r#"
import socket, struct
payload = bytes(8 + {size})
ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, 1, 0, bytes([10, 81, 9, 9]), socket.inet_aton("{target}"))
frame = b"\xff" * 6 + bytes.fromhex("02aabbccddee") + b"\x08\x00" + ip + payload
vxlan = struct.pack("!II", 0x08000000, {vni} << 8)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(vxlan + frame, ("{}", 6784))
"#,
        host.wan_address().await
    );
    let heard = format!("icmp and ip[2:2] == {}", size + HEADERS);
    let capture = Capture::begin(host, "stranger", "kontena", &heard).await;
    let before = dropped(host, "dropped_in").await;
    let network = format!("{project}_wan");
    let label = format!("com.docker.compose.project={project}");
    let image = format!("kontena/toolbox:{project}");
    let run = [
        "run",
        "--rm",
        "--network",
        &network,
        "--label",
        &label,
        &image,
        "python3",
        "-c",
        &send,
    ];
    docker(&run).await.must();
    until(Duration::from_secs(5), "the filter counts it", async || {
        let now = dropped(host, "dropped_in").await;
        if now > before {
            Ok(())
        } else {
            Err(format!("{now}"))
        }
    })
    .await;
    assert_eq!(capture.end().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_host_sends_no_clear_packet_to_a_host_of_another_grid() {
    let (first, second) = (Grid::first().await, Grid::second().await);
    let (host, stranger) = (&second.hosts[0], first.hosts[0].wan_address().await);
    let filter = format!("udp port 6784 and host {stranger}");
    let capture = Capture::begin(host, "clear", "eth0", &filter).await;
    let before = dropped(host, "dropped_out").await;
    let send = format!("! echo x >/dev/udp/{stranger}/6784");
    host.run(&send).await.must();
    assert!(dropped(host, "dropped_out").await > before);
    assert_eq!(capture.end().await, Vec::<String>::new());
}

/// The paths between the grid's nodes, as the Master shows them.
async fn paths(grid: &Grid) -> Result<Vec<Path>, String> {
    let mut paths = Vec::new();
    for host in &grid.hosts {
        let peers = grid
            .client
            .node_peers(&grid.name, &host.name)
            .await
            .unwrap();
        for peer in peers.peers {
            if let Some(why) = peer.unreachable {
                return Err(format!("{} to {}: {why}", host.name, peer.node));
            }
            paths.extend(peer.path);
        }
    }
    Ok(paths)
}

/// Trusts these subnets; what takes longer than this is no live switching.
async fn trust(grid: &Grid, subnets: &[String], fast: bool) {
    const WITHIN: Duration = Duration::from_secs(5);
    let update = GridUpdate {
        trusted_subnets: Some(subnets.to_vec()),
    };
    grid.client.grid_update(&grid.name, &update).await.unwrap();
    until(WITHIN, &format!("paths are fast: {fast}"), async || {
        let paths = paths(grid).await?;
        let right = |path: &Path| matches!(path, Path::Fast { .. }) == fast;
        let all = paths.len() == 2 && paths.iter().all(right);
        if all {
            Ok(())
        } else {
            Err(format!("{paths:?}"))
        }
    })
    .await;
}

/// Pings from one host's toolbox to the other's and back; counts what leaves
/// each host for the tunnel's port meanwhile.
async fn clear_packets(grid: &Grid) -> (BTreeSet<Ipv4Addr>, Vec<String>) {
    let mut captures = Vec::new();
    for host in &grid.hosts {
        captures.push(Capture::begin(host, "trust", "eth0", "udp port 6784").await);
    }
    let mut toolboxes = BTreeSet::new();
    for host in &grid.hosts {
        toolboxes.extend(grid.toolbox(host).await.ip_address);
    }
    let mut answered = BTreeSet::new();
    for host in &grid.hosts {
        let own = grid.toolbox(host).await.ip_address;
        for other in toolboxes.iter().filter(|address| Some(**address) != own) {
            let ping = format!("ping -q -c 3 -i 0.2 -W 1 {other}");
            if grid.in_toolbox(host, &ping).await.status == Some(0) {
                answered.insert(*other);
            }
        }
    }
    let mut packets = Vec::new();
    for capture in captures {
        packets.extend(capture.end().await);
    }
    (answered, packets)
}

#[tokio::test]
async fn peers_outside_the_trusted_subnets_are_reached_and_nothing_is_clear() {
    let grid = Grid::second().await;
    // Half of the network is not enough when one of the two is in the other half.
    let half = format!("{}/32", grid.hosts[0].wan_address().await);
    for trusted in [vec![], vec![half]] {
        trust(&grid, &trusted, false).await;
        let (answered, packets) = clear_packets(&grid).await;
        assert_eq!(answered.len(), 2);
        assert!(packets.is_empty(), "{packets:#?}");
    }
    trust(&grid, &[grid.settings.wan.to_string()], true).await;
    let (answered, packets) = clear_packets(&grid).await;
    assert_eq!(answered.len(), 2);
    assert!(!packets.is_empty());
}

/// What one node finds when it pings the other.
async fn ping(grid: &Grid, from: &Host, to: &Host) -> PingResult {
    let create = PingCreate {
        to: to.name.clone(),
        count: Some(3),
    };
    let begun = grid.client.node_ping(&grid.name, &from.name, &create).await;
    let ended = grid.client.node_ping_wait(&grid.name, begun.unwrap()).await;
    let ping = ended.unwrap();
    assert_eq!((&ping.from, &ping.to), (&from.name, &to.name));
    match ping.result {
        Some(result) => result,
        None => panic!("{ping:#?}"),
    }
}

/// Pings until everything passes on the encrypted path.
async fn sealed_ping(grid: &Grid, from: &Host, to: &Host) {
    loop {
        let result = ping(grid, from, to).await;
        let sealed = matches!(result.path, Path::Sealed { .. });
        if sealed && result.received == 3 && result.full_size_passes {
            return;
        }
    }
}

/// The two hosts ping each other, and everything passes on the path that it is to take.
async fn pings_pass(grid: &Grid, fast: bool) {
    let [a, b] = &grid.hosts[..] else {
        panic!("{:?}", grid.hosts)
    };
    for (from, to) in [(a, b), (b, a)] {
        let result = ping(grid, from, to).await;
        let (sent, received) = (result.sent, result.received);
        assert_eq!((sent, received), (3, 3), "{result:?}");
        assert!(result.full_size_passes, "{result:?}");
        let trips = result.round_trips.unwrap();
        assert!(
            0 < trips.min_us && trips.min_us <= trips.avg_us,
            "{trips:?}"
        );
        assert!(trips.avg_us <= trips.max_us && trips.max_us < 1_000_000);
        let there = to.wan_address().await;
        let path = if fast {
            Path::Fast { to: there }
        } else {
            Path::Sealed { to: there }
        };
        assert_eq!(result.path, path);
    }
}

#[tokio::test]
async fn nodes_ping_each_other_on_the_path_that_frames_take() {
    let grid = Grid::second().await;
    trust(&grid, &[], false).await;
    pings_pass(&grid, false).await;
    trust(&grid, &[grid.settings.wan.to_string()], true).await;
    pings_pass(&grid, true).await;

    // Somebody between the hosts lets encrypted packets pass and nothing else.
    let [a, b] = &grid.hosts[..] else {
        panic!("{:?}", grid.hosts)
    };
    let block = "nft add table netdev ping && \
        nft add chain netdev ping in '{ type filter hook ingress device eth0 priority -400; }' && \
        nft add rule netdev ping in udp dport 6784 drop";
    b.run(block).await.must();
    let left = tokio::spawn({
        let (grid, a, b) = (grid.clone(), a.clone(), b.clone());
        async move { timeout(Duration::from_secs(30), sealed_ping(&grid, &a, &b)).await }
    });
    let left = left.await;
    // Whatever came of it, others need the way.
    b.run("nft delete table netdev ping").await.must();
    left.unwrap().expect("the blocked way is left");
    trust(&grid, &[grid.settings.wan.to_string()], true).await;
    pings_pass(&grid, true).await;
}

#[tokio::test]
async fn a_node_changes_its_key_when_it_is_asked_to() {
    let grid = Grid::second().await;
    trust(&grid, &[], false).await;
    let node = &grid.hosts[0].name;
    let key = async || {
        let shown = grid.client.node_show(&grid.name, node).await.unwrap();
        shown.public_key.expect("it told its key")
    };
    let before = key().await;
    grid.client.node_key_turn(&grid.name, node).await.unwrap();
    // The old one answers for 20 s more.
    until(Duration::from_secs(40), "another key", async || {
        clear_packets(&grid)
            .await
            .0
            .len()
            .eq(&2)
            .then_some(())
            .ok_or("no answer".to_owned())?;
        let now = key().await;
        if now == before {
            Err("the same key".to_owned())
        } else {
            Ok(())
        }
    })
    .await;
    paths(&grid).await.unwrap();
    trust(&grid, &[grid.settings.wan.to_string()], true).await;
}
