//! The tasks that keep peers up: one hears them and sends heartbeats, one checks those that
//! stay silent. Either can be started anew at any time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kontena_schema::limits::DOOR_PORT;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::peer::reachability::check::check_peer;
use crate::peer::shared::{Received, Shared};
use crate::peer::table::TICK;

/// How many silent peers are checked at once, and how soon the next check may follow.
const CHECKS_MAX: usize = 4;
const CHECK_TICK: Duration = Duration::from_secs(1);

/// Hears peers and sends heartbeats, for ever.
pub(crate) async fn hear(shared: Arc<Shared>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut received = shared.received.lock().await;
    let Received {
        messages,
        path_probes,
    } = &mut *received;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                shared.look_if_due().await;
                let mut peers = shared.lock();
                if peers.settle_due(Instant::now()) {
                    shared.publish(&peers);
                }
            }
            Some(message) = messages.recv() => shared.hear(&message),
            Some(heard) = path_probes.recv() => shared.hear_path_probe(&heard),
        }
    }
}

/// Checks whether silent peers can be reached at all, for ever, one a tick.
pub(crate) async fn check(shared: Arc<Shared>) {
    let mut ticks = interval(CHECK_TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut checks = JoinSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick(), if checks.len() < CHECKS_MAX => {
                if let Some((node, candidates)) = shared.next_check() {
                    let at = candidates.into_iter().map(|address| (address, DOOR_PORT)).collect();
                    let states = shared.subscribe();
                    checks.spawn(async move { (node, check_peer(node, at, states).await) });
                }
            }
            Some(ended) = checks.join_next() => match ended {
                Ok((node, Some(outcomes))) => shared.checked(node, outcomes),
                Ok((_, None)) => {}
                Err(err) => tracing::error!(%err, "a reachability check died"),
            },
        }
    }
}
