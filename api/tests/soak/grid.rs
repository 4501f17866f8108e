//! One grid of the soak: the Master's and the model's, side by side.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use kontena_schema::agent::{Desired, InventoryEntry};
use kontena_schema::http::addresses::{Address, Addresses, HolderKind};
use kontena_schema::http::containers::Containers;
use kontena_schema::http::nodes::Nodes;
use kontena_schema::ids::PlacementId;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::agents::{Agent, View};
use crate::client::Client;
use crate::model::{Held, Holder, Host, Id, Lease, Model, State};
use crate::stats::Stats;
use crate::world::World;

/// How long a node whose session ended is not lost yet; agents that lose their replica are
/// back sooner.
pub const GRACE_S: u32 = 3;
/// Within this time an agent knows what was committed.
pub const FEED_WITHIN: Duration = Duration::from_secs(30);
/// How many operations are told when something is wrong.
const RECENT: usize = 40;

/// What went wrong, in words.
pub type Checked<T = ()> = Result<T, String>;

/// A host of the grid, with its agent.
pub struct Member {
    pub agent: Agent,
    /// Its node's name.
    pub name: String,
    pub lost: bool,
    /// An inventory of some time ago.
    pub stale: Vec<InventoryEntry>,
}

/// A service whose instances all run on one node.
pub struct Service {
    pub name: String,
    pub node: String,
    pub instances: usize,
}

pub struct Grid {
    pub name: String,
    pub id: i64,
    pub token: String,
    pub base: u32,
    pub world: Arc<World>,
    pub client: Client,
    pub stats: Arc<Stats>,
    pub model: Model,
    pub members: Vec<Member>,
    /// Hosts whose node was removed, with the containers that they still have.
    pub outside: Vec<Agent>,
    pub services: Vec<Service>,
    pub rng: fastrand::Rng,
    pub recent: VecDeque<String>,
    /// How many addresses are to be free, about.
    pub target: usize,
    /// Numbers the names of services, hosts and reservations.
    pub next: u64,
    sql: tokio_postgres::Client,
}

impl Grid {
    /// Creates the grid `index`: a /23 of its own, which has 510 usable addresses.
    pub async fn create(world: &Arc<World>, stats: &Arc<Stats>, index: u32, seed: u64) -> Self {
        let base = u32::from(Ipv4Addr::new(10, 100, 0, 0)) + index * 512;
        let name = format!("soak-{index}");
        let client = Client::new(world);
        let subnet = format!("{}/23", Ipv4Addr::from(base));
        let body = json!({"name": name, "subnet": subnet, "grace_s": GRACE_S});
        let created = client.post("/v1/grids", body).await.outcome();
        let token = created.unwrap()["token"].as_str().unwrap().to_owned();
        let sql = world.sql().await;
        let text = "select id from grids where name = $1";
        let id = sql.query_one(text, &[&name]).await.unwrap().get(0);
        Self {
            name,
            id,
            token,
            base,
            world: Arc::clone(world),
            client,
            stats: Arc::clone(stats),
            model: Model::new(512),
            members: vec![],
            outside: vec![],
            services: vec![],
            rng: fastrand::Rng::with_seed(seed),
            recent: VecDeque::new(),
            target: 20,
            next: 0,
            sql,
        }
    }

    pub fn ip(&self, host: Host) -> Ipv4Addr {
        Ipv4Addr::from(self.base + host)
    }

    pub fn host(&self, ip: Ipv4Addr) -> Host {
        u32::from(ip).wrapping_sub(self.base)
    }

    pub fn name(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}{}", self.next)
    }

    /// Notes an operation for whoever looks into a failure.
    pub fn note(&mut self, what: String) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(what);
    }

    /// Asks Postgres, again after its restarts; only for what may be asked twice.
    pub async fn sql(&mut self, text: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        let end = Instant::now() + FEED_WITHIN;
        loop {
            match self.sql.query(text, params).await {
                Ok(rows) => return rows,
                Err(error) => assert!(
                    self.sql.is_closed() || Instant::now() < end,
                    "{text}: {error}"
                ),
            }
            self.sql = self.world.sql().await;
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Checked<T> {
        let body = self.client.get(&format!("/v1/{path}")).await?;
        serde_json::from_value(body).map_err(|error| format!("{path}: {error}"))
    }

    /// Every held address, by pages of an odd size.
    pub async fn addresses(&mut self, query: &str) -> Checked<Vec<Address>> {
        let limit = self.rng.usize(100..=1000);
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let name = &self.name;
            let path = format!("grids/{name}/addresses?limit={limit}{query}{after}");
            let page: Addresses = self.get(&path).await?;
            all.extend(page.addresses);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(all),
            }
        }
    }

    /// The model's row of a held address.
    fn row(
        &self,
        host: Host,
        held: &Held,
    ) -> (Ipv4Addr, HolderKind, String, Option<String>, Lease) {
        let (kind, holder, node) = match &held.holder {
            Holder::Placement(id) => {
                let placement = &self.model.placements[id];
                let node = Some(placement.node.clone());
                (HolderKind::Placement, placement.label.clone(), node)
            }
            Holder::Reservation(name) => (HolderKind::Reservation, name.clone(), None),
            Holder::Node(name) => (HolderKind::Node, name.clone(), Some(name.clone())),
        };
        (self.ip(host), kind, holder, node, held.lease)
    }

    /// Compares what a list of addresses answers with the model.
    pub async fn check_addresses(
        &mut self,
        query: &str,
        wanted: impl Fn(&Held, &Model) -> bool,
    ) -> Checked {
        let mut got = Vec::new();
        for address in self.addresses(query).await? {
            let (Some(kind), Some(holder), Some(lease)) =
                (address.kind, address.holder, address.lease)
            else {
                return Err(format!(
                    "a held address without a holder: {}",
                    address.address
                ));
            };
            got.push((address.address, kind, holder, address.node, lease.0));
        }
        let held = self.model.held.iter();
        let held = held.filter(|(_, held)| wanted(held, &self.model));
        let expected: Vec<_> = held.map(|(&host, held)| self.row(host, held)).collect();
        same(&format!("addresses{query}"), &got, &expected)
    }

    /// Compares the grid's counts with the model: each step of every lease moves one.
    pub async fn check_counts(&mut self) -> Checked {
        let text = "select lease_last, release_last, held, waiting from pools where grid_id = $1";
        let id = self.id;
        let rows = self.sql(text, &[&id]).await;
        let got: Vec<i64> = (0..4).map(|column| rows[0].get(column)).collect();
        let count = |n: usize| i64::try_from(n).unwrap();
        let (leases, releases) = self.model.counts();
        let expected = [
            leases,
            i64::try_from(releases).unwrap(),
            count(self.model.held.len()),
            count(self.model.waiting().len()),
        ];
        if got != expected {
            // Where they part says more than how far.
            self.check_addresses("", |_, _| true).await?;
        }
        same(
            "counts of leases, releases, held and waiting",
            &got,
            &expected,
        )
    }

    /// Compares the whole state with the model.
    pub async fn check(&mut self) -> Checked {
        self.check_counts().await?;
        let id = self.id;
        let faults = self
            .sql("select fault from address_faults($1) fault", &[&id])
            .await;
        if let Some(fault) = faults.first() {
            return Err(fault.get(0));
        }
        self.check_addresses("", |_, _| true).await?;
        let nodes: Nodes = self.get(&format!("grids/{}/nodes", self.name)).await?;
        let got: Vec<_> = nodes
            .nodes
            .iter()
            .map(|node| (node.name.as_str(), u32::from(node.node_number)))
            .collect();
        let mut expected: Vec<_> = self
            .model
            .nodes
            .iter()
            .map(|(name, node)| (name.as_str(), node.number))
            .collect();
        expected.sort_by_key(|(_, number)| *number);
        same("nodes", &got, &expected)?;
        let containers: Containers = self.get(&format!("containers/{}", self.name)).await?;
        let mut got: Vec<_> = (containers.containers.into_iter())
            .map(|c| {
                let label = format!("{}-{}", c.service, c.instance_number);
                (
                    label,
                    c.node.unwrap_or_default(),
                    c.lease_state,
                    c.ip_address.zip(c.lease),
                )
            })
            .collect();
        got.sort();
        let mut expected: Vec<_> = self
            .model
            .placements
            .values()
            .map(|p| {
                let (state, has) = match p.state {
                    State::Held => ("held", p.had.map(|(host, lease)| (self.ip(host), lease))),
                    State::Lost => ("lost", None),
                    State::Taken => ("taken", None),
                    State::Waiting(_) => ("waiting", None),
                    State::None => ("none", None),
                };
                (p.label.clone(), p.node.clone(), state.to_owned(), has)
            })
            .collect();
        expected.sort();
        same("containers", &got, &expected)
    }

    /// Waits until an agent knows what its node is to run, as the model has it.
    pub async fn check_feed(&self, member: usize) -> Checked {
        let member = &self.members[member];
        let mut expected: BTreeMap<Id, (bool, Option<(Ipv4Addr, Lease)>)> = BTreeMap::new();
        for (&id, placement) in &self.model.placements {
            if placement.node == member.name {
                let holds = placement.had.filter(|_| placement.state == State::Held);
                let holds = holds.map(|(host, lease)| (self.ip(host), lease));
                expected.insert(id, (placement.removing, holds));
            }
        }
        let own = |view: &View| -> BTreeMap<Id, (bool, Option<(Ipv4Addr, Lease)>)> {
            let entry = |(id, p): (&PlacementId, &kontena_schema::agent::Placement)| {
                let lease = p.lease.map(|lease| lease.0);
                (id.0, (p.desired == Desired::Removed, p.address.zip(lease)))
            };
            view.placements.iter().map(entry).collect()
        };
        let agreed = member
            .agent
            .until(|view| (own(view) == expected).then_some(()), FEED_WITHIN);
        if agreed.await.is_none() {
            let got = own(&member.agent.view());
            let got: Vec<_> = got.into_iter().collect();
            let expected: Vec<_> = expected.into_iter().collect();
            same(
                &format!("what {} was told to run", member.name),
                &got,
                &expected,
            )?;
        }
        violations(&member.agent)
    }

    /// Waits until an agent knows where every endpoint of the grid is.
    pub async fn check_directory(&self, member: usize) -> Checked {
        let member = &self.members[member];
        let mut expected: Vec<(Id, Ipv4Addr, Lease)> = Vec::new();
        for (&id, placement) in &self.model.placements {
            if let (State::Held | State::Lost, Some((host, lease))) =
                (placement.state, placement.had)
            {
                expected.push((id, self.ip(host), lease));
            }
        }
        let directory = |view: &View| -> Vec<(Id, Ipv4Addr, Lease)> {
            let endpoints = view.endpoints.values();
            endpoints
                .map(|e| (e.placement.0, e.address, e.lease.0))
                .collect()
        };
        let agreed = member.agent.until(
            |view| (directory(view) == expected).then_some(()),
            FEED_WITHIN,
        );
        if agreed.await.is_none() {
            let got = directory(&member.agent.view());
            same(
                &format!("the directory of {}", member.name),
                &got,
                &expected,
            )?;
        }
        violations(&member.agent)
    }
}

fn violations(agent: &Agent) -> Checked {
    match agent.view().violations.first() {
        None => Ok(()),
        Some(violation) => Err(format!("{}: {violation}", agent.engine)),
    }
}

/// Whether two lists are the same, or where they differ.
pub fn same<T: PartialEq + std::fmt::Debug, U: PartialEq<T> + std::fmt::Debug>(
    what: &str,
    got: &[U],
    expected: &[T],
) -> Checked {
    if got.len() == expected.len()
        && got
            .iter()
            .zip(expected)
            .all(|(got, expected)| got == expected)
    {
        return Ok(());
    }
    let only_got = got.iter().filter(|g| !expected.iter().any(|e| *g == e));
    let only_expected = expected.iter().filter(|e| !got.iter().any(|g| g == *e));
    let only_got: Vec<String> = only_got.take(10).map(|row| format!("{row:?}")).collect();
    let only_expected: Vec<String> = only_expected
        .take(10)
        .map(|row| format!("{row:?}"))
        .collect();
    Err(format!(
        "{what} differ\n  the Master alone has {only_got:#?}\n  the model alone has {only_expected:#?}"
    ))
}
