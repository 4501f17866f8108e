//! What service containers the host has.
//!
//! One list per look, and an inspection of every container that is new or that
//! an event or a full look marked: a host with a thousand containers is looked at
//! cheaply whenever one of them moves. The observer looks by itself; who acts on
//! what it sees never waits for Docker.
//!
//! Invariants: a container whose inspection Docker does not answer, or refuses, is
//! unknown until one succeeds, and delays no other; only a list that fails means that
//! the engine is away, and then what was seen last stands. Looks are bounded in
//! number by [`LOOK_EVERY`], however many events come.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use kontena_overlay::Process;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::container::{self, Container};
use super::dirty::{DirtySet, Look, Marks};
use super::inspections::Inspections;
use super::labels::{PLACEMENT, TYPE, TYPE_CONTAINER};
use super::{process, status, words};

/// An inspection is answered within this time, or its container counts as unknown; the
/// engine answers in milliseconds unless it is busy with the very container.
const INSPECT_WITHIN: Duration = Duration::from_secs(3);
/// How often one inspection asks for a process that can be told from others, and how long
/// it waits in between: longer than a tick of the clock that tells them.
const ASKED_AT_MOST: u32 = 10;
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// Looks begin this long after each other, so that a storm of events costs ten a second.
/// Names are promised within 250 ms.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same for what can wait, such as a health check that flaps.
const LOOK_SOON_EVERY: Duration = Duration::from_secs(1);
/// What is new is acted on after this long, though not all inspections are over.
const NEWS_WITHIN: Duration = Duration::from_millis(200);
/// How soon an engine that did not answer is asked again, unless it says that it is back.
const AWAY_RETRY: Duration = Duration::from_secs(1);

/// The process of this number, if it is of this container and from before this time.
type Named = fn(i32, &str, u64) -> Option<Process>;
type Listed = BTreeMap<String, ContainerSummary>;

/// What came of one inspection.
enum Answer {
    There(Box<Container>),
    Gone,
    /// There was none, or no container in it; why, and the container's first process.
    Silent(String, Option<Process>),
}

/// Looks at the host's containers.
pub struct Observer {
    /// Without an engine there are no containers, and it is never away.
    docker: Option<Docker>,
    /// Tells whether the process that Docker names is the container's.
    named: Named,
    known: BTreeMap<String, Container>,
    listing: Option<BoxFuture<'static, (Marks, Result<Listed, Error>)>>,
    inspecting: FuturesUnordered<BoxFuture<'static, (String, Answer)>>,
    inspections: Inspections,
    /// The last list, and the look that it was made for.
    listed: Listed,
    listed_by: Look,
    /// The last look that was acted on.
    seen: Look,
    last_look: Option<Instant>,
    next_look: Option<Instant>,
    /// Since when something is new that nobody has acted on.
    news: Option<Instant>,
    away: bool,
}

impl Observer {
    /// An observer that has not looked yet.
    pub fn new(docker: Option<Docker>) -> Self {
        Self {
            docker,
            named: process::named,
            known: BTreeMap::new(),
            listing: None,
            inspecting: FuturesUnordered::new(),
            inspections: Inspections::default(),
            listed: Listed::new(),
            listed_by: Look::default(),
            seen: Look::default(),
            last_look: None,
            next_look: None,
            news: None,
            away: false,
        }
    }

    /// Our containers, as they were seen last.
    pub fn last(&self) -> Vec<Container> {
        let ours = |container: &&Container| container.origin.is_some();
        self.known.values().filter(ours).cloned().collect()
    }

    /// The last look that is over; [`Look::default`] before the first.
    pub fn seen(&self) -> Look {
        self.seen
    }

    /// Whether the engine does not answer.
    pub fn is_away(&self) -> bool {
        self.away
    }

    /// Looks, until there is something to act on: a look is over, containers changed
    /// a while ago, or the engine went away. May be dropped and called again at any time.
    pub async fn progress(&mut self, dirty: &DirtySet) {
        let away = self.away;
        loop {
            self.begin_inspections();
            tokio::select! {
                () = dirty.changed() => self.look_within(LOOK_EVERY),
                () = dirty.changed_soon() => self.look_within(LOOK_SOON_EVERY),
                () = at(self.next_look), if self.listing.is_none() => self.begin_look(dirty),
                (marks, result) = listed(&mut self.listing) => {
                    self.listing = None;
                    self.take_list(marks, result, dirty);
                }
                Some((id, answer)) = self.inspecting.next() => self.take_answer(&id, answer),
                () = at(self.inspections.next().map(Instant::from_std)) => {}
                () = at(self.news.map(|since| since + NEWS_WITHIN)), if self.has_looked() => {}
            }
            if self.is_due() || self.away != away {
                self.news = None;
                return;
            }
        }
    }

    fn has_looked(&self) -> bool {
        self.seen >= Look::FIRST
    }

    fn is_due(&mut self) -> bool {
        let seen = self.inspections.seen(self.listed_by);
        let over = seen > self.seen;
        self.seen = self.seen.max(seen);
        let waited = |since: Instant| since.elapsed() >= NEWS_WITHIN;
        over || self.has_looked() && self.news.is_some_and(waited)
    }

    /// A look is asked for, and is to begin so long after the last one at the earliest.
    fn look_within(&mut self, pause: Duration) {
        let now = Instant::now();
        let at = self.last_look.map_or(now, |last| now.max(last + pause));
        self.next_look = Some(self.next_look.map_or(at, |next| next.min(at)));
    }

    fn begin_look(&mut self, dirty: &DirtySet) {
        self.next_look = None;
        self.last_look = Some(Instant::now());
        let marks = dirty.take();
        let docker = self.docker.clone();
        self.listing = Some(Box::pin(async move {
            let result = match docker {
                Some(docker) => list(&docker).await,
                None => Ok(Listed::new()),
            };
            (marks, result)
        }));
    }

    fn take_list(&mut self, marks: Marks, result: Result<Listed, Error>, dirty: &DirtySet) {
        let listed = match result {
            Ok(listed) => listed,
            Err(err) => {
                if !self.away {
                    warn!(reason = words(&err), "cannot list the containers");
                }
                self.away = true;
                dirty.put_back(marks);
                let retry = Instant::now() + AWAY_RETRY;
                self.next_look = Some(self.next_look.map_or(retry, |next| next.min(retry)));
                return;
            }
        };
        self.away = false;
        let count = self.known.len();
        self.known.retain(|id, _| listed.contains_key(id));
        if self.known.len() < count {
            self.is_news();
        }
        self.inspections.retain(|id| listed.contains_key(id));
        for id in listed.keys() {
            if marks.all || marks.some.contains(id) || !self.known.contains_key(id) {
                self.inspections.ask(id, marks.look);
            }
        }
        (self.listed, self.listed_by) = (listed, marks.look);
        for id in self.inspections.all_failed() {
            self.is_unknown(&id, None);
        }
    }

    fn begin_inspections(&mut self) {
        let Some(docker) = &self.docker else {
            return;
        };
        while let Some(id) = self.inspections.begin(Instant::now().into_std()) {
            let (docker, named) = (docker.clone(), self.named);
            self.inspecting.push(Box::pin(async move {
                let answer = inspect(&docker, &id, named).await;
                (id, answer)
            }));
        }
    }

    fn take_answer(&mut self, id: &str, answer: Answer) {
        match answer {
            Answer::There(container) => {
                if self.inspections.has_failed(id) {
                    info!(container = id, "the container can be inspected again");
                }
                self.inspections.answered(id);
                // The list may say meanwhile that it is gone.
                if self.listed.contains_key(id) {
                    self.know(*container);
                }
            }
            Answer::Gone => {
                self.inspections.answered(id);
                if self.known.remove(id).is_some() {
                    self.is_news();
                }
            }
            Answer::Silent(reason, process) => {
                if !self.inspections.has_failed(id) {
                    warn!(
                        container = id,
                        reason, "cannot inspect the container; leaving it alone"
                    );
                }
                self.inspections.failed(id, Instant::now().into_std());
                self.is_unknown(id, process);
            }
        }
    }

    fn is_unknown(&mut self, id: &str, process: Option<Process>) {
        if let Some(summary) = self.listed.get(id) {
            let last = self.known.get(id).and_then(Container::process);
            let process = last.filter(Process::lives).or(process);
            self.know(container::unknown(id, summary, process));
        }
    }

    fn know(&mut self, container: Container) {
        if self.known.get(&container.id) != Some(&container) {
            self.known.insert(container.id.clone(), container);
            self.is_news();
        }
    }

    fn is_news(&mut self) {
        self.news.get_or_insert_with(Instant::now);
    }
}

/// Waits until then; without a time for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

async fn listed<T>(listing: &mut Option<BoxFuture<'static, T>>) -> T {
    match listing {
        Some(listing) => listing.await,
        None => pending().await,
    }
}

async fn list(docker: &Docker) -> Result<Listed, Error> {
    let label = format!("{TYPE}={TYPE_CONTAINER}");
    let filters = HashMap::from([("label", vec![label, PLACEMENT.to_owned()])]);
    let options = ListContainersOptionsBuilder::default()
        .all(true)
        .filters(&filters)
        .build();
    let listed = docker.list_containers(Some(options)).await?;
    Ok(listed
        .into_iter()
        .filter_map(|summary| Some((summary.id.clone()?, summary)))
        .collect())
}

async fn inspect(docker: &Docker, id: &str, named: Named) -> Answer {
    let reason = match timeout(INSPECT_WITHIN, ask(docker, id, named)).await {
        Ok(Ok(Some(container))) => return Answer::There(Box::new(container)),
        Ok(Ok(None)) => "the process that Docker names is not there".to_owned(),
        Ok(Err(err)) if status(&err) == Some(404) => return Answer::Gone,
        Ok(Err(err)) => words(&err),
        Err(_) => words(&Error::RequestTimeoutError),
    };
    let id = id.to_owned();
    let process = spawn_blocking(move || process::find(&id)).await;
    Answer::Silent(reason, process.ok().flatten())
}

/// Asks until the process that Docker names can be told; none if it never can.
async fn ask(docker: &Docker, id: &str, named: Named) -> Result<Option<Container>, Error> {
    for _ in 0..ASKED_AT_MOST {
        let asked = Process::clock();
        let response = docker.inspect_container(id, None).await?;
        let running = |pid| named(pid, id, asked);
        if let Some(container) = container::inspected(id, response, running) {
            return Ok(Some(container));
        }
        // It has ended, or started only just now.
        sleep(ASKED_AGAIN_AFTER).await;
    }
    Ok(None)
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
