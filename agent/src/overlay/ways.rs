//! How agents of peers are spoken to: probes through what seals, trials in clear.

use std::time::{Duration, Instant};

use kontena_sleeve::PeerStatus;

use super::pair::{Pair, Tunnel};
use super::probe::Probe;
use super::sealed::Sealed;
use super::trial_post::TrialPost;

/// The ways to peers.
pub(crate) struct Ways {
    pub(crate) sealed: Option<Sealed>,
    pub(crate) trials: Option<TrialPost>,
    /// Tells the runs of this agent apart.
    pub(crate) run: u32,
}

impl Ways {
    /// Looks at a pair, and sends the probe that is due.
    pub(crate) fn settle(
        &self,
        pair: &mut Pair,
        status: Option<PeerStatus>,
        every: Duration,
        now: Instant,
    ) {
        let tunnel = status.map(|status| Tunnel {
            key: Some(status.key),
            heard_at: status.proven,
            alive: status.is_alive(),
        });
        pair.look(tunnel.unwrap_or_default(), now);
        if let Some(probe) = pair.probe(self.run, every, now) {
            self.send(pair, &probe, now);
        }
    }

    /// Sends a probe, and the trial that goes with it.
    fn send(&self, pair: &mut Pair, probe: &Probe, now: Instant) {
        let Some(sealed) = &self.sealed else {
            return;
        };
        if !sealed.send(pair.inner(), &probe.write()) {
            return;
        }
        pair.sent(probe, now);
        if let (Some(trials), Some((to, trial))) = (&self.trials, pair.trial(probe, now)) {
            trials.send(to, pair.mac(), trial);
        }
    }
}
