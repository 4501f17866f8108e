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

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::error::{Cause, OverlayError};
use crate::linux::fast_peers::FastPeers;
use crate::linux::port_filter::{self, Chains};
use crate::linux::removed_devices::{Removed, RemovedDevices};
use crate::linux::ruleset::{Revision, Ruleset};
use crate::linux::{anti_spoofing, filter, forwarding};
use crate::model::state::{AntiSpoofingState, FilterState, Forwarding};

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
    removed_devices: Arc<RemovedDevices>,
    last: Mutex<Last>,
}

struct Last {
    filter: Kept<FilterState>,
    /// The tables whose chains are hooked to devices.
    of_devices: Kept<(AntiSpoofingState, Option<Chains>)>,
    /// What devices had gone by then.
    removed: Removed,
    forwarding: Kept<Forwarding>,
}

impl TableReader {
    /// Reads those of the namespace that these devices leave.
    pub(crate) fn of(removed_devices: Arc<RemovedDevices>) -> Self {
        let last = Last {
            filter: Kept(None),
            of_devices: Kept(None),
            removed: removed_devices.so_far(),
            forwarding: Kept(None),
        };
        Self {
            removed_devices,
            last: Mutex::new(last),
        }
    }

    /// What the tables hold. They are listed one after the other, as all programs run; where
    /// one hangs, the others would, too.
    pub(crate) async fn read(&self, fast_peers: &FastPeers) -> Result<Tables, OverlayError> {
        let ruleset = fast_peers.ruleset();
        let mut last = self.last.lock().await;
        last.forget_what_ended(self.removed_devices.so_far(), fast_peers);

        let list = async || filter::observe(&ruleset.present().await).await;
        let filter = last.filter.or_list(ruleset, |now| Some(now.all), list);
        let filter = filter
            .await
            .map_err(OverlayError::unread("the packet filter"))?;

        let list = async || list_of_devices(ruleset).await;
        let others = |now: Revision| Some(now.other_tables);
        let of_devices = last.of_devices.or_list(ruleset, others, list);
        let (anti_spoofing, port_filters) = of_devices.await?;

        let counted = |now: Revision| others(now).filter(|_| forwarding::is_counted());
        let forwarding = last
            .forwarding
            .or_list(ruleset, counted, forwarding::observe);
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
    fn forget_what_ended(&mut self, removed: Removed, fast_peers: &FastPeers) {
        if std::mem::replace(&mut self.removed, removed) != removed {
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

    /// What was listed, if it is fresh, or a new listing, which is kept if the number that
    /// `number` takes of the ruleset's revision is the same by then. None is never the same.
    async fn or_list<E>(
        &mut self,
        ruleset: &Ruleset,
        number: impl Fn(Revision) -> Option<u32>,
        list: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        // Not known while a transaction is under way: then it is listed.
        let revision = async || ruleset.revision().await.and_then(&number);
        let (before, at) = (revision().await, Instant::now());
        if let Some(what) = self.fresh(before, at) {
            return Ok(what.clone());
        }
        self.0 = None;
        let what = list().await?;
        if let Some(before) = before
            && revision().await == Some(before)
        {
            self.0 = Some(Listing {
                revision: before,
                at,
                what: what.clone(),
            });
        }
        Ok(what)
    }
}

async fn list_of_devices(
    ruleset: &Ruleset,
) -> Result<(AntiSpoofingState, Option<Chains>), OverlayError> {
    let present = ruleset.present().await;
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
    use std::collections::BTreeSet;

    use tokio::runtime::Handle;

    use super::*;

    #[test]
    fn who_turns_clear_has_no_table_of_devices_listed_again() {
        let (_keeper, netns) = kontena_lab::Keeper::start();
        let test = async {
            let ruleset = Ruleset::here(&Handle::current()).unwrap();
            let devices = Arc::new(RemovedDevices::here().unwrap());
            let fast_peers = FastPeers::of(ruleset);
            let tables = TableReader::of(devices);
            // When the filter was listed, the tables of devices, and the forwarding rules.
            let read = async || {
                tables.read(&fast_peers).await.unwrap();
                let last = tables.last.lock().await;
                let filter = last.filter.0.as_ref().unwrap().at;
                let others = last.of_devices.0.as_ref().unwrap().at;
                (filter, others, last.forwarding.0.as_ref().unwrap().at)
            };
            fast_peers.start_live(&BTreeSet::new()).await.unwrap();
            let first = read().await;
            assert_eq!(read().await, first, "nothing has changed");
            fast_peers.start_live(&BTreeSet::new()).await.unwrap();
            let second = read().await;
            assert_ne!(second.0, first.0);
            assert_eq!((second.1, second.2), (first.1, first.2));
            netns.run("nft add table netdev firewall");
            let third = read().await;
            assert_ne!((third.1, third.2), (second.1, second.2));
            // The kernel counts no generation as a device goes.
            netns.run("ip link add kontena-vx type bridge");
            netns.run("ip link del kontena-vx");
            let fourth = read().await;
            assert_ne!(fourth.1, third.1);
            assert_eq!((fourth.0, fourth.2), (third.0, third.2));
        };
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        netns.inside(|| runtime.enable_all().build().unwrap().block_on(test));
    }

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
