//! Services: `/v1/grids/:grid/services` and `/v1/services/:grid/:stack/:name`.
//! A service without stack is addressed under the stack `null`.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::lenient;

/// How the containers of a service are run. The same type travels from the
/// stack file over the API into the database and on to the agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The image; `:latest` is added where it has no tag.
    pub image: String,
    /// Arguments in place of the image's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// In place of the image's entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Ports published on the node.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Services that this one uses.
    #[serde(default)]
    pub links: Vec<Link>,
    /// Which nodes may run it: `key==value` or `key!=value`.
    #[serde(default)]
    pub affinity: Vec<String>,
    /// How instances are spread.
    #[serde(default)]
    pub strategy: Strategy,
    /// The user in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Capabilities added.
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// Capabilities taken.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// Whether the container is privileged.
    #[serde(default)]
    pub privileged: bool,
    /// Seconds between SIGTERM and SIGKILL; default 10.
    #[serde(
        default,
        deserialize_with = "lenient::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub stop_grace_period_s: Option<u32>,
}

/// How instances are spread over nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// `instances` of them, on nodes with the fewest first.
    #[default]
    Ha,
    /// `instances` on every node.
    Daemon,
    /// `instances` of them, anywhere.
    Random,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The node's address to bind to; default all.
    #[serde(default = "any_address")]
    pub ip: Ipv4Addr,
    /// TCP or UDP; default TCP.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port on the node.
    #[serde(deserialize_with = "lenient::required")]
    pub node_port: u16,
    /// The port in the container.
    #[serde(deserialize_with = "lenient::required")]
    pub container_port: u16,
}

fn any_address() -> Ipv4Addr {
    Ipv4Addr::UNSPECIFIED
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// A service that another one uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// `service` of the same stack, or `stack/service`.
    pub name: String,
    /// The name under which it is known; default the service's.
    #[serde(default)]
    pub alias: Option<String>,
}

/// Body of `POST /v1/grids/:grid/services`, and a service of a stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceCreate {
    /// A DNS label.
    pub name: String,
    /// Number of instances; default 1.
    #[serde(default, deserialize_with = "lenient::option")]
    pub instances: Option<u32>,
    /// How to run it.
    #[serde(flatten)]
    pub spec: ServiceSpec,
    /// Fields that no service has. `flatten` cannot refuse them while parsing,
    /// so they are kept, and whoever takes the body refuses them by name.
    #[serde(flatten, skip_serializing)]
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

/// Body of `POST .../scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceScale {
    /// Number of instances.
    #[serde(deserialize_with = "lenient::required")]
    pub instances: u32,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// `grid/stack/name`, with `null` for no stack.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its stack.
    pub stack: Option<String>,
    /// Its name in the DNS of the grid.
    pub dns: String,
    /// Number of instances wanted.
    pub instances: u32,
    /// Number of instances placed and running.
    pub instance_counts: InstanceCounts,
    /// `initialized` before the first deploy, then `running`; `removing` while its
    /// last containers go.
    pub state: String,
    /// The version of its description.
    pub revision: i64,
    /// When it was created, ISO 8601 with milliseconds.
    pub created_at: String,
    /// When it was last changed.
    pub updated_at: String,
    /// What its instances keep in volumes; only where one service is asked for, and not
    /// from a Master of the version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ServiceData>,
    /// How its containers are run.
    #[serde(flatten)]
    pub spec: ServiceSpecView,
}

/// [`ServiceSpec`] as an answer shows it.
pub type ServiceSpecView = serde_json::Map<String, serde_json::Value>;

/// How many instances there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceCounts {
    /// Placed.
    pub total: i64,
    /// Running.
    pub running: i64,
}

/// What the instances of a service keep in the volumes that their images declare, as
/// their nodes told last. It goes with the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceData {
    /// How many instances keep data.
    pub instances: i64,
    /// Bytes of those that are measured.
    pub bytes: i64,
    /// How many of those that keep data are not measured.
    pub unmeasured: i64,
    /// How many instances are on nodes that do not tell.
    pub untold: i64,
    /// Seconds since the oldest of it was measured; none if nothing is.
    pub age_s: Option<i64>,
}

/// Answer of `GET /v1/grids/:grid/services`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Services {
    /// By stack and name.
    pub services: Vec<Service>,
}

/// One roll-out of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deploy {
    /// Its id.
    pub id: i64,
    /// `grid/stack/name` of the service.
    pub service_id: String,
    /// `ongoing`, `success` or `error`.
    pub state: String,
    /// Why it failed.
    pub reason: Option<String>,
    /// When it began, ISO 8601 with milliseconds.
    pub created_at: String,
    /// When it ended.
    pub finished_at: Option<String>,
    /// Its instances.
    pub instance_deploys: Vec<InstanceDeploy>,
}

/// One instance of a roll-out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceDeploy {
    /// The instance's number, from 1.
    pub instance_number: u32,
    /// The name of its node; none while it could not be placed.
    pub node: Option<String>,
    /// How far it is.
    pub state: String,
    /// Why it does not run.
    pub error: Option<String>,
}
