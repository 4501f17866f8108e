//! Links between the services of a stack, and the order that follows from them.

use std::collections::BTreeMap;

use kontena_schema::http::services::{Link, ServiceCreate};

use super::service::ServiceRow;

/// The service of the same stack that a link names, if it is one.
fn own_stack(link: &Link) -> Option<&str> {
    (!link.name.contains('/')).then_some(link.name.as_str())
}

/// Links that lead nowhere or in a circle.
pub fn faults(services: &[ServiceCreate]) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    for service in services {
        for target in service.spec.links.iter().filter_map(own_stack) {
            if !services.iter().any(|other| other.name == target) {
                let reason = format!("there is no service {target:?} in this stack");
                faults.push((service.name.clone(), reason));
            }
        }
    }
    let edges = |s: &ServiceCreate| {
        s.spec
            .links
            .iter()
            .filter_map(own_stack)
            .map(str::to_owned)
            .collect()
    };
    let graph: BTreeMap<String, Vec<String>> = services
        .iter()
        .map(|s| (s.name.clone(), edges(s)))
        .collect();
    let ordered = order(&graph);
    for name in graph.keys().filter(|name| !ordered.contains(name)) {
        if faults.iter().all(|(service, _)| service != name) {
            faults.push((name.clone(), "lead in a circle".to_owned()));
        }
    }
    faults
}

/// Names in an order in which each comes after all that it links to; what is
/// part of a circle is left out.
fn order(graph: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut order: Vec<String> = Vec::with_capacity(graph.len());
    loop {
        let ready = |name: &&String| {
            !order.contains(name)
                && graph[*name]
                    .iter()
                    .all(|to| order.contains(to) || !graph.contains_key(to))
        };
        let next: Vec<String> = graph.keys().filter(ready).cloned().collect();
        if next.is_empty() {
            return order;
        }
        order.extend(next);
    }
}

/// Services with those first that others link to.
pub fn in_order(mut services: Vec<ServiceRow>) -> Vec<ServiceRow> {
    let edges = |s: &ServiceRow| {
        s.spec
            .links
            .iter()
            .filter_map(own_stack)
            .map(str::to_owned)
            .collect()
    };
    let graph = services
        .iter()
        .map(|s| (s.name.clone(), edges(s)))
        .collect();
    let order = order(&graph);
    let place = |name: &str| order.iter().position(|o| o == name).unwrap_or(usize::MAX);
    services.sort_by_key(|service| place(&service.name));
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_link_to_comes_first() {
        let graph = BTreeMap::from([
            ("a".to_owned(), vec!["z".to_owned()]),
            ("m".to_owned(), vec![]),
            ("z".to_owned(), vec!["m".to_owned()]),
        ]);
        assert_eq!(order(&graph), ["m", "z", "a"]);
    }
}
