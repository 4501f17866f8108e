//! What the Master is told of measurements: a slot that is filled anew once in a
//! while, whoever reads it.

use std::sync::Arc;
use std::time::Duration;

use kontena_schema::agent::Measures;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use kontena_overlay::{Overlay, extra_intervals};

/// How often the overlay is measured in a small grid.
const EVERY: Duration = Duration::from_secs(10);

/// Where measurements are to be seen; none before the first.
pub type MeasuresSlot = watch::Receiver<Option<Arc<Measures>>>;

/// Measures, for ever.
pub async fn watch(overlay: Arc<Overlay>, slot: watch::Sender<Option<Arc<Measures>>>) {
    let mut peers = 0;
    loop {
        sleep(EVERY + EVERY * extra_intervals(peers)).await;
        match overlay.statistics().await {
            Ok(measures) => {
                peers = measures.paths.len();
                slot.send_replace(Some(Arc::new(measures)));
            }
            Err(err) => debug!(%err, "nothing is measured"),
        }
    }
}
