//! What must not be tried after a step failed; pure.

use std::collections::BTreeSet;

use kontena_schema::ids::PlacementId;

use super::step::Step;

/// Which later steps must not be tried, because an earlier one failed.
#[derive(Default)]
pub(crate) struct Failures {
    /// Nothing that depends on protection may follow.
    pub(crate) protection: bool,
    /// A device that could not be made cannot be configured.
    wireguard: bool,
    /// An interface that could not be made cannot be configured.
    placements: BTreeSet<PlacementId>,
    /// How many steps were not tried.
    pub(crate) forbidden: usize,
}

impl Failures {
    pub(crate) fn note(&mut self, step: &Step) {
        self.protection |= step.protects_paths();
        self.wireguard |= step.is_wireguard();
        self.placements.extend(step.placement());
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
