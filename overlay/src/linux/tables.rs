//! What our tables of the packet filter hold, listed again only if something has changed.
//!
//! A listing costs three programs of 4 ms each, and a host that is left alone changes
//! nothing for days. The kernel numbers the generations of its ruleset, so one message
//! tells whether there is anything to list (`fast_peers.rs` takes renewals out).
//!
//! The kernel counts no generation when an element expires, nor when a device leaves the
//! namespace, which on many kernels ends the chains that are hooked to it. So a listing is
//! fresh only while its fast peers are renewed and no device of ours has gone, and never
//! for long.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::error::{Cause, OverlayError};
use crate::linux::fast_peers::FastPeers;
use crate::linux::port_filter::{self, Chains};
use crate::linux::removals::{removed_device, removed_devices};
use crate::linux::{anti_spoofing, filter};
use crate::model::state::{AntiSpoofingState, FilterState};
use crate::sys::notifications::Notifications;

/// How long a listing is fresh at most.
const FRESH_FOR: Duration = Duration::from_secs(60);

/// What the tables hold.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pub(crate) filter: FilterState,
    pub(crate) anti_spoofing: AntiSpoofingState,
    pub(crate) port_filters: Option<Chains>,
}

/// Reads the tables.
pub(crate) struct TableReader {
    last: Mutex<Last>,
}

struct Last {
    listing: Option<Listing>,
    removed_devices: Notifications,
    buffer: Vec<u8>,
}

struct Listing {
    revision: u32,
    at: Instant,
    tables: Tables,
}

impl TableReader {
    /// Reads those of the calling thread's network namespace.
    pub(crate) fn here() -> Result<Self, Cause> {
        let last = Last {
            listing: None,
            removed_devices: removed_devices()?,
            buffer: Vec::new(),
        };
        Ok(Self {
            last: Mutex::new(last),
        })
    }

    /// What the tables hold.
    pub(crate) async fn read(&self, fast_peers: &FastPeers) -> Result<Tables, OverlayError> {
        let mut last = self.last.lock().await;
        // Not known while a transaction is under way: then they are listed.
        let before = fast_peers.revision().await;
        if let Some(listing) = last.fresh(before, fast_peers) {
            return Ok(listing.tables.clone());
        }
        last.listing = None;
        let at = Instant::now();
        let tables = list().await?;
        let unchanged = before.is_some() && before == fast_peers.revision().await;
        last.listing = before.filter(|_| unchanged).map(|revision| Listing {
            revision,
            at,
            tables: tables.clone(),
        });
        Ok(tables)
    }
}

impl Last {
    fn fresh(&mut self, revision: Option<u32>, fast_peers: &FastPeers) -> Option<&Listing> {
        let ours = |told: &[u8]| removed_device(told).is_some();
        if self.removed_devices.any(&mut self.buffer, ours) {
            self.listing = None;
        }
        self.listing.as_ref().filter(|listing| {
            listing.is_fresh(revision, Instant::now()) && fast_peers.are_live(listing.fast_peers())
        })
    }
}

impl Listing {
    fn is_fresh(&self, revision: Option<u32>, now: Instant) -> bool {
        Some(self.revision) == revision && now.saturating_duration_since(self.at) < FRESH_FOR
    }

    fn fast_peers(&self) -> &BTreeSet<Ipv4Addr> {
        const NONE: &BTreeSet<Ipv4Addr> = &BTreeSet::new();
        match &self.tables.filter {
            FilterState::Sound(filter) => &filter.peers,
            FilterState::Missing | FilterState::Broken => NONE,
        }
    }
}

/// One after the other, as all programs run; where one hangs, the others would, too.
async fn list() -> Result<Tables, OverlayError> {
    let filter = filter::observe().await;
    let filter = filter.map_err(OverlayError::unread("the packet filter"))?;
    let anti_spoofing = anti_spoofing::observe().await;
    let anti_spoofing = anti_spoofing.map_err(OverlayError::unread(
        "the VXLAN device's anti-spoofing filter",
    ))?;
    let port_filters = port_filter::observe().await;
    let port_filters =
        port_filters.map_err(OverlayError::unread("the filters of containers' ports"))?;
    Ok(Tables {
        filter,
        anti_spoofing,
        port_filters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_fresh_until_something_has_changed_and_not_for_long() {
        let now = Instant::now();
        let listing = Listing {
            revision: 3,
            at: now,
            tables: Tables {
                filter: FilterState::Missing,
                anti_spoofing: AntiSpoofingState::Missing,
                port_filters: None,
            },
        };
        assert!(listing.is_fresh(Some(3), now));
        assert!(!listing.is_fresh(Some(4), now));
        assert!(!listing.is_fresh(None, now), "nobody knows");
        assert!(!listing.is_fresh(Some(3), now + FRESH_FOR));
    }
}
