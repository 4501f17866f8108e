//! What Docker is asked to create for a placement. Pure.
//!
//! The container is on Docker's default bridge, which gives it its default
//! route, and gets `ethwe` from the overlay after its start. Its command is put
//! behind `/w/w`, which waits for that interface and then executes it. A
//! container without an overlay address waits for nothing and has no `/w/w`.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, PortBinding, PortMap,
    RestartPolicy, RestartPolicyNameEnum,
};
use kontena_schema::agent::Placement;
use kontena_schema::http::services::{Port, Protocol, ServiceSpec};
use kontena_schema::name;

use super::labels::{self, Origin};

/// Where the directory of the waiting program is in a container, and the program.
pub(super) const WAIT_DIR: &str = "/w";
const WAIT: &str = "/w/w";
/// How its directory is mounted. Where SELinux is enforcing, no container may
/// execute a file of the host's that has not the label for all containers, which
/// `z` sets. Elsewhere it changes nothing.
const WAIT_MOUNT: &str = "/w:ro,z";
/// Seconds between SIGTERM and SIGKILL where the service says nothing; Docker's
/// own default.
pub const STOP_GRACE_S: u32 = 10;
/// A container's log takes at most 30 MB of the host.
const LOG_OPTIONS: [(&str, &str); 2] = [("max-size", "10m"), ("max-file", "3")];

/// What the host adds to a placement.
pub struct CreateContext<'a> {
    /// Whose container it is.
    pub origin: Origin,
    /// The grid's name.
    pub grid: &'a str,
    /// The address on Docker's default bridge, where names are served.
    pub resolver: Ipv4Addr,
    /// The directory with the waiting program.
    pub bin: &'a Path,
    /// The placement's data.
    pub mounts: Vec<Mount>,
}

/// What the image says about its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Its entrypoint.
    pub entrypoint: Vec<String>,
    /// Its command.
    pub cmd: Vec<String>,
    /// The paths that it declares as volumes.
    pub volumes: Vec<String>,
}

/// There is nothing to execute.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither the image {image} nor the service has a command")]
pub struct NoCommand {
    image: String,
}

/// The name of an image with its tag; a digest is a tag enough.
pub fn image_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

/// The body of the request that creates the placement's container.
pub fn create_body(
    placement: &Placement,
    image: &ImageConfig,
    context: &CreateContext<'_>,
) -> Result<ContainerCreateBody, NoCommand> {
    let spec = &placement.spec;
    let command = command(spec, image)?;
    let waits = context.origin.overlay.is_some();
    let (entrypoint, cmd) = if waits {
        (vec![WAIT.to_owned()], command)
    } else {
        // An empty entrypoint would mean the image's.
        let (first, rest) = command.split_first().expect("a command was found above");
        (vec![first.clone()], rest.to_vec())
    };
    Ok(ContainerCreateBody {
        image: Some(image_name(&spec.image)),
        hostname: Some(format!("{}-{}", placement.service, placement.instance)),
        user: spec.user.clone(),
        env: Some(env(placement)),
        entrypoint: Some(entrypoint),
        cmd: Some(cmd),
        labels: Some(labels::write(placement, &context.origin, context.grid)),
        exposed_ports: Some(spec.ports.iter().map(port_key).collect()),
        stop_timeout: Some(i64::from(stop_grace_s(spec))),
        host_config: Some(host_config(placement, context, waits)),
        ..ContainerCreateBody::default()
    })
}

/// Seconds between SIGTERM and SIGKILL.
pub fn stop_grace_s(spec: &ServiceSpec) -> u32 {
    spec.stop_grace_period_s.unwrap_or(STOP_GRACE_S)
}

fn host_config(placement: &Placement, context: &CreateContext<'_>, waits: bool) -> HostConfig {
    let spec = &placement.spec;
    let log = LOG_OPTIONS.map(|(key, value)| (key.to_owned(), value.to_owned()));
    HostConfig {
        binds: waits.then(|| vec![format!("{}:{WAIT_MOUNT}", context.bin.display())]),
        mounts: Some(context.mounts.clone()),
        network_mode: Some("bridge".to_owned()),
        dns: Some(vec![context.resolver.to_string()]),
        dns_search: Some(name::search_domains(
            context.grid,
            placement.stack.as_deref(),
        )),
        port_bindings: Some(port_bindings(&spec.ports)),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
            maximum_retry_count: None,
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from(log)),
        }),
        cap_add: Some(spec.cap_add.clone()),
        cap_drop: Some(spec.cap_drop.clone()),
        privileged: Some(spec.privileged),
        ..HostConfig::default()
    }
}

/// As Docker combines them: a given entrypoint takes the image's command away.
fn command(spec: &ServiceSpec, image: &ImageConfig) -> Result<Vec<String>, NoCommand> {
    let (entrypoint, default_cmd) = match &spec.entrypoint {
        Some(given) => (given, &[][..]),
        None => (&image.entrypoint, &image.cmd[..]),
    };
    let cmd = spec.cmd.as_deref().unwrap_or(default_cmd);
    let command = [entrypoint, cmd].concat();
    if command.is_empty() {
        return Err(NoCommand {
            image: spec.image.clone(),
        });
    }
    Ok(command)
}

/// The platform's variables and the service's; the service's win.
fn env(placement: &Placement) -> Vec<String> {
    let mut env: BTreeMap<&str, Option<&str>> = placement
        .platform_env
        .iter()
        .map(|(key, value)| (key.as_str(), Some(value.as_str())))
        .collect();
    env.extend(
        placement
            .spec
            .env
            .iter()
            .map(|line| match line.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (line.as_str(), None),
            }),
    );
    env.into_iter()
        .map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            // Docker takes a variable of the image away for it.
            None => key.to_owned(),
        })
        .collect()
}

fn port_key(port: &Port) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{}/{protocol}", port.container_port)
}

fn port_bindings(ports: &[Port]) -> PortMap {
    let mut bindings = PortMap::new();
    for port in ports {
        let binding = PortBinding {
            host_ip: Some(port.ip.to_string()),
            host_port: Some(port.node_port.to_string()),
        };
        bindings
            .entry(port_key(port))
            .or_default()
            .get_or_insert_default()
            .push(binding);
    }
    bindings
}

#[cfg(test)]
mod tests {
    use kontena_schema::ids::NodeId;

    use super::*;
    use crate::directory::tests::placement;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn context(placement: &Placement) -> CreateContext<'static> {
        let origin = Origin {
            placement: placement.id,
            node: NodeId(1),
            service_revision: placement.service_revision,
            lease: placement.lease,
            overlay: placement.address.map(|_| "10.81.1.1/17".parse().unwrap()),
        };
        CreateContext {
            origin,
            grid: "demo",
            resolver: [172, 17, 0, 1].into(),
            bin: Path::new("/var/lib/kontena/bin"),
            mounts: Vec::new(),
        }
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: words("/entry"),
            cmd: words("serve all"),
            volumes: Vec::new(),
        }
    }

    #[test]
    fn a_container_waits_for_its_interface_before_its_command() {
        let placement = placement(11, 1);
        let body = create_body(&placement, &image(), &context(&placement)).unwrap();
        assert_eq!(body.entrypoint.unwrap(), ["/w/w"]);
        assert_eq!(body.cmd.unwrap(), ["/entry", "serve", "all"]);
        assert_eq!(body.hostname.unwrap(), "web-1");
        assert_eq!(body.image.unwrap(), "kontena/toolbox:latest");
        let host = body.host_config.unwrap();
        assert_eq!(host.binds.unwrap(), ["/var/lib/kontena/bin:/w:ro,z"]);
        assert_eq!(host.dns.unwrap(), ["172.17.0.1"]);
        assert_eq!(
            host.dns_search.unwrap(),
            [
                "testapp.demo.kontena.local",
                "demo.kontena.local",
                "kontena.local"
            ]
        );
    }

    #[test]
    fn without_an_address_there_is_nothing_to_wait_for() {
        let mut placement = placement(11, 1);
        placement.address = None;
        let body = create_body(&placement, &image(), &context(&placement)).unwrap();
        assert_eq!(body.entrypoint.unwrap(), ["/entry"]);
        assert_eq!(body.cmd.unwrap(), ["serve", "all"]);
        assert_eq!(body.host_config.unwrap().binds, None);
    }

    #[test]
    fn commands_combine_as_docker_combines_them() {
        let spec = |entrypoint: Option<&str>, cmd: Option<&str>| ServiceSpec {
            entrypoint: entrypoint.map(words),
            cmd: cmd.map(words),
            ..ServiceSpec::default()
        };
        for (entrypoint, cmd, expected) in [
            (None, None, "/entry serve all"),
            (None, Some("one"), "/entry one"),
            (Some("sh -c"), None, "sh -c"),
            (Some("sh -c"), Some("true"), "sh -c true"),
        ] {
            assert_eq!(
                command(&spec(entrypoint, cmd), &image()).unwrap(),
                words(expected)
            );
        }
        assert!(command(&spec(None, None), &ImageConfig::default()).is_err());
    }

    #[test]
    fn the_services_variables_win_over_the_platforms() {
        let mut placement = placement(11, 1);
        placement.spec.env = words("A=1 KONTENA_NODE_NAME=mine B=x=y PATH");
        assert_eq!(
            env(&placement),
            ["A=1", "B=x=y", "KONTENA_NODE_NAME=mine", "PATH"]
        );
    }

    #[test]
    fn one_port_may_be_published_at_several_addresses() {
        let port = |ip: [u8; 4], protocol| Port {
            ip: ip.into(),
            protocol,
            node_port: 8080,
            container_port: 80,
        };
        let bindings = port_bindings(&[
            port([192, 0, 2, 1], Protocol::Tcp),
            port([192, 0, 2, 2], Protocol::Tcp),
            port([0, 0, 0, 0], Protocol::Udp),
        ]);
        assert_eq!(bindings["80/tcp"].as_ref().unwrap().len(), 2);
        assert_eq!(
            bindings["80/udp"].as_ref().unwrap()[0].host_port.as_deref(),
            Some("8080")
        );
    }

    #[test]
    fn images_without_a_tag_are_the_latest() {
        for (image, name) in [
            ("web", "web:latest"),
            ("registry:5000/web", "registry:5000/web:latest"),
            ("registry:5000/web:1", "registry:5000/web:1"),
            ("web@sha256:00", "web@sha256:00"),
        ] {
            assert_eq!(image_name(image), name);
        }
    }
}
