//! Which steps must be skipped after one failed; pure.

use std::collections::BTreeSet;

use kontena_schema::ids::PlacementId;

use super::step::Step;

/// The failed steps, as far as later ones depend on them.
#[derive(Default)]
pub(crate) struct Failures {
    /// Whether a step that protects paths failed.
    pub(crate) protection: bool,
    /// Whether a step of WireGuard's device failed.
    wireguard: bool,
    /// The placements with a failed step.
    placements: BTreeSet<PlacementId>,
    /// How many steps were skipped.
    pub(crate) forbidden: usize,
}

impl Failures {
    pub(crate) fn note(&mut self, step: &Step) {
        self.protection |= step.protects_paths();
        self.wireguard |= step.is_wireguard();
        self.placements.extend(step.placement());
        if let Step::SetPortFilters(filters) = step {
            self.placements.extend(filters.keys());
        }
    }

    pub(crate) fn forbid(&mut self, step: &Step) -> bool {
        let hopeless = step
            .placement()
            .is_some_and(|id| self.placements.contains(&id));
        let hopeless = hopeless || (self.wireguard && step.is_wireguard());
        let forbidden = hopeless || (self.protection && step.opens_a_path());
        self.wireguard |= forbidden && step.is_wireguard();
        self.forbidden += usize::from(forbidden);
        forbidden
    }
}
