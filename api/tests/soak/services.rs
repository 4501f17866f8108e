//! Services of a grid: their instances take addresses, and give them back.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::client::Answer;
use crate::grid::{Checked, FEED_WITHIN, Grid, Service, same};
use crate::model::{Host, Id, Refusal};
use crate::ops::{INSTANCES_MAX, code, expect};

/// Instances, each with its label and what it holds.
type Rows = Vec<(Id, String, Option<(Host, i64)>)>;

impl Grid {
    pub async fn deploy_new(&mut self, instances: usize) -> Checked {
        let present = self.present();
        let Some(&member) = self.rng.choice(&present) else {
            return self.reserve(1).await;
        };
        let node = self.members[member].name.clone();
        let name = self.name("s");
        let path = format!("/v1/grids/{}/services", self.name);
        let affinity = format!("node=={node}");
        let body =
            json!({"name": name, "image": "app", "instances": instances, "affinity": [affinity]});
        self.client.post(&path, body).await.outcome()?;
        self.note(format!("deploy {name} with {instances} on {node}"));
        let service = Service {
            name,
            node,
            instances,
        };
        let path = format!("/v1/services/{}/null/{}/deploy", self.name, service.name);
        let answer = self.client.post(&path, json!({})).await;
        self.placed(&service, answer).await?;
        self.services.push(service);
        Ok(())
    }

    /// Takes over where a service's new instances were placed, and compares what they got.
    async fn placed(&mut self, service: &Service, answer: Answer) -> Checked {
        let wanted: Vec<String> = (1..=service.instances)
            .map(|n| format!("{}-{n}", service.name))
            .collect();
        let model = &self.model;
        let has = |label: &&String| {
            !model
                .placements
                .values()
                .any(|p| p.label == **label && !p.removing)
        };
        let missing: Vec<String> = wanted.iter().filter(has).cloned().collect();
        if let Answer::Refused(..) = answer {
            return self.refused(&answer, &missing);
        }
        let rows = match self.deployed(service, &missing).await? {
            Some(rows) => rows,
            None => return Ok(()),
        };
        let new: Vec<_> = rows
            .into_iter()
            .filter(|(id, ..)| !self.model.placements.contains_key(id))
            .collect();
        let ids: Vec<(Id, String)> = new
            .iter()
            .map(|(id, label, ..)| (*id, label.clone()))
            .collect();
        let placed = self.model.place(&service.node, &ids);
        if let Err(refusal) = placed {
            return Err(format!(
                "deploy: placed, and the model says {}",
                code(refusal)
            ));
        }
        let expected: Vec<_> = ids
            .iter()
            .map(|(id, label)| (*id, label.clone(), self.model.placements[id].had))
            .collect();
        same("placed", &new, &expected)?;
        let labels: Vec<&String> = ids.iter().map(|(_, label)| label).collect();
        same(
            "placed instances",
            &labels,
            &missing.iter().collect::<Vec<_>>(),
        )
    }

    /// A service's instances, once all are placed; none, if there is no room for them. A
    /// fault may have taken the node's session just then: nothing is placed, and it is
    /// deployed again when the node is back.
    async fn deployed(&mut self, service: &Service, missing: &[String]) -> Checked<Option<Rows>> {
        let end = Instant::now() + FEED_WITHIN;
        loop {
            let rows = self.instances(&service.name).await;
            if rows.len() == service.instances {
                return Ok(Some(rows));
            }
            if Instant::now() > end {
                let (placed, name) = (rows.len(), &service.name);
                return Err(format!(
                    "{placed} of {} instances of {name} are placed",
                    service.instances
                ));
            }
            let path = format!("/v1/services/{}/null/{}/deploy", self.name, service.name);
            let again = self.client.post(&path, json!({})).await;
            self.stats
                .count("a deploy finds its node between two sessions", 1);
            // Its agent opens the next session meanwhile; the loop has a bound.
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Answer::Refused(..) = again {
                self.refused(&again, missing)?;
                return Ok(None);
            }
        }
    }

    /// What is refused must be so for want of room.
    fn refused(&self, answer: &Answer, missing: &[String]) -> Checked {
        let full = self.model.free().len() < missing.len();
        expect(
            "deploy",
            answer,
            if full { Err(Refusal::GridFull) } else { Ok(()) },
        )?;
        self.check_usage(answer)
    }

    /// A service's instances that are to run, by the Master's own rows.
    async fn instances(&mut self, service: &str) -> Rows {
        let text = "select p.id, s.name || '-' || p.instance, host(p.ip), p.lease
            from placements p join services s on s.id = p.service_id
            where s.grid_id = $1 and s.name = $2 and p.desired <> 'removed' order by p.instance";
        let id = self.id;
        let rows = self.sql(text, &[&id, &service]).await;
        let row = |row: &tokio_postgres::Row| {
            let ip: Option<&str> = row.get(2);
            let host = ip.map(|ip| self.host(ip.parse().unwrap()));
            (row.get(0), row.get(1), host.zip(row.get(3)))
        };
        rows.iter().map(row).collect()
    }

    /// What of a service is to run, with each instance's number.
    fn running(&self, service: &str) -> Vec<(usize, Id)> {
        let placements = self.model.placements.iter();
        let own = placements
            .filter(|(_, p)| !p.removing)
            .filter_map(|(&id, p)| {
                let (name, number) = p.label.rsplit_once('-').unwrap();
                (name == service).then(|| (number.parse().unwrap(), id))
            });
        own.collect()
    }

    /// Changes the number of a service's instances; up only where its node is there.
    pub async fn scale(&mut self) -> Checked {
        if self.services.is_empty() {
            return self.deploy_new(1).await;
        }
        let n = self.rng.usize(..self.services.len());
        let (name, node, now) = {
            let service = &self.services[n];
            (
                service.name.clone(),
                service.node.clone(),
                service.instances,
            )
        };
        let there = self.model.nodes.get(&node).is_some_and(|node| !node.lost);
        let room = INSTANCES_MAX
            .saturating_sub(self.model.placements.len())
            .min(6);
        let to = if there && self.rng.bool() {
            now + self.rng.usize(0..=room)
        } else {
            self.rng.usize(0..=now)
        };
        self.note(format!("scale {name} from {now} to {to}"));
        let path = format!("/v1/services/{}/null/{name}/scale", self.name);
        let answer = self.client.post(&path, json!({"instances": to})).await;
        if let Answer::Done(_) = answer {
            self.services[n].instances = to;
            if to <= now {
                let surplus = self
                    .running(&name)
                    .into_iter()
                    .filter(|(number, _)| *number > to);
                let ids: Vec<Id> = surplus.map(|(_, id)| id).collect();
                self.model.remove(&ids);
            }
        }
        // What a node lost with its removal comes back only where its service finds a node.
        if there && to > 0 {
            let service = Service {
                name,
                node,
                instances: to,
            };
            return self.placed(&service, answer).await;
        }
        answer.outcome().map(drop)
    }

    pub async fn remove_service(&mut self) -> Checked {
        if self.services.is_empty() {
            return self.deploy_new(1).await;
        }
        // Those whose node was removed first: nothing comes of them any more.
        let orphan = self
            .services
            .iter()
            .position(|service| !self.model.nodes.contains_key(&service.node));
        let n = orphan.unwrap_or_else(|| self.rng.usize(..self.services.len()));
        let name = self.services.swap_remove(n).name;
        self.note(format!("remove service {name}"));
        let path = format!("/v1/services/{}/null/{name}", self.name);
        self.client.delete(&path).await.outcome()?;
        let ids: Vec<Id> = self.running(&name).into_iter().map(|(_, id)| id).collect();
        self.model.remove(&ids);
        Ok(())
    }
}
