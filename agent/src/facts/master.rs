//! The Master's addresses, as this host resolves its name.
//!
//! The packet filter keeps containers away from these addresses. An address counts
//! for an hour after it was last in an answer: a name may have more addresses than
//! one answer holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use crate::config::Config;
use crate::dns::lookup::Lookup;

const LOOK_EVERY: Duration = Duration::from_secs(30);
const RETRY_EVERY: Duration = Duration::from_secs(1);
const KEPT: Duration = Duration::from_hours(1);

/// Publishes the Master's addresses whenever they change, for ever.
pub async fn watch(
    config: Arc<Config>,
    lookup: Lookup,
    slot: watch::Sender<Option<BTreeSet<SocketAddr>>>,
) {
    let mut seen = Seen::default();
    let host = config.uri.host_str().unwrap_or_default().to_owned();
    let port = config.uri.port_or_known_default().unwrap_or_default();
    loop {
        let pause = match lookup.addresses(&host, port).await {
            Ok(found) => {
                if seen.add(found.into_iter(), Instant::now()) {
                    slot.send_replace(Some(seen.0.keys().copied().collect()));
                }
                LOOK_EVERY
            }
            Err(error) => {
                debug!(%error, host, "cannot resolve the Master's name");
                RETRY_EVERY
            }
        };
        sleep(pause).await;
    }
}

/// The addresses, and when each was last in an answer.
#[derive(Default)]
struct Seen(BTreeMap<SocketAddr, Instant>);

impl Seen {
    /// Adds an answer; true if anything changed.
    fn add(&mut self, found: impl Iterator<Item = SocketAddr>, now: Instant) -> bool {
        let before: BTreeSet<_> = self.0.keys().copied().collect();
        for at in found {
            // The scope of an IPv6 address is local to this host.
            self.0.insert((at.ip(), at.port()).into(), now);
        }
        self.0.retain(|_, seen| now.duration_since(*seen) < KEPT);
        !self.0.keys().eq(&before)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use super::*;

    #[test]
    fn an_address_counts_for_an_hour() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (one, two) = (at("192.0.2.1:443"), at("192.0.2.2:443"));
        let now = Instant::now();
        let mut seen = Seen::default();
        let scoped = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 443, 0, 7));
        assert!(seen.add([one, at("[::1]:443")].into_iter(), now));
        assert!(!seen.add([one, scoped].into_iter(), now));
        assert!(seen.add([two].into_iter(), now + KEPT / 2));
        assert_eq!(seen.0.len(), 3);
        assert!(seen.add([two].into_iter(), now + KEPT));
        assert_eq!(
            seen.0.keys().collect::<Vec<_>>(),
            [&"192.0.2.2:443".parse().unwrap()]
        );
    }
}
