//! The routes of addresses: who holds which, reservations, and the past.

use std::net::Ipv4Addr;

use kontena_schema::http::addresses::{Address, AddressTake, Addresses, History, HolderKind};
use kontena_schema::ids::LeaseNumber;

use super::{Client, Error};

/// What a list of addresses is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressFilter {
    /// Held by this kind of holder.
    pub kind: Option<HolderKind>,
    /// Held by this holder; `stack/service` stands for all of its instances.
    pub holder: Option<String>,
    /// Held on this node.
    pub node: Option<String>,
    /// Above this address: where the page before ended.
    pub after: Option<Ipv4Addr>,
    /// At most so many, 1..=1000.
    pub limit: Option<u32>,
}

impl AddressFilter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let kind = self.kind.map(HolderKind::as_str);
        given([
            ("kind", kind.map(str::to_owned)),
            ("holder", self.holder.clone()),
            ("node", self.node.clone()),
            ("after", self.after.map(|ip| ip.to_string())),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ])
    }
}

/// Which part of an address's history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryFilter {
    /// The step in force at this moment, ISO 8601, instead of all.
    pub at: Option<String>,
    /// Before this step: where the page before ended.
    pub before: Option<i64>,
    /// At most so many, 1..=1000.
    pub limit: Option<u32>,
}

impl HistoryFilter {
    fn query(&self) -> Vec<(&'static str, String)> {
        given([
            ("at", self.at.clone()),
            ("before", self.before.map(|step| step.to_string())),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ])
    }
}

fn given<const N: usize>(all: [(&'static str, Option<String>); N]) -> Vec<(&'static str, String)> {
    let given = |(name, value): (&'static str, Option<String>)| Some((name, value?));
    all.into_iter().filter_map(given).collect()
}

impl Client {
    /// A page of the held addresses of a grid.
    pub async fn address_list(
        &self,
        grid: &str,
        filter: &AddressFilter,
    ) -> Result<Addresses, Error> {
        let path = ["grids", grid, "addresses"];
        self.get_where(&path, &filter.query()).await
    }

    /// Reserves addresses, all or none.
    pub async fn address_take(&self, grid: &str, take: &AddressTake) -> Result<Addresses, Error> {
        self.post(&["grids", grid, "addresses"], Some(take)).await
    }

    /// An address, held or free.
    pub async fn address_show(&self, grid: &str, ip: Ipv4Addr) -> Result<Address, Error> {
        self.get(&["grids", grid, "addresses", &ip.to_string()])
            .await
    }

    /// Releases a reserved address; with `lease` only that lease of it.
    pub async fn address_release(
        &self,
        grid: &str,
        ip: Ipv4Addr,
        lease: Option<LeaseNumber>,
    ) -> Result<(), Error> {
        let query = given([("lease", lease.map(|lease| lease.to_string()))]);
        self.delete_where(&["grids", grid, "addresses", &ip.to_string()], &query)
            .await
    }

    /// A page of the steps of an address, the latest first.
    pub async fn address_history(
        &self,
        grid: &str,
        ip: Ipv4Addr,
        filter: &HistoryFilter,
    ) -> Result<History, Error> {
        let path = ["grids", grid, "addresses", &ip.to_string(), "history"];
        self.get_where(&path, &filter.query()).await
    }
}
