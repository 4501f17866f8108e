//! `kontena node ping`: two nodes ping each other, and what that says of the ways
//! between them.
//!
//! Echoes prove a way at this moment. What agents measured before stands beside it: they
//! probe inside the encrypted path only, so that together the two tell what is broken.

use std::fmt;

use kontena::{Client, Error};
use kontena_schema::http::error::ErrorText;
use kontena_schema::http::nodes::{NodePeer, NodePeers};
use kontena_schema::http::pings::{Ping, PingCreate};
use kontena_schema::path::Path;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use crate::failure::Failure;
use crate::output::tables;
use crate::session::Session;

/// The ways between two nodes.
#[derive(Debug, Serialize)]
pub(crate) struct Pinged {
    pub(crate) ways: Vec<Way>,
}

/// One direction.
#[derive(Debug, Serialize)]
pub(crate) struct Way {
    pub(crate) from: String,
    /// The other node, and what was measured of the way to it before.
    pub(crate) to: NodePeer,
    /// None where it could not be begun.
    pub(crate) ping: Option<Ping>,
    /// None where all packets pass.
    pub(crate) problem: Option<Problem>,
}

/// Why packets do not pass, or why that is not known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// This node, which was to ping, has no session.
    Offline(String),
    /// It was not pinged.
    Unknown(String),
    /// No echo was answered.
    NoWay(String),
    /// Echoes of this length in bytes were not, while all shorter ones were.
    TooLong(u32),
    /// No echo of this length in bytes was answered, and not all shorter ones.
    Losses(u32),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offline(node) => write!(f, "{node} is offline"),
            Self::Unknown(why) | Self::NoWay(why) => f.write_str(why),
            Self::TooLong(bytes) => write!(
                f,
                "packets of {bytes} bytes do not pass: the MTU of a network between the two is \
                 too small"
            ),
            Self::Losses(bytes) => write!(
                f,
                "packets get lost, and of {bytes} bytes none passed: the way may be congested, or \
                 the MTU of a network between the two too small"
            ),
        }
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Lets two nodes ping each other at the same time.
pub(crate) async fn run(
    session: &Session,
    client: &Client,
    grid: &str,
    (a, b): (&str, &str),
    count: u32,
) -> Result<(), Failure> {
    if a == b {
        return Err(Failure::Usage("a node has no way to itself".to_owned()));
    }
    // Both are asked first, so that a name that is wrong is told as such.
    let of_a = client.node_peers(grid, a).await?;
    let of_b = client.node_peers(grid, b).await?;
    let (there, back) = (peer(of_a, b)?, peer(of_b, a)?);
    let step = session.out.step(format!("pinging between {a} and {b}"));
    let (first, second) = tokio::join!(
        way(client, grid, (a, back.connected), &there, count),
        way(client, grid, (b, there.connected), &back, count),
    );
    let ways = vec![first?, second?];
    step.done();
    let pinged = Pinged { ways };
    session.out.list(&pinged, |pinged| {
        tables::pinged(pinged, OffsetDateTime::now_utc())
    });
    verdict(&pinged.ways)
}

/// How a node reaches the other, as it last measured.
fn peer(peers: NodePeers, to: &str) -> Result<NodePeer, Failure> {
    let found = peers.peers.into_iter().find(|peer| peer.node == to);
    // It was there a moment ago.
    found.ok_or_else(|| Failure::Usage(format!("there is no node {to} any more")))
}

/// Pings one way, if its node can be asked.
async fn way(
    client: &Client,
    grid: &str,
    (from, connected): (&str, bool),
    to: &NodePeer,
    count: u32,
) -> Result<Way, Failure> {
    let pinged = if connected {
        ping(client, grid, from, &to.node, count).await?
    } else {
        Err(Problem::Offline(from.to_owned()))
    };
    let (ping, problem) = match pinged {
        Ok(ping) => {
            let problem = problem(&ping, to);
            (Some(ping), problem)
        }
        Err(problem) => (None, Some(problem)),
    };
    Ok(Way {
        from: from.to_owned(),
        to: to.clone(),
        ping,
        problem,
    })
}

/// Asks for a ping and waits until it has ended. That this node cannot ping now does not
/// keep the other one from it.
async fn ping(
    client: &Client,
    grid: &str,
    from: &str,
    to: &str,
    count: u32,
) -> Result<Result<Ping, Problem>, Failure> {
    let create = PingCreate {
        to: to.to_owned(),
        count: Some(count),
    };
    match client.node_ping(grid, from, &create).await {
        Ok(begun) => Ok(Ok(client.node_ping_wait(grid, begun).await?)),
        Err(err) => match refusal(&err) {
            Some(why) => Ok(Err(Problem::Unknown(why))),
            None => Err(err.into()),
        },
    }
}

/// What the Master says of a node that cannot ping now.
fn refusal(err: &Error) -> Option<String> {
    let api = err.api()?;
    match (api.body.code.as_str(), &api.body.error) {
        ("node_offline" | "cannot_ping" | "too_many_pings", ErrorText::Sentence(why)) => {
            Some(why.clone())
        }
        _ => None,
    }
}

/// What a ping that has ended says of its way.
fn problem(ping: &Ping, to: &NodePeer) -> Option<Problem> {
    let Some(result) = &ping.result else {
        let why = ping.error.as_deref().unwrap_or("no reason given");
        return Some(Problem::Unknown(format!("{}: {why}", ping.state)));
    };
    if result.received > 0 {
        let why = if result.received < result.sent {
            Problem::Losses(result.mtu)
        } else {
            Problem::TooLong(result.mtu)
        };
        return (!result.full_size_passes).then_some(why);
    }
    let why = match (&to.unreachable, result.path) {
        (Some(why), _) => why.clone(),
        (None, Path::Fast { .. }) if probes_pass(to) => {
            "no echo was answered on the fast path, while the encrypted path between the two \
             lives: UDP port 6784 is blocked between them"
                .to_owned()
        }
        _ => "no echo was answered".to_owned(),
    };
    Some(Problem::NoWay(why))
}

/// Whether the encrypted path to a node that is there was seen to work.
fn probes_pass(to: &NodePeer) -> bool {
    let loss = to.measure.as_ref().and_then(|measure| measure.loss);
    to.connected && loss.is_some_and(|loss| loss < 1.0)
}

/// Fails if anything is wrong with any of the ways.
fn verdict(ways: &[Way]) -> Result<(), Failure> {
    let sentence = |Way {
                        from, to, problem, ..
                    }: &Way| {
        let to = &to.node;
        Some(match problem.as_ref()? {
            problem @ Problem::Offline(_) => problem.to_string(),
            problem @ Problem::NoWay(_) => format!("{from} does not reach {to}: {problem}"),
            problem @ (Problem::TooLong(_) | Problem::Losses(_)) => {
                format!("from {from} to {to}: {problem}")
            }
            problem @ Problem::Unknown(_) => {
                format!("it is not known whether {from} reaches {to}: {problem}")
            }
        })
    };
    let sentences: Vec<_> = ways.iter().filter_map(sentence).collect();
    if sentences.is_empty() {
        Ok(())
    } else {
        Err(Failure::NoWay(sentences.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use kontena_schema::agent::{PathMeasure, PingResult};
    use kontena_schema::ids::{NodeId, PingId};

    use super::*;

    fn pinged(received: u16, full_size_passes: bool, path: Path) -> Ping {
        let result = PingResult {
            path,
            sent: 5,
            received,
            round_trips: None,
            mtu: 1370,
            full_size_passes,
        };
        Ping {
            id: PingId(1),
            from: "one".to_owned(),
            to: "two".to_owned(),
            count: 5,
            state: "done".to_owned(),
            error: None,
            result: Some(result),
            created_at: String::new(),
            finished_at: Some(String::new()),
        }
    }

    fn peer(loss: Option<f32>, unreachable: Option<&str>) -> NodePeer {
        let measure = PathMeasure {
            node: NodeId(2),
            endpoint: None,
            last_handshake_s: Some(7),
            round_trip_us: Some(200),
            loss,
            mtu: 1370,
            sent_bytes: 1,
            received_bytes: 1,
        };
        NodePeer {
            node: "two".to_owned(),
            node_number: 2,
            overlay_ip: [10, 81, 0, 2].into(),
            connected: true,
            path: None,
            unreachable: unreachable.map(str::to_owned),
            sealed_because: None,
            measured_at: None,
            measure: Some(measure),
        }
    }

    const FAST: Path = Path::Fast {
        to: std::net::Ipv4Addr::new(198, 51, 100, 2),
    };
    const SEALED: Path = Path::Sealed {
        to: std::net::Ipv4Addr::new(198, 51, 100, 2),
    };

    /// What is told of it.
    fn told(ping: &Ping, to: &NodePeer) -> String {
        problem(ping, to).map_or_else(String::new, |problem| problem.to_string())
    }

    #[test]
    fn some_echoes_are_enough_and_full_packets_must_pass() {
        let lives = peer(Some(0.0), None);
        assert_eq!(problem(&pinged(1, true, FAST), &lives), None);
        let short = problem(&pinged(5, false, SEALED), &lives);
        assert_eq!(short, Some(Problem::TooLong(1370)));
        // Where short ones get lost too, the length may not be why.
        let lossy = problem(&pinged(4, false, SEALED), &lives);
        assert_eq!(lossy, Some(Problem::Losses(1370)));
    }

    #[test]
    fn a_blocked_fast_path_is_told_from_other_losses() {
        let blocked = "UDP port 6784 is blocked";
        let none = pinged(0, false, FAST);
        assert!(told(&none, &peer(Some(0.1), None)).contains(blocked));
        // Where the encrypted path is silent too, more is broken than a port.
        for silent in [peer(Some(1.0), None), peer(None, None)] {
            assert_eq!(told(&none, &silent), "no echo was answered");
        }
        let away = NodePeer {
            connected: false,
            ..peer(Some(0.0), None)
        };
        assert_eq!(told(&none, &away), "no echo was answered");
        let sealed = pinged(0, false, SEALED);
        assert_eq!(
            told(&sealed, &peer(Some(0.0), None)),
            "no echo was answered"
        );
        // The agent knows better.
        let why = peer(Some(0.0), Some("no handshake"));
        assert_eq!(told(&none, &why), "no handshake");
    }

    #[test]
    fn a_ping_without_a_result_says_why() {
        let ping = Ping {
            state: "expired".to_owned(),
            error: Some("the node did not start it in time".to_owned()),
            result: None,
            ..pinged(0, false, FAST)
        };
        let why = "expired: the node did not start it in time";
        let lives = peer(Some(0.0), None);
        assert_eq!(told(&ping, &lives), why);
        let way = Way {
            from: "one".to_owned(),
            to: lives,
            problem: Some(Problem::Unknown(why.to_owned())),
            ping: Some(ping),
        };
        let failure = verdict(&[way]).unwrap_err().to_string();
        let sentence = format!("it is not known whether one reaches two: {why}");
        assert_eq!(failure, sentence);
    }
}
