//! Who passes: what the sets `open` and `fast_peers` of a table hold, and the messages that
//! change them.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::linux::live_table::{FAST_PEERS, OPEN, UDP};
use crate::sys::nfnetlink::{Attributes, Batch, Nftables, Operation};

/// The kernel's clock for elements counts in ticks of up to 10 ms.
const TICKS: Duration = Duration::from_millis(100);

/// Who passes a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) open: bool,
    pub(super) peers: BTreeSet<Ipv4Addr>,
}

/// The same, by the table's name.
pub(super) type Accesses = Vec<(&'static str, Access)>;

/// What was read or left of some tables, which are the same until the ruleset's generation
/// is another, or what is open may have expired.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) generation: u32,
    pub(super) accesses: Accesses,
    /// How long what is open stays so at least.
    pub(super) open_until: Instant,
}

impl Known {
    /// Whether it still is what is there.
    pub(super) fn holds(&self, tables: &[&str], generation: u32, now: Instant) -> bool {
        let is_open = |(_, access): &(_, Access)| access.open;
        let names = self.accesses.iter().map(|(name, _)| *name);
        self.generation == generation
            && names.eq(tables.iter().copied())
            && (now + TICKS < self.open_until || !self.accesses.iter().any(is_open))
    }

    /// After one transaction that did nothing but keep it open until then. If there was
    /// another one before it, the generation is a later one and ends this.
    pub(super) fn renewed(self, open_until: Instant) -> Self {
        Self {
            generation: self.generation.wrapping_add(1),
            open_until,
            ..self
        }
    }
}

/// Reads what the sets of a table have; it is closed where there is no table.
pub(super) fn read(nftables: &Nftables, table: &str) -> io::Result<Access> {
    let elements = |set| match nftables.elements(table, set) {
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        elements => elements,
    };
    let open = !elements(OPEN)?.is_empty();
    let address = |key: Vec<u8>| <[u8; 4]>::try_from(key).ok().map(Ipv4Addr::from);
    let peers = elements(FAST_PEERS)?.into_iter().filter_map(address);
    Ok(Access {
        open,
        peers: peers.collect(),
    })
}

/// Whether the kernel says that something does not exist.
pub(super) fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

pub(super) fn open(batch: &mut Batch, table: &str, life: Duration) {
    const TIMEOUT: u16 = 4;
    let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
    let element = key(&[UDP]).long(TIMEOUT, life_ms);
    put(batch, Operation::NewElements, (table, OPEN), [element]);
}

pub(super) fn close(batch: &mut Batch, table: &str) {
    let element = key(&[UDP]);
    put(batch, Operation::DeleteElements, (table, OPEN), [element]);
}

pub(super) fn add(batch: &mut Batch, table: &str, peers: &BTreeSet<Ipv4Addr>) {
    let peers = peers.iter().map(|peer| key(&peer.octets()));
    put(batch, Operation::NewElements, (table, FAST_PEERS), peers);
}

pub(super) fn remove(batch: &mut Batch, table: &str, peers: &BTreeSet<Ipv4Addr>) {
    let peers = peers.iter().map(|peer| key(&peer.octets()));
    put(batch, Operation::DeleteElements, (table, FAST_PEERS), peers);
}

/// An element, by its key.
fn key(key: &[u8]) -> Attributes {
    const KEY: u16 = 1;
    const VALUE: u16 = 1;
    Attributes::default().nested(KEY, &Attributes::default().bytes(VALUE, key))
}

/// One message with all of these elements (`NFTA_SET_ELEM_*`); none for none.
fn put(
    batch: &mut Batch,
    operation: Operation,
    (table, set): (&str, &str),
    elements: impl IntoIterator<Item = Attributes>,
) {
    const LIST_TABLE: u16 = 1;
    const LIST_SET: u16 = 2;
    const LIST_ELEMENTS: u16 = 3;
    const ITEM: u16 = 1;
    let mut elements = elements.into_iter().peekable();
    if elements.peek().is_none() {
        return;
    }
    let item = |all: Attributes, element| all.nested(ITEM, &element);
    let elements = elements.fold(Attributes::default(), item);
    let of_set = Attributes::default()
        .text(LIST_TABLE, table)
        .text(LIST_SET, set)
        .nested(LIST_ELEMENTS, &elements);
    batch.add(operation, of_set);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_holds_until_a_generation_or_the_clock_ends_it() {
        let now = Instant::now();
        let known = |open| Known {
            generation: 7,
            accesses: vec![(
                "kontena",
                Access {
                    open,
                    peers: BTreeSet::new(),
                },
            )],
            open_until: now + 2 * TICKS,
        };
        let tables = ["kontena"];
        assert!(known(true).holds(&tables, 7, now));
        assert!(
            !known(true).holds(&tables, 8, now),
            "somebody changed something"
        );
        assert!(!known(true).holds(&["kontena", "kontena-live"], 7, now));
        assert!(
            !known(true).holds(&tables, 7, now + TICKS),
            "it may have expired"
        );
        assert!(
            known(false).holds(&tables, 7, now + TICKS),
            "what is closed stays so"
        );
        let renewed = known(true).renewed(now + 4 * TICKS);
        assert!(renewed.holds(&tables, 8, now + 2 * TICKS));
        assert!(!renewed.holds(&tables, 9, now), "we were not the only one");
    }
}
