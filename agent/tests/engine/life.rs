//! The life of containers, from their creation to their end.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use kontena_agent::directory::{Directory, Store};
use kontena_agent::report::HostState;
use kontena_schema::agent::{
    Command as WantedCommand, CommandKind, CommandState, Desired, InstanceState, Own,
};
use kontena_schema::ids::{CommandId, LeaseNumber, Revision, ServiceRevision};
use kontena_schema::mac::Mac;

use tokio::time::sleep;

use crate::host::{FIRST, Host, SECOND, directory, on_a_host, placement, weavewait};

const IMAGE: &str = "kontena-agent-test:1";

#[test]
fn the_life_of_containers_on_a_real_engine() {
    on_a_host(story);
}

async fn story(dir: PathBuf) {
    let store = Store::open(&dir).unwrap();
    store.install_weavewait(&weavewait()).unwrap();
    let unknown = Host::start(Directory::default(), store.clone()).await;
    unknown.assert_engine_is_free().await;
    unknown.tag_base(IMAGE).await;
    drop(unknown);

    let mut host = Host::start(directory(), store).await;
    host.until("what a failed run left is gone", |host| {
        host.inventory.is_empty()
    })
    .await;
    let id = it_starts(&mut host).await;
    it_survives_restarts(&mut host, &id).await;
    let host = it_is_adopted_by_the_next_agent(host, &id).await;
    let mut host = outdated_state_changes_nothing(host, &id).await;
    a_command_restarts_it_once(&mut host).await;
    what_cannot_start_says_why_and_delays_nobody(&mut host).await;
    a_new_revision_replaces_it(&mut host, &id).await;
    it_stops_and_goes(&mut host).await;
    host.untag(IMAGE).await;
}

fn mac() -> String {
    Mac::of_lease([10, 81, 1, 1].into(), LeaseNumber(11)).to_string()
}

async fn it_starts(host: &mut Host) -> String {
    host.place(placement(FIRST, 1, IMAGE));
    let report = host.until_placement(FIRST, InstanceState::Running).await;
    assert_eq!(report.container_name.as_deref(), Some("stack.web-1"));
    assert_eq!(report.lease, Some(LeaseNumber(11)));
    host.until_named(1).await;
    let id = report.container_id.unwrap();
    host.until_logged(&id, &mac(), 1).await;
    let entry = &host.host.borrow().clone().unwrap().inventory[0];
    assert_eq!(
        (entry.placement, entry.address),
        (FIRST, [10, 81, 1, 1].into())
    );
    id
}

async fn it_survives_restarts(host: &mut Host, id: &str) {
    // By an operator, then by Docker after a crash.
    host.docker.restart_container(id, None).await.unwrap();
    host.until_logged(id, &mac(), 2).await;
    host.docker.kill_container(id, None).await.unwrap();
    host.until_logged(id, &mac(), 3).await;
    host.until_placement(FIRST, InstanceState::Running).await;
    host.until_named(1).await;
}

async fn it_is_adopted_by_the_next_agent(host: Host, id: &str) -> Host {
    let mut host = host.restart().await;
    let report = host.until_placement(FIRST, InstanceState::Running).await;
    assert_eq!(report.container_id.as_deref(), Some(id));
    host
}

/// The disk knows of another container, and not of this one: a newer state could not be
/// saved.
async fn outdated_state_changes_nothing(host: Host, id: &str) -> Host {
    let (newest, store, socket) = host.end();
    let mut known = newest.clone();
    known.outdated = true;
    known.placements.remove(&FIRST);
    let other = placement(SECOND, 2, IMAGE);
    known.placements.insert(SECOND, other);
    let mut host = Host::start_through(&socket, known, store).await;
    let passed = |host: &HostState| {
        let reported = &host.reported;
        reported.placements.contains_key(&SECOND) && reported.applied > Revision::ZERO
    };
    host.until("both loops have passed", passed).await;
    // That nothing is done has no end to wait for. What the pass above began shows at once; this
    // is for what a later one might, and on a slow machine the test only sees less.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(host.reported(SECOND).state, InstanceState::Pending);
    let container = host.docker.inspect_container(id, None).await.unwrap();
    assert_eq!(container.state.unwrap().running, Some(true));
    let link = Command::new("ip")
        .args(["link", "show", "vethweb"])
        .output();
    assert!(link.unwrap().status.success(), "its interface stays");

    // The Master has spoken.
    host.directory = newest;
    host.change(Own::default());
    let report = host.until_placement(FIRST, InstanceState::Running).await;
    assert_eq!(report.container_id.as_deref(), Some(id));
    host
}

async fn a_command_restarts_it_once(host: &mut Host) {
    let (id, placement) = (CommandId(1), FIRST);
    let command = WantedCommand {
        id,
        placement,
        kind: CommandKind::Restart,
    };
    host.change(Own {
        commands: vec![command],
        ..Own::default()
    });
    let done = |host: &HostState| {
        host.reported
            .commands
            .get(&id)
            .is_some_and(|report| report.state == CommandState::Done)
    };
    host.until("the command is done", done).await;
    let report = host.until_placement(FIRST, InstanceState::Running).await;
    host.until_logged(report.container_id.as_deref().unwrap(), &mac(), 4)
        .await;
}

async fn what_cannot_start_says_why_and_delays_nobody(host: &mut Host) {
    host.place(placement(SECOND, 2, "127.0.0.1:1/nobody/nothing:1"));
    let report = host.until_placement(SECOND, InstanceState::Failed).await;
    assert!(
        report
            .error
            .unwrap()
            .contains("127.0.0.1:1/nobody/nothing:1")
    );
    host.until_placement(FIRST, InstanceState::Running).await;
    // What it is told to run instead is tried at once.
    let mut good = placement(SECOND, 2, IMAGE);
    good.service_revision = ServiceRevision(2);
    host.place(good);
    host.until_placement(SECOND, InstanceState::Running).await;
    host.until_named(2).await;
}

async fn a_new_revision_replaces_it(host: &mut Host, id: &str) {
    let mut new = placement(FIRST, 1, IMAGE);
    new.service_revision = ServiceRevision(2);
    host.place(new);
    let is = |host: &HostState| {
        host.reported.placements.get(&FIRST).is_some_and(|report| {
            report.service_revision == ServiceRevision(2) && report.state == InstanceState::Running
        })
    };
    let state = host.until("the new revision runs", is).await;
    assert_ne!(
        state.reported.placements[&FIRST].container_id.as_deref(),
        Some(id)
    );
}

async fn it_stops_and_goes(host: &mut Host) {
    let mut stopped = placement(FIRST, 1, IMAGE);
    stopped.service_revision = ServiceRevision(2);
    stopped.desired = Desired::Stopped;
    host.place(stopped.clone());
    host.until_placement(FIRST, InstanceState::Stopped).await;
    host.until_named(1).await;

    stopped.desired = Desired::Removed;
    host.place(stopped);
    host.until_placement(FIRST, InstanceState::Removed).await;
    // The second one vanishes without a word of the Master's.
    host.change(Own {
        gone_placements: vec![FIRST, SECOND],
        ..Own::default()
    });
    host.until("nothing is left", |host| host.inventory.is_empty())
        .await;
    host.until_named(0).await;
}
