//! One tunnel.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use boringtun::noise::Tunn;
use boringtun::x25519::PublicKey;

/// Keeps the way through NAT open, and tells each side that the other lives; half
/// of the shortest time after which common routers forget (RFC 4787 asks for 2 min,
/// many have 30 s).
pub(crate) const KEEPALIVE_S: u16 = 15;

/// A tunnel to one key of one peer.
pub(crate) struct Tunnel {
    pub(crate) key: PublicKey,
    pub(crate) inner: Ipv4Addr,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) tunn: Tunn,
    /// Where it was last heard from, or is to be found.
    pub(crate) endpoint: SocketAddr,
    /// Where the table said last that it is to be found.
    named: SocketAddr,
}

impl State {
    /// Goes back to where the table says that the peer is.
    pub(crate) fn forget_endpoint(&mut self) {
        self.endpoint = self.named;
    }
}

/// How a tunnel is.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    /// The peer's key.
    pub key: PublicKey,
    /// Its address inside the tunnel.
    pub inner: Ipv4Addr,
    /// Where it was last heard from, or is to be found.
    pub endpoint: SocketAddr,
    /// How long ago the last handshake was completed.
    pub last_handshake: Option<Duration>,
    /// How long the last handshake's answer took.
    pub round_trip: Option<Duration>,
    /// The share of sealed packets that did not arrive here, from 0 to 1.
    pub loss: f32,
    /// Bytes of packets that were sent.
    pub sent_bytes: u64,
    /// Bytes of packets that were received.
    pub received_bytes: u64,
}

impl Tunnel {
    pub(crate) fn new(key: PublicKey, inner: Ipv4Addr, tunn: Tunn, endpoint: SocketAddr) -> Self {
        let state = Mutex::new(State {
            tunn,
            endpoint,
            named: endpoint,
        });
        Self { key, inner, state }
    }

    /// A panic elsewhere leaves a tunnel that is as good as before.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the endpoint that the table names; whether it is another one than the
    /// table named before.
    pub(crate) fn renamed(&self, endpoint: SocketAddr) -> bool {
        let mut state = self.lock();
        let renamed = state.named != endpoint;
        if renamed {
            state.named = endpoint;
            state.endpoint = endpoint;
        }
        renamed
    }

    pub(crate) fn status(&self) -> PeerStatus {
        let state = self.lock();
        let (last_handshake, sent, received, loss, round_trip_ms) = state.tunn.stats();
        PeerStatus {
            key: self.key,
            inner: self.inner,
            endpoint: state.endpoint,
            last_handshake,
            round_trip: round_trip_ms.map(|ms| Duration::from_millis(ms.into())),
            loss,
            sent_bytes: sent as u64,
            received_bytes: received as u64,
        }
    }
}
