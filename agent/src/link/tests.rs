//! The link against a small Master: only the protocol's state machine, on real
//! sockets. What the Master decides is tested with the real one.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures_util::{SinkExt, StreamExt};
use kontena_schema::agent::{
    Changes, FromAgent, Hello, HostMeasures, Measures, Own, PINGS_SINCE, PROTOCOL, PingReport,
    PingState, Report, Shared, ToAgent, Welcome, close,
};
use kontena_schema::ids::{NodeId, PingId, Revision};
use kontena_schema::limits::HELLO_WITHIN;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::*;
use crate::config::Args;
use crate::directory::tests::{directory, snapshot, welcome};
use crate::facts::HostFacts;
use crate::pings::Told;
use crate::report::{self, HostState};
use crate::testing::TempDir;
use kontena_task::Tasks;

const BOUND: Duration = Duration::from_secs(20);

/// An agent's link, and the Master that it connects to.
struct Bed {
    listener: TcpListener,
    store: Store,
    directory: watch::Receiver<Arc<Directory>>,
    host: watch::Sender<Option<Arc<HostState>>>,
    facts: watch::Sender<Option<Arc<HostFacts>>>,
    measures: watch::Sender<Option<Arc<HostMeasures>>>,
    pings: watch::Sender<Arc<Told>>,
    _tasks: Tasks,
    _dir: TempDir,
}

fn facts() -> HostFacts {
    HostFacts {
        engine_id: "engine".to_owned(),
        boot_id: "boot".to_owned(),
        facts: kontena_schema::agent::Facts {
            hostname: "host".to_owned(),
            agent_version: "0".to_owned(),
            docker_version: "20".to_owned(),
            kernel_version: "6".to_owned(),
            os: "linux".to_owned(),
            labels: Vec::new(),
            region: "default".to_owned(),
            public_ip: None,
            private_ip: None,
            behind_nat: None,
            cpus: 1,
            mem_total_bytes: 1,
            keys: None,
            networks: None,
        },
    }
}

fn host(node: i64, applied: i64) -> Option<Arc<HostState>> {
    let reported = report::Reported {
        applied: Revision(applied),
        ..report::Reported::default()
    };
    Some(Arc::new(HostState {
        node: Some(NodeId(node)),
        inventory: Vec::new(),
        reported,
    }))
}

async fn bed(known: Directory, node_token: Option<&str>) -> Bed {
    let dir = TempDir::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let args = ["kontena-agent", "--uri", &uri, "--token", "join"];
    let config = Arc::new(Args::parse_from(args).check().unwrap());
    let store = Store::open(dir.path()).unwrap();
    if let Some(token) = node_token {
        store.save_node_token(token).unwrap();
    }
    let (directory_in, directory) = watch::channel(Arc::new(known));
    let (host, host_out) = watch::channel(host(1, 7));
    let (facts, facts_out) = watch::channel(Some(Arc::new(facts())));
    let (measures, measures_out) = watch::channel(None);
    let (pings, pings_out) = watch::channel(Arc::default());
    let link = Link::new(
        config,
        store.clone(),
        directory_in,
        Slots {
            host: host_out,
            facts: facts_out,
            measures: measures_out,
            pings: pings_out,
        },
        Arc::default(),
        crate::dns::lookup::Lookup::of_host(),
    );
    let mut tasks = Tasks::new();
    tasks.spawn("link", link.run());
    Bed {
        listener,
        store,
        directory,
        host,
        facts,
        measures,
        pings,
        _tasks: tasks,
        _dir: dir,
    }
}

/// The Master's end of one connection.
struct Peer {
    socket: WebSocketStream<TcpStream>,
    token: String,
}

impl Bed {
    // The signature is the library's.
    #[allow(clippy::result_large_err)]
    async fn accept(&self) -> Peer {
        let (stream, _) = timeout(BOUND, self.listener.accept())
            .await
            .expect("no agent")
            .unwrap();
        let mut token = String::new();
        let look = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            assert_eq!(request.uri().path(), "/v1/agent");
            token = request.headers()["authorization"]
                .to_str()
                .unwrap()
                .to_owned();
            Ok(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(stream, look)
            .await
            .unwrap();
        Peer { socket, token }
    }

    async fn welcomed(&self) -> (Peer, Hello) {
        let mut peer = self.accept().await;
        let hello = peer.hello().await;
        peer.send(&ToAgent::Welcome(Box::new(welcome(1)))).await;
        (peer, hello)
    }

    async fn at(&mut self, revision: i64) -> Arc<Directory> {
        let there = self
            .directory
            .wait_for(|known| known.revision() == Revision(revision));
        timeout(BOUND, there)
            .await
            .expect("the revision does not come")
            .unwrap()
            .clone()
    }
}

impl Peer {
    async fn send(&mut self, message: &ToAgent) {
        let json = serde_json::to_string(message).unwrap();
        self.socket.send(Message::text(json)).await.unwrap();
    }

    async fn close(mut self, code: u16) {
        let frame = CloseFrame {
            code: code.into(),
            reason: "test".into(),
        };
        self.socket.send(Message::Close(Some(frame))).await.unwrap();
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    async fn next(&mut self) -> FromAgent {
        loop {
            let frame = timeout(BOUND, self.socket.next())
                .await
                .expect("the agent is silent");
            match frame
                .expect("the agent left")
                .expect("the connection broke")
            {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn hello(&mut self) -> Hello {
        match self.next().await {
            FromAgent::Hello(hello) => *hello,
            other => panic!("{other:?}"),
        }
    }

    async fn report(&mut self) -> Report {
        match self.next().await {
            FromAgent::Report(report) => *report,
            other => panic!("{other:?}"),
        }
    }

    /// The agent gives this connection up.
    async fn left(mut self) {
        let end = async { while let Some(Ok(_)) = self.socket.next().await {} };
        timeout(BOUND, end).await.expect("the agent stays");
    }
}

fn changes(from: i64, to: i64) -> ToAgent {
    ToAgent::Changes(Box::new(Changes {
        timeline: "t1".to_owned(),
        from: Revision(from),
        to: Revision(to),
        shared: Shared::default(),
        own: Own::default(),
    }))
}

#[tokio::test]
async fn it_joins_keeps_its_token_and_comes_back_from_where_it_was() {
    let mut bed = bed(Directory::default(), None).await;
    let mut peer = bed.accept().await;
    assert_eq!(peer.token, "Bearer join");
    let first = peer.hello().await;
    assert_eq!(first.position, None);
    let token = Some("node".to_owned());
    peer.send(&ToAgent::Welcome(Box::new(Welcome {
        node_token: token,
        ..welcome(1)
    })))
    .await;
    peer.send(&ToAgent::Changes(Box::new(snapshot(7)))).await;
    bed.at(7).await;
    peer.send(&changes(7, 8)).await;
    bed.at(8).await;
    assert_eq!(bed.store.node_token().unwrap().reveal(), "node");
    peer.close(close::GOING_AWAY).await;

    let mut peer = bed.accept().await;
    assert_eq!(peer.token, "Bearer node");
    let second = peer.hello().await;
    assert_eq!(second.position.unwrap().revision, Revision(8));
    assert!(first.instance.is_some());
    assert_eq!(first.instance, second.instance, "it is the same run");
    assert_eq!((first.connection, second.connection), (1, 2));
}

#[tokio::test]
async fn another_run_of_the_agent_is_another_instance() {
    let runs = [bed(directory(), None).await, bed(directory(), None).await];
    let [one, other] = &runs;
    let (one, other) = (one.welcomed().await.1, other.welcomed().await.1);
    assert_ne!(one.instance, other.instance);
}

#[tokio::test]
async fn a_duplicate_keeps_what_it_knows_and_is_quiet() {
    let bed = bed(directory(), Some("node")).await;
    let (peer, _) = bed.welcomed().await;
    peer.close(close::NODE_DUPLICATE).await;
    let quiet = timeout(Duration::from_secs(1), bed.listener.accept()).await;
    assert!(quiet.is_err(), "it calls again at once");
    let known = bed.directory.borrow();
    assert!(!known.removed && known.placements == directory().placements);
}

#[tokio::test]
async fn changes_that_do_not_fit_make_it_ask_for_everything() {
    let mut bed = bed(directory(), Some("node")).await;
    let (mut peer, hello) = bed.welcomed().await;
    assert_eq!(hello.position.unwrap().revision, Revision(7));
    peer.send(&changes(9, 10)).await;
    peer.left().await;

    let (mut peer, hello) = bed.welcomed().await;
    assert_eq!(hello.position, None);
    peer.send(&ToAgent::Changes(Box::new(snapshot(10)))).await;
    bed.at(10).await;
    peer.close(close::TRY_LATER).await;
    let (_, hello) = bed.welcomed().await;
    assert_eq!(hello.position.unwrap().revision, Revision(10));
}

#[tokio::test]
async fn every_connection_is_told_everything_first_and_then_differences() {
    let bed = bed(directory(), Some("node")).await;
    for first in [7, 9] {
        let (mut peer, _) = bed.welcomed().await;
        assert_eq!(peer.report().await.applied, Revision(first));
        bed.host.send_replace(host(1, first + 1));
        assert_eq!(peer.report().await.applied, Revision(first + 1));
        // The state of another node is not reported.
        bed.host.send_replace(host(2, 99));
        bed.host.send_replace(host(1, first + 2));
        assert_eq!(peer.report().await.applied, Revision(first + 2));
        peer.close(close::GOING_AWAY).await;
    }
}

#[tokio::test]
async fn facts_are_told_when_they_change() {
    let bed = bed(directory(), Some("node")).await;
    let (mut peer, _) = bed.welcomed().await;
    peer.report().await;
    let mut moved = facts();
    moved.facts.public_ip = Some([192, 0, 2, 1].into());
    bed.facts.send_replace(Some(Arc::new(moved.clone())));
    match peer.next().await {
        FromAgent::Facts(told) => assert_eq!(*told, moved.facts),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn measures_are_told_when_there_are_new_ones() {
    let bed = bed(directory(), Some("node")).await;
    let overlay = Measures {
        drops: [("dropped_in".to_owned(), 3)].into(),
        ..Measures::default()
    };
    let measures = HostMeasures {
        overlay,
        data: Some(Vec::new()),
    };
    let (mut peer, _) = bed.welcomed().await;
    peer.report().await;
    bed.measures.send_replace(Some(Arc::new(measures.clone())));
    match peer.next().await {
        FromAgent::Measures(told) => assert_eq!(*told, measures),
        other => panic!("{other:?}"),
    }
    peer.close(close::GOING_AWAY).await;
    // The previous version knows them too; the agent leaves an older one.
    let mut before = bed.accept().await;
    before.hello().await;
    let mut welcome = welcome(1);
    welcome.protocol = PROTOCOL - 1;
    before
        .send(&ToAgent::Welcome(Box::new(welcome.clone())))
        .await;
    before.report().await;
    bed.measures
        .send_replace(Some(Arc::new(HostMeasures::default())));
    assert!(matches!(before.next().await, FromAgent::Measures(_)));
    before.close(close::GOING_AWAY).await;
    let mut old = bed.accept().await;
    old.hello().await;
    welcome.protocol = PROTOCOL - 2;
    old.send(&ToAgent::Welcome(Box::new(welcome))).await;
    old.left().await;
}

#[tokio::test]
async fn a_refused_node_token_gives_way_to_the_join_token() {
    let bed = bed(directory(), Some("old")).await;
    let peer = bed.accept().await;
    assert_eq!(peer.token, "Bearer old");
    peer.close(close::BAD_TOKEN).await;
    assert_eq!(bed.accept().await.token, "Bearer join");
}

#[tokio::test]
async fn another_node_starts_from_nothing() {
    let mut bed = bed(directory(), Some("node")).await;
    let mut peer = bed.accept().await;
    peer.hello().await;
    peer.send(&ToAgent::Welcome(Box::new(welcome(3)))).await;
    let known = bed.at(0).await;
    assert!(known.placements.is_empty() && known.reached.is_none());
}

#[tokio::test]
async fn a_removed_node_says_so_and_never_calls_again() {
    let mut bed = bed(directory(), Some("node")).await;
    let (peer, _) = bed.welcomed().await;
    peer.close(close::NODE_REMOVED).await;
    let removed = bed.directory.wait_for(|known| known.removed);
    timeout(BOUND, removed)
        .await
        .expect("the directory stays")
        .unwrap();
    let quiet = timeout(Duration::from_secs(1), bed.listener.accept()).await;
    assert!(quiet.is_err(), "it calls again");
}

#[tokio::test]
async fn a_frame_that_is_none_of_the_protocol_ends_the_connection() {
    let bed = bed(directory(), Some("node")).await;
    let (mut peer, _) = bed.welcomed().await;
    peer.socket
        .send(Message::text("{\"nonsense\":1}"))
        .await
        .unwrap();
    peer.left().await;
    bed.accept().await;
}

fn started() -> PingReport {
    PingReport {
        ping: PingId(7),
        state: PingState::Started,
    }
}

#[tokio::test]
async fn pings_are_told_again_on_every_connection_to_a_master_that_knows_them() {
    let bed = bed(directory(), Some("node")).await;
    let reports = vec![started()];
    let of = |node| {
        let (node, reports) = (Some(NodeId(node)), reports.clone());
        Arc::new(Told { node, reports })
    };
    bed.pings.send_replace(of(1));
    for _ in 0..2 {
        let (mut peer, _) = bed.welcomed().await;
        let told = [peer.next().await, peer.next().await];
        let all = told.iter().filter_map(|message| match message {
            FromAgent::Pings(told) => Some(told),
            _ => None,
        });
        assert_eq!(all.collect::<Vec<_>>(), [&reports], "{told:?}");
        peer.close(close::GOING_AWAY).await;
    }
    // What this host did as another node is not reported.
    bed.pings.send_replace(of(2));
    let (mut peer, _) = bed.welcomed().await;
    assert!(matches!(peer.next().await, FromAgent::Report(_)));
    bed.pings.send_replace(of(1));
    assert_eq!(peer.next().await, FromAgent::Pings(reports));
}

#[tokio::test]
async fn a_master_of_the_version_before_hears_nothing_of_pings() {
    let bed = bed(directory(), Some("node")).await;
    let mut old = bed.accept().await;
    old.hello().await;
    let mut welcome = welcome(1);
    welcome.protocol = PINGS_SINCE - 1;
    old.send(&ToAgent::Welcome(Box::new(welcome))).await;
    old.report().await;
    // It would end the connection.
    let node = Some(NodeId(1));
    let reports = vec![started()];
    bed.pings.send_replace(Arc::new(Told { node, reports }));
    bed.host.send_replace(host(1, 8));
    assert_eq!(
        old.report().await.applied,
        Revision(8),
        "and nothing before it"
    );
}

/// As on a host that is short of CPU time.
#[tokio::test]
async fn an_agent_that_had_no_turn_for_long_does_not_take_the_master_for_silent() {
    let mut beds = Vec::new();
    // Many, as the order of polling is random.
    for _ in 0..48 {
        beds.push(bed(directory(), Some("node")).await);
    }
    let mut peers = Vec::new();
    for bed in &beds {
        let mut peer = bed.accept().await;
        peer.hello().await;
        peers.push(peer);
    }
    for peer in &mut peers {
        peer.send(&ToAgent::Welcome(Box::new(welcome(1)))).await;
    }
    // The agents do not run meanwhile: they are on this thread.
    std::thread::sleep(HELLO_WITHIN + Duration::from_secs(1));
    for peer in &mut peers {
        assert_eq!(peer.report().await.applied, Revision(7));
    }
}
