//! One pass: observe, plan, apply, report.
//!
//! Nothing that a pass does depends on an earlier one, so a restarted agent adopts what is
//! right and changes only what differs. Only what is reported of a container that cannot
//! be seen now is what was last seen of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use kontena_schema::agent::{Measures, PeerReport};
use kontena_schema::ids::{NodeId, PlacementId};
use kontena_task::{Task, supervise};
use tokio::sync::{Mutex, watch};

use crate::error::{Cause, OverlayError};
use crate::filter_lease::{FilterLease, Permitted};
use crate::linux::apply::Executor;
use crate::linux::drops::Drops;
use crate::linux::fast_peers::FastPeers;
use crate::linux::observe::{Host, observe};
use crate::linux::removals::Removals;
use crate::linux::removed_devices::RemovedDevices;
use crate::linux::ruleset::Ruleset;
use crate::linux::tables::TableReader;
use crate::model::intent::{Attachment, OverlayIntent, PeerIntent, Reach};
use crate::model::peer::{Clear, PeerStates};
use crate::model::state::{Encryption, FilterState, Observed};
use crate::peer::encryption::EncryptedBy;
use crate::peer::manager::PeerManager;
use crate::peer::reachability::listener;
use crate::peer::report::peer_reports;
use crate::peer::table::Health;
use crate::ping::{self, Echoes};
use crate::plan::failures::Failures;
use crate::plan::step::Step;
use crate::plan::{plan, plan_removal};
use crate::statistics::path;
use crate::sys::netlink::{Namespace, Netlink};
use crate::sys::priority::PriorityRuntime;

/// The overlay of this host.
///
/// It works in the network namespace of the thread that called [`Overlay::new`].
pub struct Overlay {
    netlink: Netlink,
    namespace: Namespace,
    peers: PeerManager,
    encryption: Encryption,
    /// What the last pass left attached. Two passes at once would each undo what
    /// the other does.
    one_pass: Mutex<Passed>,
    tables: TableReader,
    drops: Drops,
    fast_peers: Arc<FastPeers>,
    permitted: watch::Sender<Option<Permitted>>,
    lease: FilterLease,
    removals: Mutex<Removals>,
    _listener: Task,
}

/// Why a pass is due though nothing new is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Somebody removed a device of ours or our packet filter.
    Removed,
    /// The packet filter is closed for peers for whom it should be open.
    Closed,
}

/// What a pass left to the next one.
#[derive(Default)]
struct Passed {
    /// What is attached.
    attached: BTreeMap<PlacementId, Attachment>,
    /// What a former run of the agent left was looked for.
    adopted: bool,
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
    /// thread; must be called inside a tokio runtime. The kernel encrypts, if it
    /// can.
    pub async fn new() -> Result<Self, OverlayError> {
        let by = EncryptedBy::of_this_host().await;
        let by = by.map_err(OverlayError::unread("whether the kernel has WireGuard"))?;
        tracing::info!(?by, "chose what encrypts paths");
        Self::encrypted_by(&by)
    }

    /// The same, where it is known what encrypts paths.
    pub fn encrypted_by(by: &EncryptedBy) -> Result<Self, OverlayError> {
        Self::with(by, |fast_peers| fast_peers)
    }

    /// The same, as on a kernel that lets anybody take our packet filter away (Linux
    /// before 5.12).
    pub fn without_live_table(by: &EncryptedBy) -> Result<Self, OverlayError> {
        Self::with(by, FastPeers::without_live_table)
    }

    fn with(
        by: &EncryptedBy,
        as_on_this_kernel: impl FnOnce(FastPeers) -> FastPeers,
    ) -> Result<Self, OverlayError> {
        let failed = no_namespace;
        let filter = PriorityRuntime::start("packet-filter")
            .map_err(Cause::io("the packet filter's thread"))
            .map_err(failed)?;
        let ruleset = Ruleset::here(filter.handle()).map_err(failed)?;
        let fast_peers = FastPeers::of(ruleset);
        let devices = Arc::new(RemovedDevices::here().map_err(failed)?);
        let namespace = Namespace::here().map_err(failed)?;
        let netlink = Netlink::here()
            .map_err(Cause::io("netlink"))
            .map_err(failed)?;
        let peers = PeerManager::new(by.control().map_err(failed)?);
        let fast_peers = Arc::new(as_on_this_kernel(fast_peers));
        let (permitted, newest) = watch::channel(None);
        Ok(Self {
            netlink,
            namespace,
            encryption: by.encryption(),
            tables: TableReader::of(Arc::clone(&devices)),
            drops: Drops::here().map_err(failed)?,
            one_pass: Mutex::default(),
            lease: FilterLease::start(filter, Arc::clone(&fast_peers), newest, peers.states()),
            fast_peers,
            permitted,
            removals: Mutex::new(Removals::here(devices).map_err(failed)?),
            peers,
            _listener: supervise("reachability-listener", listener::keep_open),
        })
    }

    /// What is known of the pairs of this node, for the intent: it must be reconciled
    /// again when that changes.
    pub fn peers(&self) -> watch::Receiver<PeerStates> {
        self.peers.states()
    }

    /// What is to be told of each peer, as far as the last pass went.
    pub fn peer_reports(&self, intent: &OverlayIntent) -> Vec<PeerReport> {
        peer_reports(intent, &self.peers.next_keys())
    }

    /// Whether what encrypts is there, as far as it is this agent's own.
    pub fn encrypts(&self) -> bool {
        self.peers.encrypts()
    }

    /// How the way to each peer is.
    pub fn health(&self) -> BTreeMap<NodeId, Health> {
        self.peers.health()
    }

    /// Sends so many echoes from the own address on the overlay to another one, and then
    /// some of full length. It takes up to 8 s.
    pub async fn echo(
        &self,
        from: Ipv4Addr,
        to: Ipv4Addr,
        count: u16,
    ) -> Result<Echoes, OverlayError> {
        ping::echo(&self.namespace, (from, to), count).await
    }

    /// What is measured of this host's overlay: the transports to its peers, and everything
    /// that was dropped. Counters begin anew when what counts is made anew.
    pub async fn statistics(&self) -> Result<Measures, OverlayError> {
        let drops = self.drops.read(&self.netlink, &self.peers);
        let drops = drops.await.map_err(OverlayError::unread("the counters"))?;
        let paths = self.health().into_iter();
        Ok(Measures {
            paths: paths.map(|(node, health)| path(node, &health)).collect(),
            drops,
        })
    }

    /// Takes who may be clear, as the newest directory has it. It waits for nobody; who may
    /// no more is closed off within seconds, whatever passes do meanwhile.
    pub fn permit(&self, grid: Option<&OverlayIntent>) {
        let permitted = Some(grid.map(OverlayIntent::permitted).unwrap_or_default());
        self.permitted.send_if_modified(|old| {
            let differs = *old != permitted;
            *old = permitted;
            differs
        });
    }

    /// Waits until a pass is due though nothing new is asked for.
    pub async fn disturbed(&self) -> Disturbance {
        let mut removals = self.removals.lock().await;
        tokio::select! {
            () = removals.next() => Disturbance::Removed,
            () = self.lease.closed() => Disturbance::Closed,
        }
    }

    /// Lets what is clear be so for a minute after the end of this process, which a
    /// successor is to follow.
    pub async fn outlive(&self) {
        if let Err(err) = self.lease.outlive().await {
            tracing::warn!(%err, "cannot extend the packet filter's lease; fast paths close soon after this agent stops");
        }
    }

    /// Makes the host agree with `intent`. It goes on after an error and tells
    /// all of them. If the host's state cannot be read, it changes nothing.
    pub async fn reconcile(&self, intent: &OverlayIntent) -> OverlayReport {
        let mut before = self.one_pass.lock().await;
        let mut report = OverlayReport {
            peers: peer_reports(intent, &BTreeSet::new()),
            ..Default::default()
        };
        let observed = observe(self.host(), intent.attachments()).await;
        let (observed, unseen) = match observed {
            Ok(seen) => seen,
            Err(error) => {
                let why = error.to_string();
                let told = |(id, now): (PlacementId, &Attachment)| match before.attached.get(&id) {
                    Some(before) if is_still(before, now) => (id, Ok(())),
                    _ => (id, Err(why.clone())),
                };
                report.attached = intent.attachments().map(told).collect();
                report.errors.push(error);
                return report;
            }
        };
        report.attached = intent.attachments().map(|(id, _)| (id, Ok(()))).collect();
        for unseen in unseen {
            let id = unseen.placement;
            let before = id.and_then(|id| before.attached.get(&id));
            let now = id.and_then(|id| intent.attachment(id));
            let same = before.zip(now).is_some_and(|(old, new)| is_still(old, new));
            let keeps = same && !unseen.error.is_lasting();
            report.failed(id.filter(|_| !keeps), unseen.error);
        }
        let adopted = match std::mem::replace(&mut before.adopted, true) {
            true => BTreeMap::new(),
            false => adopted(intent, &observed),
        };
        let wanted =
            |(&node, peer): (&NodeId, &PeerIntent)| Some((node, intent.peer_config(peer)?));
        // First of all, so that peers stop sending in clear what is not taken soon; and
        // what was proven of other addresses counts no more.
        let wanted = intent.peers.iter().filter_map(wanted).collect();
        let states = self.peers.want(wanted, &adopted);
        let mut intent = intent.clone();
        intent.encryption = self.encryption;
        intent.set_peers(&states);
        let steps = plan(&intent, &observed);
        let protected = self.apply(&steps, &mut report).await;
        let accepted = |(&node, peer): (&NodeId, &PeerIntent)| match intent.reach(peer) {
            Reach::Fast(from) | Reach::Accepting(from) if protected => Some((node, from)),
            _ => None,
        };
        let accepted = intent.peers.iter().filter_map(accepted);
        let (accepted, from): (BTreeSet<_>, BTreeSet<_>) = accepted.unzip();
        self.peers.set_accepted(&accepted);
        if protected {
            self.lease.protected(from);
        }
        report.peers = self.peer_reports(&intent);
        let attached = |id: &PlacementId| matches!(report.attached.get(id), Some(Ok(())));
        before.attached = intent.attachments.clone().unwrap_or_default();
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
        self.peers.want(BTreeMap::new(), &BTreeMap::new());
        match observe(self.host(), []).await {
            Ok((observed, unseen)) => {
                report
                    .errors
                    .extend(unseen.into_iter().map(|unseen| unseen.error));
                self.apply(&plan_removal(&observed), &mut report).await;
            }
            Err(error) => report.errors.push(error),
        }
        report.errors
    }

    fn host(&self) -> Host<'_> {
        Host {
            netlink: &self.netlink,
            namespace: &self.namespace,
            paths: &self.peers,
            tables: &self.tables,
            fast_peers: &self.fast_peers,
        }
    }

    /// Executes steps; whether those that protect paths all succeeded.
    async fn apply(&self, steps: &[Step], report: &mut OverlayReport) -> bool {
        let mut executor = Executor::new(&self.netlink, &self.peers, &self.fast_peers);
        let mut failures = Failures::default();
        let entries = |step: &Step| matches!(step, Step::Entry(_));
        for steps in steps.chunk_by(|a, b| entries(a) && entries(b)) {
            // No entry of a table forbids what follows it.
            let steps: Vec<&Step> = steps.iter().filter(|step| !failures.forbid(step)).collect();
            for (step, result) in steps.iter().zip(executor.apply_all(&steps).await) {
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
            report.errors.push(OverlayError::Unprotected {
                steps: failures.forbidden,
            });
        }
        !failures.protection
    }
}

fn no_namespace(cause: Cause) -> OverlayError {
    OverlayError::unread("the network namespace")(cause)
}

/// The pairs that a former run of the agent left clear. An address that two peers have
/// says of neither that it was meant.
fn adopted(intent: &OverlayIntent, observed: &Observed) -> BTreeMap<NodeId, Clear> {
    let (FilterState::Sound(accepted), Some(vxlan)) = (&observed.filter, &observed.vxlan) else {
        return BTreeMap::new();
    };
    let fast =
        |(&node, peer): (&NodeId, &PeerIntent)| Some((node, intent.peer_config(peer)?.fast?.peer));
    let fast: Vec<_> = intent.peers.iter().filter_map(fast).collect();
    let shared = |to: Ipv4Addr| fast.iter().filter(|(_, other)| *other == to).count() > 1;
    let left = |&(node, to): &(NodeId, Ipv4Addr)| {
        let clear = if vxlan.floods.contains(&to) {
            Clear::Send
        } else {
            Clear::Accept
        };
        (accepted.peers.contains(&to) && !shared(to)).then_some((node, clear))
    };
    fast.iter().filter_map(left).collect()
}

/// Whether a container that was attached and cannot be seen now is the same and
/// lives.
fn is_still(before: &Attachment, now: &Attachment) -> bool {
    before == now && Namespace::of(now.process).is_ok()
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
    use crate::process::Process;

    #[test]
    fn only_the_same_living_container_counts_as_still_attached() {
        let address = [10, 81, 1, 1].into();
        let of = |process| Attachment {
            process,
            container_id: "c".to_owned(),
            address,
            mac: Mac::of_lease(address, LeaseNumber(1)),
        };
        let here = Process::of(std::process::id().cast_signed()).unwrap();
        let other = Attachment {
            container_id: "d".to_owned(),
            ..of(here)
        };
        assert!(is_still(&of(here), &of(here)));
        assert!(!is_still(&of(here), &other));
        let gone = Process {
            // It is above the kernel's bound.
            pid: i32::MAX,
            ..here
        };
        assert!(!is_still(&of(gone), &of(gone)));
        let later = Process {
            started: here.started + 1,
            ..here
        };
        assert!(!is_still(&of(later), &of(later)), "the number is another's");
    }
}
