//! Services that change: more instances and fewer, another description, a
//! published port.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use kontena_schema::http::containers::Container;
use kontena_schema::http::services::{Port, Protocol};
use kontena_schema::http::stacks::StackCreate;
use kontena_tests::{Grid, service, until};

/// Node and address of each instance.
fn places(containers: &[Container]) -> BTreeMap<u32, (Option<String>, Option<Ipv4Addr>)> {
    let place = |c: &Container| (c.instance_number, (c.node.clone(), c.ip_address));
    containers.iter().map(place).collect()
}

fn stack(name: &str, version: &str, instances: u32) -> StackCreate {
    let mut changing = service("web", "exec sleep infinity");
    changing.instances = Some(instances);
    changing.spec.env = vec![format!("VERSION={version}")];
    StackCreate {
        name: name.to_owned(),
        services: vec![changing],
        ..StackCreate::default()
    }
}

async fn stack_clear(grid: &Grid, name: &str) {
    match grid.client.stack_remove(&grid.name, name).await {
        Err(kontena::Error::Api(refusal)) if refusal.status == 404 => return,
        other => other.unwrap(),
    }
    until(Duration::from_secs(30), "the stack is gone", async || {
        let stacks = grid.client.stack_list(&grid.name).await.unwrap().stacks;
        let left = stacks.into_iter().find(|stack| stack.name == name);
        left.map_or(Ok(()), |left| Err(format!("{left:#?}")))
    })
    .await;
}

async fn stack_deploy(grid: &Grid, name: &str) {
    let deploy = grid.client.stack_deploy(&grid.name, name).await.unwrap();
    for deploy in &deploy.service_deploys {
        grid.deployed(deploy).await;
    }
}

/// What an instance was told in its environment.
async fn version(grid: &Grid, container: &Container) -> String {
    let host = grid.host(container.node.as_deref().unwrap());
    host.inside(&container.name, "echo $VERSION").await.must()
}

#[tokio::test]
async fn a_changed_stack_gets_new_containers_with_the_same_addresses() {
    let grid = Grid::first().await;
    let name = "changing";
    stack_clear(&grid, name).await;
    grid.client
        .stack_create(&grid.name, &stack(name, "one", 2))
        .await
        .unwrap();
    stack_deploy(&grid, name).await;
    let before = grid.running(Some(name), "web", 2).await;

    grid.client
        .stack_update(&grid.name, name, &stack(name, "two", 2))
        .await
        .unwrap();
    stack_deploy(&grid, name).await;
    let after = grid.running(Some(name), "web", 2).await;
    assert_eq!(places(&after), places(&before));
    for (new, old) in after.iter().zip(&before) {
        assert_ne!(new.container_id, old.container_id, "{new:#?}");
        assert_eq!(version(&grid, new).await, "two");
    }

    // The same description again is no change.
    grid.client
        .stack_update(&grid.name, name, &stack(name, "two", 2))
        .await
        .unwrap();
    stack_deploy(&grid, name).await;
    let again = grid.running(Some(name), "web", 2).await;
    let ids = |containers: &[Container]| -> Vec<_> {
        containers.iter().map(|c| c.container_id.clone()).collect()
    };
    assert_eq!(ids(&again), ids(&after));
    stack_clear(&grid, name).await;
}

#[tokio::test]
async fn scaling_adds_and_removes_the_highest_instances_and_moves_nobody() {
    let grid = Grid::first().await;
    let name = "scaled";
    grid.service_clear(name).await;
    grid.service_make(&service(name, "exec sleep infinity"))
        .await;
    let one = grid.running(None, name, 1).await;
    let mut known = places(&one);
    for count in [4_u32, 2] {
        let deploy = grid
            .client
            .service_scale(&grid.name, None, name, count)
            .await
            .unwrap();
        grid.deployed(&deploy).await;
        let containers = grid.running(None, name, count as usize).await;
        let places = places(&containers);
        assert!(places.keys().copied().eq(1..=count), "{places:#?}");
        for (instance, place) in &places {
            assert_eq!(
                known.get(instance).unwrap_or(place),
                place,
                "instance {instance}"
            );
        }
        names_answer_with(&grid, name, &places).await;
        known = places;
    }
    assert!(known.contains_key(&1));
    grid.service_clear(name).await;
}

/// Waits until every host answers the service's name with these instances.
async fn names_answer_with(
    grid: &Grid,
    name: &str,
    places: &BTreeMap<u32, (Option<String>, Option<Ipv4Addr>)>,
) {
    let mut expected: Vec<_> = places
        .values()
        .filter_map(|(_, address)| *address)
        .collect();
    expected.sort_unstable();
    let dig = format!(
        "dig +short +tries=1 +time=2 {name}.{}.kontena.local",
        grid.name
    );
    for host in &grid.hosts {
        let toolbox = grid.toolbox(host).await.name;
        let what = format!("{} answers {name} with {expected:?}", host.name);
        until(Duration::from_secs(5), &what, async || {
            let answer = host.inside(&toolbox, &dig).await.ok()?;
            let mut found: Vec<Ipv4Addr> = answer
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect();
            found.sort_unstable();
            if found == expected {
                Ok(())
            } else {
                Err(answer)
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_published_port_answers_at_the_address_of_its_node() {
    let grid = Grid::first().await;
    let name = "published";
    grid.service_clear(name).await;
    let mut published = service(
        name,
        "exec socat TCP-LISTEN:8080,fork,reuseaddr SYSTEM:'echo from $HOSTNAME'",
    );
    published.spec.ports = vec![Port {
        ip: Ipv4Addr::UNSPECIFIED,
        protocol: Protocol::Tcp,
        node_port: 18080,
        container_port: 8080,
    }];
    grid.service_make(&published).await;
    let container = grid.running(None, name, 1).await.remove(0);
    let node = container.node.as_deref().unwrap();
    let address = grid.host(node).wan_address().await;
    let connect = format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/18080; cat <&3'");
    for host in grid.hosts.iter().filter(|host| host.name != node) {
        let answer = host.run(&connect).await.must();
        assert_eq!(answer, format!("from {name}-1"), "from {}", host.name);
    }
    grid.service_clear(name).await;
    let gone = grid.host(node).run(&connect).await;
    assert_ne!(gone.status, Some(0), "{}", gone.describe());
}
