//! When to connect, when to ping, when to give up: the link's decisions, as a
//! function of what happened and of a clock that is passed in.

use std::time::{Duration, Instant};

use kontena_schema::agent::close;
use kontena_schema::limits::{DEAD_AFTER, HELLO_WITHIN, PING_EVERY};

/// The first retry comes within this time, so that the stop of a replica goes
/// unnoticed.
const FIRST_RETRY_MAX: Duration = Duration::from_millis(300);
/// Later retries come at least this often: a Master that returns sees all of its
/// agents within seconds, and 254 agents at this rate are no load.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// After a refusal that only a person can lift.
const REFUSED_RETRY_MAX: Duration = Duration::from_secs(30);
/// After a connection that lasted this long, the next retry is a first one again.
/// Without this, a Master that accepts and closes would be called three times a
/// second.
const GOOD_AFTER: Duration = Duration::from_secs(1);

/// How many frames an agent past the deadline reads to find the welcome.
const LOOKS: u8 = 4;

/// Which token to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// The node's own.
    Node,
    /// The grid's join token.
    Join,
}

/// How a connection, or an attempt at one, ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The Master cannot be reached.
    #[error("{0}")]
    Failed(String),
    /// The Master answered the upgrade with this HTTP status.
    #[error("the Master refused the connection with HTTP status {0}")]
    Status(u16),
    /// The Master closed the connection.
    #[error("the Master closed the connection: {0} {1}")]
    Closed(u16, String),
    /// Nothing was heard for too long.
    #[error("the Master was silent for too long")]
    Silent,
    /// The Master broke the protocol.
    #[error("the Master broke the protocol: {0}")]
    Protocol(String),
}

/// What to do while no connection is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Connect now, with this token.
    Connect(Credential),
    /// Do nothing until then.
    Wait(Instant),
    /// Never connect again: the node was removed.
    Stop,
}

/// What to do while a connection is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Send a ping.
    Ping,
    /// Nothing was heard for too long: read what has arrived by now, and if nothing has,
    /// give the connection up. If this agent was starved of CPU time, it was this end that
    /// did not listen.
    Look,
    /// Give the connection up.
    Dead,
    /// Nothing before then.
    Nothing(Instant),
}

/// The state of the link.
#[derive(Clone, Debug)]
pub struct Machine {
    has_node_token: bool,
    credential: Credential,
    /// Failed attempts since the last good connection.
    failures: u32,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Waiting {
        until: Instant,
    },
    Opening {
        since: Instant,
        looks: u8,
    },
    Live {
        since: Instant,
        heard: Instant,
        pinged: Instant,
    },
    Stopped,
}

impl Machine {
    /// A link that connects at once.
    pub fn new(now: Instant, has_node_token: bool) -> Self {
        let credential = if has_node_token {
            Credential::Node
        } else {
            Credential::Join
        };
        Self {
            has_node_token,
            credential,
            failures: 0,
            phase: Phase::Waiting { until: now },
        }
    }

    /// What to do without a connection.
    pub fn next(&mut self, now: Instant) -> Next {
        match self.phase {
            Phase::Waiting { until } if now < until => Next::Wait(until),
            Phase::Stopped => Next::Stop,
            Phase::Waiting { .. } | Phase::Opening { .. } | Phase::Live { .. } => {
                self.phase = Phase::Opening {
                    since: now,
                    looks: 0,
                };
                Next::Connect(self.credential)
            }
        }
    }

    /// The Master accepted the agent; `token` if it gave the node a token.
    pub fn welcomed(&mut self, now: Instant, token: bool) {
        if token {
            self.has_node_token = true;
            self.credential = Credential::Node;
        }
        self.phase = Phase::Live {
            since: now,
            heard: now,
            pinged: now,
        };
    }

    /// A frame of any kind arrived.
    pub fn heard(&mut self, now: Instant) {
        if let Phase::Live { heard, .. } = &mut self.phase {
            *heard = now;
        }
    }

    /// What to do on an open connection.
    pub fn due(&mut self, now: Instant) -> Due {
        match &mut self.phase {
            Phase::Opening { since, looks } => {
                let until = *since + HELLO_WITHIN;
                if now < until {
                    return Due::Nothing(until);
                }
                if *looks == LOOKS {
                    return Due::Dead;
                }
                *looks += 1;
                Due::Look
            }
            Phase::Live { heard, pinged, .. } => {
                if now >= *heard + DEAD_AFTER {
                    return Due::Look;
                }
                if now >= *pinged + PING_EVERY {
                    *pinged = now;
                    return Due::Ping;
                }
                Due::Nothing((*heard + DEAD_AFTER).min(*pinged + PING_EVERY))
            }
            Phase::Waiting { .. } | Phase::Stopped => Due::Dead,
        }
    }

    /// The connection, or the attempt, is over. `roll` in 0..1 spreads the agents.
    pub fn ended(&mut self, now: Instant, end: &End, roll: f64) {
        if matches!(self.phase, Phase::Live { since, .. } if now >= since + GOOD_AFTER) {
            self.failures = 0;
        }
        let delay = match end {
            End::Closed(close::NODE_REMOVED, _) => {
                self.phase = Phase::Stopped;
                return;
            }
            End::Closed(
                close::NODE_DUPLICATE
                | close::GRID_FULL_NODES
                | close::NETWORK_OVERLAP
                | close::VERSION,
                _,
            ) => between(REFUSED_RETRY_MAX / 2, REFUSED_RETRY_MAX, roll),
            End::Closed(close::BAD_TOKEN, _) | End::Status(401 | 403) => self.bad_token(roll),
            End::Closed(..) | End::Failed(_) | End::Status(_) | End::Silent | End::Protocol(_) => {
                retry_delay(self.failures, roll)
            }
        };
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Waiting { until: now + delay };
    }

    /// A refused node token falls back to the join token at once; a refused
    /// join token goes back to the node's, if there is one, and waits.
    fn bad_token(&mut self, roll: f64) -> Duration {
        match self.credential {
            Credential::Node => {
                self.credential = Credential::Join;
                retry_delay(0, roll)
            }
            Credential::Join => {
                if self.has_node_token {
                    self.credential = Credential::Node;
                }
                between(RETRY_MAX / 2, RETRY_MAX, roll)
            }
        }
    }
}

fn retry_delay(failures: u32, roll: f64) -> Duration {
    if failures == 0 {
        return between(Duration::ZERO, FIRST_RETRY_MAX, roll);
    }
    let longest = (FIRST_RETRY_MAX * 2_u32.pow(failures.min(8))).min(RETRY_MAX);
    between(longest / 2, longest, roll)
}

fn between(from: Duration, to: Duration, roll: f64) -> Duration {
    from + (to - from).mul_f64(roll.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TIME: Duration = Duration::ZERO;

    fn failed() -> End {
        End::Failed("no route".to_owned())
    }

    fn closed(code: u16) -> End {
        End::Closed(code, String::new())
    }

    /// The pause before the next try after `end`.
    fn pause(machine: &mut Machine, now: Instant, end: &End, roll: f64) -> Duration {
        machine.ended(now, end, roll);
        match machine.next(now) {
            Next::Wait(until) => until - now,
            Next::Connect(_) => NO_TIME,
            Next::Stop => panic!("stopped"),
        }
    }

    #[test]
    fn the_first_retry_is_quick_and_later_ones_back_off_to_a_bound() {
        let now = Instant::now();
        for roll in [0.0, 0.5, 1.0] {
            let mut machine = Machine::new(now, false);
            assert_eq!(machine.next(now), Next::Connect(Credential::Join));
            assert!(pause(&mut machine, now, &failed(), roll) <= FIRST_RETRY_MAX);
            let pauses: Vec<_> = (0..10)
                .map(|_| pause(&mut machine, now, &failed(), roll))
                .collect();
            assert!(pauses.is_sorted(), "{pauses:?}");
            assert!(
                pauses[9] >= RETRY_MAX / 2 && pauses[9] <= RETRY_MAX,
                "{pauses:?}"
            );
        }
    }

    #[test]
    fn a_connection_that_lasted_makes_the_next_retry_a_first_one() {
        let mut now = Instant::now();
        let mut machine = Machine::new(now, false);
        for _ in 0..5 {
            machine.ended(now, &failed(), 1.0);
        }
        machine.welcomed(now, true);
        let short = pause(&mut machine.clone(), now, &closed(close::GOING_AWAY), 1.0);
        assert!(short > FIRST_RETRY_MAX);
        now += GOOD_AFTER;
        assert_eq!(
            pause(&mut machine, now, &closed(close::GOING_AWAY), 1.0),
            FIRST_RETRY_MAX
        );
    }

    #[test]
    fn pings_go_out_and_silence_is_death() {
        let start = Instant::now();
        let mut machine = Machine::new(start, false);
        machine.next(start);
        assert_eq!(machine.due(start), Due::Nothing(start + HELLO_WITHIN));
        // It reads what has arrived, but not for ever.
        for _ in 0..LOOKS {
            assert_eq!(machine.due(start + HELLO_WITHIN), Due::Look);
            machine.heard(start + HELLO_WITHIN);
        }
        assert_eq!(machine.due(start + HELLO_WITHIN), Due::Dead);

        machine.welcomed(start, false);
        assert_eq!(machine.due(start), Due::Nothing(start + PING_EVERY));
        assert_eq!(machine.due(start + PING_EVERY), Due::Ping);
        assert_eq!(
            machine.due(start + PING_EVERY),
            Due::Nothing(start + PING_EVERY * 2)
        );
        machine.heard(start + PING_EVERY);
        assert_eq!(machine.due(start + DEAD_AFTER), Due::Ping);
        let late = start + PING_EVERY + DEAD_AFTER;
        assert_eq!(machine.due(late), Due::Look);
        machine.heard(late);
        assert_eq!(machine.due(late), Due::Ping);
    }

    #[test]
    fn a_refused_node_token_falls_back_to_the_join_token_once() {
        let now = Instant::now();
        for refusal in [closed(close::BAD_TOKEN), End::Status(401)] {
            let mut machine = Machine::new(now, true);
            assert_eq!(machine.next(now), Next::Connect(Credential::Node));
            machine.ended(now, &refusal, 0.0);
            assert_eq!(machine.next(now), Next::Connect(Credential::Join));
            assert!(pause(&mut machine, now, &refusal, 0.0) >= RETRY_MAX / 2);
            assert_eq!(
                machine.next(now + RETRY_MAX),
                Next::Connect(Credential::Node)
            );
        }
    }

    #[test]
    fn a_welcome_with_a_token_makes_it_the_one_to_show() {
        let now = Instant::now();
        let mut machine = Machine::new(now, false);
        machine.next(now);
        machine.welcomed(now, true);
        machine.ended(now, &failed(), 0.0);
        assert_eq!(machine.next(now), Next::Connect(Credential::Node));
    }

    #[test]
    fn a_removed_node_stops_a_duplicate_one_waits_long_and_a_superseded_one_asks_at_once() {
        let now = Instant::now();
        let mut machine = Machine::new(now, true);
        machine.welcomed(now, false);
        assert!(pause(&mut machine, now, &closed(close::NODE_DUPLICATE), 0.0) > RETRY_MAX);
        let until = now + REFUSED_RETRY_MAX;
        assert_eq!(machine.next(until), Next::Connect(Credential::Node));
        assert!(pause(&mut machine, until, &closed(close::NETWORK_OVERLAP), 0.0) > RETRY_MAX);
        let until = until + REFUSED_RETRY_MAX;
        // It may have replaced a dead connection; the Master says if it was a duplicate.
        machine.welcomed(until, false);
        let good = until + GOOD_AFTER;
        assert!(pause(&mut machine, good, &closed(close::SUPERSEDED), 0.0) < RETRY_MAX);
        machine.ended(now, &closed(close::NODE_REMOVED), 0.0);
        assert_eq!(machine.next(now + DEAD_AFTER * 100), Next::Stop);
    }
}
