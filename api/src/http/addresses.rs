//! Addresses: reservations, who holds what, and who held it when.

use std::net::Ipv4Addr;

use axum::Json;
use axum::http::StatusCode;
use kontena_schema::http::addresses::{Address, AddressTake, Addresses, History};
use kontena_schema::ids::LeaseNumber;
use serde::Deserialize;

use super::HttpError;
use super::extract::{Admin, Body, Change, NoBody, Params, Segments};
use crate::control::ControlError;
use crate::control::address::{self, Filter, Page};
use crate::control::grid::Empty;
use crate::control::reservation;

/// `GET /v1/grids/{grid}/addresses`
pub async fn list(
    Segments(grid): Segments<String>,
    Params(filter): Params<Filter>,
    admin: Admin,
) -> Result<Json<Addresses>, HttpError> {
    admin.answer(address::address_list(&admin.app, &grid, &filter).await)
}

/// `POST /v1/grids/{grid}/addresses`
pub async fn take(
    Segments(grid): Segments<String>,
    Change {
        admin,
        call,
        body: Body(request),
    }: Change<Body<AddressTake>>,
) -> Result<(StatusCode, Json<Addresses>), HttpError> {
    let taken = reservation::address_take(&admin.app, &call, &grid, &request).await;
    Ok((StatusCode::CREATED, admin.answer(taken)?))
}

/// `GET /v1/grids/{grid}/addresses/{address}`
pub async fn show(
    Segments((grid, ip)): Segments<(String, String)>,
    admin: Admin,
) -> Result<Json<Address>, HttpError> {
    let ip = admin.accept(parse(&ip))?;
    admin.answer(address::address_show(&admin.app, &grid, ip).await)
}

/// Which lease a release means.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meant {
    lease: Option<LeaseNumber>,
}

/// `DELETE /v1/grids/{grid}/addresses/{address}`
pub async fn release(
    Segments((grid, ip)): Segments<(String, String)>,
    Params(meant): Params<Meant>,
    Change { admin, call, .. }: Change<NoBody>,
) -> Result<Json<Empty>, HttpError> {
    let ip = admin.accept(parse(&ip))?;
    let released = reservation::address_release(&admin.app, &call, &grid, ip, meant.lease).await;
    admin.answer(released)
}

/// `GET /v1/grids/{grid}/addresses/{address}/history`
pub async fn history(
    Segments((grid, ip)): Segments<(String, String)>,
    Params(page): Params<Page>,
    admin: Admin,
) -> Result<Json<History>, HttpError> {
    let ip = admin.accept(parse(&ip))?;
    admin.answer(address::address_history(&admin.app, &grid, ip, &page).await)
}

/// Only who may ask is told that it is no address.
fn parse(ip: &str) -> Result<Ipv4Addr, ControlError> {
    ip.parse()
        .map_err(|_| ControlError::field("address", format!("{ip:?} is no IPv4 address")))
}
