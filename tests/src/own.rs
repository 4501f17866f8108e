//! A grid of one test's own, with hosts that nobody else uses: for tests which cut
//! off or kill what others stand on.

use std::fs::File;
use std::net::Ipv4Addr;
use std::time::Duration;

use kontena::client::AddressFilter;
use kontena_schema::http::addresses::HolderKind;
use kontena_schema::http::grids::GridCreate;

use crate::{Grid, Host, Settings, docker, until};

/// Where the addresses of such hosts begin in the hosts' network: behind those of
/// the stack's own hosts and before those that Docker gives.
const FIRST_ADDRESS: u32 = 32;

/// An engine that has nothing to do starts within a few seconds.
const ENGINE_WITHIN: Duration = Duration::from_secs(60);

/// A grid that goes with the test.
#[derive(Debug)]
pub struct OwnGrid {
    /// The grid with its hosts.
    pub grid: Grid,
    /// One test at a time has it.
    _lock: File,
}

impl OwnGrid {
    /// Makes the grid and its hosts, which get the numbers 1, 2 and so on. What an
    /// earlier test left of them goes first.
    pub async fn make(create: GridCreate, hosts: &[&str]) -> Self {
        let grid = Grid::new(Settings::read(), &create.name, hosts);
        let own = Self {
            _lock: grid.lock(),
            grid,
        };
        own.clear().await;
        own.grid.client.grid_create(&create).await.unwrap();
        own.grid.hosts_start().await;
        own.grid.hosts_join().await;
        own
    }

    /// Removes everything of it.
    pub async fn end(self) {
        self.clear().await;
    }

    async fn clear(&self) {
        let (client, name) = (&self.grid.client, self.grid.name.as_str());
        for host in &self.grid.hosts {
            let remove = ["rm", "--force", "--volumes", &host.container];
            let output = docker(&remove).await;
            assert!(
                output.status == Some(0) || output.stderr.contains("No such container"),
                "{}",
                output.describe()
            );
        }
        let grids = client.grid_list().await.unwrap().grids;
        if !grids.iter().any(|grid| grid.name == name) {
            return;
        }
        // Without its node no container has to be waited for.
        for node in client.node_list(name).await.unwrap().nodes {
            client.node_remove(name, &node.name).await.unwrap();
        }
        for service in client.service_list(name).await.unwrap().services {
            let removed = client.service_remove(name, None, &service.name).await;
            removed.unwrap();
        }
        let reserved = AddressFilter {
            kind: Some(HolderKind::Reservation),
            limit: Some(1000),
            ..AddressFilter::default()
        };
        for held in client
            .address_list(name, &reserved)
            .await
            .unwrap()
            .addresses
        {
            let released = client.address_release(name, held.address, held.lease).await;
            released.unwrap();
        }
        client.grid_remove(name).await.unwrap();
    }
}

impl Grid {
    async fn hosts_start(&self) {
        for (host, offset) in self.hosts.iter().zip(FIRST_ADDRESS..) {
            let address = self.settings.wan.nth(offset);
            let address = address.expect("the hosts' network is large enough");
            host.start_new(&self.settings, address).await;
        }
        for host in &self.hosts {
            host.engine_answers().await;
        }
        // Side by side, and not while a deploy is waited for.
        let pulls = self.hosts.iter().cloned().map(|host| async move {
            let pull = "docker pull -q kontena/agent && docker pull -q kontena/toolbox";
            host.run(pull).await.must();
        });
        let pulls: Vec<_> = pulls.map(tokio::spawn).collect();
        for pull in pulls {
            pull.await.unwrap();
        }
    }
}

impl Host {
    /// Starts a host like those of `docker-compose.yml`. Its engine's data is in a
    /// volume without a name, which goes with it.
    async fn start_new(&self, settings: &Settings, address: Ipv4Addr) {
        let project = &settings.project;
        let network = format!("{project}_wan");
        let image = format!("kontena/node:{project}");
        let label = format!("com.docker.compose.project={project}");
        let ca = format!("{project}_ca:/etc/kontena:ro");
        let address = address.to_string();
        let public = format!("KONTENA_PUBLIC_IP={address}");
        let mut args = vec!["run", "--detach", "--name", &self.container];
        args.extend(["--hostname", &self.name, "--label", &label]);
        args.extend(["--network", &network, "--ip", &address]);
        args.extend(["--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE"]);
        args.extend(["--security-opt", "seccomp=unconfined"]);
        args.extend(["--security-opt", "apparmor=unconfined"]);
        args.extend(["--device-cgroup-rule", "a *:* rwm"]);
        args.extend(["--device", "/dev/net/tun", "--tmpfs", "/run"]);
        args.extend(["--volume", &ca]);
        args.extend(["--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"]);
        args.extend(["--env", "REGISTRY_MIRROR=http://registry:5000"]);
        args.extend(["--env", "REGION=local", "--env", &public, &image]);
        docker(&args).await.must();
    }

    /// Waits until the host's engine answers.
    pub async fn engine_answers(&self) {
        let what = format!("the engine of {} answers", self.name);
        let ask = "docker version --format '{{.Server.Version}}'";
        until(ENGINE_WITHIN, &what, async || self.run(ask).await.ok()).await;
    }

    /// Starts the host again after it was killed.
    pub async fn start(&self) {
        docker(&["start", &self.container]).await.must();
        self.engine_answers().await;
    }

    /// Waits until the Master hears of the host's agent: from now on it takes the
    /// longest to notice that the agent is no more.
    pub async fn is_heard(&self) {
        let listen = "edge=$(getent ahostsv4 edge | head -n 1 | cut -d ' ' -f 1) && \
            timeout 30 tcpdump -n -i eth0 -Q out -c 1 \
            \"dst host $edge and tcp[tcpflags] & tcp-push != 0\"";
        self.run(listen).await.must();
    }

    /// Kills the host without a last word: not even its connections are closed,
    /// as when the power fails.
    pub async fn power_off(&self) {
        let mute = "nft add table netdev power && \
            nft add chain netdev power in '{ type filter hook ingress device eth0 priority 0; policy drop; }' && \
            nft add table inet power && \
            nft add chain inet power out '{ type filter hook output priority -400; policy accept; }' && \
            nft add rule inet power out oifname eth0 drop";
        self.run(mute).await.must();
        docker(&["kill", "--signal", "KILL", &self.container])
            .await
            .must();
    }

    /// Cuts the host off from the Master, and from nothing else.
    pub async fn cut_off(&self) {
        let cut = "edge=$(getent ahostsv4 edge | head -n 1 | cut -d ' ' -f 1) && \
            nft add table inet cut && \
            nft add chain inet cut in '{ type filter hook input priority 0; }' && \
            nft add chain inet cut out '{ type filter hook output priority 0; }' && \
            nft add rule inet cut in ip saddr $edge drop && \
            nft add rule inet cut out ip daddr $edge drop && \
            nft list table inet cut";
        self.run(cut).await.must();
    }

    /// Undoes what [`Host::cut_off`] did.
    pub async fn reconnect(&self) {
        self.run("nft delete table inet cut").await.must();
    }
}
