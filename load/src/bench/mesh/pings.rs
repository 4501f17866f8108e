//! Every host pings every other one until all have answered.
//!
//! So many pings are under way at once and no more; one that is not answered in time
//! is sent again later. Hosts take turns. So the load on the machine stays the same
//! however few answer, and who is ready is found soon.

use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use kontena_lab::ping::Pinger;
use nix::poll::{PollFd, PollFlags, poll};

use crate::bench::BenchError;

/// Pings under way at once: they keep the machine busy only when they are answered.
const UNDER_WAY_MAX: usize = 2048;
/// How many a host sends in its turn.
const TURN: usize = 32;
/// After that an answer does not count.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How soon a host that cannot send is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How often somebody looks if nothing comes, in milliseconds.
const LOOK_MS: u8 = 10;

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reached {
    /// Directed pairs that answered.
    pub(crate) pairs: usize,
    /// Those that there are.
    pub(crate) of: usize,
    /// Pings that were sent.
    pub(crate) sent: usize,
    /// Seconds from the start until shares of the pairs had answered, in percent.
    pub(crate) at_s: Vec<(usize, f64)>,
    /// Seconds until the last one.
    pub(crate) seconds: f64,
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pairs, of, .. } = self;
        write!(f, "{pairs} of {of} pairs in {:.1} s;", self.seconds)?;
        self.at_s
            .iter()
            .try_for_each(|(percent, at)| write!(f, " {percent} % at {at:.1} s"))?;
        write!(f, "; {} pings", self.sent)
    }
}

/// The shares whose time is told.
const SHARES: [usize; 6] = [1, 25, 50, 75, 90, 99];

struct Host {
    pinger: Pinger,
    /// Who has not answered and is to be asked.
    missing: VecDeque<usize>,
    answered: Vec<bool>,
    not_before: Instant,
}

struct Sweep {
    hosts: Vec<Host>,
    addresses: Vec<Ipv4Addr>,
    /// From whom to whom, and until when an answer is waited for; in this order.
    under_way: VecDeque<(usize, usize, Instant)>,
    begun: Instant,
    reached: Reached,
}

/// Pings from each pinger to the addresses of all others; pinger and address of a host
/// have one netns in their lists.
pub(crate) fn all(
    pingers: Vec<Pinger>,
    addresses: &[Ipv4Addr],
    begun: Instant,
    within: Duration,
) -> Result<Reached, BenchError> {
    let count = addresses.len();
    let host = |(own, pinger)| Host {
        pinger,
        missing: (0..count).filter(|other| *other != own).collect(),
        answered: vec![false; count],
        not_before: begun,
    };
    let mut sweep = Sweep {
        hosts: pingers.into_iter().enumerate().map(host).collect(),
        addresses: addresses.to_vec(),
        under_way: VecDeque::new(),
        begun,
        reached: Reached {
            pairs: 0,
            of: count * (count - 1),
            sent: 0,
            at_s: Vec::new(),
            seconds: 0.0,
        },
    };
    while sweep.reached.pairs < sweep.reached.of && begun.elapsed() < within {
        sweep.expire();
        sweep.send();
        sweep.receive()?;
    }
    Ok(sweep.reached)
}

impl Sweep {
    /// Who did not answer in time is asked again.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(&(from, to, until)) = self.under_way.front() {
            let host = &mut self.hosts[from];
            if until > now && !host.answered[to] {
                break;
            }
            self.under_way.pop_front();
            if !host.answered[to] {
                host.missing.push_back(to);
            }
        }
    }

    fn send(&mut self) {
        let now = Instant::now();
        let first = first_turn(self.hosts.len(), self.reached.sent);
        for number in 0..self.hosts.len() {
            let from = (first + number) % self.hosts.len();
            let host = &mut self.hosts[from];
            if host.not_before > now {
                continue;
            }
            for _ in 0..TURN.min(host.missing.len()) {
                if self.under_way.len() >= UNDER_WAY_MAX {
                    return;
                }
                let Some(to) = host.missing.pop_front() else {
                    break;
                };
                if host.pinger.send(self.addresses[to]).is_err() {
                    host.missing.push_back(to);
                    host.not_before = now + RETRY;
                    break;
                }
                self.reached.sent += 1;
                self.under_way.push_back((from, to, now + ANSWER_WITHIN));
            }
        }
    }

    fn receive(&mut self) -> Result<(), BenchError> {
        let readable = {
            let pingers = self.hosts.iter().map(|host| host.pinger.as_fd());
            let mut fds: Vec<_> = pingers
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            poll(&mut fds, LOOK_MS).map_err(std::io::Error::from)?;
            let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            fds.iter().map(ready).collect::<Vec<_>>()
        };
        for (from, _) in readable.iter().enumerate().filter(|(_, ready)| **ready) {
            while let Some(address) = self.hosts[from].pinger.receive() {
                let to = self.addresses.iter().position(|known| *known == address);
                if let Some(to) = to {
                    self.answered(from, to);
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, from: usize, to: usize) {
        if std::mem::replace(&mut self.hosts[from].answered[to], true) {
            return;
        }
        // An answer that was late.
        self.hosts[from].missing.retain(|other| *other != to);
        let reached = &mut self.reached;
        reached.pairs += 1;
        reached.seconds = self.begun.elapsed().as_secs_f64();
        let next = SHARES.get(reached.at_s.len());
        if let Some(&share) = next.filter(|share| reached.pairs * 100 >= reached.of * **share) {
            reached.at_s.push((share, reached.seconds));
        }
    }
}

/// Where the turns begin: another host each time, so that none is always the first.
fn first_turn(hosts: usize, sent: usize) -> usize {
    sent % hosts.max(1)
}
