//! Judges what several clients saw, without a model of who came first: whatever the
//! order was, these must hold.

use std::collections::{BTreeMap, BTreeSet};

use kontena_schema::http::addresses::{HolderKind, LeaseEvent};

use crate::model::{Host, Lease};

/// An address that a client was given, and gave back. Times are in microseconds.
#[derive(Clone, Debug)]
pub struct Owned {
    pub client: String,
    pub host: Host,
    pub lease: Lease,
    /// When it was told so: from here on it is certain.
    pub told: u64,
    /// When it asked for the release: until then it is certain.
    pub until: Option<u64>,
}

/// A row of the ledger.
#[derive(Clone, Debug)]
pub struct Entry {
    pub host: Host,
    pub event: LeaseEvent,
    pub lease: Lease,
    pub kind: HolderKind,
    pub holder: String,
    pub reason: String,
    pub revision: i64,
}

/// Everything that is known when all clients are done.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// How many addresses the subnet has.
    pub size: Host,
    pub owned: Vec<Owned>,
    /// In the order in which it was written.
    pub ledger: Vec<Entry>,
    /// What is held in the end, by the Master's list.
    pub held: BTreeMap<Host, (HolderKind, String, Lease)>,
}

/// Why the ledger says that an instance's lease ended when its node was lost.
const NODE_LOST: &str = "node lost";
/// Why it says that one which waited got an address.
const BECAME_FREE: &str = "an address became free";

/// Everything that is wrong.
pub fn judge(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    owners(history, &mut wrong);
    let in_force = steps(history, &mut wrong);
    told(history, &mut wrong);
    returns(history, &mut wrong);
    if in_force != history.held {
        let different = differences(&in_force, &history.held);
        wrong.push(format!(
            "the ledger and the list of held addresses differ: {different:?}"
        ));
    }
    wrong
}

fn differences<K: Ord + Clone, V: PartialEq + Clone>(
    a: &BTreeMap<K, V>,
    b: &BTreeMap<K, V>,
) -> Vec<K> {
    let keys: BTreeSet<&K> = a.keys().chain(b.keys()).collect();
    keys.into_iter()
        .filter(|key| a.get(key) != b.get(key))
        .cloned()
        .collect()
}

/// No address has two certain owners at a time, no lease number two addresses, and
/// nobody has what is not there.
fn owners(history: &History, wrong: &mut Vec<String>) {
    let mut owned: Vec<&Owned> = history.owned.iter().collect();
    owned.sort_by_key(|owned| (owned.host, owned.told));
    for pair in owned.windows(2) {
        let [first, second] = pair else { continue };
        if first.host == second.host && first.until.is_none_or(|until| until > second.told) {
            wrong.push(format!("two owners at a time: {first:?} and {second:?}"));
        }
    }
    let mut leases = BTreeSet::new();
    for owned in &history.owned {
        if !(1..=history.size - 2).contains(&owned.host) {
            wrong.push(format!("outside the pool: {owned:?}"));
        }
        if !leases.insert(owned.lease) {
            wrong.push(format!("a lease number for the second time: {owned:?}"));
        }
    }
}

/// Replays the ledger: each step follows from the one before. Answers what is in force
/// in the end.
fn steps(
    history: &History,
    wrong: &mut Vec<String>,
) -> BTreeMap<Host, (HolderKind, String, Lease)> {
    let mut in_force: BTreeMap<Host, (HolderKind, String, Lease)> = BTreeMap::new();
    let mut leased = BTreeSet::new();
    let mut ended: BTreeMap<Lease, (Host, &str)> = BTreeMap::new();
    for entry in &history.ledger {
        let now = in_force.get(&entry.host).cloned();
        let this = (entry.kind, entry.holder.clone(), entry.lease);
        let good = match entry.event {
            LeaseEvent::Leased => now.is_none() && leased.insert(entry.lease),
            LeaseEvent::Restored => {
                now.is_none() && ended.remove(&entry.lease) == Some((entry.host, NODE_LOST))
            }
            LeaseEvent::Released => now.as_ref() == Some(&this),
            LeaseEvent::Opened => now.as_ref() == Some(&this),
        };
        if !good {
            wrong.push(format!(
                "a step of the ledger that cannot be, after {now:?}: {entry:?}"
            ));
        }
        match entry.event {
            LeaseEvent::Leased | LeaseEvent::Restored => drop(in_force.insert(entry.host, this)),
            LeaseEvent::Released => {
                in_force.remove(&entry.host);
                ended.insert(entry.lease, (entry.host, &entry.reason));
            }
            LeaseEvent::Opened => {}
        }
    }
    in_force
}

/// Clients and the ledger agree on every reservation.
fn told(history: &History, wrong: &mut Vec<String>) {
    type Row = (Host, Lease, String);
    let rows = |event: LeaseEvent| -> BTreeSet<Row> {
        let entries = history.ledger.iter();
        let own = entries.filter(|e| e.kind == HolderKind::Reservation && e.event == event);
        own.map(|e| (e.host, e.lease, e.holder.clone())).collect()
    };
    let row = |owned: &Owned| (owned.host, owned.lease, owned.client.clone());
    let taken: BTreeSet<Row> = history.owned.iter().map(row).collect();
    let given: BTreeSet<Row> = history
        .owned
        .iter()
        .filter(|o| o.until.is_some())
        .map(row)
        .collect();
    for (what, clients, ledger) in [
        ("taken", taken, rows(LeaseEvent::Leased)),
        ("released", given, rows(LeaseEvent::Released)),
    ] {
        for row in clients.difference(&ledger) {
            wrong.push(format!("{what} by a client and not in the ledger: {row:?}"));
        }
        for row in ledger.difference(&clients) {
            wrong.push(format!("{what} in the ledger and by no client: {row:?}"));
        }
    }
}

/// An instance whose node returns gets its own address where that is free. Where another
/// has it, one of the two moves and not both, and the older lease stays.
fn returns(history: &History, wrong: &mut Vec<String>) {
    let mut in_force: BTreeMap<Host, &Entry> = BTreeMap::new();
    let mut lost: BTreeMap<&str, &Entry> = BTreeMap::new();
    let mut last_released: BTreeMap<Host, &Entry> = BTreeMap::new();
    for entry in &history.ledger {
        match entry.event {
            LeaseEvent::Released => {
                in_force.remove(&entry.host);
                last_released.insert(entry.host, entry);
                if entry.reason == NODE_LOST {
                    lost.insert(&entry.holder, entry);
                }
            }
            LeaseEvent::Leased => {
                in_force.insert(entry.host, entry);
                let Some(before) = lost.remove(entry.holder.as_str()) else {
                    continue;
                };
                if entry.reason != BECAME_FREE && !in_force.contains_key(&before.host) {
                    wrong.push(format!(
                        "moved although its own was free: {before:?}, then {entry:?}"
                    ));
                }
            }
            LeaseEvent::Restored => {
                in_force.insert(entry.host, entry);
                lost.remove(entry.holder.as_str());
                let other = last_released.get(&entry.host);
                let conflict = other.filter(|other| {
                    other.revision == entry.revision
                        && other.lease != entry.lease
                        && other.reason != NODE_LOST
                });
                if let Some(other) = conflict
                    && (other.kind != HolderKind::Placement || other.lease < entry.lease)
                {
                    wrong.push(format!("the wrong side moved: {other:?} for {entry:?}"));
                }
                let both = history.ledger.iter().filter(|e| {
                    e.revision == entry.revision
                        && e.event == LeaseEvent::Leased
                        && e.holder == entry.holder
                });
                for moved in both {
                    wrong.push(format!("restored and moved: {entry:?} and {moved:?}"));
                }
            }
            LeaseEvent::Opened => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(
        event: LeaseEvent,
        host: Host,
        lease: Lease,
        holder: &str,
        reason: &str,
        revision: i64,
    ) -> Entry {
        let kind = if holder.contains('-') {
            HolderKind::Placement
        } else {
            HolderKind::Reservation
        };
        let (holder, reason) = (holder.to_owned(), reason.to_owned());
        Entry {
            host,
            event,
            lease,
            kind,
            holder,
            reason,
            revision,
        }
    }

    /// A client that takes and releases; an instance whose address another gets while
    /// its node is lost; the node's return, from which the other moves.
    fn good() -> History {
        use LeaseEvent::{Leased, Released, Restored};
        let owned = |host, lease, told, until| Owned {
            client: "a".to_owned(),
            host,
            lease,
            told,
            until,
        };
        let held = |holder: &str, lease| (HolderKind::Placement, holder.to_owned(), lease);
        History {
            size: 512,
            owned: vec![owned(300, 1, 10, Some(20)), owned(300, 2, 30, Some(40))],
            ledger: vec![
                entry(Leased, 300, 1, "a", "reserved", 1),
                entry(Released, 300, 1, "a", "released by its holder", 1),
                entry(Leased, 300, 2, "a", "reserved", 1),
                entry(Leased, 301, 3, "p-1", "deployed", 2),
                entry(Released, 301, 3, "p-1", NODE_LOST, 3),
                entry(Leased, 301, 4, "q-1", "deployed", 4),
                entry(Released, 301, 4, "q-1", "301 returned to p-1", 5),
                entry(Restored, 301, 3, "p-1", "the node returned", 5),
                entry(Leased, 302, 5, "q-1", "301 returned to p-1", 5),
                entry(Released, 300, 2, "a", "released by its holder", 5),
            ],
            held: BTreeMap::from([(301, held("p-1", 3)), (302, held("q-1", 5))]),
        }
    }

    #[test]
    fn a_good_history_is_let_pass() {
        assert_eq!(judge(&good()), Vec::<String>::new());
    }

    /// What is judged of the good history after a change for the worse.
    fn judged(spoil: impl FnOnce(&mut History)) -> String {
        let mut history = good();
        spoil(&mut history);
        judge(&history).join("\n")
    }

    #[test]
    fn two_owners_a_stranger_and_a_lease_number_used_twice_are_found() {
        assert!(judged(|h| h.owned[0].until = Some(35)).contains("two owners"));
        assert!(judged(|h| h.owned[0].until = None).contains("two owners"));
        assert!(judged(|h| h.owned[0].host = 511).contains("outside the pool"));
        assert!(judged(|h| h.owned[1].lease = 1).contains("for the second time"));
    }

    #[test]
    fn steps_that_cannot_be_are_found() {
        let cannot = "a step of the ledger that cannot be";
        // Leased twice, released twice, restored without a loss.
        assert!(judged(|h| h.ledger.insert(1, h.ledger[0].clone())).contains(cannot));
        assert!(judged(|h| h.ledger.insert(2, h.ledger[1].clone())).contains(cannot));
        assert!(judged(|h| h.ledger[4].reason = "container removed".to_owned()).contains(cannot));
        assert!(judged(|h| h.ledger[7].lease = 1).contains(cannot));
    }

    #[test]
    fn leaks_and_phantoms_are_found() {
        assert!(judged(|h| drop(h.ledger.pop())).contains("the list of held addresses differ"));
        assert!(
            judged(|h| drop(h.ledger.pop())).contains("released by a client and not in the ledger")
        );
        assert!(judged(|h| h.owned[1].until = None).contains("in the ledger and by no client"));
        assert!(judged(|h| drop(h.owned.pop())).contains("taken in the ledger and by no client"));
        assert!(judged(|h| drop(h.held.pop_first())).contains("differ"));
    }

    #[test]
    fn a_move_without_need_and_a_move_of_the_wrong_side_are_found() {
        // Nobody had taken 301, and the returning instance moved all the same.
        let needless = judged(|h| {
            h.ledger.truncate(5);
            h.ledger.push(entry(
                LeaseEvent::Leased,
                303,
                6,
                "p-1",
                "301 was given to q-1",
                6,
            ));
        });
        assert!(needless.contains("moved although its own was free"));
        let both = judged(|h| {
            h.ledger
                .push(entry(LeaseEvent::Leased, 303, 6, "p-1", "moved", 5))
        });
        assert!(both.contains("restored and moved"));
        let younger = judged(|h| {
            for e in &mut h.ledger {
                if e.holder == "q-1" && e.lease == 4 {
                    e.lease = 0;
                }
            }
        });
        assert!(younger.contains("the wrong side moved"));
    }
}
