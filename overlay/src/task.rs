//! The overlay's own task: it makes the host agree with the request, and goes on doing so.
//!
//! Woken by a new request, by what is known of the peers, by whoever removes a device or
//! the packet filter, by a tick: a hint and the tick run the same pass, and a pass that finds
//! everything right changes nothing. The task knows nothing of Docker and waits for
//! nobody: what it is asked for is in one slot, and what it did is in another.
//!
//! Invariants: while it is not known whether the host is in a grid, nothing is removed; a
//! peer that must not get clear packets any more waits for nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kontena_schema::agent::PeerReport;
use kontena_schema::ids::{PlacementId, Revision};
use kontena_task::supervise;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use crate::model::intent::{OverlayIntent, OwnState};
use crate::model::pace::extra_intervals;
use crate::model::peer::PeerStates;
use crate::model::request::{Membership, OverlayState, Request};
use crate::reconciler::{Disturbance, Overlay, OverlayReport};

/// How often everything is looked at even if nothing asked for it.
const TICK: Duration = Duration::from_secs(10);

/// How soon an overlay with errors is tried again; twice as long after each further failure,
/// up to [`TICK`], until something else is asked for.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Peers that come and go change no path; they are reported together, so that a grid that
/// comes up is not reported node by node. In a large one for longer, by
/// [`extra_intervals`].
const PEERS_REPORTED_AFTER: Duration = Duration::from_secs(2);

/// Peers that turn clear wait for others that do, so that a grid that comes up is not busy
/// with passes: a while, or so many times as long as the last pass took, and at most a
/// second, in a large grid longer by [`extra_intervals`].
const CLEARED_TOGETHER: Duration = Duration::from_millis(250);
const CLEARED_AFTER_PASSES: u32 = 8;
const CLEARED_WITHIN: Duration = Duration::from_secs(1);
const CLEARED_WITHIN_MORE: Duration = Duration::from_secs(3);

/// Makes the host agree with the request, for ever.
pub async fn run(
    overlay: Arc<Overlay>,
    request: watch::Receiver<Arc<Request>>,
    state: watch::Sender<Arc<OverlayState>>,
) {
    // Its own task: what hangs a pass must not keep withdrawn trust from the filter.
    let (of_filter, newest) = (Arc::clone(&overlay), request.clone());
    let _permits = supervise("permits", move || {
        permit(Arc::clone(&of_filter), newest.clone())
    });
    Converger::new(overlay, request, state).run().await;
}

/// Tells the packet filter who may be clear, the moment that the directory is here.
async fn permit(overlay: Arc<Overlay>, mut request: watch::Receiver<Arc<Request>>) {
    loop {
        match &request.borrow_and_update().grid {
            Membership::Unknown => {}
            Membership::Left => overlay.permit(None),
            Membership::Member { grid, .. } => overlay.permit(Some(grid)),
        }
        if request.changed().await.is_err() {
            // The agent stops.
            return std::future::pending().await;
        }
    }
}

/// The task's own state: what the last pass made of the request. All of it may be lost.
struct Converger {
    overlay: Arc<Overlay>,
    request: watch::Receiver<Arc<Request>>,
    /// What is known of the peers.
    peers: watch::Receiver<PeerStates>,
    state: watch::Sender<Arc<OverlayState>>,
    attached: BTreeMap<PlacementId, Result<(), String>>,
    reports: Vec<PeerReport>,
    applied: Revision,
    /// What the last pass made of the host.
    carried_out: Option<OverlayIntent>,
    /// When it did, if all went well, and how long it took.
    passed: Option<(Instant, Duration)>,
    /// The packet filter was found closed for somebody since.
    closed: bool,
    /// How many passes in a row had errors, of the same request.
    failures: u32,
    /// When the next pass is due after an error.
    retry_at: Option<Instant>,
    /// When changes of peers are reported that change no path.
    peers_due: Option<Instant>,
    /// Nothing is left after the node's removal.
    left: bool,
}

impl Converger {
    fn new(
        overlay: Arc<Overlay>,
        request: watch::Receiver<Arc<Request>>,
        state: watch::Sender<Arc<OverlayState>>,
    ) -> Self {
        Self {
            peers: overlay.peers(),
            overlay,
            request,
            state,
            attached: BTreeMap::new(),
            reports: Vec::new(),
            applied: Revision::ZERO,
            carried_out: None,
            passed: None,
            closed: false,
            failures: 0,
            retry_at: None,
            peers_due: None,
            left: false,
        }
    }

    async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let later = Instant::now() + TICK;
            let retry_at = self.retry_at.unwrap_or(later);
            let peers_due = self.peers_due.unwrap_or(later);
            tokio::select! {
                Ok(()) = self.request.changed() => self.failures = 0,
                Ok(()) = self.peers.changed() => if self.peers_can_wait() {
                    continue;
                },
                () = sleep_until(peers_due.into()), if self.peers_due.is_some() => {
                    if self.report_peers() {
                        continue;
                    }
                }
                () = sleep_until(retry_at.into()), if self.retry_at.is_some() => {}
                disturbance = self.overlay.disturbed() => match disturbance {
                    // What others fail at must not delay this.
                    Disturbance::Removed => (self.passed, self.failures) = (None, 0),
                    Disturbance::Closed => {
                        self.closed = true;
                        if self.clearing_can_wait() {
                            continue;
                        }
                    }
                },
                _ = ticks.tick() => {}
            }
            self.pass().await;
            self.publish();
        }
    }

    /// Whether what is known of the peers now asks for no pass, or for none yet.
    fn peers_can_wait(&mut self) -> bool {
        let peers = self.peers.borrow_and_update();
        let Some(intent) = &self.carried_out else {
            return false;
        };
        if intent.suits(&peers) {
            let times = extra_intervals(intent.peers.len()).saturating_add(1);
            self.peers_due
                .get_or_insert(Instant::now() + PEERS_REPORTED_AFTER * times);
            return true;
        }
        // What is to be encrypted waits for nobody.
        let is_urgent = intent.is_urgent(&peers);
        drop(peers);
        !is_urgent && self.clearing_can_wait()
    }

    /// Whether peers that are to be clear need no pass yet: each costs as much as all do.
    fn clearing_can_wait(&mut self) -> bool {
        let (Some((at, took)), Some(intent)) = (self.passed, &self.carried_out) else {
            return false;
        };
        let after = at + cleared_after(took, intent.peers.len());
        if after <= Instant::now() {
            return false;
        }
        self.retry_at = Some(self.retry_at.map_or(after, |at| at.min(after)));
        true
    }

    /// Reports the peers; false if their paths are to change first.
    fn report_peers(&mut self) -> bool {
        self.peers_due = None;
        let peers = self.peers.borrow_and_update().clone();
        let suits = |intent: &&mut OverlayIntent| intent.suits(&peers);
        let Some(intent) = self.carried_out.as_mut().filter(suits) else {
            return false;
        };
        intent.set_peers(&peers);
        self.reports = self.overlay.peer_reports(intent);
        self.publish();
        true
    }

    async fn pass(&mut self) {
        self.retry_at = None;
        let request = self.request.borrow_and_update().clone();
        match &request.grid {
            Membership::Unknown => {}
            Membership::Left => self.leave().await,
            Membership::Member { revision, grid } => {
                self.left = false;
                let state = OwnState {
                    attachments: request.attachments.clone(),
                    keys: request.keys.clone(),
                    peers: self.peers.borrow_and_update().clone(),
                    services: request.services.clone(),
                    egress: request.egress.clone(),
                    multicast: request.multicast,
                };
                let intent = OverlayIntent::clone(grid).with(state);
                self.converge(*revision, &intent).await;
            }
        }
    }

    async fn converge(&mut self, revision: Revision, intent: &OverlayIntent) {
        if self.can_rest(intent) {
            self.applied = revision;
            // What was known of the peers was read, and may be new.
            self.peers_due.get_or_insert_with(Instant::now);
            return;
        }
        let began = Instant::now();
        self.closed = false;
        let report = self.overlay.reconcile(intent).await;
        log(&report);
        if report.errors.is_empty() && self.applied != revision {
            self.applied = revision;
            info!(%revision, steps = report.steps_applied, "reconciled");
        } else {
            debug!(%revision, steps = report.steps_applied, "looked");
        }
        let failed = !report.errors.is_empty() || report.attached.values().any(Result::is_err);
        self.retry_if(failed);
        self.passed = (!failed).then(|| (Instant::now(), began.elapsed()));
        self.attached = report.attached;
        self.reports = report.peers;
        self.peers_due = None;
        self.carried_out = report.carried_out;
    }

    /// Whether the host can be left as it is: it was made so a short while ago. A look
    /// costs as much as there are peers; what others change in the kernel is mended that
    /// much later.
    fn can_rest(&self, intent: &OverlayIntent) -> bool {
        let (Some((at, _)), Some(carried_out)) = (self.passed, &self.carried_out) else {
            return false;
        };
        !self.closed
            && at.elapsed() < TICK * extra_intervals(intent.peers.len())
            && self.overlay.encrypts()
            && intent.asks_the_same(carried_out)
            && carried_out.suits(&self.peers.borrow())
    }

    /// Nothing of a grid that this node was removed from stays.
    async fn leave(&mut self) {
        self.attached.clear();
        self.reports.clear();
        self.carried_out = None;
        self.passed = None;
        if self.left {
            return;
        }
        let errors = self.overlay.remove_all().await;
        for err in &errors {
            error!(%err, "cannot remove the overlay");
        }
        self.left = errors.is_empty();
        self.retry_if(!self.left);
    }

    fn retry_if(&mut self, failed: bool) {
        self.retry_at = failed.then(|| Instant::now() + retry_after(self.failures));
        self.failures = if failed {
            self.failures.saturating_add(1)
        } else {
            0
        };
    }

    fn publish(&self) {
        let state = OverlayState {
            applied: self.applied,
            attached: self.attached.clone(),
            peers: self.reports.clone(),
            left: self.left,
        };
        self.state.send_if_modified(|old| {
            let differs = **old != state;
            if differs {
                *old = Arc::new(state);
            }
            differs
        });
    }
}

fn log(report: &OverlayReport) {
    for err in &report.errors {
        error!(%err, "the overlay is not as it should be");
    }
    for (placement, result) in &report.attached {
        if let Err(reason) = result {
            warn!(%placement, reason, "not attached");
        }
    }
}

/// How long after so many failures in a row the overlay is tried again.
fn retry_after(failures: u32) -> Duration {
    let times = 2_u32.saturating_pow(failures);
    RETRY_AFTER.saturating_mul(times).min(TICK)
}

/// How long after a pass that took so long peers may turn clear, with so many of them.
fn cleared_after(took: Duration, peers: usize) -> Duration {
    let most = CLEARED_WITHIN + CLEARED_WITHIN_MORE * extra_intervals(peers);
    (took * CLEARED_AFTER_PASSES).clamp(CLEARED_TOGETHER, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_and_again_is_tried_less_and_less_often() {
        let seconds = [0, 1, 2, 3, 4, 1000].map(|failures| retry_after(failures).as_secs());
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn the_more_a_pass_costs_the_longer_peers_wait_to_turn_clear() {
        let ms = Duration::from_millis;
        assert_eq!(cleared_after(ms(10), 2), CLEARED_TOGETHER);
        assert_eq!(cleared_after(ms(100), 2), ms(800));
        assert_eq!(
            cleared_after(ms(600), 2),
            CLEARED_WITHIN,
            "5 s are promised"
        );
        assert_eq!(cleared_after(ms(600), 253), ms(4800));
        assert_eq!(cleared_after(ms(60_000), 253), ms(10_000));
    }
}
