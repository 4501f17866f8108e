//! Looking at addresses: who holds which, and who held one when.

use std::net::Ipv4Addr;

use kontena_schema::http::addresses::{Address, Addresses, History, HolderKind, LedgerEntry};
use kontena_schema::limits::PAGE_MAX;
use kontena_schema::query;
use serde::Deserialize;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::{ControlError, show};
use crate::app::App;
use crate::db::{DbError, Param};

/// Rows of a page of which no size is named.
const PAGE: u32 = 100;

/// What a list of addresses may be narrowed to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Held by this kind.
    pub kind: Option<HolderKind>,
    /// Held by this holder; `stack/service` stands for all of its instances.
    pub holder: Option<String>,
    /// Held on this node.
    pub node: Option<String>,
    /// Above this address: the page before ended there.
    pub after: Option<Ipv4Addr>,
    /// At most so many.
    pub limit: Option<u32>,
}

/// Which part of a history.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// The step in force at this moment, ISO 8601, instead of all.
    pub at: Option<String>,
    /// Before this step: the page before ended there.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: Option<u32>,
}

fn limit(asked: Option<u32>) -> Result<i64, ControlError> {
    match asked.unwrap_or(PAGE) {
        limit @ 1..=PAGE_MAX => Ok(i64::from(limit)),
        _ => Err(ControlError::field(
            "limit",
            format!("must be between 1 and {PAGE_MAX}"),
        )),
    }
}

/// The held addresses of a grid.
pub async fn address_list(
    app: &App,
    grid: &str,
    filter: &Filter,
) -> Result<Addresses, ControlError> {
    let limit = limit(filter.limit)?;
    grid_known(app, grid).await?;
    let kind = filter.kind.map(HolderKind::as_str);
    let after = filter.after.map(|ip| ip.to_string());
    // One more tells whether there is another page.
    let more = limit + 1;
    let params: [Param; 6] = [&grid, &kind, &filter.holder, &filter.node, &after, &more];
    let mut addresses: Vec<Address> = app.db.all(&query::ADDRESS_LIST, &params).await?;
    let page = usize::try_from(limit).unwrap_or(usize::MAX);
    let next = if addresses.len() > page {
        addresses.truncate(page);
        addresses.last().map(|last| last.address)
    } else {
        None
    };
    Ok(Addresses { addresses, next })
}

/// One address, held or free.
pub async fn address_show(app: &App, grid: &str, ip: Ipv4Addr) -> Result<Address, ControlError> {
    let text = ip.to_string();
    show(
        &app.db,
        &query::ADDRESS_SHOW,
        &[&grid, &text],
        "address",
        &text,
    )
    .await
}

/// The steps of an address, the latest first, or the one in force at a moment.
pub async fn address_history(
    app: &App,
    grid: &str,
    ip: Ipv4Addr,
    page: &Page,
) -> Result<History, ControlError> {
    let limit = limit(page.limit)?;
    grid_known(app, grid).await?;
    let ip = ip.to_string();
    let rows = if let Some(at) = &page.at {
        let reason = |_| {
            let reason = "is no moment such as 2026-01-31T12:01:00Z";
            ControlError::field("at", reason)
        };
        // A plus that a client did not encode is a space by now.
        let at = OffsetDateTime::parse(&at.replace(' ', "+"), &Rfc3339).map_err(reason)?;
        // Postgres knows neither a year 0 nor offsets of a day.
        let utc = (at.checked_to_offset(UtcOffset::UTC)).filter(|at| at.year() > 0);
        let at = utc
            .and_then(|at| at.format(&Rfc3339).ok())
            .ok_or_else(|| ControlError::field("at", "is out of range"))?;
        let params: [Param; 3] = [&grid, &ip, &at];
        app.db.rows(&query::ADDRESS_HISTORY_AT, &params).await?
    } else {
        let params: [Param; 4] = [&grid, &ip, &page.before, &limit];
        app.db.rows(&query::ADDRESS_HISTORY, &params).await?
    };
    let next = rows
        .last()
        .filter(|_| page.at.is_none() && i64::try_from(rows.len()) == Ok(limit))
        .map(|row| row.get(0));
    let history: Result<Vec<LedgerEntry>, _> = rows
        .iter()
        .map(|row| {
            row.try_get::<_, tokio_postgres::types::Json<LedgerEntry>>(1)
                .map(|json| json.0)
        })
        .collect();
    Ok(History {
        history: history.map_err(DbError::from)?,
        next,
    })
}

async fn grid_known(app: &App, grid: &str) -> Result<(), ControlError> {
    if app.db.rows(&query::GRID_KNOWN, &[&grid]).await?.is_empty() {
        return Err(ControlError::not_found("grid", grid));
    }
    Ok(())
}
