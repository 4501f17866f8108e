//! Stacks: `/v1/grids/:grid/stacks` and `/v1/stacks/:grid/:name`.

use serde::{Deserialize, Serialize};

use super::services::{Deploy, Service, ServiceCreate};

/// Body of `POST /v1/grids/:grid/stacks` and `PUT /v1/stacks/:grid/:name`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StackCreate {
    /// A DNS label.
    pub name: String,
    /// What the stack file calls itself (`user/name`).
    #[serde(default)]
    pub stack: Option<String>,
    /// Its version.
    #[serde(default)]
    pub version: Option<String>,
    /// At least one.
    pub services: Vec<ServiceCreate>,
}

/// A stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stack {
    /// `grid/name`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What the stack file calls itself.
    pub stack: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// `initialized`, `running`, `partially_running`, `stopped` or `removing`.
    pub state: String,
    /// Counts its installs and upgrades.
    pub revision: i64,
    /// When it was created, ISO 8601 with milliseconds.
    pub created_at: String,
    /// When it was last changed.
    pub updated_at: String,
    /// Its services, by name.
    pub services: Vec<Service>,
}

/// Answer of `GET /v1/grids/:grid/stacks`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stacks {
    /// By name.
    pub stacks: Vec<Stack>,
}

/// Answer of `POST /v1/stacks/:grid/:name/deploy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StackDeploy {
    /// `grid/name`.
    pub stack_id: String,
    /// One for each service.
    pub service_deploys: Vec<Deploy>,
}
