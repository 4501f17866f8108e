//! The data plane of this host: the bridge, the tunnel, the sealed path and the
//! containers' interfaces.
//!
//! [`OverlayIntent`] says what is to be, `observe` reads what the kernel has,
//! `plan` is the pure difference of the two, and `apply` executes one step of
//! it. Nothing that a pass does depends on an earlier one, so a restarted agent
//! adopts what is right and changes only what differs. Only what is told of a
//! container that cannot be seen now is what was last seen of it.
//!
//! Frames to other hosts leave sealed, through the sleeve or WireGuard; to those that the pair's
//! state machine (`pair`) finds worth it they leave in clear, through the tunnel. The
//! pairs are kept up by `paths`, also while nobody reconciles.
//!
//! Invariants: no clear frame leaves for a peer that is not fast, and none comes from
//! whom the directory does not have; the packet filter is there before the tunnel
//! is, and the tunnel's guard before it is up, and both go after it; what has no
//! reason in the intent has no veth, FDB entry or neighbour.
//!
//! Absent on purpose: learning from frames (the directory is the authority).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kontena_schema::agent::{Measures, PathMeasure, PeerReport};
use kontena_schema::ids::{NodeId, PlacementId};
use kontena_schema::limits::OVERLAY_MTU;
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

mod announce;
mod apply;
mod door;
mod drops;
mod echo;
mod entries;
mod error;
mod falls;
mod fdb;
mod filter;
mod forwarding;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod guard;
mod intent;
mod knock;
mod meeting;
mod netlink;
mod nft;
mod observe;
mod packet;
mod pair;
mod pairs;
mod paths;
mod plan;
mod plan_containers;
mod plan_inside;
mod probe;
mod program;
mod reason;
mod sealed;
mod state;
mod step;
mod trial;
mod trial_post;
mod ways;
mod wireguard;

pub use echo::Echoes;
pub use error::{Cause, OverlayError};
pub use intent::{Attachment, OverlayIntent, OwnNode, OwnState, PeerIntent, RemoteEndpoint};
pub use knock::{Answer, Answers};
pub use pair::{Clear, Ends, PairState};
pub use pairs::{Health, PairStates};
pub use sealed::SealedBy;
pub use state::{Fence, Sealing};

use apply::Hands;
use intent::Reach;
use netlink::{Namespace, Netlink};
use observe::observe;
use paths::Paths;
use state::{FilterState, Observed};
use step::Step;

/// How often the packet filter is told that the agent lives: some tries before it
/// gives the agent up.
const REFRESH_EVERY: Duration = Duration::from_secs(10);

/// How long what guards paths counts as right after it was seen to be: passes come
/// every ten seconds, in a full grid every forty, but one may wait two minutes for an
/// engine that hangs.
const GUARDED_FOR: Duration = Duration::from_secs(180);

/// How many times longer what costs as much as there are peers may wait in a grid with so
/// many, besides its usual time: once for each 64.
pub fn waits_longer(peers: usize) -> u32 {
    u32::try_from(peers / 64).unwrap_or(u32::MAX)
}

/// The name of the bridge that carries the overlay.
pub const BRIDGE: &str = "kontena";
/// The name of the VXLAN device.
pub const TUNNEL: &str = "kontena-vx";
/// The name of the sealed path's device.
pub const TAP: &str = "kontena-tap";
/// The name of a container's overlay interface.
pub const CONTAINER_INTERFACE: &str = "ethwe";

/// The hands on this host's overlay.
///
/// They work in the network namespace of the thread that called [`Overlay::new`].
pub struct Overlay {
    netlink: Netlink,
    namespace: Namespace,
    paths: Paths,
    sealing: Sealing,
    /// What the last pass left attached. Two passes at once would each undo what
    /// the other does.
    one_pass: Arc<Mutex<Passed>>,
    _refresher: AbortOnDropHandle<()>,
    _door: AbortOnDropHandle<()>,
}

/// What a pass left to the next one.
#[derive(Default)]
struct Passed {
    /// What is attached.
    attached: BTreeMap<PlacementId, Attachment>,
    /// What a former run of the agent left was looked for.
    adopted: bool,
    /// When all that guards paths was last seen to be right, and from where clear packets
    /// pass.
    guarded_at: Option<Instant>,
    passes: BTreeSet<Ipv4Addr>,
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
    /// What the host was made to agree with: the intent, with what was known of the
    /// pairs by then. None if the host's state could not be read.
    pub carried_out: Option<OverlayIntent>,
}

impl Overlay {
    /// Opens the kernel's interface in the network namespace of the calling
    /// thread; must be called inside a tokio runtime. Paths are sealed by the kernel, if it
    /// can.
    pub async fn new() -> Result<Self, OverlayError> {
        let by = SealedBy::of_this_host().await;
        let by = by.map_err(|cause| OverlayError::Observe {
            what: "what seals paths".into(),
            cause,
        })?;
        tracing::info!(?by, "paths are sealed");
        Self::sealed_by(&by)
    }

    /// The same, where it is known what seals paths.
    pub fn sealed_by(by: &SealedBy) -> Result<Self, OverlayError> {
        let failed = |cause| OverlayError::Observe {
            what: "the network namespace".into(),
            cause,
        };
        let namespace = Namespace::here().map_err(failed)?;
        let netlink = Netlink::here()
            .map_err(Cause::io("netlink"))
            .map_err(failed)?;
        let one_pass = Arc::new(Mutex::new(Passed::default()));
        let refresher = tokio::spawn(refresh(Arc::clone(&one_pass)));
        Ok(Self {
            netlink,
            namespace,
            paths: Paths::new(by.control().map_err(failed)?),
            sealing: by.sealing(),
            one_pass,
            _refresher: AbortOnDropHandle::new(refresher),
            _door: AbortOnDropHandle::new(tokio::spawn(door::keep_open())),
        })
    }

    /// What is known of the pairs of this node, for the intent: it must be reconciled
    /// again when that changes.
    pub fn pairs(&self) -> watch::Receiver<PairStates> {
        self.paths.states()
    }

    /// What is to be told of each peer, as far as the last pass went.
    pub fn peer_reports(&self, intent: &OverlayIntent) -> Vec<PeerReport> {
        intent.peer_reports(&self.paths.next_keys())
    }

    /// Whether what seals is there, as far as it is this agent's own.
    pub fn seals(&self) -> bool {
        self.paths.seals()
    }

    /// How the way to each peer is.
    pub fn health(&self) -> BTreeMap<NodeId, Health> {
        self.paths.health()
    }

    /// What is measured of this host's overlay: the ways to its peers, and everything
    /// that was dropped. Counters begin anew when what counts is made anew.
    pub async fn measures(&self) -> Result<Measures, OverlayError> {
        let drops = drops::read(&self.netlink, &self.paths);
        let drops = drops.await.map_err(|cause| OverlayError::Observe {
            what: "the counters".into(),
            cause,
        })?;
        let paths = self.health().into_iter();
        Ok(Measures {
            paths: paths.map(|(node, health)| measure(node, &health)).collect(),
            drops,
        })
    }

    /// Makes the host agree with `intent`. It goes on after an error and tells
    /// all of them. If the host's state cannot be read, it changes nothing.
    pub async fn reconcile(&self, intent: &OverlayIntent) -> OverlayReport {
        let mut before = self.one_pass.lock().await;
        let mut report = OverlayReport {
            peers: intent.peer_reports(&BTreeSet::new()),
            ..Default::default()
        };
        let seen = (&self.netlink, &self.paths, &self.namespace);
        let observed = observe(seen, &intent.attachments).await;
        let (observed, unseen) = match observed {
            Ok(seen) => seen,
            Err(error) => {
                let why = error.to_string();
                let told = |(&id, now): (&PlacementId, &Attachment)| match before.attached.get(&id)
                {
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
            let before = id.and_then(|id| before.attached.get(&id));
            let now = id.and_then(|id| intent.attachments.get(&id));
            let same = before.zip(now).is_some_and(|(old, new)| is_still(old, new));
            let keeps = same && !unseen.error.is_lasting();
            report.failed(id.filter(|_| !keeps), unseen.error);
        }
        let adopted = match std::mem::replace(&mut before.adopted, true) {
            true => BTreeMap::new(),
            false => adopted(intent, &observed),
        };
        let wanted = |(&node, peer): (&NodeId, &PeerIntent)| Some((node, intent.wanted(peer)?));
        // First of all, so that peers stop sending in clear what is not taken soon; and
        // what was proven of other addresses counts no more.
        let wanted = intent.peers.iter().filter_map(wanted).collect();
        let states = self.paths.want(wanted, &adopted);
        let mut intent = intent.clone();
        intent.sealing = self.sealing;
        intent.set_pairs(&states);
        let steps = plan::plan(&intent, &observed);
        let guarded = self.apply(&steps, &mut report).await;
        let accepted = |(&node, peer): (&NodeId, &PeerIntent)| match intent.reach(peer) {
            Reach::Fast(from) | Reach::Accepting(from) if guarded => Some((node, from)),
            _ => None,
        };
        let accepted = intent.peers.iter().filter_map(accepted);
        let (accepted, from): (BTreeSet<_>, BTreeSet<_>) = accepted.unzip();
        self.paths.set_accepted(&accepted);
        if guarded {
            before.guarded_at = Some(Instant::now());
            before.passes = from;
        }
        report.peers = self.peer_reports(&intent);
        let attached = |id: &PlacementId| matches!(report.attached.get(id), Some(Ok(())));
        before.attached = intent.attachments.clone();
        before.attached.retain(|id, _| attached(id));
        report.carried_out = Some(intent);
        report
    }

    /// Leaves the grid: removes every interface, entry and filter of ours. It
    /// goes on after an error and tells all of them.
    pub async fn remove_all(&self) -> Vec<OverlayError> {
        let mut before = self.one_pass.lock().await;
        before.attached.clear();
        let mut report = OverlayReport::default();
        let seen = (&self.netlink, &self.paths, &self.namespace);
        self.paths.want(BTreeMap::new(), &BTreeMap::new());
        match observe(seen, &BTreeMap::new()).await {
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

    /// Executes steps; whether those that guard paths all succeeded.
    async fn apply(&self, steps: &[Step], report: &mut OverlayReport) -> bool {
        let mut hands = Hands::new(&self.netlink, &self.paths);
        let mut failures = Failures::default();
        let entries = |step: &Step| matches!(step, Step::Entry(_));
        for steps in steps.chunk_by(|a, b| entries(a) && entries(b)) {
            // No entry of a table forbids what follows it.
            let steps: Vec<&Step> = steps.iter().filter(|step| !failures.forbid(step)).collect();
            for (step, result) in steps.iter().zip(hands.apply_all(&steps).await) {
                match result {
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
        }
        if failures.forbidden > 0 {
            report.errors.push(OverlayError::Guarded {
                steps: failures.forbidden,
            });
        }
        !failures.guard
    }
}

/// The pairs that a former run of the agent left clear. An address that two peers have
/// says of neither that it was meant.
fn adopted(intent: &OverlayIntent, observed: &Observed) -> BTreeMap<NodeId, Clear> {
    let (FilterState::Sound(accepted), Some(tunnel)) = (&observed.filter, &observed.tunnel) else {
        return BTreeMap::new();
    };
    let fast =
        |(&node, peer): (&NodeId, &PeerIntent)| Some((node, intent.wanted(peer)?.fast?.peer));
    let fast: Vec<_> = intent.peers.iter().filter_map(fast).collect();
    let shared = |to: Ipv4Addr| fast.iter().filter(|(_, other)| *other == to).count() > 1;
    let left = |&(node, to): &(NodeId, Ipv4Addr)| {
        let clear = if tunnel.floods.contains(&to) {
            Clear::Send
        } else {
            Clear::Accept
        };
        (accepted.peers.contains(&to) && !shared(to)).then_some((node, clear))
    };
    fast.iter().filter_map(left).collect()
}

/// Keeps the filter open for whom it is open, as long as this agent lives and passes
/// succeed. It waits for passes, which may close it.
async fn refresh(one_pass: Arc<Mutex<Passed>>) {
    loop {
        sleep(REFRESH_EVERY).await;
        let passed = one_pass.lock().await;
        let guarded = passed
            .guarded_at
            .is_some_and(|at| at.elapsed() < GUARDED_FOR);
        if !guarded || passed.passes.is_empty() {
            continue;
        }
        if let Err(err) = filter::refresh(&passed.passes).await {
            tracing::warn!(%err, "the packet filter is not told that the agent lives");
        }
    }
}

fn measure(node: NodeId, health: &Health) -> PathMeasure {
    let tunnel = &health.tunnel;
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    PathMeasure {
        node,
        endpoint: tunnel.endpoint,
        last_handshake_s: tunnel.last_handshake.map(|ago| ago.as_secs()),
        round_trip_us: health.round_trip.map(us),
        loss: health.loss,
        mtu: OVERLAY_MTU,
        sent_bytes: tunnel.sent_bytes,
        received_bytes: tunnel.received_bytes,
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
    /// A device that could not be made cannot be configured.
    inside: bool,
    /// An interface that could not be made cannot be configured.
    placements: BTreeSet<PlacementId>,
    /// How many steps were not tried.
    forbidden: usize,
}

impl Failures {
    fn note(&mut self, step: &Step) {
        self.guard |= step.guards_paths();
        self.inside |= step.is_inside();
        self.placements.extend(step.placement());
    }

    fn forbid(&mut self, step: &Step) -> bool {
        let hopeless = step
            .placement()
            .is_some_and(|id| self.placements.contains(&id));
        let hopeless = hopeless || (self.inside && step.is_inside());
        let forbidden = hopeless || (self.guard && step.opens_a_path());
        self.inside |= forbidden && step.is_inside();
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
