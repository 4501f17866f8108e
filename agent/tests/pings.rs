//! Pings that the Master asks for, from its row to what is told of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Arc;

use kontena_agent::directory::Directory;
use kontena_agent::pings::{Pings, PingsSlot, Told};
use kontena_agent::report::{self, HostState};
use kontena_schema::agent::{
    Changes, Own, PROTOCOL, PeerReport, Ping, PingResult, PingState, Shared, Welcome,
};
use kontena_schema::ids::{Epoch, GridId, NodeId, PingId, Revision};
use kontena_schema::limits::PINGS_MAX;
use kontena_schema::path::Path;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use kontena_overlay_lab::{Host, converge, eventually, trusting, underlay, world};

/// What a host's directory has when it was asked for pings.
fn directory(own: &Host, all: &[&Host], pings: Vec<Ping>) -> Arc<Directory> {
    let mut directory = Directory::default();
    directory.welcome(&Welcome {
        protocol: PROTOCOL,
        node: own.node.id,
        name: own.node.name.clone(),
        number: own.node.number,
        grid: GridId(7),
        grid_name: "grid-7".to_owned(),
        epoch: Epoch(1),
        node_token: None,
    });
    let shared = Shared {
        grid: Some(trusting()),
        nodes: all.iter().map(|host| host.node.clone()).collect(),
        ..Shared::default()
    };
    let own = Own {
        pings,
        ..Own::default()
    };
    let changes = Changes {
        timeline: "t1".to_owned(),
        from: Revision::ZERO,
        to: Revision(1),
        shared,
        own,
    };
    directory.merge(changes).unwrap();
    Arc::new(directory)
}

fn ping(id: i64, peer: NodeId, count: u16) -> Ping {
    let id = PingId(id);
    Ping { id, peer, count }
}

/// The task at work on a host.
struct Running {
    directory: watch::Sender<Arc<Directory>>,
    slot: PingsSlot,
    task: JoinHandle<()>,
}

impl Running {
    fn start(host: &Host, known: Arc<Directory>, path: (NodeId, Path)) -> Self {
        let (peer, path) = path;
        let report = PeerReport {
            node: peer,
            path,
            unreachable: None,
            sealed_because: None,
            next_key: None,
        };
        let reported = report::Reported {
            peers: [(peer, report)].into(),
            ..report::Reported::default()
        };
        let state = HostState {
            node: Some(host.node.id),
            inventory: Vec::new(),
            reported,
        };
        let (directory, directory_out) = watch::channel(known);
        let (_, host_state) = watch::channel(Some(Arc::new(state)));
        let (slot_in, slot) = watch::channel(Arc::<Told>::default());
        let (overlay, runtime) = host.agent();
        let (_, overlay) = watch::channel(Some(overlay));
        let task = runtime.spawn(Pings::new(directory_out, host_state, overlay, slot_in).run());
        Self {
            directory,
            slot,
            task,
        }
    }

    /// How far the pings are, as soon as this is so of all that are told.
    fn when(
        &self,
        what: &str,
        is: impl Fn(&BTreeMap<i64, PingState>) -> bool,
    ) -> BTreeMap<i64, PingState> {
        eventually(what, || {
            let told = self.slot.borrow().reports.clone();
            let states = told.into_iter().map(|report| (report.ping.0, report.state));
            let states: BTreeMap<_, _> = states.collect();
            if is(&states) {
                Ok(states)
            } else {
                Err(format!("{states:?}"))
            }
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn all_ended(states: &BTreeMap<i64, PingState>) -> bool {
    !states.values().any(|state| *state == PingState::Started)
}

#[test]
fn overlay_pings_are_begun_when_they_are_asked_for_and_once() {
    let (_switch, hosts) = world(2, &trusting());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = all[..] else { unreachable!() };
    let path = Path::Fast { to: underlay(2) };
    let known = directory(a, &all, vec![ping(3, b.node.id, 3)]);
    let running = Running::start(a, known, (b.node.id, path));
    // It was there when the agent started: who knows how far it came before.
    let states = running.when("the old one is told", |states| states.len() == 1);
    assert!(
        matches!(states[&3], PingState::Interrupted { .. }),
        "{states:?}"
    );

    let (stranger, asked) = (NodeId(9), b.node.id);
    let pings = vec![ping(3, asked, 3), ping(4, asked, 2), ping(5, stranger, 3)];
    running.directory.send_replace(directory(a, &all, pings));
    let began = running.when("both are begun", |states| states.len() == 3);
    let unknown = PingState::Failed {
        error: "the other node is not known here".to_owned(),
    };
    assert_eq!(began[&5], unknown);
    let ended = running.when("both have ended", |states| {
        states.len() == 3 && all_ended(states)
    });
    let PingState::Done { result } = &ended[&4] else {
        panic!("{ended:?}")
    };
    let PingResult {
        sent,
        received,
        mtu,
        ..
    } = result;
    assert_eq!((result.path, *sent, *received, *mtu), (path, 2, 2, 1370));
    assert!(result.full_size_passes);
    let trips = result.round_trips.unwrap();
    assert!(
        trips.min_us <= trips.avg_us && trips.avg_us <= trips.max_us,
        "{trips:?}"
    );
    assert!(0 < trips.min_us && trips.max_us < 1_000_000, "{trips:?}");
    assert_eq!(running.slot.borrow().node, Some(a.node.id));

    // The same again changes nothing; what is new is begun.
    let pings = vec![ping(4, asked, 2), ping(6, asked, 1)];
    running.directory.send_replace(directory(a, &all, pings));
    let more = running.when("the new one has ended", |states| {
        states.len() == 4 && all_ended(states)
    });
    assert_eq!(more[&4], ended[&4]);
    assert!(matches!(more[&6], PingState::Done { .. }), "{more:?}");
}

#[test]
fn overlay_pings_run_side_by_side_and_are_few() {
    let (_switch, hosts) = world(2, &trusting());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = all[..] else { unreachable!() };
    converge(&trusting(), &all);
    let path = (b.node.id, Path::Unknown);
    let running = Running::start(a, directory(a, &all, vec![]), path);
    let many = PINGS_MAX as i64 + 1;
    let pings = (1..=many).map(|id| ping(id, b.node.id, 3)).collect();
    running.directory.send_replace(directory(a, &all, pings));
    let all_there = |states: &BTreeMap<_, _>| states.len() as i64 == many;
    let began = running.when("they are begun", all_there);
    assert!(matches!(&began[&many], PingState::Failed { error } if error.contains("under way")));
    let ended = running.when("they have ended", all_ended);
    let done =
        |state: &&PingState| matches!(state, PingState::Done { result } if result.received == 3);
    assert_eq!(ended.values().filter(done).count(), PINGS_MAX, "{ended:?}");
}
