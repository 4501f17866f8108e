//! Notices when our tables, or parts of them, are removed.
//!
//! Programs that own a host's packet filter flush all of it when they are restarted, and
//! know nothing of us. The kernel notifies of each change; a removal from a table with our
//! name becomes an event, which asks for a pass.
//!
//! Every change to a host's packet filter passes here, and some hosts have hundreds a
//! second. So the kernel filters out additions and elements of sets, the rest is read a few
//! times a second at most, and events are rate-limited, whatever causes them: our own pass
//! replaces a table too, and one that does so each time must not trigger itself.
//!
//! Absent on purpose: removals in a transaction that begins with something else, and
//! additions to our tables. The next pass repairs both.

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

/// How long a burst is gathered; the pass it asks for is due a second after it began.
const GATHER: Duration = Duration::from_millis(100);
/// The extra wait after changes that do not concern us.
const REST: Duration = Duration::from_millis(250);

/// This many events may come at once; another one comes this much later.
const BURST: u32 = 4;
const REFILL: Duration = Duration::from_secs(10);

/// Events of the packet filter of one namespace.
pub(crate) struct FilterEvents {
    socket: Notifications,
    buffer: Vec<u8>,
    budget: Budget,
    /// When the pending event is due.
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

    /// Waits until something of ours is removed. Cancel-safe.
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
                tracing::warn!(%err, "cannot read notifications of the packet filter");
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

    /// Reads all notifications. Lost ones may have been about ours.
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

/// Registers for each wait anew, so that nothing wakes between two.
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

/// When the next event may be: a bucket of [`BURST`] tokens, refilled by one each [`REFILL`].
struct Budget {
    /// When the bucket is full again.
    full_at: Instant,
}

impl Budget {
    fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes a token; returns when it is available.
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
