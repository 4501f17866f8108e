//! Tables as users of Kontena know them: upper-case headers, two spaces between
//! the columns, no lines.

use comfy_table::{ContentArrangement, Table, presets};
use kontena::config::Config;
use kontena_schema::agent::{PathMeasure, PingResult};
use kontena_schema::http::addresses::{Addresses, History};
use kontena_schema::http::containers::{Container, Containers};
use kontena_schema::http::grids::{Grids, Trust};
use kontena_schema::http::nodes::{Node, NodePeer, NodePeers, Nodes};
use kontena_schema::http::services::{Port, Service, Services};
use kontena_schema::http::stacks::Stacks;
use kontena_schema::path::Path;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::commands::ping::{Pinged, Way};

fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Marks the first line of a table, on a terminal.
pub(crate) fn with_bold_header(table: &str, styled: bool) -> String {
    match table.split_once('\n') {
        _ if !styled => table.to_owned(),
        Some((header, rows)) => format!("\x1b[1m{header}\x1b[0m\n{rows}"),
        None => format!("\x1b[1m{table}\x1b[0m"),
    }
}

/// What stands where there is nothing.
fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// The word with which serde writes a state.
fn word<T: Serialize>(state: &T) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "-".to_owned(),
    }
}

/// Stored Masters; `*` marks the current one.
pub(crate) fn masters(config: &Config) -> String {
    table(
        ["NAME", "URL", "GRID"],
        config.servers.iter().map(|server| {
            let current = config.current_server.as_deref() == Some(server.name.as_str());
            [
                marked(&server.name, current),
                server.url.clone(),
                or_dash(server.grid.as_ref()),
            ]
        }),
    )
}

/// Grids; `*` marks the current one.
pub(crate) fn grids(grids: &Grids, current: Option<&str>) -> String {
    table(
        ["NAME", "NODES", "SERVICES", "CONTAINERS", "SUBNET"],
        grids.grids.iter().map(|grid| {
            [
                marked(&grid.name, current == Some(grid.name.as_str())),
                grid.node_count.to_string(),
                grid.service_count.to_string(),
                grid.container_count.to_string(),
                grid.subnet.to_string(),
            ]
        }),
    )
}

/// The networks in which the overlay runs in clear.
pub(crate) fn trust(trust: &Trust) -> String {
    let subnets = trust.trusted_subnets.iter();
    table(["SUBNET"], subnets.map(|subnet| [subnet.to_string()]))
}

fn marked(name: &str, current: bool) -> String {
    format!("{name}{}", if current { " *" } else { "" })
}

/// Nodes; `now` is what their times are compared with.
pub(crate) fn nodes(nodes: &Nodes, now: OffsetDateTime) -> String {
    table(
        [
            "NAME",
            "VERSION",
            "STATUS",
            "NUMBER",
            "OVERLAY-IP",
            "REGION",
        ],
        nodes.nodes.iter().map(|node| {
            [
                node.name.clone(),
                node.agent_version.clone(),
                status(node, now),
                node.node_number.to_string(),
                node.overlay_ip.to_string(),
                node.region.clone(),
            ]
        }),
    )
}

/// How a node reaches the others; `now` is what times are compared with.
pub(crate) fn peers(peers: &NodePeers, now: OffsetDateTime) -> String {
    table(
        [
            "NODE",
            "PATH",
            "ADDRESS",
            "RTT",
            "LOSS",
            "HANDSHAKE",
            "MTU",
            "MEASURED",
            "PROBLEM",
        ],
        peers.peers.iter().map(|peer| {
            let [kind, address] = path(peer.path);
            let measure = peer.measure.as_ref();
            let of = |show: fn(&PathMeasure) -> Option<String>| or_dash(measure.and_then(show));
            [
                peer.node.clone(),
                kind,
                address,
                of(|m| m.round_trip_us.map(|us| format!("{} ms", ms(us)))),
                of(|m| m.loss.map(percent)),
                or_dash(handshake(peer, now)),
                of(|m| Some(m.mtu.to_string())),
                or_dash(since(peer.measured_at.as_deref(), now).map(ago)),
                or_dash(peer.unreachable.as_ref().or(peer.sealed_because.as_ref())),
            ]
        }),
    )
}

/// The two directions between two nodes: what their pings found, and what was measured
/// before; `now` is what times are compared with.
pub(crate) fn pinged(pinged: &Pinged, now: OffsetDateTime) -> String {
    table(
        [
            "FROM",
            "TO",
            "PATH",
            "ADDRESS",
            "LOSS",
            "MIN/AVG/MAX",
            "MTU",
            "HANDSHAKE",
            "PROBLEM",
        ],
        pinged.ways.iter().map(|way| pinged_way(way, now)),
    )
}

fn pinged_way(way: &Way, now: OffsetDateTime) -> [String; 9] {
    let result = way.ping.as_ref().and_then(|ping| ping.result.as_ref());
    let [kind, address] = path(result.map(|result| result.path).or(way.to.path));
    let trips = result.and_then(|result| result.round_trips);
    let trips = trips.map(|t| [t.min_us, t.avg_us, t.max_us].map(ms).join("/") + " ms");
    let lost = |result: &PingResult| {
        let lost = result.sent.saturating_sub(result.received);
        percent(f32::from(lost) / f32::from(result.sent.max(1)))
    };
    // Without any answer nothing is known of it.
    let mtu = result.filter(|result| result.received > 0);
    let mtu = mtu.map(|result| match result.full_size_passes {
        true => result.mtu.to_string(),
        false => format!("below {}", result.mtu),
    });
    [
        way.from.clone(),
        way.to.node.clone(),
        kind,
        address,
        or_dash(result.map(lost)),
        or_dash(trips),
        or_dash(mtu),
        or_dash(handshake(&way.to, now)),
        or_dash(way.problem.as_ref()),
    ]
}

/// Its kind and where it leads.
fn path(path: Option<Path>) -> [String; 2] {
    let (kind, address) = match path {
        Some(Path::Fast { to }) => ("fast", Some(to)),
        Some(Path::Sealed { to }) => ("sealed", Some(to)),
        Some(Path::Unknown) | None => ("-", None),
    };
    [kind.to_owned(), or_dash(address)]
}

fn ms(us: u64) -> String {
    format!("{:.2}", us as f64 / 1000.0)
}

fn percent(share: f32) -> String {
    format!("{:.0} %", share * 100.0)
}

/// How long ago it was by now, which is more than when it was measured.
fn handshake(peer: &NodePeer, now: OffsetDateTime) -> Option<String> {
    let then = peer.measure.as_ref()?.last_handshake_s?;
    let then = time::Duration::seconds(i64::try_from(then).ok()?);
    let measured = since(peer.measured_at.as_deref(), now).unwrap_or_default();
    Some(ago(then.saturating_add(measured)))
}

/// `online 3d`: since when it is what it is.
fn status(node: &Node, now: OffsetDateTime) -> String {
    let since = if node.connected {
        &node.connected_at
    } else {
        &node.disconnected_at
    };
    match self::since(since.as_deref(), now) {
        Some(since) => format!("{} {}", node.status, age(since)),
        None => node.status.clone(),
    }
}

/// How long ago a time was that the Master told, if it told one. A clock that is behind
/// the Master's makes no negative age.
fn since(time: Option<&str>, now: OffsetDateTime) -> Option<time::Duration> {
    let time = OffsetDateTime::parse(time?, &Rfc3339).ok()?;
    Some((now - time).max(time::Duration::ZERO))
}

fn ago(since: time::Duration) -> String {
    format!("{} ago", age(since))
}

/// The largest unit that fits.
pub(crate) fn age(age: time::Duration) -> String {
    let units = [
        (age.whole_days(), 'd'),
        (age.whole_hours(), 'h'),
        (age.whole_minutes(), 'm'),
    ];
    match units.into_iter().find(|(count, _)| *count > 0) {
        Some((count, unit)) => format!("{count}{unit}"),
        None => format!("{}s", age.whole_seconds()),
    }
}

/// Stacks.
pub(crate) fn stacks(stacks: &Stacks) -> String {
    table(
        ["NAME", "STACK", "VERSION", "SERVICES", "STATE"],
        stacks.stacks.iter().map(|stack| {
            [
                stack.name.clone(),
                or_dash(stack.stack.as_ref()),
                or_dash(stack.version.as_ref()),
                stack.services.len().to_string(),
                stack.state.clone(),
            ]
        }),
    )
}

/// Services.
pub(crate) fn services(services: &Services) -> String {
    table(
        ["NAME", "INSTANCES", "STATE", "EXPOSED PORTS"],
        services.services.iter().map(|service| {
            let counts = service.instance_counts;
            [
                service_label(service),
                format!("{} / {}", counts.running, service.instances),
                service.state.clone(),
                ports(service),
            ]
        }),
    )
}

fn service_label(service: &Service) -> String {
    match &service.stack {
        Some(stack) => format!("{stack}/{}", service.name),
        None => service.name.clone(),
    }
}

/// `0.0.0.0:80->8080/tcp`.
fn ports(service: &Service) -> String {
    let ports = service.spec.get("ports").cloned().unwrap_or_default();
    let ports: Vec<Port> = serde_json::from_value(ports).unwrap_or_default();
    let shown: Vec<_> = ports
        .iter()
        .map(|port| {
            let protocol = word(&port.protocol);
            format!(
                "{}:{}->{}/{protocol}",
                port.ip, port.node_port, port.container_port
            )
        })
        .collect();
    or_dash((!shown.is_empty()).then(|| shown.join(", ")))
}

/// Containers of services.
pub(crate) fn containers(containers: &Containers) -> String {
    table(
        ["NAME", "NODE", "SERVICE", "OVERLAY-IP", "STATE"],
        containers.containers.iter().map(|container| {
            let service = match &container.stack {
                Some(stack) => format!("{stack}/{}", container.service),
                None => container.service.clone(),
            };
            [
                container.name.clone(),
                or_dash(container.node.as_ref()),
                service,
                or_dash(container.ip_address),
                container_state(container),
            ]
        }),
    )
}

/// How far it is; or, if it has lost its address, what became of that. What a
/// node last said before it was lost says little.
fn container_state(container: &Container) -> String {
    let state = match container.lease_state.as_str() {
        lost @ ("lost" | "taken" | "waiting") => lost.to_owned(),
        _ => word(&container.state),
    };
    match &container.error {
        Some(error) => format!("{state}: {}", error.trim_start_matches("pending: ")),
        None => state,
    }
}

/// Held addresses.
pub(crate) fn addresses(addresses: &Addresses) -> String {
    table(
        ["ADDRESS", "HOLDER", "KIND", "NODE", "LEASE", "SINCE"],
        addresses.addresses.iter().map(|held| {
            [
                held.address.to_string(),
                or_dash(held.holder.as_ref()),
                or_dash(held.kind.as_ref().map(word)),
                or_dash(held.node.as_ref()),
                or_dash(held.lease),
                or_dash(held.leased_at.as_ref()),
            ]
        }),
    )
}

/// The steps of an address.
pub(crate) fn history(history: &History) -> String {
    table(
        ["AT", "EVENT", "HOLDER", "NODE", "LEASE", "BY", "REASON"],
        history.history.iter().map(|step| {
            [
                step.at.clone(),
                word(&step.event),
                step.holder.clone(),
                or_dash(step.node.as_ref()),
                step.lease.to_string(),
                step.actor.clone(),
                step.reason.clone(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests;
