//! The overlay of this host: opened, told what it is to be, and shown to the others.
//!
//! It converges in a task of its own (`kontena_overlay::task`). What it is asked for is put
//! together here and waits for no engine: the directory, the keys and the Masters are passed
//! on the moment they change, and the containers as soon as somebody has looked at them.
//!
//! Invariant: nobody waits for the overlay but those who work on it. Where it cannot be
//! opened, or may not be brought up, the others go on and know why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kontena_overlay::{
    Attachment, BRIDGE, EgressPolicy, HostServices, Membership, MulticastLimit, Overlay,
    OverlayError, OverlayIntent, OverlayState, Request,
};
use kontena_schema::agent::GridSettings;
use kontena_schema::ids::PlacementId;
use kontena_task::Tasks;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::error;

use crate::directory::Directory;
use crate::docker::networks::BridgesSlot;
use crate::facts::overlap::{self, Refusal};
use crate::keys::HostKeys;

/// How soon an overlay that could not be opened is tried again.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// How soon a host that may not have the overlay is looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What is known of this host's containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    /// Those that are to have an interface; none before the first look.
    pub attachments: Option<BTreeMap<PlacementId, Attachment>>,
    /// The node was removed from its grid, and no container of it is left.
    pub left: bool,
}

/// Where that is to be seen.
pub type ContainersSlot = watch::Receiver<Arc<Containers>>;

/// The overlay; none until it could be opened.
pub type OverlaySlot = watch::Receiver<Option<Arc<Overlay>>>;

/// Why the host has no overlay; none if it has one, or if nobody knows yet.
pub type UnavailableSlot = watch::Receiver<Option<String>>;

/// What the others see of the overlay.
#[derive(Clone)]
pub struct Seen {
    /// The overlay.
    pub overlay: OverlaySlot,
    /// What became of the request.
    pub state: watch::Receiver<Arc<OverlayState>>,
    /// Why there is nothing to see.
    pub unavailable: UnavailableSlot,
}

/// What the request is made of.
#[derive(Clone)]
pub struct Sources {
    /// What the Master wants.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// This host's keys.
    pub keys: watch::Receiver<Arc<HostKeys>>,
    /// Where the Master is; none while that is not known.
    pub masters: watch::Receiver<Option<BTreeSet<SocketAddr>>>,
    /// What the engine's bridges are called.
    pub bridges: BridgesSlot,
    /// The containers.
    pub containers: ContainersSlot,
    /// How much each of them may send to all.
    pub multicast: MulticastLimit,
}

impl Sources {
    /// Keeps the request as new as what it is made of, for ever.
    async fn watch(
        mut self,
        request: watch::Sender<Arc<Request>>,
        unavailable: watch::Sender<Option<String>>,
    ) {
        let mut grid = GridPart::default();
        let mut entry = Entry::default();
        loop {
            let mut new = self.request(&mut grid);
            if !entry.allows(&new, grid.settings()).await {
                new.grid = Membership::Unknown;
            }
            let refusal = entry.refused.as_ref();
            tell(
                &unavailable,
                refusal.map(|why| format!("the overlay stays down: {why}")),
            );
            request.send_replace(Arc::new(new));
            tokio::select! {
                () = sleep(LOOK_AGAIN_AFTER), if !entry.is_open() => {}
                Ok(()) = self.directory.changed() => {}
                Ok(()) = self.keys.changed() => {}
                Ok(()) = self.masters.changed() => {}
                Ok(()) = self.bridges.changed() => {}
                Ok(()) = self.containers.changed() => {}
                // The agent stops.
                else => std::future::pending().await,
            }
        }
    }

    fn request(&mut self, grid: &mut GridPart) -> Request {
        let directory = self.directory.borrow_and_update().clone();
        let containers = self.containers.borrow_and_update().clone();
        Request {
            grid: grid.of(&directory, containers.left),
            attachments: containers.attachments.clone(),
            keys: self.keys.borrow_and_update().own.clone(),
            services: HostServices::default(),
            egress: EgressPolicy {
                masters: self.masters.borrow_and_update().clone(),
                bridges: bridges(self.bridges.borrow_and_update().clone()),
            },
            multicast: self.multicast,
        }
    }
}

/// Starts the overlay's own task, which opens it first, and the one that tells it what it is
/// to be. The overlay is put into `slot`.
pub fn start<F>(
    tasks: &mut Tasks,
    sources: Sources,
    slot: watch::Sender<Option<Arc<Overlay>>>,
    open: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Seen
where
    F: Future<Output = Result<Overlay, OverlayError>> + Send,
{
    let (request_in, request) = watch::channel(Arc::default());
    let (state_in, state) = watch::channel(Arc::default());
    let (unavailable_in, unavailable) = watch::channel(None);
    let overlay = slot.subscribe();
    let seen = Seen {
        overlay: overlay.clone(),
        state,
        unavailable,
    };
    let why = unavailable_in.clone();
    tasks.supervise("overlay-request", move || {
        let (sources, mut overlay) = (sources.clone(), overlay.clone());
        let (request_in, why) = (request_in.clone(), why.clone());
        async move {
            // It fails when the agent stops.
            let opened = overlay.wait_for(Option::is_some).await.is_ok();
            if opened {
                sources.watch(request_in, why).await;
            }
        }
    });
    tasks.supervise("overlay", move || {
        let (slot, why, open) = (slot.clone(), unavailable_in.clone(), open.clone());
        let (request, state_in) = (request.clone(), state_in.clone());
        async move {
            let overlay = open_once(&slot, &why, open).await;
            kontena_overlay::task::run(overlay, request, state_in).await;
        }
    });
    seen
}

/// The overlay, which an earlier run of the task may have opened.
async fn open_once<F>(
    slot: &watch::Sender<Option<Arc<Overlay>>>,
    unavailable: &watch::Sender<Option<String>>,
    open: impl Fn() -> F,
) -> Arc<Overlay>
where
    F: Future<Output = Result<Overlay, OverlayError>>,
{
    if let Some(overlay) = slot.borrow().clone() {
        return overlay;
    }
    loop {
        match open().await {
            Ok(overlay) => {
                let overlay = Arc::new(overlay);
                tell(unavailable, None);
                slot.send_replace(Some(overlay.clone()));
                return overlay;
            }
            Err(err) => tell(
                unavailable,
                Some(format!("the overlay cannot be started: {err}")),
            ),
        }
        sleep(OPEN_AGAIN_AFTER).await;
    }
}

/// Says why there is no overlay, once.
fn tell(slot: &watch::Sender<Option<String>>, why: Option<String>) {
    slot.send_if_modified(|old| {
        let differs = *old != why;
        if differs && let Some(why) = &why {
            error!("{why}");
        }
        *old = why;
        differs
    });
}

/// Whether the overlay may be brought up on this host, which is asked until it may: one
/// that is up stays.
#[derive(Default)]
struct Entry {
    open: bool,
    refused: Option<Refusal>,
}

impl Entry {
    /// Whether it is known that it may, or nothing is to be brought up.
    fn is_open(&self) -> bool {
        self.open || self.refused.is_none()
    }

    async fn allows(&mut self, request: &Request, settings: Option<&GridSettings>) -> bool {
        let (Membership::Member { .. }, Some(settings)) = (&request.grid, settings) else {
            // Another grid is asked about anew.
            *self = Self::default();
            return true;
        };
        if self.open {
            return true;
        }
        self.refused = overlap::refusal(settings, request.egress.masters.as_ref()).await;
        self.open = self.refused.is_none();
        self.open
    }
}

/// Containers have no business with the Master, on whichever way: the overlay is one.
fn bridges(of_engine: Option<BTreeSet<String>>) -> Option<BTreeSet<String>> {
    let mut bridges = of_engine?;
    bridges.insert(BRIDGE.to_owned());
    Some(bridges)
}

/// What the directory asks for. It is made once for each directory: a full grid has
/// thousands of endpoints.
#[derive(Default)]
struct GridPart {
    made_of: Option<Arc<Directory>>,
    made: Membership,
}

impl GridPart {
    /// The settings of the grid that it was made of.
    fn settings(&self) -> Option<&GridSettings> {
        self.made_of.as_ref()?.grid.as_ref()
    }

    fn of(&mut self, directory: &Arc<Directory>, left: bool) -> Membership {
        if directory.removed {
            // First the containers go, then the overlay.
            self.made_of = None;
            if left {
                self.made = Membership::Left;
            }
            return self.made.clone();
        }
        let same = |old: &Arc<Directory>| Arc::ptr_eq(old, directory);
        if !self.made_of.as_ref().is_some_and(same) {
            self.made_of = Some(directory.clone());
            if let Some(member) = member(directory) {
                self.made = member;
            }
        }
        self.made.clone()
    }
}

fn member(directory: &Directory) -> Option<Membership> {
    let (grid, own) = (directory.grid.as_ref()?, directory.own()?);
    let without_trust = GridSettings {
        trusted_subnets: Vec::new(),
        ..grid.clone()
    };
    // The trust may have been withdrawn.
    let grid = if directory.outdated {
        &without_trust
    } else {
        grid
    };
    let (nodes, endpoints) = (directory.nodes.values(), directory.endpoints.values());
    let grid = OverlayIntent::of_grid(grid, own, nodes, endpoints);
    Some(Membership::Member {
        revision: directory.revision(),
        grid: Arc::new(grid),
    })
}

#[cfg(test)]
mod tests {
    use kontena_schema::path::Path;

    use super::*;
    use crate::directory::tests::directory;

    #[test]
    fn a_directory_is_made_into_a_request_once() {
        let directory = Arc::new(directory());
        let mut part = GridPart::default();
        let grid = |membership: Membership| match membership {
            Membership::Member { grid, .. } => grid,
            other => panic!("{other:?}"),
        };
        let first = grid(part.of(&directory, false));
        assert!(Arc::ptr_eq(&first, &grid(part.of(&directory, false))));
        let newer = Arc::new(Directory::clone(&directory));
        assert!(!Arc::ptr_eq(&first, &grid(part.of(&newer, false))));
    }

    #[test]
    fn what_is_outdated_trusts_nobody() {
        let known = directory();
        let fast = |known: Directory| {
            let Membership::Member { grid, .. } = member(&known).unwrap() else {
                unreachable!()
            };
            grid.peers
                .values()
                .any(|peer| matches!(peer.path, Path::Fast { .. }))
        };
        assert!(fast(known.clone()));
        let outdated = true;
        assert!(!fast(Directory { outdated, ..known }));
    }

    #[test]
    fn a_removed_node_keeps_its_overlay_until_its_containers_are_gone() {
        let known = directory();
        let removed = Arc::new(Directory {
            removed: true,
            ..Directory::default()
        });
        let mut part = GridPart::default();
        assert!(matches!(part.of(&removed, false), Membership::Unknown));
        part.of(&Arc::new(known), false);
        assert!(matches!(
            part.of(&removed, false),
            Membership::Member { .. }
        ));
        assert!(matches!(part.of(&removed, true), Membership::Left));
    }

    #[test]
    fn what_is_not_known_of_the_grid_changes_nothing() {
        let mut part = GridPart::default();
        let unknown = part.of(&Arc::default(), false);
        assert!(matches!(unknown, Membership::Unknown));
    }

    #[test]
    fn the_overlay_is_a_bridge_that_containers_are_behind() {
        assert_eq!(bridges(None), None);
        let of_engine = BTreeSet::from(["docker0".to_owned()]);
        let all = bridges(Some(of_engine)).unwrap();
        assert!(all.contains(BRIDGE) && all.contains("docker0"));
    }
}
