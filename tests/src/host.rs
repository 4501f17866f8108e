//! A host: a container of the stack with a Docker engine of its own.

use std::net::Ipv4Addr;

use crate::{Output, docker};

/// A host of the stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name, `node-1`.
    pub name: String,
    /// Its container on the outer engine.
    pub container: String,
}

impl Host {
    /// The host with this name.
    pub fn new(project: &str, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            container: format!("{project}-{name}"),
        }
    }

    /// Runs a shell script on the host.
    pub async fn run(&self, script: &str) -> Output {
        docker(&["exec", &self.container, "bash", "-c", script]).await
    }

    /// Runs a shell script in a container of the host.
    pub async fn inside(&self, container: &str, script: &str) -> Output {
        let host = &self.container;
        docker(&[
            "exec", host, "docker", "exec", container, "bash", "-c", script,
        ])
        .await
    }

    /// Runs a shell script with the host's tools in a container's network.
    pub async fn beside(&self, container: &str, script: &str) -> Output {
        let enter = r#"exec nsenter --net="/proc/$(docker inspect -f '{{.State.Pid}}' "$1")/ns/net" bash -c "$2""#;
        let host = &self.container;
        docker(&["exec", host, "bash", "-c", enter, "-", container, script]).await
    }

    /// The host's address on the network that the hosts share.
    pub async fn wan_address(&self) -> Ipv4Addr {
        let text = self
            .run("ip -j -4 addr show eth0 | grep -oP '\"local\":\"\\K[^\"]+'")
            .await;
        text.must().parse().expect("ip prints an address")
    }

    /// Joins the host to a grid.
    pub async fn join(&self, token: &str) {
        let (uri, token) = (
            "KONTENA_URI=wss://edge:443",
            format!("KONTENA_TOKEN={token}"),
        );
        docker(&[
            "exec",
            "-e",
            uri,
            "-e",
            &token,
            &self.container,
            "kontena-join",
        ])
        .await
        .must();
    }
}
