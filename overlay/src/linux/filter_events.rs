//! Notices that somebody takes our tables away, or parts of them.
//!
//! Programs that own a host's packet filter flush all of it when they are restarted, and
//! know nothing of us. The kernel tells of each change; of those that take something away
//! from a table with our name, this makes an event, which asks for a pass.
//!
//! Every change to a host's packet filter passes here, and some hosts have hundreds a
//! second. So the kernel keeps additions and elements of sets from us, what is left is read
//! a few times a second at most, and events are few, whoever causes them: our own pass
//! replaces a table too, and a pass that would do so each time must not follow on itself.
//!
//! Absent on purpose: what is taken away in a transaction that begins with something else
//! than that, and what is added to our tables. The next pass mends both.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::Cause;
use crate::linux::nft::{KONTENA, PORTS};
use crate::sys::nfnetlink::Notifications;

/// `NFT_MSG_DELTABLE`.
const TABLE_REMOVED: u8 = 2;
/// That, and `DELCHAIN`, `DELRULE`, `DELSET`, `DELOBJ`.
const REMOVALS: [u8; 5] = [TABLE_REMOVED, 5, 8, 11, 20];

/// A burst is gathered for so long; what it asks for is to be done a second after it began.
const GATHER: Duration = Duration::from_millis(100);
/// What is nothing to us is waited for this much longer.
const REST: Duration = Duration::from_millis(250);

/// So many events may follow on each other; another one comes this much later.
const BURST: u32 = 4;
const REFILL: Duration = Duration::from_secs(10);

/// Events of the packet filter of one namespace.
pub(crate) struct FilterEvents {
    socket: Notifications,
    buffer: Vec<u8>,
    budget: Budget,
    /// When the event is due that was noticed.
    due: Option<Instant>,
}

impl FilterEvents {
    /// Those of the calling thread's namespace.
    pub(crate) fn here() -> Result<Self, Cause> {
        let open = || Notifications::open(&REMOVALS);
        Ok(Self {
            socket: open().map_err(Cause::io("notifications of the packet filter"))?,
            buffer: Vec::new(),
            budget: Budget::full(Instant::now()),
            due: None,
        })
    }

    /// Waits until something of ours was taken away. Nothing is lost if it is dropped
    /// meanwhile.
    pub(crate) async fn changed(&mut self) {
        loop {
            if let Some(due) = self.due {
                sleep_until(due).await;
                self.due = None;
                // All of it is one event.
                self.concerns_us();
                return;
            }
            if let Err(err) = readable(&self.socket).await {
                tracing::warn!(%err, "the packet filter tells nothing");
                sleep(REFILL).await;
            }
            sleep(GATHER).await;
            if self.concerns_us() {
                self.due = Some(self.budget.next(Instant::now()));
            } else {
                sleep(REST).await;
            }
        }
    }

    /// Reads all that was told. What there was no room for may have been of ours.
    fn concerns_us(&mut self) -> bool {
        let mut ours = false;
        loop {
            match self.socket.read(&mut self.buffer) {
                Ok(Some(told)) => ours |= told.iter().any(is_ours),
                Ok(None) => return ours,
                Err(err) => {
                    tracing::debug!(%err, "notifications of the packet filter are lost");
                    if err.raw_os_error() != Some(libc::ENOBUFS) {
                        return ours;
                    }
                    ours = true;
                }
            }
        }
    }
}

/// Nobody is woken between two waits: it is registered for each of them.
async fn readable(socket: &Notifications) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed, so it stays open and the same meanwhile.
    let socket = unsafe { AsyncFd::register_with_interest(socket.as_fd(), Interest::READABLE) }?;
    socket.readable().await.map(drop)
}

/// Chains of the ports' table come and go with containers; the table stays.
fn is_ours((operation, table): &(u8, String)) -> bool {
    match table.as_str() {
        KONTENA => REMOVALS.contains(operation),
        PORTS => *operation == TABLE_REMOVED,
        _ => false,
    }
}

/// When the next event may be: a bucket of [`BURST`] that is filled by one each [`REFILL`].
struct Budget {
    /// When the bucket is full again.
    full_at: Instant,
}

impl Budget {
    fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes one, and says when it is there.
    fn next(&mut self, now: Instant) -> Instant {
        self.full_at = self.full_at.max(now) + REFILL;
        now.max(self.full_at - REFILL * BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_events_follow_at_once_and_then_one_each_interval() {
        let now = Instant::now();
        let mut budget = Budget::full(now);
        for _ in 0..BURST {
            assert_eq!(budget.next(now), now);
        }
        assert_eq!(budget.next(now), now + REFILL);
        assert_eq!(budget.next(now), now + REFILL * 2);
        let later = now + REFILL * 20;
        assert_eq!(budget.next(later), later, "it fills up again");
    }

    #[test]
    fn only_removals_from_our_tables_are_events() {
        let of = |operation, table: &str| is_ours(&(operation, table.to_owned()));
        assert!(of(2, KONTENA) && of(8, KONTENA) && of(2, PORTS));
        assert!(!of(5, PORTS), "a container is gone");
        assert!(!of(6, KONTENA), "a rule is added");
        assert!(!of(2, "firewall") && !of(2, "kontena-live"));
    }
}
