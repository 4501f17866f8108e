//! Containers: `GET /v1/containers/:grid`.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::agent::{Health, InstanceState};

/// A service container, or one that is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// `grid/node/name`.
    pub id: String,
    /// Docker's name of it.
    pub name: String,
    /// Docker's id of it, once it exists.
    pub container_id: Option<String>,
    /// The name of its node.
    pub node: Option<String>,
    /// Its stack.
    pub stack: Option<String>,
    /// Its service.
    pub service: String,
    /// The instance's number, from 1.
    pub instance_number: u32,
    /// Its image.
    pub image: String,
    /// How far it is.
    pub state: InstanceState,
    /// Whether it does its work.
    pub health: Health,
    /// Its address on the overlay; none while it holds none.
    pub ip_address: Option<Ipv4Addr>,
    /// The number of the address's lease.
    pub lease: Option<i64>,
    /// Whether it holds an address: `held`, `lost` (its node is, and the address is
    /// free), `taken` (and another has it), `waiting` (none is free) or `none`.
    #[serde(default)]
    pub lease_state: String,
    /// The version of the service that it was created from.
    pub service_rev: i64,
    /// Why it does not run.
    pub error: Option<String>,
}

/// Answer of `GET /v1/containers/:grid`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Containers {
    /// By stack, service and instance.
    pub containers: Vec<Container>,
}
