//! The bridges of a real Docker engine, as users make networks and remove them.
//!
//! It needs the engine at `/var/run/docker.sock`.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bollard::Docker;
use bollard::models::NetworkCreateRequest;
use kontena_agent::docker::networks;
use kontena_task::Tasks;
use tokio::sync::watch;
use tokio::time::timeout;

const BOUND: Duration = Duration::from_secs(10);
const GIVEN: &str = "kontena-nettest";

async fn until(bridges: &mut networks::BridgesSlot, is: impl Fn(&BTreeSet<String>) -> bool) {
    let so = timeout(
        BOUND,
        bridges.wait_for(|names| names.as_ref().is_some_and(&is)),
    );
    // Whoever publishes must be there still.
    let so = matches!(so.await, Ok(Ok(_)));
    assert!(so, "the last ones are {:?}", bridges.borrow());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bridges_of_networks_are_known_as_they_come_and_go() {
    let docker = Docker::connect_with_unix_defaults().unwrap();
    let docker = docker.negotiate_version().await.unwrap();
    // What a run before may have left.
    let left = [format!("{GIVEN}-plain"), format!("{GIVEN}-given")];
    for name in &left {
        let _ = docker.remove_network(name).await;
    }
    let (slot, mut bridges) = watch::channel(None);
    let mut tasks = Tasks::new();
    tasks.spawn("networks", networks::watch(docker.clone(), slot));
    until(&mut bridges, |names| names.contains("docker0")).await;

    let [plain, given] = left;
    let options = HashMap::from([("com.docker.network.bridge.name", GIVEN)]);
    let options = options
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
    for (name, options) in [(&plain, HashMap::new()), (&given, options.collect())] {
        let create = NetworkCreateRequest {
            name: name.clone(),
            options: Some(options),
            ..NetworkCreateRequest::default()
        };
        docker.create_network(create).await.unwrap();
    }
    let id = docker.inspect_network(&plain, None).await.unwrap().id;
    let of_plain = format!("br-{}", &id.unwrap()[..12]);
    for bridge in [&of_plain, GIVEN] {
        until(&mut bridges, |names| names.contains(bridge)).await;
        // The kernel knows it by that name.
        assert!(std::path::Path::new("/sys/class/net").join(bridge).exists());
    }
    for name in [&plain, &given] {
        docker.remove_network(name).await.unwrap();
    }
    until(&mut bridges, |names| {
        !names.contains(&of_plain) && !names.contains(GIVEN) && names.contains("docker0")
    })
    .await;
}
