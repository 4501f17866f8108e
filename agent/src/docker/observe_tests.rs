//! The observer with an engine that is stuck in ways in which a real one cannot be
//! put at will; `tests/engine.rs` holds back answers of a real one.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::*;
use crate::docker::container::State;
use crate::docker::container::tests::LABELS;
use crate::testing::TempDir;
use kontena_task::Tasks;

const BOUND: Duration = Duration::from_secs(60);

/// What the engine does when it is asked about a container, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Answers,
    Refuses,
    Hangs,
    /// Names a process that has ended.
    Lies,
}

/// The containers of an engine; none if it does not list them.
type Moods = Option<BTreeMap<String, Mood>>;

struct Engine {
    moods: watch::Sender<Moods>,
    observer: Observer,
    dirty: Arc<DirtySet>,
    _dir: TempDir,
    _tasks: Tasks,
}

impl Engine {
    fn new(moods: &[(&str, Mood)]) -> Self {
        let dir = TempDir::new();
        let socket = dir.path().join("engine");
        let (moods_in, moods) = watch::channel(Some(named(moods)));
        let mut tasks = Tasks::new();
        let listener = UnixListener::bind(&socket).unwrap();
        tasks.spawn("engine", serve(listener, moods));
        let version = bollard::API_DEFAULT_VERSION;
        let docker = Docker::connect_with_unix(socket.to_str().unwrap(), 1, version).unwrap();
        let mut observer = Observer::new(Some(docker));
        // The process of the test is in no container's control group.
        observer.named = |pid, _, asked| Process::of(pid).ok().filter(|p| p.started < asked);
        Self {
            moods: moods_in,
            observer,
            dirty: Arc::new(DirtySet::default()),
            _dir: dir,
            _tasks: tasks,
        }
    }

    fn set(&self, moods: &[(&str, Mood)]) {
        self.moods.send_replace(Some(named(moods)));
        self.dirty.add_all();
    }

    /// Looks until it is so.
    async fn until(&mut self, what: &str, is: impl Fn(&Observer) -> bool) {
        let looks = async {
            while !is(&self.observer) {
                self.observer.progress(&self.dirty).await;
            }
        };
        let so = timeout(BOUND, looks).await.is_ok();
        assert!(so, "{what}: {:?}", self.observer.known);
    }
}

fn named(moods: &[(&str, Mood)]) -> BTreeMap<String, Mood> {
    let of = |&(id, mood): &(&str, Mood)| (id.to_owned(), mood);
    moods.iter().map(of).collect()
}

async fn serve(listener: UnixListener, moods: watch::Receiver<Moods>) {
    let mut answers = FuturesUnordered::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                answers.push(answer(stream, moods.clone()));
            }
            Some(()) = answers.next() => {}
        }
    }
}

async fn answer(mut stream: UnixStream, moods: watch::Receiver<Moods>) {
    let mut request = vec![0; 8192];
    let length = stream.read(&mut request).await.unwrap();
    let line = String::from_utf8_lossy(&request[..length]).into_owned();
    let line = line.lines().next().unwrap_or_default().to_owned();
    let moods = moods.borrow().clone();
    let body = if line.contains("/containers/json") {
        let Some(moods) = moods else {
            return pending().await;
        };
        let of = |id: &String| {
            format!(
                r#"{{"Id": "{id}", "Names": ["/web-1"], "State": "running",
                    "Status": "Up 2 seconds", "Labels": {LABELS}}}"#
            )
        };
        let all: Vec<_> = moods.keys().map(of).collect();
        Ok(format!("[{}]", all.join(", ")))
    } else {
        let asked = |(id, _): &(String, Mood)| line.contains(&format!("/containers/{id}/json"));
        match moods.unwrap_or_default().into_iter().find(asked) {
            Some((_, Mood::Answers)) => Ok(running(first().pid)),
            Some((_, Mood::Lies)) => Ok(running(i32::MAX)),
            Some((_, Mood::Refuses)) => Err(r#"{"message": "its layer is lost"}"#.to_owned()),
            Some((_, Mood::Hangs)) => return pending().await,
            None => return,
        }
    };
    let (status, body) = match body {
        Ok(body) => ("200 OK", body),
        Err(body) => ("500 Internal Server Error", body),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    // Who asked may have given up.
    let _ = stream.write_all((head + &body).as_bytes()).await;
}

fn running(pid: i32) -> String {
    format!(
        r#"{{"Name": "/web-1", "Config": {{"Labels": {LABELS}}},
            "State": {{"Status": "running", "Pid": {pid}}}}}"#
    )
}

fn state(observer: &Observer, id: &str) -> Option<State> {
    observer
        .known
        .get(id)
        .map(|container| container.state.clone())
}

/// What the engine says is the first process of each container.
fn first() -> Process {
    Process::of(std::process::id().cast_signed()).unwrap()
}

fn up() -> Option<State> {
    Some(State::Running { process: first() })
}

#[tokio::test]
async fn what_cannot_be_inspected_is_unknown_and_hides_no_other() {
    let mut moods = vec![("good", Mood::Answers), ("bad", Mood::Refuses)];
    // More than there are slots.
    let stuck: Vec<_> = (0..12).map(|n| format!("stuck-{n}")).collect();
    moods.extend(stuck.iter().map(|id| (id.as_str(), Mood::Hangs)));
    let mut engine = Engine::new(&moods);
    engine.dirty.add_all();
    engine
        .until("the first look is over", Observer::has_looked)
        .await;
    assert_eq!(state(&engine.observer, "good"), up());
    let unknown = Some(State::Unknown { process: None });
    for id in stuck.iter().map(String::as_str).chain(["bad"]) {
        assert_eq!(state(&engine.observer, id), unknown, "{id}");
    }
    // What comes now waits for none of them.
    moods.push(("new", Mood::Answers));
    engine.set(&moods);
    let asked = engine.dirty.look();
    let over = |observer: &Observer| observer.seen() >= asked;
    engine.until("a look after it is over", over).await;
    assert_eq!(state(&engine.observer, "new"), up());
}

#[tokio::test]
async fn a_process_that_is_not_there_is_nobodys() {
    let mut engine = Engine::new(&[("of-nobody", Mood::Lies)]);
    engine.dirty.add_all();
    engine
        .until("the first look is over", Observer::has_looked)
        .await;
    let unknown = Some(State::Unknown { process: None });
    assert_eq!(state(&engine.observer, "of-nobody"), unknown);
    engine.set(&[("of-nobody", Mood::Answers)]);
    engine
        .until("it is known", |o| state(o, "of-nobody") == up())
        .await;
}

#[tokio::test]
async fn what_was_seen_running_keeps_its_process_while_it_is_unknown() {
    let mut engine = Engine::new(&[("a", Mood::Answers)]);
    engine.dirty.add_all();
    engine.until("it runs", |o| state(o, "a") == up()).await;
    engine.set(&[("a", Mood::Hangs)]);
    let unknown = Some(State::Unknown {
        process: Some(first()),
    });
    engine
        .until("it is unknown", |o| state(o, "a") == unknown)
        .await;
    engine.set(&[("a", Mood::Answers)]);
    engine
        .until("it is known again", |o| state(o, "a") == up())
        .await;
}

#[tokio::test]
async fn an_engine_that_lists_nothing_is_away_and_what_was_seen_stands() {
    let mut engine = Engine::new(&[("a", Mood::Answers)]);
    engine.dirty.add_all();
    engine.until("it runs", |o| state(o, "a") == up()).await;
    engine.moods.send_replace(None);
    engine.dirty.add_all();
    engine.until("the engine is away", Observer::is_away).await;
    assert_eq!(state(&engine.observer, "a"), up());
    let asked = engine.dirty.look();
    engine.set(&[("a", Mood::Answers)]);
    let back = |observer: &Observer| !observer.is_away() && observer.seen() >= asked;
    engine.until("it is back", back).await;
}

#[tokio::test]
async fn without_an_engine_there_are_no_containers_and_nothing_is_away() {
    let mut observer = Observer::new(None);
    let dirty = DirtySet::default();
    dirty.add_all();
    observer.progress(&dirty).await;
    assert!(observer.last().is_empty() && observer.has_looked() && !observer.is_away());
}

#[tokio::test]
async fn a_storm_of_events_costs_one_look_in_a_while_and_flapping_health_fewer() {
    let (mut observer, dirty) = (Observer::new(None), DirtySet::default());
    observer.begin_look(&dirty);
    let began = observer.last_look.unwrap();
    for (pause, at) in [
        (LOOK_SOON_EVERY, LOOK_SOON_EVERY),
        (LOOK_EVERY, LOOK_EVERY),
        (LOOK_SOON_EVERY, LOOK_EVERY),
    ] {
        for _ in 0..1000 {
            observer.look_within(pause);
        }
        assert_eq!(observer.next_look, Some(began + at));
    }
    observer.begin_look(&dirty);
    assert_eq!(observer.next_look, None);
}
