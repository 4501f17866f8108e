//! Hosts of a grid: they join, run what they are told, are lost and return.

use std::collections::BTreeSet;
use std::time::Duration;

use kontena_schema::agent::{Desired, InstanceState, InventoryEntry, close};
use kontena_schema::ids::{LeaseNumber, NodeId, PlacementId};
use tokio::time::Instant;

use crate::agents::{Agent, Leave, View, report};
use crate::grid::{Checked, FEED_WITHIN, GRACE_S, Grid, Member, same};
use crate::model::{Host, Id, State};
use crate::ops::HOSTS_MAX;

/// Most hosts that are remembered after their node was removed.
const OUTSIDE_MAX: usize = 4;
/// Within this time a node whose session ended is lost: grace, time to live and the
/// pause after a crash of Postgres are over by then.
pub const LOSS_WITHIN: Duration = Duration::from_secs(40);

impl Grid {
    /// A node makes its containers as it was told.
    pub async fn apply(&mut self) -> Checked {
        let present = self.present();
        let Some(&member) = self.rng.choice(&present) else {
            return self.reserve(1).await;
        };
        self.apply_on(member).await
    }

    async fn apply_on(&mut self, member: usize) -> Checked {
        self.note(format!("{} applies", self.members[member].name));
        self.check_feed(member).await?;
        let stale = self.rng.bool();
        let member = &mut self.members[member];
        let (before, reports, gone) = {
            let mut view = member.agent.view();
            let before = view.inventory();
            let reports = view.apply();
            let kept = |entry: &&InventoryEntry| view.containers.contains_key(&entry.placement);
            let gone = before.len() - before.iter().filter(kept).count();
            (before, reports, gone)
        };
        if stale {
            member.stale = before;
        }
        self.stats.count(
            "inventory: a container that no placement confirms goes",
            gone as u64,
        );
        if !reports.is_empty() {
            member.agent.send(reports).await;
        }
        Ok(())
    }

    /// A node says of some containers that are to go that they are gone, at times twice.
    pub async fn confirm(&mut self) -> Checked {
        let going = |grid: &Self, n: usize| -> Vec<Id> {
            let placements = grid.model.placements.iter();
            let own = placements.filter(|(_, p)| p.removing && p.node == grid.members[n].name);
            own.map(|(&id, _)| id).collect()
        };
        let with: Vec<usize> = self
            .present()
            .into_iter()
            .filter(|&n| !going(self, n).is_empty())
            .collect();
        let Some(&n) = self.rng.choice(&with) else {
            return self.apply().await;
        };
        let mut ids = going(self, n);
        self.rng.shuffle(&mut ids);
        ids.truncate(self.rng.usize(1..=ids.len().min(8)));
        self.note(format!(
            "{} says that {ids:?} are gone",
            self.members[n].name
        ));
        self.check_feed(n).await?;
        let member = &self.members[n];
        let mut reports = Vec::new();
        for &id in &ids {
            member.agent.view().containers.remove(&PlacementId(id));
            reports.push(report(PlacementId(id), None, InstanceState::Removed));
        }
        // What is to run does not end by such a report, nor what is another node's.
        let others: Vec<Id> = self
            .model
            .placements
            .iter()
            .filter(|(_, p)| !p.removing)
            .map(|(&id, _)| id)
            .collect();
        // Said once and with the rest: were it repeated, the repetition could come after that
        // instance is told to go, and be true.
        let wrong = self.rng.choice(&others);
        let wrong = wrong.map(|&id| report(PlacementId(id), None, InstanceState::Removed));
        let first = reports.iter().cloned().chain(wrong).collect();
        member.agent.send(first).await;
        let mut repeats = self.rng.usize(0..=1);
        let end = Instant::now() + FEED_WITHIN;
        loop {
            for _ in 0..repeats {
                member.agent.send(reports.clone()).await;
            }
            repeats = self.rng.usize(1..=2);
            let gone = |view: &View| {
                let left = ids
                    .iter()
                    .any(|id| view.placements.contains_key(&PlacementId(*id)));
                (!left).then_some(())
            };
            if member
                .agent
                .until(gone, Duration::from_secs(3))
                .await
                .is_some()
            {
                break;
            }
            if Instant::now() > end {
                return Err(format!("the end of {ids:?} is not told to {}", member.name));
            }
        }
        for id in ids {
            let node = self.members[n].name.clone();
            self.model.removed(&node, id);
        }
        Ok(())
    }

    /// A node opens another session and goes on talking over the old one.
    pub async fn change_session(&mut self) -> Checked {
        let present = self.present();
        let Some(&n) = self.rng.choice(&present) else {
            return self.reserve(1).await;
        };
        let member = &self.members[n];
        self.note(format!("{} changes its session", member.name));
        let member = &self.members[n];
        let late: Vec<_> = member
            .agent
            .view()
            .placements
            .values()
            .map(|placement| {
                let state = if placement.desired == Desired::Removed {
                    InstanceState::Removed
                } else {
                    InstanceState::Running
                };
                report(placement.id, placement.lease, state)
            })
            .collect();
        self.stats.count(
            "late reports of an old session",
            u64::from(!late.is_empty()),
        );
        member.agent.change_session(late).await;
        Ok(())
    }

    /// A node is away for less than the grace, which changes nothing.
    pub async fn blink(&mut self) -> Checked {
        let world = std::sync::Arc::clone(&self.world);
        let present = self.present();
        // Beside a fault it might not be back in time.
        let (Ok(_calm), Some(&n)) = (world.calm.try_read(), self.rng.choice(&present)) else {
            return self.reserve(1).await;
        };
        let inventory = self.inventory(n);
        let member = &self.members[n];
        self.note(format!("{} is away for a moment", member.name));
        let member = &self.members[n];
        member.agent.leave(Leave::Drop).await;
        let opened = member.agent.connect(inventory).await;
        opened.map_err(|code| format!("{} may not return: {code}", member.name))?;
        self.stats.count("a node returns before it is lost", 1);
        Ok(())
    }

    /// An agent starts anew, and a copy of its host wants to be the same node.
    pub async fn copy(&mut self) -> Checked {
        let world = std::sync::Arc::clone(&self.world);
        let present = self.present();
        let (Ok(_calm), Some(&n)) = (world.calm.try_read(), self.rng.choice(&present)) else {
            return self.reserve(1).await;
        };
        let member = &self.members[n];
        self.note(format!("{} is copied", member.name));
        let member = &self.members[n];
        match member.agent.restart().await {
            Some(close::NODE_DUPLICATE) => {}
            other => {
                return Err(format!(
                    "a copy of {} is not refused but {other:?}",
                    member.name
                ));
            }
        }
        self.stats
            .count("a second host with the same engine id is refused", 1);
        Ok(())
    }

    /// Whether what a node's agent said may still be on its way.
    fn doubtful(&self, member: usize) -> bool {
        self.members[member].agent.view().doubtful_until_ms > self.world.now_ms()
    }

    /// Whether a node has an address that an instance of a lost one had before.
    fn inherited(&self, node: &str) -> bool {
        let placements = || self.model.placements.values();
        let taken = placements()
            .filter(|p| p.state == State::Taken)
            .filter_map(|p| p.had);
        let taken: BTreeSet<Host> = taken.map(|(host, _)| host).collect();
        let has = placements().filter(|p| p.state == State::Held && p.node == node);
        has.filter_map(|p| p.had)
            .any(|(host, _)| taken.contains(&host))
    }

    /// Who is to be lost: one node, or two together.
    async fn choose_lost(&mut self) -> Checked<Vec<usize>> {
        let mut away: Vec<usize> = self
            .present()
            .into_iter()
            .filter(|&n| !self.doubtful(n))
            .collect();
        self.rng.shuffle(&mut away);
        // Who has what another node lost is lost with it at times: two former holders.
        let heir = away
            .iter()
            .position(|&n| self.inherited(&self.members[n].name));
        if let Some(heir) = heir.filter(|_| self.rng.u8(..3) == 0) {
            away.swap(0, heir);
            self.apply_on(away[0]).await?;
        }
        away.truncate(if self.rng.u8(..5) == 0 { 2 } else { 1 });
        Ok(away)
    }

    /// One or two nodes go away and are lost.
    pub async fn lose(&mut self) -> Checked {
        let away = self.choose_lost().await?;
        if away.is_empty() {
            return self.reserve(1).await;
        }
        let names: Vec<String> = away.iter().map(|&n| self.members[n].name.clone()).collect();
        let world = std::sync::Arc::clone(&self.world);
        // Where nothing else breaks, the grid's grace is none for a moment.
        let calm = if away.len() == 1 {
            world.calm.try_read().ok()
        } else {
            None
        };
        let real = calm.is_none() && self.rng.u8(..20) == 0;
        self.note(format!(
            "{names:?} are lost ({})",
            if calm.is_some() {
                "no grace"
            } else if real {
                "in time"
            } else {
                "sooner"
            }
        ));
        let id = self.id;
        if calm.is_some() {
            self.sql("update grids set grace_ms = 0 where id = $1", &[&id])
                .await;
        }
        for &n in &away {
            let how = if self.rng.bool() {
                Leave::Close
            } else {
                Leave::Drop
            };
            self.members[n].agent.leave(how).await;
        }
        let nodes: Vec<i64> = away
            .iter()
            .map(|&n| self.members[n].agent.view().node().0)
            .collect();
        if calm.is_none() && !real {
            self.hurry(&nodes).await?;
        }
        let together = self.lost(&nodes).await?;
        if calm.is_some() {
            let grace = i32::try_from(GRACE_S * 1000).unwrap();
            self.sql(
                "update grids set grace_ms = $2 where id = $1",
                &[&id, &grace],
            )
            .await;
        }
        drop(calm);
        for n in away {
            self.members[n].lost = true;
        }
        for names in together {
            self.model.lose(&names);
        }
        Ok(())
    }

    /// Lets the grace of nodes be over as soon as all of their sessions ended.
    pub async fn hurry(&mut self, nodes: &[i64]) -> Checked {
        let ended =
            "select node_id from sessions where node_id = any($1) and closed_at is not null";
        self.rows_within(ended, nodes, "the end of sessions")
            .await?;
        let now = "update sessions set lose_at = clock_timestamp() where node_id = any($1) and lose_at is not null";
        self.sql(now, &[&nodes]).await;
        Ok(())
    }

    /// Waits until nodes are lost, and tells which were so in one transaction.
    pub async fn lost(&mut self, nodes: &[i64]) -> Checked<Vec<Vec<String>>> {
        let text = "select array_agg(n.name) from sessions s join nodes n on n.id = s.node_id
            where s.node_id = any($1) and s.lost_at is not null
            group by s.xmin::text order by min(s.lost_at)";
        let lost = "select node_id from sessions where node_id = any($1) and lost_at is not null";
        self.rows_within(lost, nodes, "the loss of nodes").await?;
        let rows = self.sql(text, &[&nodes]).await;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Waits until a statement answers a row for each of the nodes.
    async fn rows_within(&mut self, text: &str, nodes: &[i64], what: &str) -> Checked {
        let end = Instant::now() + LOSS_WITHIN;
        while self.sql(text, &[&nodes]).await.len() < nodes.len() {
            if Instant::now() > end {
                return Err(format!("{what} {nodes:?}: not within {LOSS_WITHIN:?}"));
            }
            // Between two looks at a state, which have a bound.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// The inventory that a host returns with: what it has, or less, or something of
    /// the past, or of somebody else.
    fn inventory(&mut self, member: usize) -> Vec<InventoryEntry> {
        let mut inventory = self.members[member].agent.view().inventory();
        match self.rng.u8(..10) {
            0 => inventory.clear(),
            1 => inventory.retain(|_| fastrand::bool()),
            2 => inventory.clone_from(&self.members[member].stale),
            3 => inventory
                .iter_mut()
                .for_each(|entry| entry.node = NodeId(entry.node.0 + 1)),
            4 => inventory
                .iter_mut()
                .for_each(|entry| entry.lease = LeaseNumber(entry.lease.0 + 1)),
            _ => {}
        }
        inventory
    }

    pub async fn returns(&mut self) -> Checked {
        let lost: Vec<usize> = (0..self.members.len())
            .filter(|&n| self.members[n].lost)
            .collect();
        let Some(&n) = self.rng.choice(&lost) else {
            return self.lose().await;
        };
        let inventory = self.inventory(n);
        let name = self.members[n].name.clone();
        self.note(format!(
            "{name} returns with {} containers",
            inventory.len()
        ));
        let opened = self.members[n].agent.connect(inventory.clone()).await;
        opened.map_err(|code| format!("{name} may not return: {code}"))?;
        let node = self.members[n].agent.view().node();
        let own = inventory.iter().filter(|entry| entry.node == node);
        let named: BTreeSet<(Id, i64)> = own
            .map(|entry| (entry.placement.0, entry.lease.0))
            .collect();
        self.model.returns(&name, &named);
        self.members[n].lost = false;
        self.check_counts().await
    }

    /// A host joins: a new one, or one that was a node before.
    pub async fn join(&mut self) -> Checked {
        if self.members.len() >= HOSTS_MAX {
            return self.remove_node().await;
        }
        let again = if self.rng.bool() {
            self.outside.pop()
        } else {
            None
        };
        let engine = again
            .as_ref()
            .map_or_else(|| self.name("host"), |agent| agent.engine.clone());
        let agent = Agent::new(&self.world, engine.clone(), self.token.clone());
        if let Some(before) = again {
            agent.view().containers = std::mem::take(&mut before.view().containers);
        }
        self.note(format!("{engine} joins"));
        let inventory = agent.view().inventory();
        let opened = agent.connect(inventory).await;
        let expected = self.model.join(&engine);
        match (opened, expected) {
            (Ok(()), Ok(number)) => {
                let welcome = agent.view().welcome.clone().unwrap();
                let got = [(welcome.name, u32::from(welcome.number.get()))];
                same("welcome", &got, &[(engine.clone(), number)])?;
                self.members.push(Member {
                    agent,
                    name: engine,
                    lost: false,
                    stale: vec![],
                });
                Ok(())
            }
            (Err(close::GRID_FULL_NODES), Err(_)) => {
                self.stats.count("a node does not join a full grid", 1);
                Ok(())
            }
            (got, expected) => Err(format!(
                "join: the Master says {got:?}, the model {expected:?}"
            )),
        }
    }

    pub async fn remove_node(&mut self) -> Checked {
        let sure: Vec<usize> = (0..self.members.len())
            .filter(|&n| !self.doubtful(n))
            .collect();
        let Some(&n) = self.rng.choice(&sure) else {
            return self.reserve(1).await;
        };
        let member = self.members.swap_remove(n);
        self.note(format!("node {} is removed", member.name));
        let path = format!("/v1/nodes/{}/{}", self.name, member.name);
        self.client.delete(&path).await.outcome()?;
        self.model.remove_node(&member.name);
        if !member.lost {
            let refused = member.agent.until(|view| view.refused, FEED_WITHIN);
            if refused.await.is_none() {
                return Err(format!(
                    "{} is not told that its node was removed",
                    member.name
                ));
            }
        }
        self.outside.push(member.agent);
        if self.outside.len() > OUTSIDE_MAX {
            self.outside.remove(0);
        }
        Ok(())
    }
}
