//! Where the overlay of a grid may run in clear.
//!
//! A change names what is added and what is removed, not the whole list: two
//! administrators at once do not undo each other.

use std::collections::BTreeMap;

use ipnetwork::Ipv4Network;
use kontena_schema::http::grids::{Trust, TrustChange};
use kontena_schema::http::nodes::Node;
use kontena_schema::limits::TRUSTED_SUBNETS_MAX;
use kontena_schema::path::{Path, Site, path};
use kontena_schema::query;

use super::grid::{grid_show, set_trusted};
use super::node::node_list;
use super::subnets::{each_once, judge, networks};
use super::{Call, ControlError, GridRow, LockedGrid, change};
use crate::app::App;

/// Where the overlay of a grid may run in clear.
pub async fn trust_show(app: &App, name: &str) -> Result<Trust, ControlError> {
    let subnets = grid_show(app, name).await?.trusted_subnets;
    let nodes = node_list(app, name).await?;
    Ok(trust(&nodes, &subnets, subnets.clone()))
}

/// Adds and removes networks in which the overlay may run in clear.
pub async fn trust_change(
    app: &App,
    call: &Call,
    name: &str,
    request: &TrustChange,
) -> Result<Trust, ControlError> {
    let mut faults = BTreeMap::new();
    let add = networks("add", &request.add, &mut faults);
    let remove = networks("remove", &request.remove, &mut faults);
    if let Some(both) = add.iter().find(|subnet| remove.contains(subnet)) {
        faults.insert("remove".to_owned(), format!("{both} is to be added too"));
    }
    if !faults.is_empty() {
        return Err(ControlError::Invalid(faults));
    }
    let (add, remove) = (&add, &remove);
    change(app, call, "trust_change", move |tx| {
        Box::pin(async move {
            let grid = LockedGrid::by_name(tx, name).await?;
            let old = &grid.row.trusted_subnets;
            let new = changed(&grid.row, add, remove)?;
            let nodes: Vec<Node> = tx.all(&query::NODE_LIST, &[&name, &None::<String>]).await?;
            let answer = trust(&nodes, old, new);
            if !request.dry_run {
                set_trusted(&grid, &answer.trusted_subnets).await?;
            }
            Ok(grid.changed(answer))
        })
    })
    .await
}

/// The list after a change.
fn changed(
    grid: &GridRow,
    add: &[Ipv4Network],
    remove: &[Ipv4Network],
) -> Result<Vec<Ipv4Network>, ControlError> {
    let old = &grid.trusted_subnets;
    let mut faults = BTreeMap::new();
    judge("add", add, &grid.own(), &mut faults);
    for (index, subnet) in remove.iter().enumerate() {
        if !old.contains(subnet) {
            let reason = format!("{subnet} is not among the trusted subnets");
            faults.insert(format!("remove.{index}"), reason);
        }
    }
    let kept = old.iter().filter(|subnet| !remove.contains(subnet));
    let new = each_once(kept.chain(add).copied());
    if new.len() > TRUSTED_SUBNETS_MAX {
        let reason = format!("a grid has at most {TRUSTED_SUBNETS_MAX} trusted subnets");
        faults.insert("add".to_owned(), reason);
    }
    if faults.is_empty() {
        Ok(new)
    } else {
        Err(ControlError::Invalid(faults))
    }
}

/// How a pair of nodes reaches each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pair {
    Fast,
    Sealed,
    Unknown,
}

/// What comes of going from one list to another.
fn trust(nodes: &[Node], old: &[Ipv4Network], new: Vec<Ipv4Network>) -> Trust {
    let mut trust = Trust {
        trusted_subnets: new,
        fast_pairs: 0,
        sealed_pairs: 0,
        unknown_pairs: 0,
        to_fast: 0,
        to_sealed: 0,
    };
    let sites: Vec<Site> = nodes.iter().map(site).collect();
    for (index, a) in sites.iter().enumerate() {
        for b in sites.iter().skip(index + 1) {
            let now = pair(a, b, &trust.trusted_subnets);
            match now {
                Pair::Fast => trust.fast_pairs += 1,
                Pair::Sealed => trust.sealed_pairs += 1,
                Pair::Unknown => trust.unknown_pairs += 1,
            }
            match (pair(a, b, old), now) {
                (Pair::Sealed, Pair::Fast) => trust.to_fast += 1,
                (Pair::Fast, Pair::Sealed) => trust.to_sealed += 1,
                _ => {}
            }
        }
    }
    trust
}

fn site(node: &Node) -> Site {
    Site {
        region: node.region.clone(),
        public_ip: node.public_ip,
        private_ip: node.private_ip,
    }
}

/// A tunnel comes about if one of the two can be reached.
fn pair(a: &Site, b: &Site, trusted: &[Ipv4Network]) -> Pair {
    match (path(a, b, trusted), path(b, a, trusted)) {
        (Path::Fast { .. }, _) => Pair::Fast,
        (Path::Unknown, Path::Unknown) => Pair::Unknown,
        _ => Pair::Sealed,
    }
}
