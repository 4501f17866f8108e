//! Which node runs which instance: a pure function of what is wanted, the
//! connected nodes and where instances are now.
//!
//! An instance that has a place keeps it. One that cannot be placed says why,
//! node by node.

use std::collections::BTreeMap;

use kontena_schema::http::services::{Port, ServiceSpec, Strategy};
use kontena_schema::ids::{NodeId, PlacementId, ServiceId, ServiceRevision};
use serde::Deserialize;

/// A connected node, as scheduling sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct Candidate {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: i16,
    /// Its labels, `key=value`.
    pub labels: Vec<String>,
    /// Instances placed on it.
    pub load: i64,
    /// Ports that services publish on it.
    pub ports: Vec<UsedPort>,
}

/// A port that a service publishes on a node.
#[derive(Clone, Debug, Deserialize)]
pub struct UsedPort {
    /// The service.
    pub service: ServiceId,
    /// The port.
    pub port: Port,
}

/// Where an instance is.
#[derive(Clone, Debug, Deserialize)]
pub struct Placed {
    /// The placement.
    pub id: PlacementId,
    /// The instance's number, from 1.
    pub instance: i32,
    /// Its node.
    pub node_id: NodeId,
    /// The version of the service that it runs.
    pub service_revision: ServiceRevision,
}

/// What to change so that a service has the instances it wants.
#[derive(Debug, Default, PartialEq)]
pub struct Decision {
    /// Instances to place, by number.
    pub place: Vec<(i32, NodeId)>,
    /// Placements to end.
    pub remove: Vec<PlacementId>,
    /// Instances that no node can take, and why.
    pub unplaced: BTreeMap<i32, String>,
}

/// Decides for one service. `instances` are wanted in all, or on every node for
/// [`Strategy::Daemon`].
pub fn plan(
    service: ServiceId,
    spec: &ServiceSpec,
    instances: u32,
    nodes: &[Candidate],
    placed: &[Placed],
) -> Decision {
    let mut fits = Vec::new();
    let mut reasons = Vec::new();
    for node in nodes {
        match refusal(service, spec, node) {
            None => fits.push(node),
            Some(reason) => reasons.push(format!("{}: {reason}", node.name)),
        }
    }
    let mut decision = match spec.strategy {
        Strategy::Daemon => daemon(instances, nodes, &fits, placed),
        Strategy::Ha | Strategy::Random => spread(spec, instances, &fits, placed),
    };
    // A daemon that no node can take would otherwise wait without a word.
    if spec.strategy == Strategy::Daemon && instances > 0 && fits.is_empty() {
        decision.unplaced.insert(1, String::new());
    }
    let why = if nodes.is_empty() {
        "no node is connected".to_owned()
    } else if reasons.is_empty() {
        "every node that fits runs an instance with the same published port".to_owned()
    } else {
        reasons.join("; ")
    };
    decision
        .unplaced
        .values_mut()
        .for_each(|reason| reason.clone_from(&why));
    decision
}

/// Places missing instances on the node with the fewest instances of the
/// service, then with the fewest of all, then with the lowest number.
fn spread(spec: &ServiceSpec, instances: u32, fits: &[&Candidate], placed: &[Placed]) -> Decision {
    let wanted = i32::try_from(instances).unwrap_or(i32::MAX);
    let mut decision = Decision::default();
    let mut own: BTreeMap<NodeId, i64> = BTreeMap::new();
    for placement in placed {
        if placement.instance > wanted {
            decision.remove.push(placement.id);
        } else {
            *own.entry(placement.node_id).or_default() += 1;
        }
    }
    let mut added: BTreeMap<NodeId, i64> = BTreeMap::new();
    let publishes = !spec.ports.is_empty();
    for instance in 1..=wanted {
        if placed
            .iter()
            .any(|placement| placement.instance == instance)
        {
            continue;
        }
        let count = |map: &BTreeMap<NodeId, i64>, id| map.get(&id).copied().unwrap_or(0);
        let node = fits
            .iter()
            .filter(|node| !publishes || count(&own, node.id) == 0)
            .min_by_key(|n| (count(&own, n.id), n.load + count(&added, n.id), n.number));
        match node {
            Some(node) => {
                *own.entry(node.id).or_default() += 1;
                *added.entry(node.id).or_default() += 1;
                decision.place.push((instance, node.id));
            }
            None => {
                decision.unplaced.insert(instance, String::new());
            }
        }
    }
    decision
}

/// `instances` on every node that fits; connected nodes that do not fit lose
/// theirs. A node that is away keeps its own: it is told when it returns.
fn daemon(instances: u32, nodes: &[Candidate], fits: &[&Candidate], placed: &[Placed]) -> Decision {
    let mut decision = Decision::default();
    let mut free = (1..).filter(|n| !placed.iter().any(|placement| placement.instance == *n));
    for node in nodes {
        let fits = fits.iter().any(|fit| fit.id == node.id);
        let wanted = if fits {
            usize::try_from(instances).unwrap_or(usize::MAX)
        } else {
            0
        };
        let here = placed
            .iter()
            .filter(|placement| placement.node_id == node.id);
        decision
            .remove
            .extend(here.clone().skip(wanted).map(|placement| placement.id));
        let missing = wanted.saturating_sub(here.count());
        decision.place.extend(
            free.by_ref()
                .take(missing)
                .map(|instance| (instance, node.id)),
        );
    }
    decision
}

/// Why a node cannot run a service.
fn refusal(service: ServiceId, spec: &ServiceSpec, node: &Candidate) -> Option<String> {
    let unmet = spec
        .affinity
        .iter()
        .find(|condition| !holds(condition, node));
    if let Some(condition) = unmet {
        return Some(format!("affinity {condition:?} does not hold"));
    }
    let others = node.ports.iter().filter(|used| used.service != service);
    let mut clashes = others.filter(|used| spec.ports.iter().any(|port| clash(port, &used.port)));
    let clash = clashes.next()?;
    Some(format!(
        "port {} is published by another service",
        clash.port.node_port
    ))
}

/// Whether two published ports cannot be bound on one node.
pub fn clash(a: &Port, b: &Port) -> bool {
    let same_address = a.ip == b.ip || a.ip.is_unspecified() || b.ip.is_unspecified();
    a.node_port == b.node_port && a.protocol == b.protocol && same_address
}

/// Splits `key==value` or `key!=value`.
pub fn parse_affinity(condition: &str) -> Result<(&str, bool, &str), String> {
    let parsed = condition
        .split_once("==")
        .map(|(key, value)| (key, true, value))
        .or_else(|| {
            condition
                .split_once("!=")
                .map(|(key, value)| (key, false, value))
        });
    match parsed {
        Some((key @ ("node" | "label"), equal, value)) if !value.is_empty() => {
            if value.starts_with('~') {
                return Err(format!("{condition:?}: soft affinity is not supported"));
            }
            Ok((key, equal, value))
        }
        Some((key, ..)) if key != "node" && key != "label" => Err(format!(
            "{condition:?}: {key:?} is not node or label (label==key=value)"
        )),
        _ => Err(format!(
            "{condition:?} is neither key==value nor key!=value"
        )),
    }
}

fn holds(condition: &str, node: &Candidate) -> bool {
    let Ok((key, equal, value)) = parse_affinity(condition) else {
        return false;
    };
    let matches = match key {
        "node" => node.name == value,
        _ => node.labels.iter().any(|label| label == value),
    };
    matches == equal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: i64, load: i64) -> Candidate {
        Candidate {
            id: NodeId(id),
            name: format!("node-{id}"),
            number: i16::try_from(id).unwrap(),
            labels: vec![format!("az={}", id % 2)],
            load,
            ports: vec![],
        }
    }

    fn placed(id: i64, instance: i32, node: i64) -> Placed {
        Placed {
            id: PlacementId(id),
            instance,
            node_id: NodeId(node),
            service_revision: ServiceRevision(1),
        }
    }

    fn port(node_port: u16) -> Port {
        let ip = std::net::Ipv4Addr::UNSPECIFIED;
        Port {
            ip,
            protocol: kontena_schema::http::services::Protocol::Tcp,
            node_port,
            container_port: 80,
        }
    }

    fn place(spec: &ServiceSpec, instances: u32, nodes: &[Candidate], now: &[Placed]) -> Decision {
        plan(ServiceId(1), spec, instances, nodes, now)
    }

    #[test]
    fn instances_spread_over_the_emptiest_nodes_first() {
        let nodes = [node(1, 1), node(2, 0), node(3, 0)];
        let decision = place(&ServiceSpec::default(), 4, &nodes, &[]);
        let nodes: Vec<i64> = decision.place.iter().map(|(_, node)| node.0).collect();
        assert_eq!(nodes, [2, 3, 1, 2]);
    }

    #[test]
    fn instances_keep_their_place_and_the_highest_go_first() {
        let nodes = [node(1, 0), node(2, 0)];
        let now = [placed(10, 1, 2), placed(11, 2, 2), placed(12, 3, 1)];
        let up = place(&ServiceSpec::default(), 4, &nodes, &now);
        assert_eq!(up.place, [(4, NodeId(1))]);
        assert!(up.remove.is_empty());
        let down = place(&ServiceSpec::default(), 1, &nodes, &now);
        assert_eq!(down.remove, [PlacementId(11), PlacementId(12)]);
        assert!(down.place.is_empty());
    }

    #[test]
    fn a_gap_is_filled_with_its_own_number() {
        let now = [placed(10, 1, 1), placed(12, 3, 1)];
        let decision = place(&ServiceSpec::default(), 3, &[node(1, 2)], &now);
        assert_eq!(decision.place, [(2, NodeId(1))]);
    }

    #[test]
    fn a_daemon_runs_on_every_node() {
        let spec = ServiceSpec {
            strategy: Strategy::Daemon,
            ..Default::default()
        };
        let first = place(&spec, 1, &[node(1, 0), node(2, 5)], &[]);
        assert_eq!(first.place, [(1, NodeId(1)), (2, NodeId(2))]);
        let now = [placed(10, 1, 1), placed(11, 2, 2)];
        let joined = place(&spec, 1, &[node(1, 0), node(2, 5), node(3, 0)], &now);
        assert_eq!(joined.place, [(3, NodeId(3))]);
        assert!(joined.remove.is_empty());
    }

    #[test]
    fn a_published_port_is_taken_once_a_node_and_the_refusal_says_so() {
        let spec = ServiceSpec {
            ports: vec![port(80)],
            ..Default::default()
        };
        let mut busy = node(1, 0);
        busy.ports = vec![UsedPort {
            service: ServiceId(2),
            port: port(80),
        }];
        let decision = place(&spec, 2, &[busy, node(2, 0)], &[]);
        assert_eq!(decision.place, [(1, NodeId(2))]);
        let reason = &decision.unplaced[&2];
        assert!(reason.contains("node-1: port 80 is published"), "{reason}");
    }

    #[test]
    fn affinity_chooses_by_name_and_label_and_says_why_not() {
        for (affinity, nodes) in [
            ("node==node-2", vec![2]),
            ("node!=node-2", vec![1, 3]),
            ("label==az=1", vec![1, 3]),
            ("label!=az=1", vec![2]),
        ] {
            let spec = ServiceSpec {
                affinity: vec![affinity.to_owned()],
                strategy: Strategy::Daemon,
                ..Default::default()
            };
            let decision = place(&spec, 1, &[node(1, 0), node(2, 0), node(3, 0)], &[]);
            let got: Vec<i64> = decision.place.iter().map(|(_, node)| node.0).collect();
            assert_eq!(got, nodes, "{affinity}");
        }
        let spec = ServiceSpec {
            affinity: vec!["node==x".to_owned()],
            ..Default::default()
        };
        let decision = place(&spec, 1, &[node(1, 0)], &[]);
        assert!(
            decision.unplaced[&1].contains("node-1: affinity"),
            "{decision:?}"
        );
        assert_eq!(
            place(&spec, 1, &[], &[]).unplaced[&1],
            "no node is connected"
        );
    }

    #[test]
    fn ports_clash_by_number_protocol_and_address() {
        let with_ip = |ip: [u8; 4]| Port {
            ip: ip.into(),
            ..port(80)
        };
        assert!(clash(&port(80), &with_ip([10, 0, 0, 1])));
        assert!(!clash(&with_ip([10, 0, 0, 2]), &with_ip([10, 0, 0, 1])));
        assert!(!clash(&port(80), &port(81)));
    }
}
