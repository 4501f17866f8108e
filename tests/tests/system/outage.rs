//! The Master stays away for ten minutes, in which every session of the encrypted path is
//! renewed several times. `make outage` runs it, alone; with `KONTENA_TEST_OUTAGE_S=150`
//! each is renewed once.

use std::time::Duration;

use kontena_schema::http::containers::Container;
use kontena_schema::http::grids::GridUpdate;
use kontena_schema::path::Path;
use kontena_tests::{Grid, Host, until};
use tokio::time::{Instant, sleep_until};

/// A session is renewed after 120 s (WireGuard whitepaper section 6.1).
const OUTAGE_S: u64 = 600;
/// Once the Master answers.
const RECONCILED_WITHIN: Duration = Duration::from_secs(10);
const PINGS: u64 = 50;
/// Of a hundred; what a renewed session may cost is one.
const LOST_PERCENT_MAX: u64 = 1;

fn outage() -> Duration {
    let set = std::env::var("KONTENA_TEST_OUTAGE_S");
    Duration::from_secs(set.map_or(OUTAGE_S, |text| text.parse().expect("a number of seconds")))
}

/// What the Master knows of a grid, because it is not to be asked meanwhile.
struct Known {
    grid: Grid,
    containers: Vec<Container>,
}

impl Known {
    async fn of(grid: Grid) -> Self {
        let containers = grid.containers(None).await;
        Self { grid, containers }
    }

    fn toolbox(&self, host: &Host) -> &Container {
        let of = |c: &&Container| c.service == "toolbox" && c.node.as_ref() == Some(&host.name);
        self.containers.iter().find(of).unwrap()
    }

    fn instance(&self, service: &str) -> (&Host, &Container) {
        let of = |c: &&Container| c.service == service;
        let container = self.containers.iter().find(of).unwrap();
        (self.grid.host(container.node.as_ref().unwrap()), container)
    }

    /// Pings from the first host's toolbox to the second one's, ten seconds at a time; the
    /// share that is lost.
    async fn lost_percent(&self, until: Instant) -> u64 {
        let [from, to, ..] = &self.grid.hosts[..] else {
            panic!("a grid has two hosts");
        };
        let to = self.toolbox(to).ip_address.unwrap();
        let ping = format!("ping -q -i 0.2 -W 2 -c {PINGS} {to} | grep -oP '[0-9]+(?= received)'");
        let (mut sent, mut received) = (0, 0);
        while Instant::now() < until {
            let said = from.inside(&self.toolbox(from).name, &ping).await.must();
            received += said.parse::<u64>().unwrap();
            sent += PINGS;
        }
        assert!(received <= sent);
        (sent - received) * 100 / sent
    }

    /// Docker restarts a container, which is then found by its name.
    async fn restart(&self, service: &str) {
        let (host, container) = self.instance(service);
        let restart = format!("docker restart -t 5 {}", container.name);
        host.run(&restart).await.must();
        let name = format!("testapp-{service}-{}", container.instance_number);
        let address = container.ip_address.unwrap();
        let dig = format!("dig +short +tries=1 +time=2 {name}.kontena.local");
        let answers = format!("{name} is at {address}");
        until(RECONCILED_WITHIN, &answers, async || {
            let inside = host
                .beside(&container.name, "ip -4 -o addr show dev ethwe")
                .await;
            let inside = inside.ok()?;
            let said = self.grid.hosts[0]
                .inside(&self.toolbox(&self.grid.hosts[0]).name, &dig)
                .await
                .ok()?;
            let right = inside.contains(&format!("inet {address}/")) && said == address.to_string();
            right.then_some(()).ok_or(format!("{inside} {said}"))
        })
        .await;
    }

    /// All nodes are connected, and every container is the one that it was.
    async fn is_as_before(&self) {
        let nodes = self
            .grid
            .client
            .node_list(&self.grid.name)
            .await
            .unwrap()
            .nodes;
        let away: Vec<_> = nodes.iter().filter(|node| !node.connected).collect();
        assert!(away.is_empty(), "{away:#?}");
        let now = self.grid.containers(None).await;
        let ids = |of: &[Container]| -> Vec<_> {
            of.iter()
                .map(|c| (c.name.clone(), c.container_id.clone(), c.ip_address))
                .collect()
        };
        assert_eq!(ids(&now), ids(&self.containers));
    }

    /// When each way was measured, and how old its last handshake was then.
    async fn handshakes(&self) -> Vec<Option<(String, Duration)>> {
        let mut all = Vec::new();
        for host in &self.grid.hosts {
            let peers = self.grid.client.node_peers(&self.grid.name, &host.name);
            for peer in peers.await.unwrap().peers {
                let age = peer.measure.and_then(|measure| measure.last_handshake_s);
                all.push(peer.measured_at.zip(age.map(Duration::from_secs)));
            }
        }
        all
    }
}

async fn trust(grid: &Grid, subnets: Vec<String>) {
    let update = GridUpdate {
        trusted_subnets: Some(subnets),
    };
    grid.client.grid_update(&grid.name, &update).await.unwrap();
}

/// The second grid's hosts are sealed from each other.
async fn seal(grid: &Grid) {
    trust(grid, Vec::new()).await;
    until(RECONCILED_WITHIN, "an encrypted path", async || {
        let node = &grid.hosts[0].name;
        let peers = grid.client.node_peers(&grid.name, node).await.unwrap();
        match &peers.peers[0].path {
            Some(Path::Sealed { .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn traffic_sessions_and_names_outlive_a_master_that_stays_away() {
    let fast = Known::of(Grid::first().await).await;
    let sealed = Known::of(Grid::second().await).await;
    seal(&sealed.grid).await;
    let before = sealed.handshakes().await;
    let master = &fast.grid.master;
    let parts = ["edge", "api-1", "api-2", "redis", "postgres"];
    master.docker(&["kill", "--signal", "KILL"], &parts).await;

    let (time, begun) = (outage(), Instant::now());
    let (lost_fast, lost_sealed, ()) = tokio::join!(
        fast.lost_percent(begun + time),
        sealed.lost_percent(begun + time),
        async {
            sleep_until(begun + time / 2).await;
            fast.restart("webservice").await;
            sealed.restart("webservice").await;
        }
    );
    sleep_until(begun + time).await;
    master.docker(&["start"], &["postgres", "redis"]).await;
    master.docker(&["start"], &["api-1", "api-2", "edge"]).await;
    master.is_back().await;

    let lost = [lost_fast, lost_sealed];
    assert!(
        lost.iter().all(|lost| *lost <= LOST_PERCENT_MAX),
        "{lost:?} %"
    );
    for known in [&fast, &sealed] {
        for host in &known.grid.hosts {
            known.grid.node_online(&host.name).await;
        }
    }
    // Those from before the outage are older than it lasted.
    until(RECONCILED_WITHIN * 2, "sessions were renewed", async || {
        let now = sealed.handshakes().await;
        let renewed = |(old, new): (&Option<(String, Duration)>, &Option<_>)| match (old, new) {
            (Some((before, _)), Some((at, age))) => at != before && *age < time,
            (None, Some((_, age))) => *age < time,
            _ => false,
        };
        let all = now.len() == 2 && before.iter().zip(&now).all(renewed);
        all.then_some(()).ok_or(format!("{now:?}"))
    })
    .await;
    fast.is_as_before().await;
    sealed.is_as_before().await;
    trust(&sealed.grid, vec![sealed.grid.settings.wan.to_string()]).await;
}
