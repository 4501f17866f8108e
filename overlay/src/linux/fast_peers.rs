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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::error::Cause;
use crate::linux::access::{self, Access, Accesses, Known, add, close, is_missing, open, remove};
use crate::linux::live_table;
use crate::linux::nft::KONTENA;
use crate::linux::ruleset::{Effect, Ruleset, Socket};
use crate::model::state::LiveTable;
use crate::sys::nfnetlink::Batch;
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
    ruleset: Ruleset,
    /// What the last change read or left.
    known: Arc<Mutex<Option<Known>>>,
    /// Who all was there at the last renewal, and when it began.
    renewed: Mutex<Option<Renewed>>,
    /// The state of the live table, as a [`LiveTable`].
    live: AtomicU8,
    /// Somebody was let in, by a decision that may have been kept waiting.
    opened: Notify,
}

type Renewed = (BTreeSet<Ipv4Addr>, Instant);

/// What is to be done, and what that does to what is listed.
type Change = (Batch, Effect);

impl FastPeers {
    pub(crate) fn of(ruleset: Ruleset) -> Self {
        Self {
            ruleset,
            known: Arc::default(),
            renewed: Mutex::default(),
            live: AtomicU8::new(LiveTable::Missing as u8),
            opened: Notify::new(),
        }
    }

    /// The same, as on a kernel without tables that have an owner.
    pub(crate) fn without_live_table(self) -> Self {
        let live = AtomicU8::new(LiveTable::Unsupported as u8);
        Self { live, ..self }
    }

    /// The ruleset that both sets are in.
    pub(crate) fn ruleset(&self) -> &Ruleset {
        &self.ruleset
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
            ((batch, Effect::Changes), ())
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
            ((batch, Effect::Changes), ())
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
            let (change, missing) = renewal(states, &wanted, life);
            (change, (wanted.open_for, missing))
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
        change: impl Fn(&[(&'static str, Access)]) -> (Change, T) + Send + 'static,
    ) -> Result<T, Cause> {
        let _turn = turn::take_unless_one_hangs(TURN_WITHIN).await;
        let tables = self.tables();
        let known = Arc::clone(&self.known);
        let change = move |socket: &mut Socket| {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            change_in(socket, (tables, &mut known), change)
        };
        self.ruleset.change(change).await
    }

    fn tables(&self) -> &'static [&'static str] {
        match self.live() {
            LiveTable::Present => &NAMES,
            LiveTable::Missing | LiveTable::Unsupported => &NAMES[..1],
        }
    }

    async fn send(&self, batch: Batch, effect: Effect) -> Result<(), Cause> {
        let send = move |socket: &mut Socket| socket.send(&batch, effect);
        self.ruleset.change(send).await
    }
}

/// Sends what follows from what the tables hold, again where that changes meanwhile.
fn change_in<T>(
    socket: &mut Socket,
    (tables, known): (&'static [&'static str], &mut Option<Known>),
    change: impl Fn(&[(&'static str, Access)]) -> (Change, T),
) -> io::Result<T> {
    let mut gone = io::Error::from_raw_os_error(libc::ENOENT);
    for _ in 0..ATTEMPTS {
        let now = read_unless_known(socket, tables, known.take())?;
        let began = Instant::now();
        let ((batch, effect), value) = change(&now.accesses);
        match socket.send(&batch, effect) {
            Ok(()) => {
                *known = match effect {
                    _ if batch.is_empty() => Some(now),
                    Effect::Renews(life) => Some(now.renewed(began + life)),
                    Effect::Changes => None,
                };
                return Ok(value);
            }
            Err(error) if is_missing(&error) => gone = error,
            Err(error) => return Err(error),
        }
    }
    Err(gone)
}

/// What the tables hold.
fn read_unless_known(
    socket: &Socket,
    tables: &'static [&'static str],
    known: Option<Known>,
) -> io::Result<Known> {
    let generation = socket.nftables.generation()?;
    let now = Instant::now();
    if let Some(known) = known.filter(|known| known.holds(tables, generation, now)) {
        return Ok(known);
    }
    let read = |table: &&'static str| Ok((*table, access::read(&socket.nftables, table)?));
    let accesses = tables.iter().map(read).collect::<io::Result<Accesses>>()?;
    Ok(Known {
        generation,
        accesses,
        // It is not asked for how long it is open.
        open_until: now,
    })
}

fn are_live(renewed: Option<&Renewed>, peers: &BTreeSet<Ipv4Addr>, now: Instant) -> bool {
    let live =
        |(all, at): &Renewed| all.is_superset(peers) && now.saturating_duration_since(*at) < LIFE;
    peers.is_empty() || renewed.is_some_and(live)
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
fn renewal(states: &[(&'static str, Access)], wanted: &Wanted, life: Duration) -> (Change, usize) {
    let mut batch = Batch::default();
    let mut effect = Effect::Renews(life);
    let Some(allowed) = &wanted.allowed else {
        return ((batch, effect), wanted.open_for.len());
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
    ((batch, effect), missing.len())
}

#[cfg(test)]
#[path = "fast_peers_tests.rs"]
mod tests;
