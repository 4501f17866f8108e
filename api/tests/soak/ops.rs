//! The operations of a grid: each is done to the Master and to the model, and what
//! both answer must be the same. Here are reservations and lists.

use std::collections::BTreeMap;

use kontena_schema::http::addresses::{Address, AddressUsage, Addresses, History, LeaseEvent};
use serde_json::json;

use crate::client::Answer;
use crate::grid::{Checked, Grid, same};
use crate::model::{Event, Held, Holder, Host, Model, Refusal};

/// Most instances and hosts of a grid; the rest of its addresses are reservations.
pub const INSTANCES_MAX: usize = 80;
pub const HOSTS_MAX: usize = 6;
pub fn code(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::GridFull => "grid_full_addresses",
        Refusal::Held => "address_held",
        Refusal::NotFound => "not_found",
        Refusal::NotReserved => "address_not_reserved",
    }
}

/// What a request that takes or releases something must have answered.
pub fn expect(what: &str, answer: &Answer, expected: Result<(), Refusal>) -> Checked {
    let got = match answer {
        Answer::Done(_) => "done",
        Answer::Refused(code, _) => code,
    };
    let expected = expected.map_or_else(code, |()| "done");
    if got == expected {
        return Ok(());
    }
    Err(format!(
        "{what}: the Master says {got}, the model {expected}"
    ))
}

impl Grid {
    /// The figures of a full grid.
    pub fn check_usage(&self, answer: &Answer) -> Checked {
        let Answer::Refused(_, details) = answer else {
            return Ok(());
        };
        self.stats.count("full: refused with figures", 1);
        let usage: AddressUsage = serde_json::from_value(details.clone())
            .map_err(|error| format!("figures of a full grid: {error}: {details}"))?;
        let nodes = self.model.nodes.len();
        let got = [usage.size, usage.nodes, usage.leased];
        let expected = [510, nodes, self.model.held.len() - nodes];
        same(
            "size, nodes and leased",
            &got,
            &expected.map(|n| i64::try_from(n).unwrap()),
        )?;
        let mut most: BTreeMap<String, i64> = BTreeMap::new();
        for held in self.model.held.values() {
            let holder = match &held.holder {
                Holder::Placement(id) => {
                    let label = &self.model.placements[id].label;
                    label.rsplit_once('-').unwrap().0.to_owned()
                }
                Holder::Reservation(name) => name.clone(),
                Holder::Node(_) => continue,
            };
            *most.entry(holder).or_default() += 1;
        }
        let mut most: Vec<(i64, String)> = most.into_iter().map(|(name, n)| (-n, name)).collect();
        most.sort();
        most.truncate(5);
        let got: Vec<(i64, String)> = usage
            .biggest_holders
            .into_iter()
            .map(|h| (-h.addresses, h.holder))
            .collect();
        same("the biggest holders", &got, &most)
    }

    pub async fn reserve(&mut self, count: usize) -> Checked {
        let name = self.name("r");
        self.note(format!("reserve {count} for {name}"));
        let path = format!("/v1/grids/{}/addresses", self.name);
        let answer = self
            .client
            .post(&path, json!({"name": name, "count": count}))
            .await;
        let expected = self.model.reserve(&name, count);
        expect(
            "reserve",
            &answer,
            expected.as_ref().map(drop).map_err(|refusal| *refusal),
        )?;
        let (Answer::Done(body), Ok(mut expected)) = (&answer, expected) else {
            return self.check_usage(&answer);
        };
        expected.sort_unstable();
        let got: Addresses = serde_json::from_value(body.clone()).map_err(|e| e.to_string())?;
        let row = |a: &Address| (self.host(a.address), a.lease.map_or(0, |lease| lease.0));
        let got: Vec<(Host, i64)> = got.addresses.iter().map(row).collect();
        same("reserved", &got, &expected)
    }

    /// Reserves a certain address, held or free.
    pub async fn reserve_this(&mut self) -> Checked {
        let free = self.model.free();
        let host = match self.rng.choice(&free) {
            Some(&host) if self.rng.bool() => host,
            _ => self.rng.u32(1..=510),
        };
        let name = self.name("r");
        self.note(format!("reserve {} for {name}", self.ip(host)));
        let path = format!("/v1/grids/{}/addresses", self.name);
        let body = json!({"name": name, "address": self.ip(host)});
        let answer = self.client.post(&path, body).await;
        let expected = self.model.reserve_this(&name, host);
        expect("reserve one", &answer, expected.map(drop))?;
        if let (Answer::Done(body), Ok(lease)) = (answer, expected) {
            let got: Addresses = serde_json::from_value(body).map_err(|e| e.to_string())?;
            let row = |a: &Address| (self.host(a.address), a.lease.map_or(0, |lease| lease.0));
            let got: Vec<(Host, i64)> = got.addresses.iter().map(row).collect();
            return same("reserved", &got, &[(host, lease)]);
        }
        Ok(())
    }

    pub fn reserved(&self) -> Vec<(Host, i64)> {
        let held = self.model.held.iter();
        let held = held.filter(|(_, held)| matches!(held.holder, Holder::Reservation(_)));
        held.map(|(&host, held)| (host, held.lease)).collect()
    }

    pub async fn release(&mut self) -> Checked {
        let reserved = self.reserved();
        let Some(&(host, lease)) = self.rng.choice(&reserved) else {
            return self.reserve(1).await;
        };
        let named = self.rng.bool().then_some(lease);
        self.release_this(host, named).await
    }

    /// Releases what may be free, another's, or of another lease.
    pub async fn release_wrong(&mut self) -> Checked {
        let host = self.rng.u32(1..=510);
        let lease = self.model.held.get(&host).map_or(1, |held| held.lease);
        let lease = self.rng.bool().then_some(lease + self.rng.i64(-1..=0));
        self.release_this(host, lease).await
    }

    async fn release_this(&mut self, host: Host, lease: Option<i64>) -> Checked {
        self.note(format!("release {} {lease:?}", self.ip(host)));
        let query = lease.map_or(String::new(), |lease| format!("?lease={lease}"));
        let path = format!("/v1/grids/{}/addresses/{}{query}", self.name, self.ip(host));
        let answer = self.client.delete(&path).await;
        expect("release", &answer, self.model.release(host, lease))
    }

    /// Members that are there.
    pub fn present(&self) -> Vec<usize> {
        let all = 0..self.members.len();
        all.filter(|&n| !self.members[n].lost).collect()
    }

    /// A list that is narrowed, and the history of an address.
    pub async fn look(&mut self) -> Checked {
        self.note("look".to_owned());
        if let Some(member) = self.rng.choice(&self.members) {
            let name = member.name.clone();
            let on = |held: &Held, model: &Model| match &held.holder {
                Holder::Placement(id) => model.placements[id].node == name,
                Holder::Node(node) => *node == name,
                Holder::Reservation(_) => false,
            };
            self.check_addresses(&format!("&node={name}"), on).await?;
        }
        if let Some(service) = self.rng.choice(&self.services) {
            let name = service.name.clone();
            let of = |held: &Held, model: &Model| match &held.holder {
                Holder::Placement(id) => {
                    model.placements[id].label.rsplit_once('-').unwrap().0 == name
                }
                _ => false,
            };
            self.check_addresses(&format!("&kind=placement&holder={name}"), of)
                .await?;
        }
        let host = self.rng.u32(1..=510);
        let path = format!(
            "grids/{}/addresses/{}/history?limit=20",
            self.name,
            self.ip(host)
        );
        let history: History = self.get(&path).await?;
        let got: Vec<_> = (history.history.iter())
            .filter(|entry| entry.event != LeaseEvent::Opened)
            .map(|entry| (entry.event, entry.lease.0))
            .collect();
        let steps = self
            .model
            .ledger
            .iter()
            .rev()
            .filter(|(of, ..)| *of == host);
        let steps = steps.map(|&(_, event, lease)| match event {
            Event::Leased => (LeaseEvent::Leased, lease),
            Event::Released => (LeaseEvent::Released, lease),
            Event::Restored => (LeaseEvent::Restored, lease),
        });
        let expected: Vec<_> = steps.take(20).collect();
        same(
            &format!("the history of {}", self.ip(host)),
            &got,
            &expected,
        )
    }
}
