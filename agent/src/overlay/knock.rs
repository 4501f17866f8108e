//! Why a peer is silent: a knock at its door (`door.rs`) tells a host that is down from
//! one without an agent, and from a way on which only the sealed path's packets are lost.
//!
//! It is done only for a peer that has been silent for a while, once in a while, at each of
//! its addresses, and what is found is a part of the pair's state. It explains, and
//! nothing follows from it: what is told at an open port proves nothing.
//!
//! Invariants: nobody is knocked for who lives, and a knock under way ends when he does;
//! what is remembered does not differ from knock to knock as long as the cause is the same.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use kontena_schema::ids::NodeId;
use kontena_schema::limits::DOOR_PORT;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::door::{self, LINE_BYTES_MAX};
use super::pairs::PairStates;
use super::paths::Shared;

/// How long a peer must have been silent: some handshakes were tried by then, at one
/// place and at the other.
const AFTER: Duration = Duration::from_secs(20);
/// How often a peer is knocked for, more or less.
const EVERY: Duration = Duration::from_secs(30);
/// For how many peers at once, and how soon the next one may follow.
const AT_ONCE: usize = 4;
const TICK: Duration = Duration::from_secs(1);
/// How long a connection may take, and then a line: a packet is sent thrice meanwhile.
const WITHIN: Duration = Duration::from_secs(3);
/// A peer has two addresses at most.
const PLACES_MAX: usize = 2;

/// What was found at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An agent answers.
    Agent {
        /// It sees this host at another address than the one that it has.
        translated: bool,
    },
    /// Something listens and says nothing, or what no agent says.
    Other,
    /// Connections are refused.
    Closed,
    /// Nothing comes back.
    Silent,
    /// This host knows no way there.
    NoRoute,
}

/// What was found at the addresses of a peer, as far as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers([Option<(Ipv4Addr, Answer)>; PLACES_MAX]);

impl Answers {
    /// What was found there.
    pub fn at(&self, place: Ipv4Addr) -> Option<Answer> {
        let mut found = self.0.iter().flatten();
        found.find_map(|(at, answer)| (*at == place).then_some(*answer))
    }
}

impl FromIterator<(Ipv4Addr, Answer)> for Answers {
    fn from_iter<I: IntoIterator<Item = (Ipv4Addr, Answer)>>(found: I) -> Self {
        let mut answers = Self::default();
        for (place, found) in answers.0.iter_mut().zip(found) {
            *place = Some(found);
        }
        answers
    }
}

/// The knocks for one peer; pure, time is passed in.
#[derive(Debug)]
pub(crate) struct Knocks {
    silent_since: Instant,
    not_before: Option<Instant>,
    answers: Answers,
}

impl Knocks {
    /// The peer is tried from now on.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            silent_since: now,
            not_before: None,
            answers: Answers::default(),
        }
    }

    /// When the next one is due if the peer stays silent. Where there are many peers,
    /// everything takes so many times longer.
    pub(crate) fn due(&self, times: u32) -> Instant {
        let first = self.silent_since + AFTER * times;
        self.not_before.map_or(first, |at| at.max(first))
    }

    /// One begins. `jitter` is from 0 to 1: whom many peers have lost, they do not knock
    /// for at once.
    pub(crate) fn begin(&mut self, now: Instant, times: u32, jitter: f32) {
        let pause = EVERY * times;
        self.not_before = Some(now + pause.mul_f32(0.75 + jitter.clamp(0.0, 1.0) / 2.0));
    }

    /// One ended.
    pub(crate) fn end(&mut self, answers: Answers) {
        self.answers = answers;
    }

    pub(crate) fn answers(&self) -> Answers {
        self.answers
    }
}

/// Knocks, for ever, one peer a tick.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut knocks = JoinSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick(), if knocks.len() < AT_ONCE => {
                if let Some((node, places)) = shared.next_knock() {
                    let doors = places.into_iter().map(|place| (place, DOOR_PORT)).collect();
                    let states = shared.subscribe();
                    knocks.spawn(async move { (node, knock_for(node, doors, states).await) });
                }
            }
            Some(ended) = knocks.join_next() => match ended {
                Ok((node, Some(answers))) => shared.knocked(node, answers),
                Ok((_, None)) => {}
                Err(err) => tracing::error!(%err, "a knock died"),
            },
        }
    }
}

/// Knocks at all doors of a peer; none if it came back meanwhile, or is no peer any
/// more.
async fn knock_for(
    node: NodeId,
    doors: Vec<(Ipv4Addr, u16)>,
    mut states: watch::Receiver<PairStates>,
) -> Option<Answers> {
    let over = |states: &PairStates| states.get(&node).is_none_or(|state| state.alive);
    let knocks = doors
        .into_iter()
        .map(|door| async move { Some((door.0, knock(door).await?)) });
    tokio::select! {
        biased;
        _ = states.wait_for(over) => None,
        found = join_all(knocks) => Some(found.into_iter().flatten().collect()),
    }
}

/// Knocks at one door; none if that says nothing of the other end.
async fn knock(at: (Ipv4Addr, u16)) -> Option<Answer> {
    let mut stream = match timeout(WITHIN, TcpStream::connect(at)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(err)) => return refused(&err),
        Err(_) => return Some(Answer::Silent),
    };
    let own = stream.local_addr().ok()?.ip();
    let mut line = [0; LINE_BYTES_MAX];
    let heard = match timeout(WITHIN, hear(&mut stream, &mut line)).await {
        Ok(Ok(length)) => length,
        Ok(Err(_)) | Err(_) => 0,
    };
    Some(said(&line[..heard], own))
}

/// Reads until the other end closes, or has said more than an agent would.
async fn hear(stream: &mut TcpStream, line: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = line.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest).await? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

/// What it means that there is no connection.
fn refused(err: &io::Error) -> Option<Answer> {
    match err.kind() {
        ErrorKind::ConnectionRefused => Some(Answer::Closed),
        ErrorKind::TimedOut | ErrorKind::HostUnreachable => Some(Answer::Silent),
        ErrorKind::NetworkUnreachable => Some(Answer::NoRoute),
        _ => None,
    }
}

/// What it means that this was said to who has this address.
fn said(line: &[u8], own: IpAddr) -> Answer {
    match door::read(line) {
        Some(seen) => Answer::Agent {
            translated: IpAddr::V4(*seen.ip()) != own,
        },
        None => Answer::Other,
    }
}

#[cfg(test)]
#[path = "knock_tests.rs"]
mod tests;
