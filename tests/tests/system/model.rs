//! Numbers and addresses of the network model.

use std::net::Ipv4Addr;

use kontena_tests::Grid;

fn addresses_of(containers: &[kontena_schema::http::containers::Container]) -> Vec<Ipv4Addr> {
    let mut sorted: Vec<_> = containers.iter().collect();
    sorted.sort_by_key(|container| container.instance_number);
    sorted
        .iter()
        .filter_map(|container| container.ip_address)
        .collect()
}

#[tokio::test]
async fn nodes_are_numbered_in_the_order_of_joining_and_have_addresses_by_number() {
    let grid = Grid::first().await;
    let nodes = grid.client.node_list(&grid.name).await.unwrap().nodes;
    assert_eq!(nodes.len(), 3, "{nodes:#?}");
    for (node, number) in nodes.iter().zip(1..) {
        let address = Ipv4Addr::new(10, 81, 0, number);
        assert_eq!(node.name, format!("node-{number}"));
        assert_eq!((node.node_number, node.overlay_ip), (number, address));
        let shown = grid
            .host(&node.name)
            .run("ip -4 -o addr show dev kontena")
            .await
            .must();
        assert!(
            shown.contains(&format!("inet {address}/17 ")),
            "{}: {shown}",
            node.name
        );
    }
}

#[tokio::test]
async fn the_first_containers_of_a_grid_get_the_addresses_of_the_models_example() {
    let grid = Grid::first().await;
    let db = grid.containers(Some((Some("testapp"), "db"))).await;
    assert_eq!(addresses_of(&db), [Ipv4Addr::new(10, 81, 1, 1)]);
    let webservice = grid.containers(Some((Some("testapp"), "webservice"))).await;
    let second_and_third = [2, 3].map(|last| Ipv4Addr::new(10, 81, 1, last));
    assert_eq!(addresses_of(&webservice), second_and_third);
}

#[tokio::test]
async fn a_container_has_ethwe_with_the_grids_prefix_and_leaves_by_dockers_bridge() {
    let grid = Grid::first().await;
    let containers = [
        grid.containers(Some((Some("testapp"), "db"))).await,
        grid.containers(Some((Some("testapp"), "webservice"))).await,
        grid.containers(Some((None, "toolbox"))).await,
    ];
    for container in containers.iter().flatten() {
        let host = grid.host(container.node.as_deref().unwrap());
        let look = "ip -4 -o addr show; ip -4 route show; ip -o link show dev ethwe";
        let shown = host.beside(&container.name, look).await.must();
        let address = container.ip_address.unwrap();
        for line in [
            format!(" ethwe    inet {address}/17 "),
            "default via 172.17.0.1 dev eth0".to_owned(),
            "10.81.0.0/17 dev ethwe ".to_owned(),
            "state UP".to_owned(),
        ] {
            assert!(
                shown.contains(&line),
                "{}: no {line:?} in:\n{shown}",
                container.name
            );
        }
    }
}
