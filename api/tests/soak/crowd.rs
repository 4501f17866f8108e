//! Many at once: clients that take and release addresses of one grid over all replicas,
//! while instances come and go and nodes are lost. Nobody knows what comes first, so the
//! history is judged afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kontena_schema::agent::{Desired, InstanceState};
use kontena_schema::http::addresses::{Addresses, HolderKind, LeaseEvent};
use kontena_schema::ids::PlacementId;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::agents::{Agent, Leave, report};
use crate::checker::{Entry, History, Owned, judge};
use crate::client::{Answer, Client, Doubt};
use crate::grid::{Checked, Grid, Member};
use crate::hosts::LOSS_WITHIN;
use crate::model::Host;
use crate::ops::HOSTS_MAX;
use crate::stats::Stats;
use crate::world::World;

const CLIENTS: usize = 12;
/// So many of a client's addresses are held at most; all together want more than there are.
const OWNED_MAX: usize = 60;
/// Services that are there at most.
const SERVICES_MAX: usize = 12;

/// Does a part of the operations with many clients, and judges what they saw.
pub async fn crowd(mut grid: Grid, operations: u64) {
    let stats = Arc::clone(&grid.stats);
    let outcome = run(&mut grid, operations).await;
    if let Err(wrong) = outcome {
        stats.violate(format!("{} (many clients): {wrong}", grid.name));
    }
}

async fn run(grid: &mut Grid, operations: u64) -> Checked {
    for _ in 0..HOSTS_MAX / 2 {
        let engine = grid.name("host");
        let agent = Agent::new(&grid.world, engine.clone(), grid.token.clone());
        let opened = agent.connect(vec![]).await;
        opened.map_err(|code| format!("{engine} may not join: {code}"))?;
        grid.members.push(Member {
            agent,
            name: engine,
            lost: false,
            stale: vec![],
        });
    }
    let left = Arc::new(AtomicU64::new(operations));
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        let taker = Taker {
            client: Client::new(&grid.world),
            world: Arc::clone(&grid.world),
            stats: Arc::clone(&grid.stats),
            grid: grid.name.clone(),
            base: grid.base,
            name: format!("client{n}"),
            rng: grid.rng.fork(),
            has: Vec::new(),
            owned: Vec::new(),
            takes: 0,
            perhaps: Vec::new(),
            doubts: Vec::new(),
        };
        clients.spawn(taker.run(Arc::clone(&left)));
    }
    let outcome = instances(grid, &left).await;
    left.store(0, Ordering::SeqCst);
    let mut owned = Vec::new();
    while let Some(client) = clients.join_next().await {
        owned.extend(client.map_err(|error| error.to_string())??);
    }
    outcome?;
    judge_all(grid, owned).await
}

/// A client with addresses of its own.
struct Taker {
    client: Client,
    world: Arc<World>,
    stats: Arc<Stats>,
    grid: String,
    base: u32,
    name: String,
    rng: fastrand::Rng,
    /// What it holds, by the place in `owned`.
    has: Vec<usize>,
    owned: Vec<Owned>,
    /// What it asked for without a key, each under a name of its own.
    takes: u32,
    /// The names of those that it heard nothing of.
    perhaps: Vec<String>,
    doubts: Vec<Doubt>,
}

impl Taker {
    async fn run(mut self, left: Arc<AtomicU64>) -> Checked<Vec<Owned>> {
        while take_one(&left) && !self.stats.failed() {
            if self.has.len() < OWNED_MAX && self.rng.u8(..100) < 52 {
                self.take().await?;
            } else {
                self.release().await?;
            }
            self.stats.operation();
        }
        self.find_out().await?;
        while !self.has.is_empty() && !self.stats.failed() {
            self.release().await?;
        }
        Ok(self.owned)
    }

    /// Whether it got what it asked for and heard nothing of.
    async fn find_out(&mut self) -> Checked {
        self.client.certain(std::mem::take(&mut self.doubts)).await;
        for name in std::mem::take(&mut self.perhaps) {
            let path = format!("/v1/grids/{}/addresses?holder={name}", self.grid);
            let found = self.client.get(&path).await?;
            let found = self.got(&name, found)?;
            self.stats
                .count("many clients: given and not heard of", found);
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.world.began.elapsed().as_micros()).unwrap()
    }

    async fn take(&mut self) -> Checked {
        let path = format!("/v1/grids/{}/addresses", self.grid);
        let body = if self.rng.u8(..10) == 0 {
            let wanted = std::net::Ipv4Addr::from(self.base + self.rng.u32(1..=510));
            json!({"name": self.name, "address": wanted})
        } else {
            json!({"name": self.name, "count": self.rng.u8(1..=3)})
        };
        let keyless = self.rng.bool();
        let (name, answer) = if keyless {
            self.takes += 1;
            let name = format!("{}.{}", self.name, self.takes);
            let mut body = body;
            body["name"] = json!(name);
            match self.client.once(&Method::POST, &path, Some(&body)).await {
                Ok(answer) => (name, answer),
                Err(doubt) => {
                    self.doubts.push(doubt);
                    self.perhaps.push(name);
                    return Ok(());
                }
            }
        } else {
            (self.name.clone(), self.client.post(&path, body).await)
        };
        match answer {
            Answer::Done(body) => self.got(&name, body).map(drop),
            Answer::Refused(code, _) if code == "grid_full_addresses" || code == "address_held" => {
                self.stats.count("many clients: refused", 1);
                Ok(())
            }
            Answer::Refused(code, details) => Err(format!("{code} {details}")),
        }
    }

    /// Keeps what it was given under a name; how many those are.
    fn got(&mut self, name: &str, body: Value) -> Checked<u64> {
        let told = self.now();
        let taken: Addresses = serde_json::from_value(body).map_err(|e| e.to_string())?;
        for address in &taken.addresses {
            self.has.push(self.owned.len());
            self.owned.push(Owned {
                client: name.to_owned(),
                host: u32::from(address.address).wrapping_sub(self.base),
                lease: address.lease.map_or(0, |lease| lease.0),
                told,
                until: None,
            });
        }
        Ok(u64::try_from(taken.addresses.len()).unwrap())
    }

    async fn release(&mut self) -> Checked {
        if self.has.is_empty() {
            return Ok(());
        }
        let n = self.has.swap_remove(self.rng.usize(..self.has.len()));
        self.owned[n].until = Some(self.now());
        let Owned { host, lease, .. } = self.owned[n];
        let ip = std::net::Ipv4Addr::from(self.base + host);
        let path = format!("/v1/grids/{}/addresses/{ip}?lease={lease}", self.grid);
        if self.rng.bool() {
            self.client.delete(&path).await.outcome()?;
        } else {
            let heard = self.client.once(&Method::DELETE, &path, None).await;
            if let Ok(answer) = heard {
                answer.outcome()?;
            } else {
                self.release_again(&path).await?;
            }
        }
        if self.rng.u8(..10) == 0 {
            // By now it may be another's, who is not to lose it.
            if self.release_again(&path).await? {
                return Err("a lease was released twice".to_owned());
            }
        }
        Ok(())
    }

    /// Releases a lease that is perhaps released; whether it was not.
    async fn release_again(&self, path: &str) -> Checked<bool> {
        match self.client.delete(path).await.outcome() {
            Ok(_) => Ok(true),
            Err(code) if code == "not_found" || code == "address_not_reserved" => Ok(false),
            Err(code) => Err(code),
        }
    }
}

fn take_one(left: &AtomicU64) -> bool {
    let less = |left: u64| left.checked_sub(1);
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .is_ok()
}

/// Lets services come and go, and nodes be lost and return, while clients are at work.
async fn instances(grid: &mut Grid, left: &AtomicU64) -> Checked {
    let mut services: Vec<String> = Vec::new();
    while take_one(left) && !grid.stats.failed() {
        let n = grid.rng.usize(..grid.members.len());
        match grid.rng.u8(..10) {
            0..3 if services.len() < SERVICES_MAX => services.extend(deploy(grid, n).await?),
            0..5 if !services.is_empty() => {
                let name = services.swap_remove(grid.rng.usize(..services.len()));
                let path = format!("/v1/services/{}/null/{name}", grid.name);
                grid.client.delete(&path).await.outcome()?;
            }
            5 if !grid.members[n].lost => away(grid, n).await?,
            5..8 if grid.members[n].lost => back(grid, n).await?,
            _ => settle(&grid.members[n]).await,
        }
        grid.stats.operation();
    }
    for n in 0..grid.members.len() {
        if grid.members[n].lost {
            back(grid, n).await?;
        }
    }
    for name in services {
        let path = format!("/v1/services/{}/null/{name}", grid.name);
        grid.client.delete(&path).await.outcome()?;
    }
    Ok(())
}

async fn deploy(grid: &mut Grid, member: usize) -> Checked<Option<String>> {
    let name = grid.name("s");
    let instances = grid.rng.usize(1..=5);
    let affinity = format!("node=={}", grid.members[member].name);
    let body =
        json!({"name": name, "image": "app", "instances": instances, "affinity": [affinity]});
    let path = format!("/v1/grids/{}/services", grid.name);
    grid.client.post(&path, body).await.outcome()?;
    let path = format!("/v1/services/{}/null/{name}/deploy", grid.name);
    match grid.client.post(&path, json!({})).await {
        Answer::Done(_) => Ok(Some(name)),
        Answer::Refused(code, _) if code == "grid_full_addresses" => {
            let path = format!("/v1/services/{}/null/{name}", grid.name);
            grid.client.delete(&path).await.outcome()?;
            Ok(None)
        }
        Answer::Refused(code, details) => Err(format!("{code} {details}")),
    }
}

async fn away(grid: &mut Grid, n: usize) -> Checked {
    grid.members[n].agent.leave(Leave::Drop).await;
    let node = [grid.members[n].agent.view().node().0];
    grid.hurry(&node).await?;
    grid.lost(&node).await?;
    grid.members[n].lost = true;
    Ok(())
}

async fn back(grid: &mut Grid, n: usize) -> Checked {
    let agent = &grid.members[n].agent;
    let inventory = agent.view().inventory();
    let opened = agent.connect(inventory).await;
    opened.map_err(|code| format!("{} may not return: {code}", agent.engine))?;
    grid.members[n].lost = false;
    Ok(())
}

/// Makes a host agree with what its agent was told so far.
async fn settle(member: &Member) {
    if member.lost {
        return;
    }
    let reports = {
        let mut view = member.agent.view();
        let mut reports = view.apply();
        let going = view
            .placements
            .values()
            .filter(|p| p.desired == Desired::Removed);
        let going: Vec<PlacementId> = going.map(|placement| placement.id).collect();
        for id in going {
            view.containers.remove(&id);
            reports.push(report(id, None, InstanceState::Removed));
        }
        reports
    };
    if !reports.is_empty() {
        member.agent.send(reports).await;
    }
}

/// Waits until the instances are gone, and judges the history.
async fn judge_all(grid: &mut Grid, owned: Vec<Owned>) -> Checked {
    if grid.stats.failed() {
        return Ok(());
    }
    let id = grid.id;
    let end = tokio::time::Instant::now() + LOSS_WITHIN;
    let text = "select id from placements where grid_id = $1";
    while !grid.sql(text, &[&id]).await.is_empty() {
        if tokio::time::Instant::now() > end {
            return Err("instances stay though their nodes said that they are gone".to_owned());
        }
        for member in &grid.members {
            settle(member).await;
        }
        // Between two looks at a state, which have a bound.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let history = History {
        size: 512,
        owned,
        ledger: ledger(grid).await,
        held: held(grid).await?,
    };
    let leases = u64::try_from(history.ledger.len()).unwrap();
    grid.stats
        .count("many clients: steps of leases judged", leases);
    let wrong = judge(&history);
    if !wrong.is_empty() {
        return Err(wrong.into_iter().take(20).collect::<Vec<_>>().join("\n  "));
    }
    let others = history
        .held
        .values()
        .filter(|(kind, ..)| *kind != HolderKind::Node)
        .count();
    if others > 0 {
        return Err(format!("{others} addresses are leaked: {:?}", history.held));
    }
    all(grid, history.held.len()).await
}

/// Takes all that is free: each address once, and not one more.
async fn all(grid: &Grid, nodes: usize) -> Checked {
    let path = format!("/v1/grids/{}/addresses", grid.name);
    let body = json!({"name": "all", "count": 510 - nodes});
    let taken = grid.client.post(&path, body).await.outcome()?;
    let taken: Addresses = serde_json::from_value(taken).map_err(|e| e.to_string())?;
    let mut hosts: Vec<Host> = taken
        .addresses
        .iter()
        .map(|a| grid.host(a.address))
        .collect();
    hosts.dedup();
    if hosts.len() != 510 - nodes || !hosts.iter().all(|host| (1..=510).contains(host)) {
        return Err(format!(
            "{} addresses of the whole grid: {hosts:?}",
            hosts.len()
        ));
    }
    match grid
        .client
        .post(&path, json!({"name": "more"}))
        .await
        .outcome()
    {
        Err(code) if code == "grid_full_addresses" => Ok(()),
        other => Err(format!("one more than all: {other:?}")),
    }
}

fn kind(word: &str) -> HolderKind {
    serde_json::from_value(json!(word)).expect("a kind of holder")
}

async fn ledger(grid: &mut Grid) -> Vec<Entry> {
    let text = "select host(ip), event, lease, kind, holder, reason, revision from ledger where grid_id = $1 order by id";
    let id = grid.id;
    let rows = grid.sql(text, &[&id]).await;
    let entry = |row: &tokio_postgres::Row| Entry {
        host: grid.host(row.get::<_, &str>(0).parse().unwrap()),
        event: serde_json::from_value::<LeaseEvent>(json!(row.get::<_, &str>(1))).unwrap(),
        lease: row.get(2),
        kind: kind(row.get(3)),
        holder: row.get(4),
        reason: row.get(5),
        revision: row.get(6),
    };
    rows.iter().map(entry).collect()
}

async fn held(grid: &mut Grid) -> Checked<BTreeMap<Host, (HolderKind, String, i64)>> {
    let mut held = BTreeMap::new();
    for address in grid.addresses("").await? {
        let (Some(kind), Some(holder), Some(lease)) = (address.kind, address.holder, address.lease)
        else {
            return Err(format!(
                "a held address without a holder: {}",
                address.address
            ));
        };
        held.insert(grid.host(address.address), (kind, holder, lease.0));
    }
    Ok(held)
}
