//! What is counted, as Prometheus collects it (OpenMetrics 1.0).
//!
//! Any replica answers for all: what agents measured is in the database, and nothing
//! is counted here. A grid has a few lines a node, not one a pair of nodes; pairs are
//! in `/v1/nodes/{grid}/{node}/peers`.

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::HttpError;
use super::extract::Admin;
use crate::control::node::{self, NodeMetrics};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /v1/metrics`
pub async fn show(admin: Admin) -> Result<Response, HttpError> {
    let nodes = admin.accept(node::node_metrics(&admin.app).await)?;
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text(&nodes)).into_response())
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfNode {
    grid: String,
    node: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Dropped {
    grid: String,
    node: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPath {
    grid: String,
    node: String,
    path: String,
}

fn text(nodes: &[NodeMetrics]) -> String {
    let connected = Family::<OfNode, Gauge>::default();
    let dropped = Family::<Dropped, Counter>::default();
    let peers = Family::<OfPath, Gauge>::default();
    for of in nodes {
        let (grid, node) = (&of.grid, &of.node);
        let labels = OfNode {
            grid: grid.clone(),
            node: node.clone(),
        };
        let is = i64::from(of.connected);
        connected.get_or_create(&labels).set(is);
        for (reason, count) in &of.drops {
            let labels = Dropped {
                grid: grid.clone(),
                node: node.clone(),
                reason: reason.clone(),
            };
            dropped.get_or_create(&labels).inc_by(*count);
        }
        for path in ["fast", "sealed", "unreachable"] {
            let labels = OfPath {
                grid: grid.clone(),
                node: node.clone(),
                path: path.to_owned(),
            };
            let many = of.peers.get(path).copied().unwrap_or_default();
            peers.get_or_create(&labels).set(many);
        }
    }
    let mut registry = Registry::with_prefix("kontena");
    registry.register(
        "node_connected",
        "Whether the node's agent has a session",
        connected,
    );
    registry.register(
        "node_dropped",
        "Packets and frames that the host dropped since its agent was started",
        dropped,
    );
    registry.register(
        "node_peers",
        "Other nodes by the path that frames for them take",
        peers,
    );
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes all that is written");
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_nodes_count_is_told_with_grid_node_and_reason() {
        let node = NodeMetrics {
            grid: "demo".to_owned(),
            node: "one".to_owned(),
            connected: true,
            drops: BTreeMap::from([("dropped_in".to_owned(), 7)]),
            peers: BTreeMap::from([("sealed".to_owned(), 2)]),
        };
        let text = text(&[node]);
        for line in [
            r#"kontena_node_connected{grid="demo",node="one"} 1"#,
            r#"kontena_node_dropped_total{grid="demo",node="one",reason="dropped_in"} 7"#,
            r#"kontena_node_peers{grid="demo",node="one",path="sealed"} 2"#,
            r#"kontena_node_peers{grid="demo",node="one",path="fast"} 0"#,
            "# EOF",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}:\n{text}");
        }
    }
}
