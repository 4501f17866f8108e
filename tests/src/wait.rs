//! Waiting for a state.

use std::time::{Duration, Instant};

/// How long to pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks until `attempt` succeeds, and answers what it found.
///
/// # Panics
/// When `within` is over, with the last state.
pub async fn until<T>(
    within: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let begin = Instant::now();
    loop {
        let last = match attempt().await {
            Ok(found) => return found,
            Err(state) => state,
        };
        assert!(
            begin.elapsed() < within,
            "not within {within:?}: {what}; the last state:\n{last}"
        );
        // Between two looks at a state, which have a bound.
        tokio::time::sleep(PAUSE).await;
    }
}
