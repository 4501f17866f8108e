//! What the tests share: two grids with hosts, the example and a toolbox on
//! each host. Whoever comes first makes them, under a lock between processes;
//! they stay, so a test may not change them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use kontena::stackfile::{self, Context};
use kontena_schema::http::grids::GridCreate;
use kontena_schema::http::services::{ServiceCreate, ServiceSpec, Strategy};

use crate::{Grid, Settings, until};

/// Where the toolbox echoes TCP connections.
pub const TOOLBOX_PORT: u16 = 7777;

/// The name of the second grid. Its hosts are those of the compose profile
/// `tests`.
const SECOND: &str = "other";

/// Pulling the agent's image is most of it.
const JOINED_WITHIN: Duration = Duration::from_secs(60);

/// A service from the toolbox's image that runs a shell script.
pub fn service(name: &str, script: &str) -> ServiceCreate {
    let cmd = ["bash", "-c", script].map(str::to_owned).to_vec();
    ServiceCreate {
        name: name.to_owned(),
        spec: ServiceSpec {
            image: "kontena/toolbox:latest".to_owned(),
            cmd: Some(cmd),
            // A shell as the first process ignores the polite signal.
            stop_grace_period_s: Some(0),
            ..ServiceSpec::default()
        },
        ..ServiceCreate::default()
    }
}

/// A toolbox on each host, which echoes TCP connections.
pub fn toolbox() -> ServiceCreate {
    let listen = format!("exec socat TCP-LISTEN:{TOOLBOX_PORT},fork,reuseaddr PIPE");
    let mut toolbox = service("toolbox", &listen);
    toolbox.spec.strategy = Strategy::Daemon;
    toolbox
}

impl Grid {
    /// The grid that the stack was brought up with: node-1 to node-3, the example
    /// and the toolboxes.
    pub async fn first() -> Self {
        let settings = Settings::read();
        let name = settings.grid.clone();
        let grid = Self::new(settings, &name, &["node-1", "node-2", "node-3"]);
        let _lock = grid.lock();
        grid.equip().await;
        grid
    }

    /// A second grid with the same addresses, with node-4 and node-5, the example
    /// and the toolboxes.
    pub async fn second() -> Self {
        let settings = Settings::read();
        let grid = Self::new(settings, SECOND, &["node-4", "node-5"]);
        let _lock = grid.lock();
        grid.second_join().await;
        grid.equip().await;
        grid
    }

    /// Held by one process at a time, until it is dropped.
    pub(crate) fn lock(&self) -> File {
        let path = self
            .settings
            .ca
            .with_file_name(format!("tests-{}.lock", self.name));
        let file = File::create(path).expect("the lock's file can be made");
        file.lock().expect("the lock can be taken");
        file
    }

    async fn second_join(&self) {
        let grids = self.client.grid_list().await.unwrap().grids;
        if !grids.iter().any(|grid| grid.name == self.name) {
            let create = GridCreate {
                name: self.name.clone(),
                trusted_subnets: Some(vec![self.settings.wan.to_string()]),
                ..GridCreate::default()
            };
            self.client.grid_create(&create).await.unwrap();
        }
        self.hosts_join().await;
    }

    /// Joins the hosts one after another, so that the first has the lowest number.
    pub(crate) async fn hosts_join(&self) {
        let token = self.client.grid_show(&self.name).await.unwrap().token;
        let token = token.expect("a grid that is shown has its join token");
        for host in &self.hosts {
            host.join(&token).await;
            self.node_online(&host.name).await;
        }
    }

    /// Waits until a node is connected.
    pub async fn node_online(&self, name: &str) {
        until(JOINED_WITHIN, &format!("{name} is online"), async || {
            let nodes = self.client.node_list(&self.name).await.unwrap().nodes;
            let node = nodes.iter().find(|node| node.name == name);
            match node {
                Some(node) if node.connected => Ok(()),
                _ => Err(format!("{nodes:#?}")),
            }
        })
        .await;
    }

    async fn equip(&self) {
        let stacks = self.client.stack_list(&self.name).await.unwrap().stacks;
        if !stacks.iter().any(|stack| stack.name == "testapp") {
            self.install_example().await;
        }
        let services = self.client.service_list(&self.name).await.unwrap().services;
        if !services.iter().any(|service| service.name == "toolbox") {
            self.service_make(&toolbox()).await;
        }
        self.running(Some("testapp"), "db", 1).await;
        self.running(Some("testapp"), "webservice", 2).await;
        self.running(None, "toolbox", self.hosts.len()).await;
    }

    async fn install_example(&self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/testapp/kontena.yml");
        let text = std::fs::read_to_string(path).expect("the example can be read");
        // It names its db with the demo's grid.
        let text = text.replace(".demo.", &format!(".{}.", self.name));
        let context = Context {
            name: None,
            grid: &self.name,
            variables: &BTreeMap::new(),
            env: &|_| None,
            read: &|path| std::fs::read_to_string(path),
        };
        let stack = stackfile::read(&text, &context)
            .expect("the example has no fault")
            .stack;
        self.client.stack_create(&self.name, &stack).await.unwrap();
        let deploy = self
            .client
            .stack_deploy(&self.name, &stack.name)
            .await
            .unwrap();
        for deploy in &deploy.service_deploys {
            self.deployed(deploy).await;
        }
    }
}
