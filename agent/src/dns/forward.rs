//! External names: queries go to the host's resolvers and answers come back
//! unchanged, except for the ID.
//!
//! The resolvers are asked in the order of the host's list. The next one is asked when one
//! cannot or will not answer, when it cannot be reached, and when it has been silent for a
//! while, though it may still answer: the first good answer wins. If there is none in the
//! time that clients wait, the best of the bad ones is passed on. Dead ones are asked last,
//! or not at all ([`super::health`]).
//!
//! Invariants: a query takes no longer than clients wait; it never goes back to its sender,
//! and one from this host itself never to a program of this host, which would ask here again.
//!
//! Absent on purpose: `hickory-resolver`, see `infra/adr/0009-forwarding.md`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::ResponseCode;
use tokio::time::sleep_until;
use tracing::debug;

use super::answer::{Transport, failure};
use super::exchange::{ask, code};
use super::upstream::{Resolver, Turns, Upstreams};

/// Clients give up after five seconds (libc's default).
const ANSWER_WITHIN: Duration = Duration::from_millis(4500);
/// How long a resolver has before the next one is asked too. Most names take less, and
/// there is still time left for a third.
const NEXT_AFTER: Duration = Duration::from_secs(1);

/// Forwards containers' queries.
pub struct Forwarder {
    upstreams: Arc<Upstreams>,
    /// This server itself: asking it would loop.
    own: Ipv4Addr,
}

impl Forwarder {
    /// Forwards for the server at an address.
    pub fn new(upstreams: Arc<Upstreams>, own: Ipv4Addr) -> Self {
        Self { upstreams, own }
    }

    /// The answer to a client's query.
    pub async fn forward(&self, query: &[u8], over: Transport, client: IpAddr) -> Vec<u8> {
        let may = |resolver: &Resolver| may_ask(resolver, self.own, client);
        let turns = self.upstreams.turns(over, may).await;
        let answer = resolve(&self.upstreams, turns, query, over).await;
        answer.unwrap_or_else(|| failure(query, ResponseCode::ServFail))
    }
}

fn may_ask(resolver: &Resolver, own: Ipv4Addr, client: IpAddr) -> bool {
    let ip = resolver.address.ip();
    ip != own && ip != client && !(resolver.local && client == own)
}

/// The best answer to a query from these resolvers; none if none answers.
pub(super) async fn resolve(
    upstreams: &Arc<Upstreams>,
    turns: Turns,
    query: &[u8],
    over: Transport,
) -> Option<Vec<u8>> {
    for resolver in &turns.probed {
        upstreams.probe(*resolver, query, over);
    }
    let mut race = Race {
        upstreams,
        query,
        over,
        turns,
        pending: FuturesUnordered::new(),
        asked: Vec::new(),
        best: None,
    };
    let answer = race.run().await;
    // One that has just been asked may be about to answer.
    race.give_up(if answer.is_some() {
        NEXT_AFTER
    } else {
        Duration::ZERO
    });
    answer.or(race.best)
}

type Exchange<'a> = Pin<Box<dyn Future<Output = (SocketAddr, io::Result<Vec<u8>>)> + Send + 'a>>;

/// One query, and the resolvers that were asked.
struct Race<'a> {
    upstreams: &'a Upstreams,
    query: &'a [u8],
    over: Transport,
    turns: Turns,
    pending: FuturesUnordered<Exchange<'a>>,
    /// Those yet to answer, and when each was asked.
    asked: Vec<(SocketAddr, Instant)>,
    /// The best of the bad answers.
    best: Option<Vec<u8>>,
}

impl Race<'_> {
    /// The first good answer.
    async fn run(&mut self) -> Option<Vec<u8>> {
        let end = Instant::now() + ANSWER_WITHIN;
        self.ask_next();
        let mut next = Instant::now() + NEXT_AFTER;
        while !self.pending.is_empty() {
            tokio::select! {
                Some((resolver, result)) = self.pending.next() => {
                    let good = self.ended(resolver, result);
                    if good.is_some() {
                        return good;
                    }
                    self.ask_next();
                    next = Instant::now() + NEXT_AFTER;
                }
                () = sleep_until(next.into()), if self.has_next() => {
                    self.ask_next();
                    next = Instant::now() + NEXT_AFTER;
                }
                () = sleep_until(end.into()) => break,
            }
        }
        None
    }

    /// Asks the next one, if there is any.
    fn ask_next(&mut self) {
        let next = match self.turns.first.pop_front() {
            None if self.best.is_none() => self.turns.last.pop_front(),
            next => next,
        };
        if let Some(resolver) = next {
            self.start(resolver);
        }
    }

    fn has_next(&self) -> bool {
        let dead = self.best.is_none() && !self.turns.last.is_empty();
        dead || !self.turns.first.is_empty()
    }

    fn start(&mut self, resolver: SocketAddr) {
        let (query, over) = (self.query, self.over);
        self.asked.push((resolver, Instant::now()));
        self.pending.push(Box::pin(async move {
            (resolver, ask(resolver, query, over).await)
        }));
    }

    /// Takes a resolver's result; returns a good answer.
    fn ended(&mut self, resolver: SocketAddr, result: io::Result<Vec<u8>>) -> Option<Vec<u8>> {
        let place = self.asked.iter().position(|(asked, _)| *asked == resolver);
        let (_, asked) = self.asked.swap_remove(place?);
        match result {
            Ok(answer) => {
                self.upstreams.answered(resolver, self.over);
                match worth(&answer) {
                    Worth::Good => return Some(answer),
                    worth
                        if self
                            .best
                            .as_deref()
                            .is_none_or(|best| worth > self::worth(best)) =>
                    {
                        self.best = Some(answer);
                    }
                    _ => {}
                }
            }
            Err(err) => {
                debug!(%resolver, %err, "no answer");
                if !is_ours(&err) {
                    self.upstreams.failed(resolver, self.over, asked);
                }
            }
        }
        None
    }

    /// Counts as failed those that had this long and did not answer.
    fn give_up(&mut self, had: Duration) {
        for (resolver, asked) in self.asked.drain(..) {
            if asked.elapsed() >= had {
                self.upstreams.failed(resolver, self.over, asked);
            }
        }
    }
}

/// What an answer is worth to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// The resolver does not serve this host.
    Refused,
    /// It does, but failed.
    Failed,
    /// It knows.
    Good,
}

fn worth(answer: &[u8]) -> Worth {
    match code(answer) {
        ResponseCode::Refused | ResponseCode::NotImp => Worth::Refused,
        ResponseCode::ServFail => Worth::Failed,
        // Other errors are the client's, not the resolver's.
        _ => Worth::Good,
    }
}

/// Whether this host itself lacks the resources to ask.
fn is_ours(err: &io::Error) -> bool {
    let ours = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    err.raw_os_error().is_some_and(|code| ours.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_query_goes_round_in_circles() {
        let own = Ipv4Addr::new(172, 17, 0, 1);
        let container = IpAddr::from([172, 17, 0, 5]);
        let resolver = |ip: &str, local| Resolver {
            address: SocketAddr::new(ip.parse().unwrap(), 53),
            local,
        };
        let (far, stub) = (resolver("192.0.2.53", false), resolver("127.0.0.53", true));
        for (resolver, client, may) in [
            (far, container, true),
            (far, own.into(), true),
            (stub, container, true),
            (stub, own.into(), false),
            (resolver("172.17.0.1", true), container, false),
            // A container that is the host's resolver, and asks here.
            (resolver("172.17.0.5", false), container, false),
            (resolver("172.17.0.5", false), [172, 17, 0, 6].into(), true),
        ] {
            assert_eq!(
                may_ask(&resolver, own, client),
                may,
                "{resolver:?} {client}"
            );
        }
    }
}
