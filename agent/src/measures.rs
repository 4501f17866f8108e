//! The statistics for the Master: a slot refilled at intervals, read or not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kontena_schema::agent::{HostMeasures, Measures};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use crate::docker::sizes::DataSlot;
use crate::overlay::OverlaySlot;
use kontena_overlay::extra_intervals;

/// How often statistics are read in a small grid.
const EVERY: Duration = Duration::from_secs(10);

/// The latest statistics; none before the first.
pub type MeasuresSlot = watch::Receiver<Option<Arc<HostMeasures>>>;

/// Collects statistics, for ever.
pub async fn watch(
    overlay: OverlaySlot,
    data: DataSlot,
    slot: watch::Sender<Option<Arc<HostMeasures>>>,
) {
    let mut peers = 0;
    loop {
        sleep(EVERY + EVERY * extra_intervals(peers)).await;
        let opened = overlay.borrow().clone();
        let read = match opened {
            Some(overlay) => overlay.statistics().await,
            // Sizes do not wait for it.
            None => Ok(Measures::default()),
        };
        match read {
            Ok(measures) => {
                peers = measures.paths.len();
                let measures = HostMeasures {
                    overlay: measures,
                    data: data
                        .borrow()
                        .as_ref()
                        .map(|data| data.measures(Instant::now())),
                };
                slot.send_replace(Some(Arc::new(measures)));
            }
            Err(err) => debug!(%err, "no statistics"),
        }
    }
}
