//! Why a peer is silent: a TCP connection to its reachability listener tells a host that
//! is down from one without an agent, and from a path that loses only the encrypted
//! path's packets.
//!
//! CheckSchedule run only for a peer that has been silent for a while, at each of its addresses.
//! The outcome is part of the peer's state. It explains, and no decision follows from it:
//! what an open port says proves nothing.
//!
//! Invariants: a live peer is never checked, and a check under way ends as soon as its
//! peer is heard; the same cause gives the same outcome every time.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::future::join_all;
use kontena_schema::ids::NodeId;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::model::peer::PeerStates;
use crate::model::reachability::{CheckOutcome, CheckOutcomes};
use crate::peer::reachability::listener::{self, LINE_BYTES_MAX};

/// How long connecting may take, and then reading the line: TCP sends a segment three
/// times meanwhile.
const WITHIN: Duration = Duration::from_secs(3);

/// CheckSchedule all addresses of a peer; none if it was heard meanwhile, or has left the grid.
pub(crate) async fn check_peer(
    node: NodeId,
    listeners: Vec<(Ipv4Addr, u16)>,
    mut states: watch::Receiver<PeerStates>,
) -> Option<CheckOutcomes> {
    let over = |states: &PeerStates| states.get(&node).is_none_or(|state| state.alive);
    let checks = listeners
        .into_iter()
        .map(|at| async move { Some((at.0, check(at).await?)) });
    tokio::select! {
        biased;
        _ = states.wait_for(over) => None,
        found = join_all(checks) => Some(found.into_iter().flatten().collect()),
    }
}

/// CheckSchedule one address; none if the error says nothing about the other end.
async fn check(at: (Ipv4Addr, u16)) -> Option<CheckOutcome> {
    let mut stream = match timeout(WITHIN, TcpStream::connect(at)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(err)) => return refused(&err),
        Err(_) => return Some(CheckOutcome::Silent),
    };
    let own = stream.local_addr().ok()?.ip();
    let mut line = [0; LINE_BYTES_MAX];
    let heard = match timeout(WITHIN, hear(&mut stream, &mut line)).await {
        Ok(Ok(length)) => length,
        Ok(Err(_)) | Err(_) => 0,
    };
    Some(outcome(&line[..heard], own))
}

/// Reads until the other end closes, or has advertised more than an agent would.
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

/// What it means that the connection failed.
fn refused(err: &io::Error) -> Option<CheckOutcome> {
    match err.kind() {
        ErrorKind::ConnectionRefused => Some(CheckOutcome::Closed),
        ErrorKind::TimedOut | ErrorKind::HostUnreachable => Some(CheckOutcome::Silent),
        ErrorKind::NetworkUnreachable => Some(CheckOutcome::NoRoute),
        _ => None,
    }
}

/// What this line means, sent to a host with this address.
fn outcome(line: &[u8], own: IpAddr) -> CheckOutcome {
    match listener::read(line) {
        Some(seen) => CheckOutcome::Agent {
            translated: IpAddr::V4(*seen.ip()) != own,
        },
        None => CheckOutcome::Other,
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
