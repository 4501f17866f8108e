//! What our tables of the packet filter hold, listed again only if something has changed.
//!
//! A listing costs a program of 2 ms for each table that is there, and a host that is left
//! alone changes nothing for days. The kernel numbers the generations of its ruleset, so one
//! message tells whether there is anything to list. What this process changes without a
//! program is in two tables alone (`fast_peers.rs`), and renewals change nothing that is
//! listed: peers that turn clear cost one listing, and renewals none.
//!
//! The kernel counts no generation when an element expires, nor when a device leaves the
//! namespace, which on many kernels ends the chains that are hooked to it. So a listing is
//! fresh only while its fast peers are renewed and no device of ours has gone, and never
//! for long. Nor does it count what is done to the old implementation of iptables: where
//! that is used, its rules are listed each time.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::error::{Cause, OverlayError};
use crate::linux::fast_peers::{FastPeers, Revision};
use crate::linux::port_filter::{self, Chains};
use crate::linux::removals::{removed_device, removed_devices};
use crate::linux::{anti_spoofing, filter, forwarding};
use crate::model::state::{AntiSpoofingState, FilterState, Forwarding};
use crate::sys::notifications::Notifications;

/// How long a listing is fresh at most.
const FRESH_FOR: Duration = Duration::from_secs(60);

/// What the tables hold, and where our rule is among Docker's.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) filter: FilterState,
    pub(crate) anti_spoofing: AntiSpoofingState,
    pub(crate) port_filters: Option<Chains>,
    pub(crate) forwarding: Result<Forwarding, Cause>,
}

/// Reads the tables.
pub(crate) struct TableReader {
    last: Mutex<Last>,
}

struct Last {
    filter: Kept<FilterState>,
    /// The tables whose chains are hooked to devices.
    of_devices: Kept<(AntiSpoofingState, Option<Chains>)>,
    forwarding: Kept<Forwarding>,
    removed_devices: Notifications,
    buffer: Vec<u8>,
}

impl TableReader {
    /// Reads those of the calling thread's network namespace.
    pub(crate) fn here() -> Result<Self, Cause> {
        let last = Last {
            filter: Kept(None),
            of_devices: Kept(None),
            forwarding: Kept(None),
            removed_devices: removed_devices()?,
            buffer: Vec::new(),
        };
        Ok(Self {
            last: Mutex::new(last),
        })
    }

    /// What the tables hold. They are listed one after the other, as all programs run; where
    /// one hangs, the others would, too.
    pub(crate) async fn read(&self, fast_peers: &FastPeers) -> Result<Tables, OverlayError> {
        let mut last = self.last.lock().await;
        last.forget_what_ended(fast_peers);
        // Not known while a transaction is under way: then they are listed.
        let now = fast_peers.revision().await;
        let (all, others) = (|now: Revision| now.all, |now: Revision| now.other_tables);

        let list = async || filter::observe(&fast_peers.present().await).await;
        let filter = last.filter.or_list(fast_peers, (now, all), list).await;
        let filter = filter.map_err(OverlayError::unread("the packet filter"))?;

        let list = async || list_of_devices(fast_peers).await;
        let of_devices = last.of_devices.or_list(fast_peers, (now, others), list);
        let (anti_spoofing, port_filters) = of_devices.await?;

        let known = now.filter(|_| forwarding::is_counted());
        let forwarding = last
            .forwarding
            .or_list(fast_peers, (known, others), forwarding::observe);
        Ok(Tables {
            filter,
            anti_spoofing,
            port_filters,
            forwarding: forwarding.await,
        })
    }
}

impl Last {
    /// Forgets what the kernel ended without counting a generation.
    fn forget_what_ended(&mut self, fast_peers: &FastPeers) {
        let ours = |told: &[u8]| removed_device(told).is_some();
        if self.removed_devices.any(&mut self.buffer, ours) {
            self.of_devices = Kept(None);
        }
        if let Some(Listing {
            what: FilterState::Sound(filter),
            ..
        }) = &self.filter.0
            && !fast_peers.are_live(&filter.peers)
        {
            self.filter = Kept(None);
        }
    }
}

/// What was listed last, if it may be fresh.
struct Kept<T>(Option<Listing<T>>);

struct Listing<T> {
    /// The revision that it was listed at.
    revision: u32,
    at: Instant,
    what: T,
}

impl<T: Clone> Kept<T> {
    fn fresh(&self, revision: Option<u32>, now: Instant) -> Option<&T> {
        let fresh = |listing: &&Listing<T>| {
            Some(listing.revision) == revision
                && now.saturating_duration_since(listing.at) < FRESH_FOR
        };
        self.0.as_ref().filter(fresh).map(|listing| &listing.what)
    }

    /// What was listed, if it is fresh, or a new listing, which is kept unless `of` its
    /// revision differs by then.
    async fn or_list<E>(
        &mut self,
        fast_peers: &FastPeers,
        (now, of): (Option<Revision>, impl Fn(Revision) -> u32),
        list: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let (before, at) = (now.map(&of), Instant::now());
        if let Some(what) = self.fresh(before, at) {
            return Ok(what.clone());
        }
        self.0 = None;
        let what = list().await?;
        let after = match before {
            Some(_) => fast_peers.revision().await.map(of),
            None => None,
        };
        self.0 = before.filter(|_| before == after).map(|revision| Listing {
            revision,
            at,
            what: what.clone(),
        });
        Ok(what)
    }
}

async fn list_of_devices(
    fast_peers: &FastPeers,
) -> Result<(AntiSpoofingState, Option<Chains>), OverlayError> {
    let present = fast_peers.present().await;
    let anti_spoofing = anti_spoofing::observe(&present).await;
    let anti_spoofing = anti_spoofing.map_err(OverlayError::unread(
        "the VXLAN device's anti-spoofing filter",
    ))?;
    let port_filters = port_filter::observe(&present).await;
    let port_filters =
        port_filters.map_err(OverlayError::unread("the filters of containers' ports"))?;
    Ok((anti_spoofing, port_filters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_listed_is_fresh_until_something_has_changed_and_not_for_long() {
        let now = Instant::now();
        let kept = Kept(Some(Listing {
            revision: 3,
            at: now,
            what: (),
        }));
        assert!(kept.fresh(Some(3), now).is_some());
        assert!(kept.fresh(Some(4), now).is_none());
        assert!(kept.fresh(None, now).is_none(), "nobody knows");
        assert!(kept.fresh(Some(3), now + FRESH_FOR).is_none());
        assert!(Kept::<()>(None).fresh(Some(3), now).is_none());
    }
}
