//! Notices when something of ours is removed: a device, one of our tables, or a part of one.
//!
//! Programs that own a host's packet filter flush all of it when they are restarted, and
//! know nothing of us; people remove a device to see what happens. The kernel notifies of
//! each change, and a removal of what has our name becomes an event, which asks for a pass.
//!
//! Every change to a host's packet filter and devices passes here, and some hosts have
//! hundreds a second. So the kernel filters out whatever is no removal, the rest is read a
//! few times a second at most, and events are rate-limited, whatever causes them: our own
//! pass replaces a table too, and one that does so each time must not trigger itself.
//!
//! Absent on purpose: removals in a transaction that begins with something else, additions
//! to our tables, and devices that are changed, unless they leave their bridge. The next
//! pass repairs them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::error::Cause;
use crate::linux::nft::{KONTENA, PORTS};
use crate::linux::removed_devices::{Removed, RemovedDevices};
use crate::model::pace::Budget;
use crate::sys::nfnetlink::{self, tables};
use crate::sys::notifications::Notifications;

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

/// What is removed in one namespace.
pub(crate) struct Removals {
    filter: Notifications,
    devices: Arc<RemovedDevices>,
    /// What of these was seen.
    removed: Removed,
    buffer: Vec<u8>,
    budget: Budget,
    /// When the pending event is due.
    due: Option<Instant>,
}

impl Removals {
    /// Those of the calling thread's namespace, and these devices.
    pub(crate) fn here(devices: Arc<RemovedDevices>) -> Result<Self, Cause> {
        let filter = nfnetlink::notifications(&REMOVALS);
        Ok(Self {
            filter: filter.map_err(Cause::io("notifications of the packet filter"))?,
            removed: devices.so_far(),
            devices,
            buffer: Vec::new(),
            budget: Budget::full((BURST, REFILL), Instant::now()),
            due: None,
        })
    }

    /// Waits until something of ours is removed. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        loop {
            if let Some(due) = self.due {
                sleep_until(due).await;
                self.due = None;
                // All of it is one event.
                self.concern_us();
                return;
            }
            let told = tokio::select! {
                told = self.filter.readable() => told,
                told = self.devices.more_than(self.removed) => told,
            };
            if let Err(err) = told {
                tracing::warn!(%err, "cannot read notifications of removals");
                sleep(REFILL).await;
            }
            sleep(GATHER).await;
            if self.concern_us() {
                self.due = Some(self.budget.next(Instant::now()));
            } else {
                sleep(REST).await;
            }
        }
    }

    /// Reads all notifications.
    fn concern_us(&mut self) -> bool {
        let mut ours = false;
        self.filter.read_all(&mut self.buffer, |told| {
            ours |= told.is_none_or(|told| tables(told).iter().any(is_ours));
        });
        let removed = self.devices.so_far();
        // A container's device comes and goes with it.
        ours |= removed.of_host != self.removed.of_host;
        self.removed = removed;
        ours
    }
}

/// Chains of the ports' table come and go with containers; the table stays.
fn is_ours((operation, table): &(u8, String)) -> bool {
    match table.as_str() {
        KONTENA => REMOVALS.contains(operation),
        PORTS => *operation == TABLE_REMOVED,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_removals_from_our_tables_are_events() {
        let of = |operation, table: &str| is_ours(&(operation, table.to_owned()));
        assert!(of(2, KONTENA) && of(8, KONTENA) && of(2, PORTS));
        assert!(!of(5, PORTS), "a container is gone");
        assert!(!of(6, KONTENA), "a rule is added");
        assert!(!of(2, "firewall") && !of(2, "kontena-live"));
    }
}
