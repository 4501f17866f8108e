//! The names of a grid, asked from a container on each host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use kontena_schema::http::containers::Container;
use kontena_tests::{Grid, docker, until};

type Names = BTreeMap<String, BTreeSet<Ipv4Addr>>;

/// Every name that the example and the toolbox have in their grid, spelled out
/// as the design does.
async fn names(grid: &Grid) -> Names {
    let g = &grid.name;
    let mut names = Names::new();
    let mut add = |name: String, container: &Container| {
        names
            .entry(name)
            .or_default()
            .insert(container.ip_address.unwrap());
    };
    for service in ["db", "webservice"] {
        for container in grid.containers(Some((Some("testapp"), service))).await {
            let n = container.instance_number;
            for name in [
                format!("testapp-{service}-{n}.{g}.kontena.local"),
                format!("testapp-{service}.{g}.kontena.local"),
                format!("testapp-{service}-{n}.kontena.local"),
                format!("testapp-{service}.kontena.local"),
                format!("{service}-{n}.testapp.{g}.kontena.local"),
                format!("{service}.testapp.{g}.kontena.local"),
            ] {
                add(name, &container);
            }
        }
    }
    for container in grid.containers(Some((None, "toolbox"))).await {
        let n = container.instance_number;
        for name in [
            format!("toolbox-{n}.{g}.kontena.local"),
            format!("toolbox.{g}.kontena.local"),
            format!("toolbox-{n}.kontena.local"),
            "toolbox.kontena.local".to_owned(),
        ] {
            add(name, &container);
        }
    }
    names
}

/// Asks for names in the toolbox of a host, with what `dig` understands.
async fn ask(grid: &Grid, host: &str, how: &str, names: &Names) -> Names {
    let list: Vec<_> = names.keys().map(String::as_str).collect();
    let script = format!(
        "for name in {}; do echo $name $(dig {how} +short +tries=1 +time=3 $name); done",
        list.join(" ")
    );
    let answers = grid.in_toolbox(grid.host(host), &script).await.must();
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default().to_owned();
        let addresses = words.map(|word| {
            word.parse()
                .unwrap_or_else(|_| panic!("{host}, {how}: {line}"))
        });
        (name, addresses.collect())
    };
    answers.lines().map(parse).collect()
}

#[tokio::test]
async fn every_name_of_every_service_resolves_on_every_host_over_udp_and_tcp() {
    let grid = Grid::first().await;
    let names = names(&grid).await;
    assert_eq!(names.len(), 6 + 9 + 8, "{names:#?}");
    for host in &grid.hosts {
        for how in ["+notcp", "+tcp"] {
            let answers = ask(&grid, &host.name, how, &names).await;
            assert_eq!(answers, names, "{}, {how}", host.name);
        }
    }
}

#[tokio::test]
async fn short_names_are_found_in_the_search_domains() {
    let grid = Grid::first().await;
    let names = names(&grid).await;
    let of = |name: &str| names[&format!("{name}.{}.kontena.local", grid.name)].clone();
    let member = grid
        .containers(Some((Some("testapp"), "webservice")))
        .await
        .remove(0);
    let stranger = grid.containers(Some((None, "toolbox"))).await.remove(0);
    for (container, name, expected) in [
        (&member, "db", of("testapp-db")),
        (&member, "webservice", of("testapp-webservice")),
        (&member, "webservice-2", of("testapp-webservice-2")),
        (&member, "toolbox", of("toolbox")),
        (&stranger, "testapp-webservice", of("testapp-webservice")),
        (&stranger, "webservice.testapp", of("testapp-webservice")),
    ] {
        let host = grid.host(container.node.as_deref().unwrap());
        let lookup = format!("getent ahostsv4 {name}");
        let answer = host.inside(&container.name, &lookup).await.must();
        let found: BTreeSet<Ipv4Addr> = answer
            .lines()
            .filter_map(|line| line.split_whitespace().next()?.parse().ok())
            .collect();
        assert_eq!(found, expected, "{name} in {}", container.name);
    }
}

#[tokio::test]
async fn foreign_names_are_forwarded_and_unknown_ones_of_the_zone_denied() {
    let grid = Grid::first().await;
    let project = &grid.settings.project;
    let format = format!("{{{{(index .NetworkSettings.Networks \"{project}_wan\").IPAddress}}}}");
    let registry = format!("{project}-registry");
    let expected = docker(&["inspect", "--format", &format, &registry])
        .await
        .must();
    for host in &grid.hosts {
        for how in ["+notcp", "+tcp"] {
            let dig = |name: &str| format!("dig {how} +tries=1 +time=3 {name}");
            let foreign = grid.in_toolbox(host, &dig("registry +short")).await.must();
            assert_eq!(foreign, expected, "{}, {how}", host.name);
            for unknown in [
                format!("nothing.{}.kontena.local", grid.name),
                format!("testapp-webservice-3.{}.kontena.local", grid.name),
                "nothing.kontena.local".to_owned(),
            ] {
                let answer = grid.in_toolbox(host, &dig(&unknown)).await.must();
                assert!(
                    answer.contains("status: NXDOMAIN"),
                    "{}: {answer}",
                    host.name
                );
            }
        }
    }
}

#[tokio::test]
async fn the_page_is_fetched_by_its_name_on_every_host_and_its_counter_rises() {
    let grid = Grid::first().await;
    let mut last = 0;
    for host in grid.hosts.iter().chain(&grid.hosts) {
        let toolbox = grid.toolbox(host).await.name;
        let bound = Duration::from_secs(5);
        let number = until(bound, "the page answers", async || {
            grid.page(host, &toolbox).await
        })
        .await;
        assert!(number > last, "{}: {number} after {last}", host.name);
        last = number;
    }
}
