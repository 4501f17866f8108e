//! Names: what grids, stacks and services may be called, and the DNS names that
//! follow from it.

use crate::limits::{LABEL_BYTES_MAX, NAME_BYTES_MAX};

/// The zone of all grids.
pub const ZONE: &str = "kontena.local";

/// Checks the name of a grid, stack or service: a DNS label (RFC 1123 section
/// 2.1) in lower case, and the reason where it is none.
pub fn check(name: &str) -> Result<(), String> {
    let fail = |reason: &str| Err(format!("{name:?} {reason}"));
    if name.is_empty() {
        return fail("is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return fail(&format!("is longer than {NAME_BYTES_MAX} characters"));
    }
    if !name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        return fail("may only hold a-z, 0-9 and '-'");
    }
    if name.starts_with('-') || name.ends_with('-') {
        return fail("must not begin or end with '-'");
    }
    Ok(())
}

/// The label that a service has in its grid: `stack-service`, or `service` for
/// one without a stack. Unique in a grid.
pub fn service_label(stack: Option<&str>, service: &str) -> String {
    match stack {
        Some(stack) => format!("{stack}-{service}"),
        None => service.to_owned(),
    }
}

/// The label of one instance: `stack-service-n`.
pub fn instance_label(stack: Option<&str>, service: &str, instance: u32) -> String {
    format!("{}-{instance}", service_label(stack, service))
}

/// Checks that the labels of a service and of its highest instance fit.
pub fn check_labels(stack: Option<&str>, service: &str, instances: u32) -> Result<(), String> {
    let label = instance_label(stack, service, instances);
    if label.len() > LABEL_BYTES_MAX {
        return Err(format!(
            "its DNS label {label:?} is longer than {LABEL_BYTES_MAX} characters"
        ));
    }
    Ok(())
}

/// The service label of which `label` would be an instance: `web` for `web-1`.
pub fn instance_of(label: &str) -> Option<&str> {
    let (service, instance) = label.rsplit_once('-')?;
    let number = !instance.is_empty() && instance.bytes().all(|b| b.is_ascii_digit());
    (number && !instance.starts_with('0') && !service.is_empty()).then_some(service)
}

/// All names that answer with every instance of a service.
pub fn service_names(grid: &str, stack: Option<&str>, service: &str) -> Vec<String> {
    names(grid, stack, service, &service_label(stack, service))
}

/// All names that answer with one instance of a service.
pub fn instance_names(
    grid: &str,
    stack: Option<&str>,
    service: &str,
    instance: u32,
) -> Vec<String> {
    let short = format!("{service}-{instance}");
    names(
        grid,
        stack,
        &short,
        &instance_label(stack, service, instance),
    )
}

/// `label` under the grid and, deprecated, under the zone alone; for a service of
/// a stack also `short` under the stack.
fn names(grid: &str, stack: Option<&str>, short: &str, label: &str) -> Vec<String> {
    let mut names = vec![format!("{label}.{grid}.{ZONE}"), format!("{label}.{ZONE}")];
    names.extend(stack.map(|stack| format!("{short}.{stack}.{grid}.{ZONE}")));
    names
}

/// The search domains of a container, nearest first.
pub fn search_domains(grid: &str, stack: Option<&str>) -> Vec<String> {
    let mut domains: Vec<String> = stack
        .map(|s| format!("{s}.{grid}.{ZONE}"))
        .into_iter()
        .collect();
    domains.extend([format!("{grid}.{ZONE}"), ZONE.to_owned()]);
    domains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_models_example() {
        assert_eq!(
            service_names("testgrid", Some("testapp"), "webservice"),
            [
                "testapp-webservice.testgrid.kontena.local",
                "testapp-webservice.kontena.local",
                "webservice.testapp.testgrid.kontena.local",
            ]
        );
        assert_eq!(
            instance_names("testgrid", Some("testapp"), "db", 1),
            [
                "testapp-db-1.testgrid.kontena.local",
                "testapp-db-1.kontena.local",
                "db-1.testapp.testgrid.kontena.local",
            ]
        );
        assert_eq!(
            instance_names("g", None, "web", 2),
            ["web-2.g.kontena.local", "web-2.kontena.local"]
        );
    }

    #[test]
    fn search_begins_at_the_stack() {
        let domains = search_domains("g", Some("a"));
        assert_eq!(
            domains,
            ["a.g.kontena.local", "g.kontena.local", "kontena.local"]
        );
        assert_eq!(
            search_domains("g", None),
            ["g.kontena.local", "kontena.local"]
        );
    }

    #[test]
    fn bad_names_are_refused_with_a_reason() {
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for (bad, reason) in [
            ("", "empty"),
            ("Web", "a-z"),
            ("a_b", "a-z"),
            ("a.b", "a-z"),
            ("-a", "begin"),
            ("a-", "end"),
            (&long, "longer"),
        ] {
            let got = check(bad).unwrap_err();
            assert!(got.contains(reason), "{bad}: {got}");
        }
        assert_eq!(check("a-1"), Ok(()));
    }

    #[test]
    fn labels_must_fit_with_their_highest_instance() {
        let name = "a".repeat(30);
        assert!(check_labels(Some(&name), &name, 9).is_ok());
        assert!(check_labels(Some(&name), &name, 10).is_err());
    }

    #[test]
    fn instance_labels_are_recognised() {
        assert_eq!(instance_of("web-1"), Some("web"));
        assert_eq!(instance_of("a-web-12"), Some("a-web"));
        for none in ["web", "web-", "web-01", "web-x", "-1", "web-1a"] {
            assert_eq!(instance_of(none), None, "{none}");
        }
    }
}
