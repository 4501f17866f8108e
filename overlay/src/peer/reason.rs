//! Why a silent peer cannot be reached, as text for people.
//!
//! The most certain finding comes first, and every finding is included. A report is sent to the
//! Master whenever it changes, so it contains nothing that differs from try to try: no time, no
//! count, no source port.

use std::net::Ipv4Addr;

use kontena_schema::limits::{DOOR_PORT, VXLAN_PORT, WIREGUARD_PORT};

use crate::model::intent::PeerIntent;
use crate::model::reachability::CheckOutcome;

/// Why a silent peer cannot be reached; `behind_nat` is whether this node is behind NAT.
pub(crate) fn of_silence(peer: &PeerIntent, behind_nat: bool) -> String {
    if peer.candidates.is_empty() {
        return "its address on the underlay is not known".to_owned();
    }
    let candidates: Vec<_> = peer.candidates.iter().map(ToString::to_string).collect();
    let candidates = candidates.join(" or ");
    let mut reasons = vec![format!(
        "no handshake with {candidates} at UDP port {WIREGUARD_PORT}"
    )];
    // A cloud's NAT may forward everything, so a peer that was met once gets no such hint.
    let first = peer.candidates.first().copied();
    if behind_nat && !peer.state.met && peer.nat.is_some() && first == peer.nat {
        reasons.push(format!(
            "both nodes seem to be behind NAT, so UDP port {WIREGUARD_PORT} may have to be \
             forwarded to one of them"
        ));
    }
    let found = |candidate: &Ipv4Addr| {
        let answer = peer.state.reachability.at(*candidate)?;
        let words = words(answer, peer.nat == Some(*candidate));
        Some(format!("{candidate}: {words}"))
    };
    reasons.extend(peer.candidates.iter().filter_map(found));
    reasons.join("; ")
}

/// Why a path that is to be clear is encrypted.
pub(crate) fn of_loss(to: Ipv4Addr) -> String {
    format!("UDP port {VXLAN_PORT} to {to} is blocked, or drops full-size packets")
}

/// The text for the outcome at an address, which may be that of a NAT.
fn words(answer: CheckOutcome, nat: bool) -> String {
    let or_nat = if nat {
        ", or its NAT forwards nothing"
    } else {
        ""
    };
    match answer {
        CheckOutcome::Agent { translated } => {
            let seen = if translated {
                " and sees this node behind NAT"
            } else {
                ""
            };
            format!(
                "an agent answers at TCP port {DOOR_PORT}{seen}; UDP is blocked on the path, or \
                 that agent does not know this node"
            )
        }
        CheckOutcome::Other => {
            format!("TCP port {DOOR_PORT} is open, but no agent answers there")
        }
        CheckOutcome::Closed => {
            format!("TCP port {DOOR_PORT} is closed: the host is up without an agent{or_nat}")
        }
        CheckOutcome::Silent => format!(
            "no answer at TCP port {DOOR_PORT} either: the host is down or the path is \
             blocked{or_nat}"
        ),
        CheckOutcome::NoRoute => "this node has no route there".to_owned(),
    }
}

#[cfg(test)]
#[path = "reason_tests.rs"]
mod tests;
