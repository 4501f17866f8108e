//! Services in an order in which none comes before one that it links to; among
//! those that may come, the file's order holds.

use std::collections::BTreeSet;

use kontena_schema::http::services::ServiceCreate;

use super::Faults;

/// Orders the services. A link to a service that the file does not have, and a
/// circle of links, are faults.
pub(super) fn by_links(
    services: Vec<ServiceCreate>,
    stack: &str,
    faults: &mut Faults,
) -> Vec<ServiceCreate> {
    let names: BTreeSet<String> = services
        .iter()
        .map(|service| service.name.clone())
        .collect();
    for service in &services {
        for target in targets(service, stack).filter(|target| !names.contains(*target)) {
            let reason = format!("there is no service {target:?} in this stack");
            faults.add(format!("services.{}.links", service.name), reason);
        }
    }
    let mut waiting = services;
    let mut ordered: Vec<ServiceCreate> = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let open = |target: &str| waiting.iter().any(|service| service.name == target);
        let free = waiting
            .iter()
            .position(|service| !targets(service, stack).any(open));
        let Some(free) = free else {
            faults.add("services", circle(&waiting, stack));
            break;
        };
        ordered.push(waiting.remove(free));
    }
    ordered.extend(waiting);
    ordered
}

/// The services of the same stack that one links to.
fn targets<'a>(service: &'a ServiceCreate, stack: &'a str) -> impl Iterator<Item = &'a str> {
    service
        .spec
        .links
        .iter()
        .filter_map(move |link| match link.name.split_once('/') {
            None => Some(link.name.as_str()),
            Some((of, name)) => (of == stack).then_some(name),
        })
}

/// Every service that is left links to another that is left, so following links
/// comes back to where it was.
fn circle(waiting: &[ServiceCreate], stack: &str) -> String {
    let mut path: Vec<&str> = Vec::new();
    let mut at = waiting.first();
    while let Some(service) = at {
        let seen = path.iter().position(|name| *name == service.name);
        path.push(&service.name);
        if let Some(begin) = seen {
            return format!("links go in a circle: {}", path[begin..].join(" -> "));
        }
        at = targets(service, stack)
            .find_map(|target| waiting.iter().find(|service| service.name == target));
    }
    "links go in a circle".to_owned()
}

#[cfg(test)]
mod tests {
    use kontena_schema::http::services::{Link, ServiceSpec};
    use proptest::prelude::*;

    use super::*;

    fn service(name: &str, links: &[&str]) -> ServiceCreate {
        let link = |name: &&str| Link {
            name: (*name).to_owned(),
            alias: None,
        };
        let links = links.iter().map(link).collect();
        let spec = ServiceSpec {
            links,
            ..ServiceSpec::default()
        };
        ServiceCreate {
            name: name.to_owned(),
            spec,
            ..ServiceCreate::default()
        }
    }

    fn order(services: &[ServiceCreate]) -> (String, Faults) {
        let mut faults = Faults::default();
        let ordered = by_links(services.to_vec(), "app", &mut faults);
        (
            ordered
                .iter()
                .map(|s| s.name.clone())
                .collect::<Vec<_>>()
                .join(" "),
            faults,
        )
    }

    #[test]
    fn what_is_linked_to_comes_first_and_else_the_files_order_holds() {
        let (names, faults) = order(&[
            service("lb", &["web"]),
            service("web", &["app/db", "other/cache"]),
            service("cron", &[]),
            service("db", &[]),
        ]);
        assert_eq!(
            (names.as_str(), faults),
            ("cron db web lb", Faults::default())
        );
    }

    #[test]
    fn circles_and_missing_services_are_named() {
        let (_, faults) = order(&[
            service("a", &["b"]),
            service("b", &["c", "x"]),
            service("c", &["b"]),
            service("self", &["self"]),
        ]);
        let want = "services.b.links: there is no service \"x\" in this stack\n\
            services: links go in a circle: b -> c -> b";
        assert_eq!(faults.to_string(), want);
        let (_, faults) = order(&[service("self", &["self"])]);
        assert_eq!(
            faults.to_string(),
            "services: links go in a circle: self -> self"
        );
    }

    proptest! {
        /// Links only to lower numbers cannot go in a circle, in whatever order the
        /// services stand in the file.
        #[test]
        fn every_order_that_exists_is_found(
            links in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..3), 1..12),
            seed in any::<prop::sample::Index>(),
        ) {
            let mut services: Vec<_> = links.iter().enumerate().map(|(i, links)| {
                let names: Vec<_> =
                    links.iter().filter(|_| i > 0).map(|link| link.index(i).to_string()).collect();
                service(&i.to_string(), &names.iter().map(String::as_str).collect::<Vec<_>>())
            }).collect();
            let middle = seed.index(services.len());
            services.rotate_left(middle);
            let mut faults = Faults::default();
            let ordered = by_links(services, "app", &mut faults);
            prop_assert_eq!(faults, Faults::default());
            let mut seen = BTreeSet::new();
            for service in &ordered {
                for link in &service.spec.links {
                    prop_assert!(seen.contains(&link.name));
                }
                seen.insert(service.name.clone());
            }
        }
    }
}
