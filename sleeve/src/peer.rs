//! One tunnel.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use boringtun::noise::Tunn;
use kontena_schema::key::PublicKey;

use crate::initiation::Initiation;
use crate::snapshot::Keys;

/// A peer for whom no contents were encrypted for so long gets an empty packet. That keeps the way
/// through NAT open, and tells each side that the other lives; half of the shortest time
/// after which common routers forget (RFC 4787 asks for 2 min, many have 30 s).
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A peer that was not heard for so long, twice the keepalive and some, may be gone.
pub const SILENT_AFTER: Duration = Duration::from_secs(35);

/// A tunnel between one key of this host and one of a peer.
pub(crate) struct Tunnel {
    pub(crate) keys: Keys,
    pub(crate) tunnel_address: Ipv4Addr,
    /// Its number in the messages of its peer.
    pub(crate) index: u32,
    born: Instant,
    /// Milliseconds from `born` to when the peer was last heard in it, and 1; 0 for
    /// never.
    heard: AtomicU64,
    /// Whether handshakes are begun here, and not only answered.
    begins: AtomicBool,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) tunn: Tunn,
    /// Where it was last heard from, or is to be found.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Where it was heard in a session, since the table last named another place: who
    /// begins a handshake may only repeat what the peer advertised once.
    pub(crate) proven: Option<SocketAddr>,
    /// Where the table advertised last that it is to be found.
    named: Option<SocketAddr>,
    pub(crate) initiation: Initiation,
    /// How many bytes had been sent at the last look, and since when it is so many.
    sent: (usize, Instant),
}

impl State {
    /// The peer was heard from there, in a session or with the answer to a initiation. What
    /// comes from elsewhere says nothing of a place that is still to be tried.
    pub(crate) fn hear(&mut self, from: SocketAddr, answered: bool) {
        self.proven = Some(from);
        if answered || self.named.is_none_or(|named| named == from) {
            self.initiation.answered();
        }
    }

    /// Whether it is time for an empty packet; then it counts as sent.
    pub(crate) fn keeps_alive(&mut self, now: Instant) -> bool {
        let (_, sent, ..) = self.tunn.stats();
        let (before, since) = self.sent;
        let idle = now.saturating_duration_since(since) >= KEEPALIVE;
        if sent != before || idle {
            self.sent = (sent, now);
        }
        sent == before && idle
    }

    /// Goes back to where the table says that the peer is.
    pub(crate) fn forget_endpoint(&mut self) {
        self.endpoint = self.named.or(self.endpoint);
    }
}

/// How the way to a peer is.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    /// The peer's address inside the tunnel.
    pub tunnel_address: Ipv4Addr,
    /// The key of the peer that is in use.
    pub key: PublicKey,
    /// This host's key that is in use.
    pub own: PublicKey,
    /// Where it was last heard from, or is to be found.
    pub endpoint: Option<SocketAddr>,
    /// Where it was heard in a session, since the table last named another place.
    pub proven: Option<SocketAddr>,
    /// How long ago the last handshake was completed.
    pub last_handshake: Option<Duration>,
    /// How long ago anything encrypted came from it.
    pub heard: Option<Duration>,
    /// The share of encrypted packets that did not arrive here, from 0 to 1.
    pub loss: f32,
    /// Bytes of packets that were sent.
    pub sent_bytes: u64,
    /// Bytes of packets that were received.
    pub received_bytes: u64,
}

impl PeerStatus {
    /// Whether the peer was heard lately.
    pub fn is_alive(&self) -> bool {
        self.heard.is_some_and(|heard| heard < SILENT_AFTER)
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
            named: endpoint,
            initiation: Initiation::default(),
            sent: (0, Instant::now()),
        });
        Self {
            keys,
            tunnel_address,
            index,
            born: Instant::now(),
            heard: AtomicU64::new(0),
            begins: AtomicBool::new(false),
            state,
        }
    }

    /// A panic elsewhere leaves a tunnel that is as good as before.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the table says; whether a handshake is to begin for it, because the
    /// table names another endpoint than before, or did not let this side begin.
    pub(crate) fn set(&self, endpoint: Option<SocketAddr>, begins: bool) -> bool {
        let began = self.begins.swap(begins, Ordering::Relaxed);
        let mut state = self.lock();
        let renamed = state.named != endpoint;
        if renamed {
            state.named = endpoint;
            state.proven = None;
            // Where it was heard is better than nothing.
            state.endpoint = endpoint.or(state.endpoint);
        }
        begins && (renamed || !began)
    }

    pub(crate) fn begins(&self) -> bool {
        self.begins.load(Ordering::Relaxed)
    }

    /// Something that the peer encrypted has come.
    pub(crate) fn hear(&self) {
        let now = self.born.elapsed().as_millis() as u64;
        self.heard.store(now + 1, Ordering::Relaxed);
    }

    /// How long ago the peer was heard.
    pub(crate) fn heard(&self) -> Option<Duration> {
        let heard = self.heard.load(Ordering::Relaxed).checked_sub(1)?;
        Some(
            self.born
                .elapsed()
                .saturating_sub(Duration::from_millis(heard)),
        )
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.heard().is_some_and(|heard| heard < SILENT_AFTER)
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
            heard: self.heard(),
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
    fn an_empty_packet_goes_only_where_nothing_else_did() {
        let tunnel = tunnel();
        let mut state = tunnel.lock();
        let begun = Instant::now();
        let mut empty = Vec::new();
        for second in 1..60 {
            if second == 20 {
                // As many bytes are counted as are to be sent.
                state.sent.0 = usize::MAX;
            }
            if state.keeps_alive(begun + Duration::from_secs(second)) {
                empty.push(second);
            }
        }
        assert_eq!(empty, [15, 35, 50]);
    }
}
