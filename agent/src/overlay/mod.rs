//! The data plane of this host: the bridge, the tunnel and the containers'
//! interfaces.
//!
//! [`OverlayIntent`] says what is to be, `observe` reads what the kernel has,
//! `plan` is the pure difference of the two, and `apply` executes one step of
//! it. Nothing that a pass does depends on an earlier one, so a restarted agent
//! adopts what is right and changes only what differs. Only what is told of a
//! container that cannot be seen now is what was last seen of it.
//!
//! Invariants: no frame leaves for a peer that is not fast, and none comes from
//! whom the directory does not have; the packet filter is there before the tunnel
//! is, and the tunnel's guard before it is up, and both go after it; what has no
//! reason in the intent has no veth, FDB entry or neighbour.
//!
//! Absent on purpose: learning from frames (the directory is the authority),
//! and the sealed path.

use std::collections::{BTreeMap, BTreeSet};

use kontena_schema::agent::PeerReport;
use kontena_schema::ids::PlacementId;
use tokio::sync::Mutex;

mod announce;
mod apply;
mod error;
mod fdb;
mod filter;
mod forwarding;
mod guard;
mod intent;
mod netlink;
mod nft;
mod observe;
mod plan;
mod program;
mod state;
mod step;

pub use error::{Cause, OverlayError};
pub use intent::{Attachment, OverlayIntent, OwnNode, PeerIntent, RemoteEndpoint};

use apply::Hands;
use netlink::{Namespace, Netlink};
use observe::observe;
use step::Step;

/// The name of the bridge that carries the overlay.
pub const BRIDGE: &str = "kontena";
/// The name of the VXLAN device.
pub const TUNNEL: &str = "kontena-vx";
/// The name of a container's overlay interface.
pub const CONTAINER_INTERFACE: &str = "ethwe";

/// The hands on this host's overlay.
///
/// They work in the network namespace of the thread that called [`Overlay::new`].
pub struct Overlay {
    netlink: Netlink,
    namespace: Namespace,
    /// What the last pass left attached. Two passes at once would each undo what
    /// the other does.
    one_pass: Mutex<BTreeMap<PlacementId, Attachment>>,
}

/// What one pass did.
#[derive(Debug, Default)]
pub struct OverlayReport {
    /// For each placement of the intent: whether its container is attached, or
    /// why not.
    pub attached: BTreeMap<PlacementId, Result<(), String>>,
    /// Every peer, and why frames cannot travel to it.
    pub peers: Vec<PeerReport>,
    /// How many steps changed something; 0 if everything was right.
    pub steps_applied: usize,
    /// Everything that went wrong; the pass went on after each.
    pub errors: Vec<OverlayError>,
}

impl Overlay {
    /// Opens the kernel's interface in the network namespace of the calling
    /// thread; must be called inside a tokio runtime.
    pub async fn new() -> Result<Self, OverlayError> {
        let failed = |cause| OverlayError::Observe {
            what: "the network namespace".into(),
            cause,
        };
        let namespace = Namespace::here().map_err(failed)?;
        let netlink = Netlink::here()
            .map_err(Cause::io("netlink"))
            .map_err(failed)?;
        Ok(Self {
            netlink,
            namespace,
            one_pass: Mutex::new(BTreeMap::new()),
        })
    }

    /// Makes the host agree with `intent`. It goes on after an error and tells
    /// all of them. If the host's state cannot be read, it changes nothing.
    pub async fn reconcile(&self, intent: &OverlayIntent) -> OverlayReport {
        let mut before = self.one_pass.lock().await;
        let mut report = OverlayReport {
            peers: intent.peer_reports(),
            ..Default::default()
        };
        let observed = observe(&self.netlink, &self.namespace, &intent.attachments).await;
        let (observed, unseen) = match observed {
            Ok(seen) => seen,
            Err(error) => {
                let why = error.to_string();
                let told = |(&id, now): (&PlacementId, &Attachment)| match before.get(&id) {
                    Some(before) if is_still(before, now) => (id, Ok(())),
                    _ => (id, Err(why.clone())),
                };
                report.attached = intent.attachments.iter().map(told).collect();
                report.errors.push(error);
                return report;
            }
        };
        report.attached = intent.attachments.keys().map(|&id| (id, Ok(()))).collect();
        for unseen in unseen {
            let id = unseen.placement;
            let before = id.and_then(|id| before.get(&id));
            let now = id.and_then(|id| intent.attachments.get(&id));
            let same = before.zip(now).is_some_and(|(old, new)| is_still(old, new));
            let keeps = same && !unseen.error.is_lasting();
            report.failed(id.filter(|_| !keeps), unseen.error);
        }
        self.apply(&plan::plan(intent, &observed), &mut report)
            .await;
        let attached = |id: &PlacementId| matches!(report.attached.get(id), Some(Ok(())));
        *before = intent.attachments.clone();
        before.retain(|id, _| attached(id));
        report
    }

    /// Leaves the grid: removes every interface, entry and filter of ours. It
    /// goes on after an error and tells all of them.
    pub async fn remove_all(&self) -> Vec<OverlayError> {
        let mut before = self.one_pass.lock().await;
        before.clear();
        let mut report = OverlayReport::default();
        match observe(&self.netlink, &self.namespace, &BTreeMap::new()).await {
            Ok((observed, unseen)) => {
                report
                    .errors
                    .extend(unseen.into_iter().map(|unseen| unseen.error));
                self.apply(&plan::plan_removal(&observed), &mut report)
                    .await;
            }
            Err(error) => report.errors.push(error),
        }
        report.errors
    }

    async fn apply(&self, steps: &[Step], report: &mut OverlayReport) {
        let mut hands = Hands::new(&self.netlink);
        let mut failures = Failures::default();
        for step in steps {
            if failures.forbid(step) {
                continue;
            }
            match hands.apply(step).await {
                Ok(()) => {
                    tracing::debug!(%step, "applied");
                    report.steps_applied += 1;
                }
                Err(cause) => {
                    failures.note(step);
                    let error = OverlayError::Step {
                        step: step.to_string(),
                        cause,
                    };
                    report.failed(step.placement(), error);
                }
            }
        }
        if failures.forbidden > 0 {
            report.errors.push(OverlayError::Guarded {
                steps: failures.forbidden,
            });
        }
    }
}

/// Whether a container that was attached and cannot be seen now is the same and
/// lives.
fn is_still(before: &Attachment, now: &Attachment) -> bool {
    before == now && Namespace::of(now.pid).is_ok()
}

/// Which later steps must not be tried, because an earlier one failed.
#[derive(Default)]
struct Failures {
    guard: bool,
    /// An interface that could not be made cannot be configured.
    placements: BTreeSet<PlacementId>,
    /// How many steps were not tried.
    forbidden: usize,
}

impl Failures {
    fn note(&mut self, step: &Step) {
        self.guard |= step.guards_paths();
        self.placements.extend(step.placement());
    }

    fn forbid(&mut self, step: &Step) -> bool {
        let hopeless = step
            .placement()
            .is_some_and(|id| self.placements.contains(&id));
        let forbidden = hopeless || (self.guard && step.opens_a_path());
        self.forbidden += usize::from(forbidden);
        forbidden
    }
}

impl OverlayReport {
    /// Notes an error; the first of a placement is the one that explains.
    fn failed(&mut self, placement: Option<PlacementId>, error: OverlayError) {
        let attached = placement.and_then(|id| self.attached.get_mut(&id));
        if let Some(attached @ Ok(())) = attached {
            *attached = Err(error.to_string());
        }
        self.errors.push(error);
    }
}

#[cfg(test)]
mod tests {
    use kontena_schema::ids::LeaseNumber;
    use kontena_schema::mac::Mac;

    use super::*;

    #[test]
    fn only_the_same_living_container_counts_as_still_attached() {
        let address = [10, 81, 1, 1].into();
        let of = |pid| Attachment {
            pid,
            container_id: "c".to_owned(),
            address,
            mac: Mac::of_lease(address, LeaseNumber(1)),
        };
        let here = i32::try_from(std::process::id()).unwrap();
        let other = Attachment {
            container_id: "d".to_owned(),
            ..of(here)
        };
        assert!(is_still(&of(here), &of(here)));
        assert!(!is_still(&of(here), &other));
        // No process has this number: it is above the kernel's bound.
        assert!(!is_still(&of(i32::MAX), &of(i32::MAX)));
    }
}
