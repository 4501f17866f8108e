//! A tunnel: one session between a key of this host and a key of a peer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use boringtun::noise::Tunn;
use kontena_schema::key::PublicKey;

use crate::initiation::Initiation;

/// The keys at both ends of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Keys {
    pub(crate) own: PublicKey,
    pub(crate) peer: PublicKey,
}

/// A tunnel without outgoing data for so long gets an empty packet. That keeps NAT mappings alive
/// and shows each side that the other is up. It is half of the shortest mapping timeout of common
/// routers (RFC 4787 requires 2 min, many have 30 s).
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A peer that sent nothing for so long, a little over two keepalives, may be down.
pub const SILENT_AFTER: Duration = Duration::from_secs(35);

/// A tunnel between one key of this host and one of a peer.
pub(crate) struct Tunnel {
    pub(crate) keys: Keys,
    pub(crate) tunnel_address: Ipv4Addr,
    /// Its number in the messages of its peer.
    pub(crate) index: u32,
    created: Instant,
    /// Milliseconds from `created` until something was last received in it, plus 1; 0 for
    /// never.
    received: AtomicU64,
    /// Whether this side initiates handshakes; otherwise it only responds.
    initiates: AtomicBool,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) tunn: Tunn,
    /// Where packets last came from, or where the peer is expected.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Where packets of a session came from, since the table last changed the endpoint. An
    /// initiation proves nothing: it may be a replay.
    pub(crate) proven: Option<SocketAddr>,
    /// The endpoint in the table.
    configured: Option<SocketAddr>,
    pub(crate) initiation: Initiation,
    /// The bytes sent by the last keepalive check, and since when there are so many.
    sent: (usize, Instant),
}

impl State {
    /// A packet of a session, or a handshake response, came from there. What comes from elsewhere
    /// says nothing about a configured endpoint that is still to be tried.
    pub(crate) fn record_endpoint(&mut self, from: SocketAddr, is_response: bool) {
        self.proven = Some(from);
        if is_response || self.configured.is_none_or(|configured| configured == from) {
            self.initiation.answered();
        }
    }

    /// Whether a keepalive is due; if so, it counts as sent.
    pub(crate) fn keepalive_due(&mut self, now: Instant) -> bool {
        let (_, sent, ..) = self.tunn.stats();
        let (before, since) = self.sent;
        let idle = now.saturating_duration_since(since) >= KEEPALIVE;
        if sent != before || idle {
            self.sent = (sent, now);
        }
        sent == before && idle
    }

    /// Goes back to the endpoint in the table.
    pub(crate) fn reset_endpoint(&mut self) {
        self.endpoint = self.configured.or(self.endpoint);
    }
}

/// The state of the tunnel to a peer.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    /// The peer's address inside the tunnel.
    pub tunnel_address: Ipv4Addr,
    /// The peer's key that is in use.
    pub key: PublicKey,
    /// This host's key that is in use.
    pub own: PublicKey,
    /// Where packets last came from, or where the peer is expected.
    pub endpoint: Option<SocketAddr>,
    /// Where packets of a session came from, since the table last changed the endpoint.
    pub proven: Option<SocketAddr>,
    /// How long ago the last handshake completed.
    pub last_handshake: Option<Duration>,
    /// How long ago an encrypted packet was last received.
    pub received: Option<Duration>,
    /// The share of encrypted packets that were lost on the way here, from 0 to 1.
    pub loss: f32,
    /// Bytes of packets sent.
    pub sent_bytes: u64,
    /// Bytes of packets received.
    pub received_bytes: u64,
}

impl PeerStatus {
    /// Whether anything was received lately.
    pub fn is_alive(&self) -> bool {
        self.received.is_some_and(|ago| ago < SILENT_AFTER)
    }
}

impl Tunnel {
    pub(crate) fn new(
        keys: Keys,
        (tunnel_address, endpoint): (Ipv4Addr, Option<SocketAddr>),
        (index, tunn): (u32, Tunn),
    ) -> Self {
        let state = Mutex::new(State {
            tunn,
            endpoint,
            proven: None,
            configured: endpoint,
            initiation: Initiation::default(),
            sent: (0, Instant::now()),
        });
        Self {
            keys,
            tunnel_address,
            index,
            created: Instant::now(),
            received: AtomicU64::new(0),
            initiates: AtomicBool::new(false),
            state,
        }
    }

    /// A panic while it was locked leaves the tunnel usable.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies the table; whether to initiate a handshake, because the endpoint changed or this
    /// side did not initiate before.
    pub(crate) fn configure(&self, endpoint: Option<SocketAddr>, initiates: bool) -> bool {
        let initiated = self.initiates.swap(initiates, Ordering::Relaxed);
        let mut state = self.lock();
        let moved = state.configured != endpoint;
        if moved {
            state.configured = endpoint;
            state.proven = None;
            // The last known endpoint is better than none.
            state.endpoint = endpoint.or(state.endpoint);
        }
        initiates && (moved || !initiated)
    }

    pub(crate) fn initiates(&self) -> bool {
        self.initiates.load(Ordering::Relaxed)
    }

    /// An authenticated packet was received.
    pub(crate) fn record_received(&self) {
        let now = self.created.elapsed().as_millis() as u64;
        self.received.store(now + 1, Ordering::Relaxed);
    }

    /// How long ago a packet was last received.
    pub(crate) fn received(&self) -> Option<Duration> {
        let at = self.received.load(Ordering::Relaxed).checked_sub(1)?;
        let age = self.created.elapsed();
        Some(age.saturating_sub(Duration::from_millis(at)))
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.received().is_some_and(|ago| ago < SILENT_AFTER)
    }

    pub(crate) fn status(&self) -> PeerStatus {
        let state = self.lock();
        let (last_handshake, sent, received, loss, _) = state.tunn.stats();
        PeerStatus {
            tunnel_address: self.tunnel_address,
            key: self.keys.peer,
            own: self.keys.own,
            endpoint: state.endpoint,
            proven: state.proven,
            last_handshake,
            received: self.received(),
            loss,
            sent_bytes: sent as u64,
            received_bytes: received as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrivateKey;

    fn tunnel() -> Tunnel {
        let [own, peer] = [1, 2].map(|octet| PrivateKey::from_octets([octet; 32]));
        let keys = Keys {
            own: own.public(),
            peer: peer.public(),
        };
        let tunn = Tunn::new(own.0, keys.peer.0.into(), None, None, 1, None);
        Tunnel::new(keys, (Ipv4Addr::LOCALHOST, None), (1, tunn))
    }

    #[test]
    fn a_keepalive_is_sent_only_where_nothing_else_was() {
        let tunnel = tunnel();
        let mut state = tunnel.lock();
        let start = Instant::now();
        let mut keepalives = Vec::new();
        for second in 1..60 {
            if second == 20 {
                // Pretends that data was sent.
                state.sent.0 = usize::MAX;
            }
            if state.keepalive_due(start + Duration::from_secs(second)) {
                keepalives.push(second);
            }
        }
        assert_eq!(keepalives, [15, 35, 50]);
    }
}
