//! Whose clear packets pass, and for how long: the elements of the set `fast_peers` in two
//! tables of the packet filter.
//!
//! One is our ordinary table (`filter.rs`), which outlives the agent. The other
//! (`live_table.rs`) is owned by a socket of this process: a flush of the whole ruleset, as
//! by a restart of Debian's nftables service, leaves it alone, so no others' clear packets
//! pass until the ordinary table is written again. Kernels before 5.12 have no such tables.
//!
//! Every element has a timeout, so whatever hangs, the kernel closes the filter. An element
//! is renewed by deleting and adding it in one transaction: adding an existing one changes
//! nothing on kernels before 6.12, and one that is gone cannot be deleted, so a renewal
//! never lets back in a peer that a pass or the timeout removed.
//!
//! No program is run for it: that takes some milliseconds and may hang.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::error::Cause;
use crate::linux::live_table::{self, FAST_PEERS};
use crate::linux::nft::KONTENA;
use crate::model::state::LiveTable;
use crate::sys::nfnetlink::{Attributes, Batch, Nftables, Operation, in_thread};

/// How long a peer's clear packets pass without a renewal. `filter_lease.rs` has the
/// arithmetic.
pub(crate) const LIFE: Duration = Duration::from_secs(4);

/// How often a change is tried while elements expire under it.
const ATTEMPTS: usize = 3;

const NAMES: [&str; 2] = [KONTENA, live_table::NAME];

/// Access to both sets.
pub(crate) struct FastPeers {
    /// One batch at a time; one that hangs blocks all others.
    socket: Arc<Mutex<Socket>>,
    /// Whose elements were all there at the last renewal, and when it began.
    renewed: StdMutex<Option<Renewed>>,
    /// The state of the live table, as a [`LiveTable`].
    live: AtomicU8,
}

type Renewed = (BTreeSet<Ipv4Addr>, Instant);

struct Socket {
    nftables: Nftables,
    /// How many generations of the ruleset were renewals, which change nothing that is
    /// listed.
    renewals: u32,
}

/// Puts a change of these peers' elements in a table into a batch.
trait Change: Fn(&mut Batch, &'static str, &BTreeSet<Ipv4Addr>) {}

impl<F: Fn(&mut Batch, &'static str, &BTreeSet<Ipv4Addr>)> Change for F {}

/// What a transaction does to what is listed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Changes,
    Renews,
}

impl Socket {
    fn send(&mut self, batch: &Batch, effect: Effect) -> io::Result<()> {
        self.nftables.send(batch)?;
        if effect == Effect::Renews {
            self.renewals = self.renewals.wrapping_add(1);
        }
        Ok(())
    }

    /// Changes those of these peers' elements in one table that are there; how many are
    /// not. What expires meanwhile fails a transaction as a whole.
    fn change_present(
        &mut self,
        table: &'static str,
        peers: &BTreeSet<Ipv4Addr>,
        (effect, change): (Effect, &impl Change),
    ) -> io::Result<usize> {
        for _ in 0..ATTEMPTS {
            let present = match self.nftables.addresses(table, FAST_PEERS) {
                Err(error) if is_missing(&error) => return Ok(peers.len()),
                present => BTreeSet::from_iter(present?),
            };
            let present = &present & peers;
            if present.is_empty() {
                return Ok(peers.len());
            }
            let mut batch = Batch::default();
            change(&mut batch, table, &present);
            match self.send(&batch, effect) {
                Err(error) if is_missing(&error) => {}
                sent => return sent.map(|()| peers.len() - present.len()),
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn revision(&self) -> io::Result<u32> {
        Ok(self.nftables.generation()?.wrapping_sub(self.renewals))
    }
}

impl FastPeers {
    /// The packet filter of the calling thread's network namespace.
    pub(crate) fn here() -> Result<Self, Cause> {
        let nftables = Nftables::open().map_err(Cause::io("the packet filter's socket"))?;
        let renewals = 0;
        Ok(Self {
            socket: Arc::new(Mutex::new(Socket { nftables, renewals })),
            renewed: StdMutex::default(),
            live: AtomicU8::new(LiveTable::Missing as u8),
        })
    }

    /// The same, as on a kernel without tables that have an owner.
    pub(crate) fn without_live_table(self) -> Self {
        let live = AtomicU8::new(LiveTable::Unsupported as u8);
        Self { live, ..self }
    }

    /// Whether the live table exists. No other process can remove it.
    pub(crate) fn live(&self) -> LiveTable {
        let all = [
            LiveTable::Missing,
            LiveTable::Present,
            LiveTable::Unsupported,
        ];
        let now = self.live.load(Ordering::Acquire);
        all.into_iter()
            .find(|live| *live as u8 == now)
            .unwrap_or_default()
    }

    /// Writes the live table, for these peers.
    pub(crate) async fn start_live(&self, peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
        let mut batch = live_table::create();
        add(&mut batch, live_table::NAME, peers, LIFE);
        let live = match self.send(batch, Effect::Changes).await {
            Ok(()) => LiveTable::Present,
            Err(Cause::Kernel(error)) if lacks_owners(&error) => {
                tracing::warn!(
                    "this kernel has no nftables tables with an owner (added in Linux 5.12): \
                     after a flush of the whole ruleset, clear packets pass until the \
                     filter is written again, about a second"
                );
                LiveTable::Unsupported
            }
            Err(cause) => return Err(cause),
        };
        self.live.store(live as u8, Ordering::Release);
        Ok(())
    }

    /// Removes the live table.
    pub(crate) async fn stop_live(&self) -> Result<(), Cause> {
        self.send(live_table::delete(), Effect::Changes).await?;
        self.live.store(LiveTable::Missing as u8, Ordering::Release);
        Ok(())
    }

    /// Lets clear packets of more peers pass.
    pub(crate) async fn allow(&self, peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
        let mut batch = Batch::default();
        for table in self.tables() {
            add(&mut batch, table, peers, LIFE);
        }
        self.send(batch, Effect::Changes).await
    }

    /// Blocks clear packets of these peers. Some elements may have expired.
    pub(crate) async fn forbid(&self, peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
        let forbidden = self.change(Effect::Changes, peers, remove);
        forbidden.await.map(drop)
    }

    /// Renews these peers' elements; returns how many are gone from one of the tables, and
    /// stay gone.
    pub(crate) async fn renew(
        &self,
        peers: &BTreeSet<Ipv4Addr>,
        life: Duration,
    ) -> Result<usize, Cause> {
        let again = move |batch: &mut Batch, table: &'static str, peers: &_| {
            remove(batch, table, peers);
            add(batch, table, peers, life);
        };
        let began = Instant::now();
        let missing = self.change(Effect::Renews, peers, again).await;
        let all = matches!(missing, Ok(0)).then(|| (peers.clone(), began));
        *self.renewed() = all;
        missing
    }

    /// Whether the elements of these peers, which were there, still are: the kernel tells
    /// nobody when one expires.
    pub(crate) fn are_live(&self, peers: &BTreeSet<Ipv4Addr>) -> bool {
        are_live(self.renewed().as_ref(), peers, Instant::now())
    }

    fn renewed(&self) -> MutexGuard<'_, Option<Renewed>> {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes existing elements, in one transaction if all are there; returns how many are
    /// missing.
    async fn change(
        &self,
        effect: Effect,
        peers: &BTreeSet<Ipv4Addr>,
        change: impl Change + Send + 'static,
    ) -> Result<usize, Cause> {
        let (tables, peers) = (self.tables(), peers.clone());
        let changed = move |socket: &mut Socket| {
            let mut all = Batch::default();
            tables
                .iter()
                .for_each(|table| change(&mut all, table, &peers));
            match socket.send(&all, effect) {
                Err(error) if is_missing(&error) => {}
                sent => return sent.map(|()| 0),
            }
            let present =
                |table: &&'static str| socket.change_present(table, &peers, (effect, &change));
            tables.iter().map(present).sum()
        };
        in_thread(&self.socket, changed).await
    }

    fn tables(&self) -> &'static [&'static str] {
        match self.live() {
            LiveTable::Present => &NAMES,
            LiveTable::Missing | LiveTable::Unsupported => &NAMES[..1],
        }
    }

    /// A number that changes with every transaction in the namespace, whoever's it is, but
    /// renewals. None if it is not known: a transaction of ours is under way, or the kernel
    /// does not tell.
    pub(crate) async fn revision(&self) -> Option<u32> {
        let socket = Arc::clone(&self.socket).try_lock_owned().ok()?;
        let asked = spawn_blocking(move || socket.revision()).await.ok()?;
        asked
            .inspect_err(|err| tracing::debug!(%err, "the ruleset's generation is not known"))
            .ok()
    }

    async fn send(&self, batch: Batch, effect: Effect) -> Result<(), Cause> {
        in_thread(&self.socket, move |socket| socket.send(&batch, effect)).await
    }
}

fn are_live(renewed: Option<&Renewed>, peers: &BTreeSet<Ipv4Addr>, now: Instant) -> bool {
    let live =
        |(all, at): &Renewed| all.is_superset(peers) && now.saturating_duration_since(*at) < LIFE;
    peers.is_empty() || renewed.is_some_and(live)
}

/// Whether the kernel says that something does not exist.
fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

fn lacks_owners(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(libc::EINVAL | libc::EOPNOTSUPP))
}

fn add(batch: &mut Batch, table: &str, peers: &BTreeSet<Ipv4Addr>, life: Duration) {
    const TIMEOUT: u16 = 4;
    let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
    let element = |key: Attributes| key.long(TIMEOUT, life_ms);
    put(batch, Operation::NewElements, (table, peers), element);
}

fn remove(batch: &mut Batch, table: &str, peers: &BTreeSet<Ipv4Addr>) {
    put(batch, Operation::DeleteElements, (table, peers), |key| key);
}

/// One message with all of these elements (`NFTA_SET_ELEM_*`); none for none.
fn put(
    batch: &mut Batch,
    operation: Operation,
    (table, peers): (&str, &BTreeSet<Ipv4Addr>),
    element: impl Fn(Attributes) -> Attributes,
) {
    const LIST_TABLE: u16 = 1;
    const LIST_SET: u16 = 2;
    const LIST_ELEMENTS: u16 = 3;
    const ITEM: u16 = 1;
    const KEY: u16 = 1;
    const VALUE: u16 = 1;
    if peers.is_empty() {
        return;
    }
    let elements = peers.iter().fold(Attributes::default(), |all, peer| {
        let value = Attributes::default().bytes(VALUE, &peer.octets());
        let key = Attributes::default().nested(KEY, &value);
        all.nested(ITEM, &element(key))
    });
    let of_set = Attributes::default()
        .text(LIST_TABLE, table)
        .text(LIST_SET, FAST_PEERS)
        .nested(LIST_ELEMENTS, &elements);
    batch.add(operation, of_set);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_live_for_as_long_as_a_renewal_of_all_of_them_lasts() {
        let [two, three] = [2, 3].map(|host| Ipv4Addr::new(198, 51, 100, host));
        let now = Instant::now();
        let renewed = (BTreeSet::from([two]), now);
        let live =
            |peers: &[Ipv4Addr], at| are_live(Some(&renewed), &peers.iter().copied().collect(), at);
        assert!(live(&[two], now) && live(&[], now + LIFE));
        assert!(!live(&[two, three], now), "nobody renewed the third");
        assert!(!live(&[two], now + LIFE), "they may have expired");
        assert!(!are_live(None, &BTreeSet::from([two]), now));
        assert!(are_live(None, &BTreeSet::new(), now));
    }

    /// In a grid of 253 peers of which some have expired, a transaction for each would take
    /// longer than the others live.
    #[test]
    fn a_renewal_is_few_transactions_whoever_has_expired() {
        let (_keeper, netns) = kontena_lab::Keeper::start();
        netns.run("nft add table inet kontena");
        netns.run("nft add set inet kontena fast_peers { type ipv4_addr ; flags timeout ; }");
        let peer = |host| Ipv4Addr::new(198, 51, 100, host);
        let all: BTreeSet<_> = (1..=200).map(peer).collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let renewed = async {
            let fast_peers = FastPeers::here().unwrap();
            fast_peers.start_live(&BTreeSet::new()).await.unwrap();
            assert_eq!(fast_peers.renew(&all, LIFE).await.unwrap(), 400);
            fast_peers.allow(&all).await.unwrap();
            assert_eq!(fast_peers.renew(&all, LIFE).await.unwrap(), 0);
            for gone in [7, 9] {
                netns.run(&format!(
                    "nft delete element inet kontena fast_peers {{ {} }}",
                    peer(gone)
                ));
            }
            let socket = fast_peers.socket.lock().await;
            let before = socket.nftables.generation().unwrap();
            drop(socket);
            assert_eq!(fast_peers.renew(&all, LIFE).await.unwrap(), 2);
            let socket = fast_peers.socket.lock().await;
            let after = socket.nftables.generation().unwrap();
            assert_eq!(after - before, 2, "one for each table");
            let [ordinary, live] = NAMES.map(|table| {
                let there = socket.nftables.addresses(table, FAST_PEERS).unwrap();
                BTreeSet::from_iter(there)
            });
            assert_eq!(&all - &ordinary, BTreeSet::from([7, 9].map(peer)));
            assert_eq!(live, all);
        };
        netns.inside(|| runtime.block_on(renewed));
    }
}
