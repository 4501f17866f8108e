//! Whose clear packets pass, and for how long: the sets `fast_peers` and `open` in two
//! tables of the packet filter.
//!
//! One is our ordinary table (`filter.rs`), which outlives the agent. The other
//! (`live_table.rs`) is owned by a socket of this process: a flush of the whole ruleset, as
//! by a restart of Debian's nftables service, leaves it alone, so no others' clear packets
//! pass until the ordinary table is written again. Kernels before 5.12 have no such tables.
//!
//! `fast_peers` has who may be clear, and `open` one element with a timeout: without it
//! nobody's packets pass, so whatever hangs, the kernel closes the filter. It is renewed by
//! deleting and adding it in one transaction: adding an existing one changes nothing on
//! kernels before 6.12. The same transaction takes out whoever may not be clear any more, so
//! what the timeout closed opens for nobody else. A renewal never lets anybody in.
//!
//! Each change of an element is told to everybody who listens, which costs more than the
//! change. So the timeout is one element's, not every peer's.
//!
//! No program is run for it: that takes some milliseconds and may hang.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify};

use crate::error::Cause;
use crate::linux::live_table::{self, FAST_PEERS, OPEN, UDP};
use crate::linux::nft::{KONTENA, Present};
use crate::model::state::LiveTable;
use crate::sys::nfnetlink::{Attributes, Batch, Nftables, Operation, in_thread};
use crate::sys::turn;

/// How long clear packets pass without a renewal. `filter_lease.rs` has the arithmetic.
pub(crate) const LIFE: Duration = Duration::from_secs(4);

/// How long a change waits for a program that writes to the packet filter and may hang.
pub(crate) const TURN_WITHIN: Duration = Duration::from_secs(2);

/// How often a change is tried while what it changes goes under it.
const ATTEMPTS: usize = 3;

const NAMES: [&str; 2] = [KONTENA, live_table::NAME];

/// Access to both sets.
pub(crate) struct FastPeers {
    /// Where batches are sent.
    runtime: Handle,
    /// One batch at a time; one that hangs blocks all others.
    socket: Arc<Mutex<Socket>>,
    /// Who all was there at the last renewal, and when it began.
    renewed: StdMutex<Option<Renewed>>,
    /// The state of the live table, as a [`LiveTable`].
    live: AtomicU8,
    /// Somebody was let in, by a decision that may have been kept waiting.
    opened: Notify,
}

type Renewed = (BTreeSet<Ipv4Addr>, Instant);

struct Socket {
    nftables: Nftables,
    /// How many generations of the ruleset were transactions of this socket, and how many of
    /// those were renewals.
    transactions: u32,
    renewals: u32,
}

/// Numbers that change with the namespace's ruleset, whoever changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revision {
    /// With every transaction but renewals, which change nothing that is listed.
    pub(crate) all: u32,
    /// With what may change other tables than the two here.
    pub(crate) other_tables: u32,
}

/// What a transaction does to what is listed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Changes,
    Renews,
}

/// Who passes a table.
struct Access {
    open: bool,
    peers: BTreeSet<Ipv4Addr>,
}

impl Socket {
    fn send(&mut self, batch: &Batch, effect: Effect) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.nftables.send(batch)?;
        self.transactions = self.transactions.wrapping_add(1);
        if effect == Effect::Renews {
            self.renewals = self.renewals.wrapping_add(1);
        }
        Ok(())
    }

    /// What the sets of a table have; it is closed where there is no table.
    fn access(&self, table: &str) -> io::Result<Access> {
        let elements = |set| match self.nftables.elements(table, set) {
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

    /// Sends what follows from the tables' state, again where that changes meanwhile.
    fn change<T>(
        &mut self,
        tables: &'static [&'static str],
        change: impl Fn(&[(&'static str, Access)]) -> (Batch, Effect, T),
    ) -> io::Result<T> {
        let mut gone = io::Error::from_raw_os_error(libc::ENOENT);
        for _ in 0..ATTEMPTS {
            let state = |table: &&'static str| Ok((*table, self.access(table)?));
            let states: Vec<_> = tables.iter().map(state).collect::<io::Result<_>>()?;
            let (batch, effect, value) = change(&states);
            match self.send(&batch, effect) {
                Err(error) if is_missing(&error) => gone = error,
                sent => return sent.map(|()| value),
            }
        }
        Err(gone)
    }

    fn revision(&self) -> io::Result<Revision> {
        let generation = self.nftables.generation()?;
        Ok(Revision {
            all: generation.wrapping_sub(self.renewals),
            other_tables: generation.wrapping_sub(self.transactions),
        })
    }
}

impl FastPeers {
    /// The packet filter of the calling thread's network namespace, changed by threads of
    /// this runtime.
    pub(crate) fn here(runtime: &Handle) -> Result<Self, Cause> {
        let nftables = Nftables::open().map_err(Cause::io("the packet filter's socket"))?;
        let socket = Socket {
            nftables,
            transactions: 0,
            renewals: 0,
        };
        Ok(Self {
            runtime: runtime.clone(),
            socket: Arc::new(Mutex::new(socket)),
            renewed: StdMutex::default(),
            live: AtomicU8::new(LiveTable::Missing as u8),
            opened: Notify::new(),
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
        // One that an earlier attempt made without our knowing has other peers.
        let mut batch = live_table::create_anew();
        add(&mut batch, live_table::NAME, peers);
        open(&mut batch, live_table::NAME, LIFE);
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

    /// Lets clear packets of more peers pass. Where the filter is closed, it opens for these
    /// alone.
    pub(crate) async fn allow(&self, peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
        if peers.is_empty() {
            return Ok(());
        }
        let peers = peers.clone();
        self.change(move |states| {
            let mut batch = Batch::default();
            for (table, access) in states {
                if !access.open {
                    remove(&mut batch, table, &(&access.peers - &peers));
                    open(&mut batch, table, LIFE);
                }
                // What changes nothing makes no generation, and would be counted as one.
                add(&mut batch, table, &(&peers - &access.peers));
            }
            (batch, Effect::Changes, ())
        })
        .await?;
        self.opened.notify_one();
        Ok(())
    }

    /// Waits until somebody was let in.
    pub(crate) async fn opened(&self) {
        self.opened.notified().await;
    }

    /// Blocks clear packets of these peers.
    pub(crate) async fn forbid(&self, peers: &BTreeSet<Ipv4Addr>) -> Result<(), Cause> {
        let peers = peers.clone();
        self.change(move |states| {
            let mut batch = Batch::default();
            for (table, access) in states {
                remove(&mut batch, table, &(&access.peers & &peers));
            }
            (batch, Effect::Changes, ())
        })
        .await
    }

    /// Takes out whoever may not pass, and keeps the filter open for `life` for the rest, if
    /// it is to be; returns how many of those for whom do not pass. What is wanted is asked
    /// for right before each transaction.
    pub(crate) async fn renew(
        &self,
        wanted: impl Fn() -> Wanted + Send + 'static,
        life: Duration,
    ) -> Result<usize, Cause> {
        let began = Instant::now();
        let renewed = self.change(move |states| {
            let wanted = wanted();
            let (batch, effect, missing) = renewal(states, &wanted, life);
            (batch, effect, (wanted.open_for, missing))
        });
        let renewed = renewed.await;
        let all = matches!(renewed, Ok((_, 0)));
        let renewed = renewed.inspect_err(|_| *self.renewed() = None)?;
        let (open_for, missing) = renewed;
        *self.renewed() = all.then_some((open_for, began));
        Ok(missing)
    }

    /// Whether these peers, who passed, still do: the kernel tells nobody when an element
    /// expires.
    pub(crate) fn are_live(&self, peers: &BTreeSet<Ipv4Addr>) -> bool {
        are_live(self.renewed().as_ref(), peers, Instant::now())
    }

    fn renewed(&self) -> MutexGuard<'_, Option<Renewed>> {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn change<T: Send + 'static>(
        &self,
        change: impl Fn(&[(&'static str, Access)]) -> (Batch, Effect, T) + Send + 'static,
    ) -> Result<T, Cause> {
        let _turn = turn::take_unless_one_hangs(TURN_WITHIN).await;
        let tables = self.tables();
        let change = move |socket: &mut Socket| socket.change(tables, change);
        in_thread(&self.runtime, &self.socket, change).await
    }

    fn tables(&self) -> &'static [&'static str] {
        match self.live() {
            LiveTable::Present => &NAMES,
            LiveTable::Missing | LiveTable::Unsupported => &NAMES[..1],
        }
    }

    /// None if it is not known: a transaction of ours is under way, or the kernel does not
    /// tell.
    pub(crate) async fn revision(&self) -> Option<Revision> {
        self.ask(Socket::revision).await
    }

    /// The namespace's tables, as far as they are known without waiting.
    pub(crate) async fn present(&self) -> Present {
        Present(self.ask(|socket| socket.nftables.tables()).await)
    }

    /// Asks the kernel what it tells at once. None while a transaction of ours is under way.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Socket) -> io::Result<T> + Send + 'static,
    ) -> Option<T> {
        let socket = Arc::clone(&self.socket).try_lock_owned().ok()?;
        let asked = self.runtime.spawn_blocking(move || question(&socket));
        let answer = asked.await.ok()?;
        answer
            .inspect_err(|err| tracing::debug!(%err, "the kernel tells nothing of the ruleset"))
            .ok()
    }

    async fn send(&self, batch: Batch, effect: Effect) -> Result<(), Cause> {
        let send = move |socket: &mut Socket| socket.send(&batch, effect);
        in_thread(&self.runtime, &self.socket, send).await
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

/// What a renewal goes by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// For whom the filter is to stay open.
    pub(crate) open_for: BTreeSet<Ipv4Addr>,
    /// Who may pass at all: a pass under way may have let in some more of those, and is not to
    /// be undone. None while nobody knows.
    pub(crate) allowed: Option<BTreeSet<Ipv4Addr>>,
    /// Whether what has closed opens again.
    pub(crate) reopens: bool,
}

/// Takes out whoever may not pass any more, keeps the filter open for the rest, and counts
/// who of those does not pass. What stays closed in one table is closed in both.
fn renewal(
    states: &[(&'static str, Access)],
    wanted: &Wanted,
    life: Duration,
) -> (Batch, Effect, usize) {
    let mut batch = Batch::default();
    let mut effect = Effect::Renews;
    let Some(allowed) = &wanted.allowed else {
        return (batch, effect, wanted.open_for.len());
    };
    let all_open = states.iter().all(|(_, access)| access.open);
    let opens = !wanted.open_for.is_empty() && (all_open || wanted.reopens);
    let pass = states
        .iter()
        .fold(allowed.clone(), |all, (_, access)| &all & &access.peers);
    for (table, access) in states {
        let withdrawn = &access.peers - &pass;
        if !withdrawn.is_empty() || !all_open {
            effect = Effect::Changes;
        }
        remove(&mut batch, table, &withdrawn);
        if access.open && (opens || !all_open) {
            close(&mut batch, table);
        }
        if opens {
            open(&mut batch, table, life);
        }
    }
    let missing = if all_open || opens {
        &wanted.open_for - &pass
    } else {
        wanted.open_for.clone()
    };
    (batch, effect, missing.len())
}

fn open(batch: &mut Batch, table: &str, life: Duration) {
    const TIMEOUT: u16 = 4;
    let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
    let lasts = |element: Attributes| element.long(TIMEOUT, life_ms);
    put(
        batch,
        Operation::NewElements,
        (table, OPEN),
        [lasts(key(&[UDP]))],
    );
}

fn close(batch: &mut Batch, table: &str) {
    put(
        batch,
        Operation::DeleteElements,
        (table, OPEN),
        [key(&[UDP])],
    );
}

fn add(batch: &mut Batch, table: &str, peers: &BTreeSet<Ipv4Addr>) {
    let peers = peers.iter().map(|peer| key(&peer.octets()));
    put(batch, Operation::NewElements, (table, FAST_PEERS), peers);
}

fn remove(batch: &mut Batch, table: &str, peers: &BTreeSet<Ipv4Addr>) {
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
#[path = "fast_peers_tests.rs"]
mod tests;
