//! What our tables of the packet filter hold, listed anew only if something has changed.
//!
//! A listing costs three programs of 4 ms each, and a host that is left alone changes
//! nothing for days. The kernel numbers the generations of its ruleset, so one message
//! tells whether there is anything to list (`fast_peers.rs` takes renewals out). It does not
//! count everything: an element expires unnoticed, and a chain that is hooked to a device goes
//! with it. So a listing counts while its fast peers are renewed, for the same devices only,
//! and not for long.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::error::{Cause, OverlayError};
use crate::linux::fast_peers::FastPeers;
use crate::linux::port_filter::{self, Chains};
use crate::linux::{anti_spoofing, filter};
use crate::model::devices::Link;
use crate::model::state::{AntiSpoofingState, FilterState};

/// How long a listing counts at most. A clear path is renewed for 90 s after a pass
/// (`filter_lease.rs`).
const LISTED_FOR: Duration = Duration::from_secs(60);

/// Our devices, with their indexes.
pub(crate) type Devices = BTreeMap<Link, u32>;

/// What the tables hold.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pub(crate) filter: FilterState,
    pub(crate) anti_spoofing: AntiSpoofingState,
    pub(crate) port_filters: Option<Chains>,
}

/// Reads the tables.
#[derive(Default)]
pub(crate) struct TableReader {
    last: Mutex<Option<Listing>>,
}

struct Listing {
    revision: u32,
    devices: Devices,
    at: Instant,
    tables: Tables,
}

impl TableReader {
    /// What the tables hold, while these devices are there.
    pub(crate) async fn read(
        &self,
        fast_peers: &FastPeers,
        devices: &Devices,
    ) -> Result<Tables, OverlayError> {
        let mut last = self.last.lock().await;
        // What cannot be asked for is listed.
        let before = fast_peers.revision().await.ok();
        let now = Instant::now();
        let counts = |listing: &&Listing| {
            listing.counts(before, devices, now) && fast_peers.keeps(listing.fast_peers())
        };
        if let Some(listing) = last.as_ref().filter(counts) {
            return Ok(listing.tables.clone());
        }
        *last = None;
        let tables = list().await?;
        let after = fast_peers.revision().await.ok();
        *last = after.filter(|_| before == after).map(|revision| Listing {
            revision,
            devices: devices.clone(),
            at: now,
            tables: tables.clone(),
        });
        Ok(tables)
    }
}

impl Listing {
    fn counts(&self, revision: Option<u32>, devices: &Devices, now: Instant) -> bool {
        Some(self.revision) == revision
            && self.devices == *devices
            && now.saturating_duration_since(self.at) < LISTED_FOR
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
    let filter = filter.map_err(failed("the packet filter"))?;
    let anti_spoofing = anti_spoofing::observe().await;
    let anti_spoofing = anti_spoofing.map_err(failed("the VXLAN device's anti-spoofing filter"))?;
    let port_filters = port_filter::observe().await;
    let port_filters = port_filters.map_err(failed("the filters of containers' ports"))?;
    Ok(Tables {
        filter,
        anti_spoofing,
        port_filters,
    })
}

fn failed(what: &'static str) -> impl FnOnce(Cause) -> OverlayError {
    move |cause| OverlayError::Observe {
        what: what.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_counts_while_nothing_has_changed_and_not_for_long() {
        let now = Instant::now();
        let devices = Devices::from([(Link::Vxlan, 7)]);
        let listing = Listing {
            revision: 3,
            devices: devices.clone(),
            at: now,
            tables: Tables {
                filter: FilterState::Missing,
                anti_spoofing: AntiSpoofingState::Missing,
                port_filters: None,
            },
        };
        assert!(listing.counts(Some(3), &devices, now));
        assert!(!listing.counts(Some(4), &devices, now));
        assert!(!listing.counts(None, &devices, now), "nobody knows");
        let anew = Devices::from([(Link::Vxlan, 8)]);
        assert!(!listing.counts(Some(3), &anew, now), "chains went with it");
        assert!(!listing.counts(Some(3), &devices, now + LISTED_FOR));
    }
}
