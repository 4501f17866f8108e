//! Addresses for what is no container.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use kontena_schema::http::addresses::{AddressTake, Addresses};
use kontena_schema::ids::LeaseNumber;
use kontena_schema::limits::{ADDRESSES_MAX, RESERVATION_BYTES_MAX};
use kontena_schema::query;
use serde::Serialize;

use super::grid::Empty;
use super::lane::ask;
use super::{Call, ControlError};
use crate::app::App;
use crate::db::Tx;

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    /// The next free addresses.
    Take { name: String, count: u32 },
    /// A certain address.
    Claim { name: String, ip: Ipv4Addr },
    /// The end of a reservation; of one lease, if that is named.
    Release {
        ip: Ipv4Addr,
        lease: Option<LeaseNumber>,
    },
}

impl Wish {
    /// The address whose reservation is to end.
    pub(super) fn released(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Release { ip, .. } => Some(*ip),
            Self::Take { .. } | Self::Claim { .. } => None,
        }
    }
}

/// What is answered.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Taken(Addresses),
    Released(Empty),
}

/// What one request asks, without whom to tell.
pub(super) type Asked = (Call, Wish);

/// What became of a request in a transaction that goes through.
pub(super) enum Outcome {
    Done(Answer),
    Refused(ControlError),
    Full(u32),
}

/// Reserves addresses.
pub async fn address_take(
    app: &Arc<App>,
    call: &Call,
    grid: &str,
    request: &AddressTake,
) -> Result<Addresses, ControlError> {
    let mut faults = BTreeMap::new();
    let name = request.name.trim();
    if name.is_empty() || name.len() > RESERVATION_BYTES_MAX || name.contains(char::is_control) {
        let reason =
            format!("must have 1 to {RESERVATION_BYTES_MAX} bytes without control characters");
        faults.insert("name".to_owned(), reason);
    }
    let count = request.count.unwrap_or(1);
    if !(1..=ADDRESSES_MAX).contains(&count) {
        let reason = format!("must be between 1 and {ADDRESSES_MAX}");
        faults.insert("count".to_owned(), reason);
    } else if request.address.is_some() && count > 1 {
        let reason = "must be 1 where one address is named".to_owned();
        faults.insert("count".to_owned(), reason);
    }
    if !faults.is_empty() {
        return Err(ControlError::Invalid(faults));
    }
    let name = name.to_owned();
    let wish = match request.address {
        Some(ip) => Wish::Claim { name, ip },
        None => Wish::Take { name, count },
    };
    match ask(app, call, grid, wish).await? {
        Answer::Taken(addresses) => Ok(addresses),
        Answer::Released(_) => unreachable!("a take is answered with addresses"),
    }
}

/// Ends a reservation.
pub async fn address_release(
    app: &Arc<App>,
    call: &Call,
    grid: &str,
    ip: Ipv4Addr,
    lease: Option<LeaseNumber>,
) -> Result<Empty, ControlError> {
    ask(app, call, grid, Wish::Release { ip, lease }).await?;
    Ok(Empty {})
}

/// The error of a grid that has fewer than `wanted` addresses left.
pub async fn full(tx: &Tx<'_>, grid: &str, wanted: usize) -> Result<ControlError, ControlError> {
    let usage = tx.one(&query::ADDRESS_USAGE, &[&grid]).await?;
    Ok(ControlError::GridFullAddresses {
        grid: grid.to_owned(),
        wanted: i64::try_from(wanted).unwrap_or(i64::MAX),
        usage,
    })
}
