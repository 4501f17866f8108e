//! The tasks that keep peers up: one receives and sends heartbeats, the other checks silent
//! peers. Either can be restarted at any time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kontena_schema::limits::DOOR_PORT;
use kontena_task::TaskSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::peer::reachability::check::check_peer;
use crate::peer::shared::{Received, Shared};
use crate::peer::table::TICK;

/// How many silent peers are checked at once, and how soon the next check may follow.
const CHECKS_MAX: usize = 4;
const CHECK_TICK: Duration = Duration::from_secs(1);

/// Receives and sends heartbeats, for ever.
pub(crate) async fn exchange_heartbeats(shared: Arc<Shared>) {
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
                shared.observe_if_due().await;
                let mut peers = shared.lock();
                if peers.update_due(Instant::now()) {
                    shared.publish(&peers);
                }
            }
            Some(message) = messages.recv() => shared.receive(&message),
            Some(received) = path_probes.recv() => shared.receive_path_probe(&received),
        }
    }
}

/// Checks the reachability of silent peers, for ever, one a tick.
pub(crate) async fn check(shared: Arc<Shared>) {
    let mut ticks = interval(CHECK_TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut checks = TaskSet::new("reachability-checks");
    loop {
        tokio::select! {
            _ = ticks.tick(), if checks.len() < CHECKS_MAX => {
                if let Some((node, candidates)) = shared.next_check() {
                    let at = candidates.into_iter().map(|address| (address, DOOR_PORT)).collect();
                    let states = shared.subscribe();
                    checks.spawn(async move { (node, check_peer(node, at, states).await) });
                }
            }
            Some((_, ended)) = checks.next() => if let Some((node, Some(outcomes))) = ended {
                shared.checked(node, outcomes);
            },
        }
    }
}
