//! The data of a placement outlives its containers, whatever ends them, and ends with it.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::Docker;
use bollard::models::{ContainerConfig, ContainerCreateBody, VolumeCreateRequest};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveVolumeOptions, WaitContainerOptions,
};
use futures_util::StreamExt;
use kontena_agent::directory::Store;
use kontena_agent::docker::volumes;
use kontena_schema::agent::{Desired, InstanceState, Own, Placement};
use kontena_schema::ids::{LeaseNumber, ServiceRevision};
use tokio::time::{interval, timeout};

use crate::host::{BOUND, ENGINE, FIRST, GRID, Host, directory, on_a_host, placement, weavewait};

const REPO: &str = "kontena-agent-data";
const IMAGE: &str = "kontena-agent-data:1";
/// The same with another path.
const WIDER: &str = "kontena-agent-data:2";
const USERS: &str = "kontena-agent-data-of-a-user";

#[test]
fn data_outlives_containers_and_ends_with_the_placement() {
    on_a_host(story);
}

async fn story(dir: PathBuf) {
    let store = Store::open(&dir.join("one")).unwrap();
    store.install_weavewait(&weavewait()).unwrap();
    let mut host = Host::start(directory(), store).await;
    host.assert_engine_is_free().await;
    host.until("what a failed run left is gone", |host| {
        host.inventory.is_empty()
    })
    .await;
    for left_by_a_failed_run in host.data().await {
        let removed = volumes::remove(&host.docker, &left_by_a_failed_run).await;
        removed.unwrap();
    }
    build(&host.docker, "1", &["/data/"]).await;
    build(&host.docker, "2", &["/data", "/more"]).await;
    let users = VolumeCreateRequest {
        name: Some(USERS.to_owned()),
        ..VolumeCreateRequest::default()
    };
    host.docker.create_volume(users).await.unwrap();

    it_has_the_images_content(&mut host).await;
    a_new_revision_has_it(&mut host).await;
    a_container_with_another_lease_has_it(&mut host).await;
    let host = an_agent_that_knows_nothing_keeps_it(host, &dir).await;
    let mut host = it_is_there_after_the_container_was_removed_by_hand(host).await;
    it_ends_with_the_placement(&mut host).await;
    let mut host = what_an_older_agent_made_goes_on(host).await;
    it_ends_with_the_placement(&mut host).await;

    for image in [IMAGE, WIDER] {
        host.untag(image).await;
    }
    let options = None::<RemoveVolumeOptions>;
    host.docker
        .remove_volume(USERS, options)
        .await
        .expect("it was a user's");
}

/// An image with a file of its own in `/data`, which belongs to somebody else than root.
async fn build(docker: &Docker, tag: &str, declared: &[&str]) {
    let command = "mkdir /data && echo of-the-image >/data/log && chown -R 123:456 /data";
    let body = ContainerCreateBody {
        image: Some("kontena/base".to_owned()),
        cmd: Some(["sh", "-c", command].map(str::to_owned).to_vec()),
        ..ContainerCreateBody::default()
    };
    let options = None::<bollard::query_parameters::CreateContainerOptions>;
    let id = docker.create_container(options, body).await.unwrap().id;
    docker.start_container(&id, None).await.unwrap();
    let mut ends = docker.wait_container(&id, None::<WaitContainerOptions>);
    ends.next()
        .await
        .unwrap()
        .expect("the image cannot be built");
    let options = CommitContainerOptionsBuilder::default()
        .container(&id)
        .repo(REPO)
        .tag(tag)
        .changes(&format!(
            "VOLUME {}",
            serde_json::to_string(declared).unwrap()
        ))
        .build();
    docker
        .commit_container(options, ContainerConfig::default())
        .await
        .unwrap();
    docker.remove_container(&id, None).await.unwrap();
}

/// A container that adds a line to what is there, and shows all of it with its owner.
fn with_data(revision: i64, image: &str) -> Placement {
    let mut placement = placement(FIRST, 1, image);
    let command = "echo started >>/data/log; cat /data/log; stat -c %u:%g /data; \
        trap exit TERM; sleep 1000 & wait";
    placement.spec.cmd = Some(["sh", "-c", command].map(str::to_owned).to_vec());
    placement.service_revision = ServiceRevision(revision);
    placement
}

/// Waits until a container of this revision has seen so many starts, its own included.
async fn until_started(host: &mut Host, revision: i64, times: usize) -> String {
    let revision = ServiceRevision(revision);
    let is = |host: &kontena_agent::report::HostState| {
        host.reported.placements.get(&FIRST).is_some_and(|report| {
            report.service_revision == revision && report.state == InstanceState::Running
        })
    };
    let state = host.until("it runs", is).await;
    let id = state.reported.placements[&FIRST]
        .container_id
        .clone()
        .unwrap();
    host.until_logged(&id, "123:456", 1).await;
    host.until_logged(&id, "of-the-image", 1).await;
    host.until_logged(&id, "started", times).await;
    id
}

async fn it_has_the_images_content(host: &mut Host) {
    host.place(with_data(1, IMAGE));
    until_started(host, 1, 1).await;
}

async fn a_new_revision_has_it(host: &mut Host) {
    host.place(with_data(2, IMAGE));
    until_started(host, 2, 2).await;
    // Another path is new, and nothing happens to the one that stays.
    host.place(with_data(3, WIDER));
    let id = until_started(host, 3, 3).await;
    let mounts = host
        .docker
        .inspect_container(&id, None)
        .await
        .unwrap()
        .mounts;
    let mounts = mounts.unwrap_or_default();
    let paths = mounts
        .iter()
        .filter_map(|mount| mount.destination.as_deref());
    let mut paths: Vec<_> = paths.collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/data", "/more", "/w"]);
}

async fn a_container_with_another_lease_has_it(host: &mut Host) {
    let mut moved = with_data(4, IMAGE);
    (moved.address, moved.lease) = (None, None);
    host.place(moved);
    host.until("the container is gone", |host| host.inventory.is_empty())
        .await;
    let mut moved = with_data(4, IMAGE);
    moved.address = Some([10, 81, 1, 9].into());
    moved.lease = Some(LeaseNumber(99));
    host.place(moved);
    until_started(host, 4, 4).await;
}

/// A new agent with empty files, to which the Master has not spoken.
async fn an_agent_that_knows_nothing_keeps_it(host: Host, dir: &std::path::Path) -> Host {
    let (known, ..) = host.end();
    let store = Store::open(&dir.join("two")).unwrap();
    store.install_weavewait(&weavewait()).unwrap();
    let mut unknown = directory();
    unknown.confirmed = false;
    let mut host = Host::start(unknown, store).await;
    // It removes the container, which no placement confirms, and leaves the data.
    host.until("the container is gone", |host| host.inventory.is_empty())
        .await;
    assert_eq!(host.data().await.len(), 2, "of /data and /more");
    let (_, store, _) = host.end();
    let mut host = Host::start(known, store).await;
    until_started(&mut host, 4, 5).await;
    host
}

async fn it_is_there_after_the_container_was_removed_by_hand(mut host: Host) -> Host {
    let id = until_started(&mut host, 4, 5).await;
    let (known, store, _) = host.end();
    remove_with_volumes(&connect_again().await, &id).await;
    let mut host = Host::start(known, store).await;
    until_started(&mut host, 4, 6).await;
    host
}

async fn connect_again() -> Docker {
    crate::host::connect(std::path::Path::new(ENGINE)).await
}

async fn remove_with_volumes(docker: &Docker, id: &str) {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true);
    let options = Some(options.build());
    docker.remove_container(id, options).await.unwrap();
}

async fn it_ends_with_the_placement(host: &mut Host) {
    let mut removed = host.directory.placements[&FIRST].clone();
    removed.desired = Desired::Removed;
    host.place(removed);
    host.until_placement(FIRST, InstanceState::Removed).await;
    // The Master forgets it at once, and what could not be removed by then is removed.
    host.change(Own {
        gone_placements: vec![FIRST],
        ..Own::default()
    });
    let gone = async {
        let mut looks = interval(std::time::Duration::from_millis(50));
        while !host.data().await.is_empty() {
            looks.tick().await;
        }
    };
    let gone = timeout(BOUND, gone).await.is_ok();
    assert!(gone, "left: {:?}", host.data().await);
}

/// The agent before gave its containers anonymous volumes.
async fn what_an_older_agent_made_goes_on(mut host: Host) -> Host {
    host.place(with_data(1, IMAGE));
    let id = until_started(&mut host, 1, 1).await;
    let (known, store, _) = host.end();
    let docker = connect_again().await;
    let made = docker.inspect_container(&id, None).await.unwrap();
    remove_with_volumes(&docker, &id).await;
    for volume in volumes::list(&docker).await.unwrap() {
        assert_eq!(volume.owner.grid, GRID);
        volumes::remove(&docker, &volume).await.unwrap();
    }
    let config = made.config.unwrap();
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        labels: config.labels,
        cmd: config.cmd,
        // Without an interface to wait for.
        entrypoint: Some(vec![String::new()]),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::default().name("stack.web-1");
    let old = docker.create_container(Some(options.build()), body).await;
    let old = old.unwrap().id;
    let mounts = docker.inspect_container(&old, None).await.unwrap().mounts;
    let anonymous = mounts.unwrap()[0].name.clone().unwrap();
    assert!(volumes::list(&docker).await.unwrap().is_empty());

    let mut host = Host::start(known, store).await;
    until_started(&mut host, 1, 1).await;
    host.place(with_data(2, IMAGE));
    until_started(&mut host, 2, 2).await;
    host.place(with_data(3, IMAGE));
    until_started(&mut host, 3, 3).await;
    // It is the very volume, and goes with its entry.
    let data: HashMap<_, _> = (host.data().await.into_iter())
        .map(|volume| (volume.path.clone(), volume.data().to_owned()))
        .collect();
    assert_eq!(data, [("/data".to_owned(), anonymous.clone())].into());
    it_ends_with_the_placement(&mut host).await;
    let left = docker.inspect_volume(&anonymous).await;
    assert!(left.is_err(), "{left:?}");
    host.place(with_data(4, IMAGE));
    until_started(&mut host, 4, 1).await;
    host
}

impl Host {
    /// The volumes of the placements of this host.
    async fn data(&self) -> Vec<volumes::Volume> {
        let mut all = volumes::list(&self.docker).await.unwrap();
        all.retain(|volume| volume.owner.grid == GRID);
        all
    }
}
