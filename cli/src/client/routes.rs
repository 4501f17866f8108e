//! One method per route. Each sends what its arguments say and answers the body
//! that `schema::http` gives the route; its errors are those of [`Error`].

use kontena_schema::http::containers::Containers;
use kontena_schema::http::grids::{Grid, GridCreate, GridUpdate, Grids, Trust, TrustChange};
use kontena_schema::http::nodes::{Node, NodePeers, Nodes};
use kontena_schema::http::pings::{Ping, PingCreate};
use kontena_schema::http::services::{Deploy, Service, ServiceCreate, ServiceScale, Services};
use kontena_schema::http::stacks::{Stack, StackCreate, StackDeploy, Stacks};
use kontena_schema::ids::PingId;
use serde::de::IgnoredAny;

use super::{Client, Error};

type Answer<A> = Result<A, Error>;

/// No body.
const EMPTY: Option<&()> = None;

/// The stack in the path of a service that has none.
fn stack_segment(stack: Option<&str>) -> &str {
    stack.unwrap_or("null")
}

impl Client {
    /// Asks whether the Master answers.
    pub async fn ping(&self) -> Answer<()> {
        self.get::<IgnoredAny>(&["ping"]).await.map(drop)
    }

    /// Makes a grid.
    pub async fn grid_create(&self, grid: &GridCreate) -> Answer<Grid> {
        self.post(&["grids"], Some(grid)).await
    }

    /// All grids.
    pub async fn grid_list(&self) -> Answer<Grids> {
        self.get(&["grids"]).await
    }

    /// A grid, with its join token.
    pub async fn grid_show(&self, grid: &str) -> Answer<Grid> {
        self.get(&["grids", grid]).await
    }

    /// Changes a grid's settings.
    pub async fn grid_update(&self, grid: &str, update: &GridUpdate) -> Answer<Grid> {
        self.put(&["grids", grid], update).await
    }

    /// Where the overlay of a grid may run in clear.
    pub async fn trust_show(&self, grid: &str) -> Answer<Trust> {
        self.get(&["grids", grid, "trusted_subnets"]).await
    }

    /// Changes where the overlay of a grid may run in clear.
    pub async fn trust_change(&self, grid: &str, change: &TrustChange) -> Answer<Trust> {
        self.post(&["grids", grid, "trusted_subnets"], Some(change))
            .await
    }

    /// Removes a grid that has no nodes and no services.
    pub async fn grid_remove(&self, grid: &str) -> Answer<()> {
        self.delete(&["grids", grid]).await
    }

    /// The nodes of a grid.
    pub async fn node_list(&self, grid: &str) -> Answer<Nodes> {
        self.get(&["grids", grid, "nodes"]).await
    }

    /// A node.
    pub async fn node_show(&self, grid: &str, node: &str) -> Answer<Node> {
        self.get(&["nodes", grid, node]).await
    }

    /// Asks a node to change the key of its encrypted paths.
    pub async fn node_key_turn(&self, grid: &str, node: &str) -> Answer<()> {
        let path = ["nodes", grid, node, "key"];
        self.post::<_, IgnoredAny>(&path, EMPTY).await.map(drop)
    }

    /// How a node reaches the others.
    pub async fn node_peers(&self, grid: &str, node: &str) -> Answer<NodePeers> {
        self.get(&["nodes", grid, node, "peers"]).await
    }

    /// Asks a node to ping another one.
    pub async fn node_ping(&self, grid: &str, node: &str, ping: &PingCreate) -> Answer<Ping> {
        self.post(&["nodes", grid, node, "pings"], Some(ping)).await
    }

    /// How far a ping of a node is.
    pub async fn node_ping_show(&self, grid: &str, node: &str, id: PingId) -> Answer<Ping> {
        let id = id.to_string();
        self.get(&["nodes", grid, node, "pings", &id]).await
    }

    /// Removes a node from its grid.
    pub async fn node_remove(&self, grid: &str, node: &str) -> Answer<()> {
        self.delete(&["nodes", grid, node]).await
    }

    /// Makes a stack; its services start with a deploy.
    pub async fn stack_create(&self, grid: &str, stack: &StackCreate) -> Answer<Stack> {
        self.post(&["grids", grid, "stacks"], Some(stack)).await
    }

    /// The stacks of a grid.
    pub async fn stack_list(&self, grid: &str) -> Answer<Stacks> {
        self.get(&["grids", grid, "stacks"]).await
    }

    /// A stack with its services.
    pub async fn stack_show(&self, grid: &str, name: &str) -> Answer<Stack> {
        self.get(&["stacks", grid, name]).await
    }

    /// Describes a stack anew; a deploy makes it true.
    pub async fn stack_update(&self, grid: &str, name: &str, stack: &StackCreate) -> Answer<Stack> {
        self.put(&["stacks", grid, name], stack).await
    }

    /// Removes a stack with its services.
    pub async fn stack_remove(&self, grid: &str, name: &str) -> Answer<()> {
        self.delete(&["stacks", grid, name]).await
    }

    /// Begins the deploy of a stack's services.
    pub async fn stack_deploy(&self, grid: &str, name: &str) -> Answer<StackDeploy> {
        self.post(&["stacks", grid, name, "deploy"], EMPTY).await
    }

    /// Makes a service without a stack.
    pub async fn service_create(&self, grid: &str, service: &ServiceCreate) -> Answer<Service> {
        self.post(&["grids", grid, "services"], Some(service)).await
    }

    /// The services of a grid.
    pub async fn service_list(&self, grid: &str) -> Answer<Services> {
        self.get(&["grids", grid, "services"]).await
    }

    /// A service.
    pub async fn service_show(
        &self,
        grid: &str,
        stack: Option<&str>,
        name: &str,
    ) -> Answer<Service> {
        self.get(&["services", grid, stack_segment(stack), name])
            .await
    }

    /// Removes a service.
    pub async fn service_remove(&self, grid: &str, stack: Option<&str>, name: &str) -> Answer<()> {
        self.delete(&["services", grid, stack_segment(stack), name])
            .await
    }

    /// Begins a deploy of a service.
    pub async fn service_deploy(
        &self,
        grid: &str,
        stack: Option<&str>,
        name: &str,
    ) -> Answer<Deploy> {
        self.post(
            &["services", grid, stack_segment(stack), name, "deploy"],
            EMPTY,
        )
        .await
    }

    /// Changes the number of a service's instances and begins the deploy of it.
    pub async fn service_scale(
        &self,
        grid: &str,
        stack: Option<&str>,
        name: &str,
        instances: u32,
    ) -> Answer<Deploy> {
        let path = ["services", grid, stack_segment(stack), name, "scale"];
        self.post(&path, Some(&ServiceScale { instances })).await
    }

    /// Restarts the containers of a service.
    pub async fn service_restart(&self, grid: &str, stack: Option<&str>, name: &str) -> Answer<()> {
        let path = ["services", grid, stack_segment(stack), name, "restart"];
        self.post::<_, IgnoredAny>(&path, EMPTY).await.map(drop)
    }

    /// How far a deploy is.
    pub async fn deploy_show(
        &self,
        grid: &str,
        stack: Option<&str>,
        name: &str,
        id: i64,
    ) -> Answer<Deploy> {
        let id = id.to_string();
        self.get(&["services", grid, stack_segment(stack), name, "deploys", &id])
            .await
    }

    /// The service containers of a grid.
    pub async fn container_list(&self, grid: &str) -> Answer<Containers> {
        self.get(&["containers", grid]).await
    }
}
