//! Keeps the packet filter open for whom it is open: it closes by itself, and this puts that
//! off, whatever passes do meanwhile.
//!
//! It does so only if the last pass that went well found all protected and clear packets of
//! peers accepted. Each time it takes out whoever is not clear any more by the newest
//! directory, or by what is known of the peer; both are looked at right before and wait for
//! no pass. It lets nobody in who was taken out: that is for a pass to do. What the clock
//! closed it opens again, by what a pass found as before; but where it was late itself, for a
//! second it does not: what came while this process got no processor is read first.
//!
//! The arithmetic. The filter is open for [`LIFE`] (4 s), renewed every [`RENEW_EVERY`]
//! (1.5 s): one renewal may fail, and a task may be 2.5 s late, before clear paths stand
//! still. It is not renewed without taking out whose trust is withdrawn, so clear packets end
//! at most 4 s after the directory that says so is here, whatever hangs: a pass, a program,
//! the kernel's netlink, this task. Left to 5 s is one second, for the way of the directory to this
//! process. A renewal that the kernel kept waiting behind somebody else's transaction may be
//! decided by then on what is true no longer: it is looked at again when it is done, and
//! taken back. It cannot have been kept longer than the filter was open.
//!
//! An agent that stops as planned leaves it open for [`OUTLIVES`], so that what is clear
//! stays so while it is restarted or replaced; nobody hears of withdrawn trust for so long.
//! One that is killed has four seconds. The successor renews what it finds until its first
//! pass has seen everything, for [`ADOPTED_FOR`] at most.
//!
//! No program is run for that: `nft` costs 4 ms and may hang (`infra/adr/0011-filter.md`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kontena_schema::ids::NodeId;
use kontena_task::{Task, supervise};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::error::Cause;
use crate::linux::fast_peers::{FastPeers, LIFE, Wanted};
use crate::linux::filter;
use crate::model::peer::{Clear, Ends, PeerStates, SILENCE};
use crate::model::state::FilterState;
use crate::sys::priority::PriorityRuntime;

const RENEW_EVERY: Duration = Duration::from_millis(1500);

/// A restart takes a second, an upgrade with its image at hand some more.
const OUTLIVES: Duration = Duration::from_secs(60);

/// How long a stop waits for that.
const STOPS_WITHIN: Duration = Duration::from_secs(3);

/// How long the successor of an agent renews what it found before its first pass went
/// well: as long as a peer believes in a silent one.
const ADOPTED_FOR: Duration = SILENCE;

/// How long what protects paths counts as right after a pass saw it, in the kernel or in a
/// listing that is fresh (`linux/tables.rs`): in a full grid there is one every forty seconds.
const PROTECTED_FOR: Duration = Duration::from_secs(90);

/// How long a pass has to move a peer whose trust is withdrawn to the tunnel, before it is
/// taken out of the filter.
const MOVED_WITHIN: Duration = Duration::from_millis(750);

/// How long after a renewal that was late the filter is not opened.
const AWAKE_FOR: Duration = Duration::from_secs(1);

/// A renewal that took longer is looked at again.
const IN_TIME: Duration = Duration::from_millis(200);

/// Who may be clear, as the newest directory has it, and between which addresses.
pub type Permitted = BTreeMap<NodeId, Ends>;

/// The task, and what it goes by.
pub(crate) struct FilterLease {
    shared: Arc<Shared>,
    _task: Task,
    _runtime: PriorityRuntime,
}

struct Shared {
    fast_peers: Arc<FastPeers>,
    /// None while no directory is known.
    permitted: watch::Receiver<Option<Permitted>>,
    states: watch::Receiver<PeerStates>,
    protected: Mutex<Option<Protected>>,
    renew_now: Notify,
    closed: Notify,
}

/// For whom the filter was found to be open as it should.
#[derive(Clone, Debug)]
struct Protected {
    peers: BTreeSet<Ipv4Addr>,
    until: Instant,
    by: Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// In the kernel, before anything was known of peers.
    Adopted,
    ByAPass,
    /// The agent stops: the last word is said.
    Stopping,
}

impl FilterLease {
    /// Starts the task in a runtime that goes before others: on a host whose processors are
    /// busy, a task among many may be seconds late.
    pub(crate) fn start(
        runtime: PriorityRuntime,
        fast_peers: Arc<FastPeers>,
        permitted: watch::Receiver<Option<Permitted>>,
        states: watch::Receiver<PeerStates>,
    ) -> Self {
        let shared = Arc::new(Shared {
            fast_peers,
            permitted,
            states,
            protected: Mutex::default(),
            renew_now: Notify::new(),
            closed: Notify::new(),
        });
        let kept = Arc::clone(&shared);
        let inside = runtime.handle().enter();
        let _task = supervise("filter lease", move || keep(Arc::clone(&kept)));
        drop(inside);
        Self {
            shared,
            _task,
            _runtime: runtime,
        }
    }

    /// A pass found everything that protects paths right, and the filter open for these.
    pub(crate) fn protected(&self, peers: BTreeSet<Ipv4Addr>) {
        self.shared.found(Protected {
            peers,
            until: Instant::now() + PROTECTED_FOR,
            by: Found::ByAPass,
        });
        self.shared.renew_now.notify_one();
    }

    /// Waits until the filter is found closed for somebody for whom it should be open, as
    /// after a time in which this process got no processor: a pass opens it.
    pub(crate) async fn closed(&self) {
        self.shared.closed.notified().await;
    }

    /// Lets the filter be as it is for a while after this agent's end.
    pub(crate) async fn outlive(&self) -> Result<(), Cause> {
        let wanted = self.shared.wanted(Instant::now());
        self.shared.found(Protected {
            peers: BTreeSet::new(),
            until: Instant::now(),
            by: Found::Stopping,
        });
        if wanted.open_for.is_empty() {
            return Ok(());
        }
        let wanted = move || wanted.clone();
        let renewed = self.shared.fast_peers.renew(wanted, OUTLIVES);
        let late = |_| Cause::Kernel(io::ErrorKind::TimedOut.into());
        timeout(STOPS_WITHIN, renewed)
            .await
            .map_err(late)?
            .map(drop)
    }
}

impl Shared {
    fn protected(&self) -> MutexGuard<'_, Option<Protected>> {
        self.protected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was found, unless the last word is said.
    fn found(&self, new: Protected) {
        let mut protected = self.protected();
        if !is_stopping(protected.as_ref()) {
            *protected = Some(new);
        }
    }

    fn wanted(&self, now: Instant) -> Wanted {
        let protected = self.protected();
        let (permitted, states) = (self.permitted.borrow(), self.states.borrow());
        wanted(protected.as_ref(), (permitted.as_ref(), &states), now)
    }

    async fn renew(self: &Arc<Self>, may_open: bool) {
        let began = Instant::now();
        let before = self.wanted(began);
        let Some(allowed) = &before.allowed else {
            return;
        };
        let shared = Arc::clone(self);
        let wanted = move || {
            let wanted = shared.wanted(Instant::now());
            let reopens = wanted.reopens && may_open;
            Wanted { reopens, ..wanted }
        };
        match self.fast_peers.renew(wanted, LIFE).await {
            Ok(0) => {}
            // The next one opens it, or has a pass do so.
            Ok(_) if !may_open => {}
            Ok(missing) => {
                tracing::debug!(missing, "the packet filter is closed for some");
                self.closed.notify_one();
            }
            Err(err) => {
                tracing::warn!(%err, "cannot renew the packet filter's lease; fast paths close within 4 s")
            }
        }
        if began.elapsed() < IN_TIME {
            return;
        }
        if is_stopping(self.protected().as_ref()) {
            return;
        }
        let now = self.wanted(Instant::now());
        let open_for = &before.open_for - &now.open_for;
        let late = &(allowed - &now.allowed.unwrap_or_default()) | &open_for;
        if !late.is_empty()
            && let Err(err) = self.fast_peers.forbid(&late).await
        {
            tracing::warn!(%err, "cannot revoke a late renewal of the packet filter");
        }
    }

    /// What a former run of the agent left is as it was, until a pass has seen it.
    async fn adopt(&self) {
        let peers = match filter::observe(&self.fast_peers.ruleset().present().await).await {
            Ok(FilterState::Sound(filter)) => filter.peers,
            Ok(FilterState::Missing | FilterState::Broken) => return,
            Err(err) => return tracing::warn!(%err, "the packet filter cannot be adopted"),
        };
        self.protected().get_or_insert(Protected {
            peers,
            until: Instant::now() + ADOPTED_FOR,
            by: Found::Adopted,
        });
    }
}

fn is_stopping(protected: Option<&Protected>) -> bool {
    protected.is_some_and(|protected| protected.by == Found::Stopping)
}

/// Renews for ever.
async fn keep(shared: Arc<Shared>) {
    shared.adopt().await;
    let mut permitted = shared.permitted.clone();
    let mut known = false;
    let mut awake = Awake::since(Instant::now());
    let mut ticks = interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            Ok(()) = permitted.changed() => {
                // The first directory moves nobody, and who was adopted waits for it.
                if known {
                    sleep(MOVED_WITHIN).await;
                }
                known = true;
            }
            _ = ticks.tick() => {}
            () = shared.renew_now.notified() => {}
            () = shared.fast_peers.opened() => {}
        }
        let may_open = awake.may_open(Instant::now());
        shared.renew(may_open).await;
    }
}

/// Since when renewals have come in time.
struct Awake {
    since: Instant,
    last: Instant,
}

impl Awake {
    fn since(now: Instant) -> Self {
        Self {
            since: now,
            last: now,
        }
    }

    /// Notes a renewal; whether it may open what the clock closed.
    fn may_open(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.last) >= LIFE {
            self.since = now;
        }
        self.last = now;
        now.saturating_duration_since(self.since) >= AWAKE_FOR
    }
}

/// For whom the filter is to stay open, and who may be clear at all.
fn wanted(
    protected: Option<&Protected>,
    (permitted, states): (Option<&Permitted>, &PeerStates),
    now: Instant,
) -> Wanted {
    let Some(permitted) = permitted else {
        return Wanted::default();
    };
    let adopted = protected.is_some_and(|protected| protected.by == Found::Adopted);
    let is_clear = |(node, ends): &(&NodeId, &Ends)| {
        adopted
            || states
                .get(node)
                .is_some_and(|state| state.clear != Clear::No && state.ends == Some(**ends))
    };
    let clear = permitted.iter().filter(is_clear).map(|(_, ends)| ends.peer);
    let clear: BTreeSet<_> = clear.collect();
    let protected = protected.filter(|protected| now < protected.until);
    Wanted {
        open_for: protected.map_or_else(BTreeSet::new, |protected| &clear & &protected.peers),
        allowed: Some(clear),
        reopens: protected.is_some_and(|protected| protected.by == Found::ByAPass),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::fast_peers::TURN_WITHIN;
    use crate::model::peer::PeerState;

    fn underlay(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, host)
    }

    fn ends(peer: u8) -> Ends {
        Ends {
            peer: underlay(peer),
            own: underlay(1),
        }
    }

    fn state(clear: Clear, peer: u8) -> PeerState {
        PeerState {
            clear,
            ends: Some(ends(peer)),
            ..PeerState::default()
        }
    }

    fn found(by: Found, peers: &[u8], now: Instant) -> Protected {
        Protected {
            peers: peers.iter().copied().map(underlay).collect(),
            until: now + PROTECTED_FOR,
            by,
        }
    }

    #[test]
    fn who_is_protected_permitted_and_clear_is_renewed_and_nobody_else() {
        let now = Instant::now();
        let protected = found(Found::ByAPass, &[2, 3, 4, 5], now);
        let permitted = [2, 4, 5, 6].map(|node| (NodeId(node.into()), ends(node)));
        let permitted = Permitted::from(permitted);
        let states = PeerStates::from([
            (NodeId(2), state(Clear::Accept, 2)),
            (NodeId(3), state(Clear::Send, 3)),
            (NodeId(4), state(Clear::No, 4)),
            // What was proven was of another address.
            (NodeId(5), state(Clear::Send, 15)),
            (NodeId(6), state(Clear::Send, 6)),
        ]);
        let is = |wanted: Wanted, open_for: &[u8], allowed: &[u8]| {
            let [open_for, allowed] =
                [open_for, allowed].map(|hosts| hosts.iter().copied().map(underlay).collect());
            assert_eq!((wanted.open_for, wanted.allowed), (open_for, Some(allowed)));
        };
        let (all, nobody) = (Some(&permitted), Some(&Permitted::new()));
        let protected = Some(&protected);
        is(wanted(protected, (all, &states), now), &[2], &[2, 6]);
        let later = now + PROTECTED_FOR;
        is(wanted(protected, (all, &states), later), &[], &[2, 6]);
        is(wanted(None, (all, &states), now), &[], &[2, 6]);
        is(wanted(protected, (nobody, &states), now), &[], &[]);
        // Not even who is not allowed is known.
        assert_eq!(wanted(protected, (None, &states), now), Wanted::default());
    }

    #[test]
    fn what_was_adopted_needs_only_the_directorys_word() {
        let now = Instant::now();
        let protected = found(Found::Adopted, &[2, 3], now);
        let permitted = Permitted::from([(NodeId(2), ends(2))]);
        let known = (Some(&permitted), &PeerStates::new());
        let two = BTreeSet::from([underlay(2)]);
        let wanted = wanted(Some(&protected), known, now);
        assert_eq!((wanted.open_for, wanted.allowed), (two.clone(), Some(two)));
    }

    #[test]
    fn a_renewal_that_was_late_opens_nothing_and_a_later_one_does() {
        let start = Instant::now();
        let mut awake = Awake::since(start);
        let mut at = |after: Duration| awake.may_open(start + after);
        assert!(!at(Duration::ZERO));
        assert!(at(RENEW_EVERY));
        assert!(!at(RENEW_EVERY + LIFE), "what came meanwhile is not read");
        // Whatever asks for a renewal: time has to pass.
        assert!(!at(RENEW_EVERY + LIFE + AWAKE_FOR / 2));
        assert!(at(RENEW_EVERY * 2 + LIFE));
    }

    #[test]
    fn a_renewal_may_fail_once_and_what_is_withdrawn_ends_in_time() {
        assert!(RENEW_EVERY * 2 < LIFE);
        assert!(
            RENEW_EVERY + TURN_WITHIN < LIFE,
            "a program that hangs closes nothing"
        );
        assert!(RENEW_EVERY + MOVED_WITHIN < LIFE);
        assert!(LIFE + IN_TIME < Duration::from_secs(5));
        assert!(LIFE.subsec_nanos() == 0, "nft takes whole seconds");
    }
}
