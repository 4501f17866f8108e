//! A grid under load, and the book of who holds what in it.
//!
//! An address counts as held from the answer that gives it until the request that
//! gives it back is sent: whoever is given it in between was given what another
//! holds, and the run fails.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

use kontena_schema::http::addresses::{AddressTake, Addresses};
use kontena_schema::http::grids::{Grid as GridBody, GridCreate};

use crate::bench::BenchError;
use crate::client::{ClientError, Connection, refused};

/// Addresses of the default subnet.
pub(crate) const SIZE: u32 = 8190;

/// A grid that was made for the run.
pub(crate) struct Grid {
    /// Its addresses' path.
    path: String,
    network: u32,
    /// By host part.
    held: Vec<AtomicBool>,
    free: u32,
}

impl Grid {
    /// Makes a grid and fills it, so that so many percent are held.
    pub(crate) async fn make(
        connection: &mut Connection,
        name: &str,
        percent: u32,
    ) -> Result<Self, BenchError> {
        let create = GridCreate {
            name: name.to_owned(),
            ..GridCreate::default()
        };
        let body: GridBody = connection.call("POST", "/v1/grids", Some(&create)).await?;
        let filled = (SIZE * percent).div_ceil(100);
        let grid = Self {
            path: format!("/v1/grids/{name}/addresses"),
            network: body.subnet.network().into(),
            held: (0..body.subnet.size())
                .map(|_| AtomicBool::new(false))
                .collect(),
            free: SIZE - filled,
        };
        grid.lease_many(connection, filled).await?;
        Ok(grid)
    }

    /// Takes an address for one who holds it from now on.
    pub(crate) async fn lease(&self, connection: &mut Connection) -> Result<Ipv4Addr, BenchError> {
        let answer = connection
            .send("POST", &self.path, br#"{"name":"bench"}"#)
            .await?;
        if answer.status != 201 {
            return Err(refused(format!("POST {}", self.path), answer).into());
        }
        let taken: Addresses = serde_json::from_slice(answer.body).map_err(std::io::Error::from)?;
        let [one] = &taken.addresses[..] else {
            let count = taken.addresses.len();
            return Err(self.wrong(&format!("asked for one address, got {count}")));
        };
        self.hold(one.address)?;
        Ok(one.address)
    }

    /// Gives an address back.
    pub(crate) async fn release(
        &self,
        connection: &mut Connection,
        address: Ipv4Addr,
    ) -> Result<(), BenchError> {
        // Another may have it before this request is answered.
        self.held[self.host(address)?].store(false, Ordering::Relaxed);
        let path = format!("{}/{address}", self.path);
        let answer = connection.send("DELETE", &path, b"").await?;
        match answer.status {
            200 => Ok(()),
            _ => Err(refused(format!("DELETE {path}"), answer).into()),
        }
    }

    /// Takes many addresses with one request.
    async fn lease_many(&self, connection: &mut Connection, count: u32) -> Result<(), BenchError> {
        let body = AddressTake {
            name: "fill".to_owned(),
            count: Some(count),
            address: None,
        };
        let taken: Addresses = connection.call("POST", &self.path, Some(&body)).await?;
        if taken.addresses.len() != count as usize {
            let got = taken.addresses.len();
            return Err(self.wrong(&format!("asked for {count} addresses, got {got}")));
        }
        taken
            .addresses
            .iter()
            .try_for_each(|one| self.hold(one.address))
    }

    /// After the load: everything that clients had is free again, and nothing else.
    pub(crate) async fn check(&self, connection: &mut Connection) -> Result<(), BenchError> {
        self.lease_many(connection, self.free).await?;
        match self.lease_many(connection, 1).await {
            Err(BenchError::Client(err)) if is_full(&err) => Ok(()),
            Err(err) => Err(err),
            Ok(()) => Err(self.wrong("an address more than there are")),
        }
    }

    fn hold(&self, address: Ipv4Addr) -> Result<(), BenchError> {
        if self.held[self.host(address)?].swap(true, Ordering::Relaxed) {
            return Err(self.wrong(&format!("{address} was given to two")));
        }
        Ok(())
    }

    /// Where an address is in the book.
    fn host(&self, address: Ipv4Addr) -> Result<usize, BenchError> {
        let host = u32::from(address).checked_sub(self.network);
        host.filter(|host| (1..=SIZE).contains(host))
            .map(|host| host as usize)
            .ok_or_else(|| self.wrong(&format!("{address} is none of its addresses")))
    }

    fn wrong(&self, what: &str) -> BenchError {
        BenchError::Failed(format!("WRONG: {}: {what}", self.path))
    }
}

fn is_full(err: &ClientError) -> bool {
    err.code().as_deref() == Some("grid_full_addresses")
}
