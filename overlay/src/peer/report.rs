//! What the Master is told of each peer: the path that frames take, and why they do not
//! arrive.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use kontena_schema::agent::PeerReport;
use kontena_schema::ids::NodeId;
use kontena_schema::key::PublicKey;
use kontena_schema::path::Path;

use super::reason;
use crate::model::intent::{OverlayIntent, PeerIntent, Reach};

/// A report on each peer; `ready` has the peers' next keys that the encrypted path knows.
pub(crate) fn peer_reports(intent: &OverlayIntent, ready: &BTreeSet<PublicKey>) -> Vec<PeerReport> {
    let report = |(&node, peer): (&NodeId, &PeerIntent)| {
        let next = peer.keys.and_then(|keys| keys.next);
        let (path, unreachable) = path(intent, peer);
        let lost = peer.state.lost && matches!(path, Path::Sealed { .. });
        let sealed_because = peer.ends().filter(|_| lost);
        PeerReport {
            node,
            path,
            unreachable,
            sealed_because: sealed_because.map(|ends| reason::of_loss(ends.peer)),
            // A peer that is not tried loses nothing by a new key.
            next_key: next.filter(|next| {
                ready.contains(next) || matches!(intent.reach(peer), Reach::None(_))
            }),
        }
    };
    intent.peers.iter().map(report).collect()
}

/// The path that frames take, and why they do not arrive. The addresses that are tried in
/// vain are named together: a report is not sent for every try.
fn path(intent: &OverlayIntent, peer: &PeerIntent) -> (Path, Option<String>) {
    let encrypted = |to: Option<Ipv4Addr>| to.map_or(Path::Unknown, |to| Path::Sealed { to });
    let heard_at = peer.state.heard_at;
    let first = peer.candidates.first().copied();
    match intent.reach(peer) {
        Reach::None(why) => (peer.path, Some(why)),
        Reach::Fast(to) => (Path::Fast { to }, None),
        _ if peer.state.alive => (encrypted(heard_at.or(first)), None),
        _ => {
            let why = reason::of_silence(peer, intent.own.behind_nat);
            (encrypted(first), Some(why))
        }
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
