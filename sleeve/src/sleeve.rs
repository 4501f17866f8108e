//! The sleeve: what its threads share, and how it is changed.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;

use crate::counters::Drops;
use crate::message::{self, Message};
use crate::peer::PeerStatus;
use crate::shared::{Settings, Shared, TIMED};
use crate::snapshot::{Route, Snapshot};
use crate::table::Table;
use crate::tap::Tap;
use crate::udp::Socket;
use crate::{inbound, initiation, outbound};

/// The resolution of the tunnels' timers; that of boringtun's own device.
const TIMERS_EVERY: Duration = Duration::from_millis(250);
/// How many tunnels' timers run each time; with more tunnels, each runs less often. Nothing that
/// a WireGuard timer does is due within 4 s of its last event.
const TIMED_MAX: usize = 64;
const LIMIT_EVERY: Duration = Duration::from_secs(1);
/// Why a sleeve cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SleeveError {
    /// The TAP device.
    #[error("cannot create device {name}: {error}")]
    Device {
        /// Its name.
        name: String,
        /// The kernel's error.
        error: io::Error,
    },
    /// The UDP socket.
    #[error("cannot use UDP port {port}: {error}")]
    Port {
        /// The port.
        port: u16,
        /// The kernel's error.
        error: io::Error,
    },
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// An encrypted path to many peers. It stops when this is dropped.
pub struct Sleeve {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The index of the next tunnel; its lock also serialises changes of the table.
    next_index: Mutex<u32>,
}

/// The body of a thread; returns when the sleeve stops.
type Part = fn(&Shared);

impl Sleeve {
    /// Creates the device, down, and the socket, in the network namespace of the calling thread,
    /// with a table without peers.
    ///
    /// `inbox` gets the messages of peers' agents, on the thread that receives packets: it must
    /// not block.
    pub fn start(
        settings: Settings,
        inbox: impl Fn(Message) + Send + Sync + 'static,
    ) -> Result<Self, SleeveError> {
        let tap = Tap::create(&settings.device).map_err(|error| SleeveError::Device {
            name: settings.device.clone(),
            error,
        })?;
        let port = settings.port;
        let socket = Socket::bind(port).map_err(|error| SleeveError::Port { port, error })?;
        let shared = Shared::new(settings, (tap, socket), inbox).map_err(SleeveError::Thread)?;
        let mut sleeve = Self {
            shared: Arc::new(shared),
            threads: Vec::new(),
            next_index: Mutex::new(0),
        };
        let parts: [(&str, Part); 3] = [
            ("sleeve-out", outbound::run),
            ("sleeve-in", inbound::run),
            ("sleeve-time", run_timers),
        ];
        for (name, part) in parts {
            let shared = Arc::clone(&sleeve.shared);
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || part(&shared))
                .map_err(SleeveError::Thread)?;
            sleeve.threads.push(thread);
        }
        Ok(sleeve)
    }

    /// Replaces the table. A peer that stays keeps its session, and the endpoint that its
    /// packets came from unless the table changes it.
    pub fn set_table(&self, table: &Table) {
        let mut next_index = self
            .next_index
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (snapshot, initiating) =
            Snapshot::next(&self.shared.snapshot(), table, &mut next_index);
        *self
            .shared
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
        // From now on a response finds its tunnel.
        let now = Instant::now();
        let own = self.shared.settings.tunnel_address.to_bits();
        for tunnel in initiating {
            let delay = match tunnel.received() {
                Some(_) => Duration::ZERO,
                None => initiation::initiation_delay(
                    own,
                    tunnel.tunnel_address.to_bits(),
                    table.peers.len(),
                ),
            };
            tunnel.lock().initiation.schedule(now + delay);
        }
        self.shared.initiate_due(now);
    }

    /// Sends a message to a peer's agent, if there is a session with the peer; whether it
    /// was sent.
    pub fn send(&self, to: Ipv4Addr, message: &[u8]) -> bool {
        let snapshot = self.shared.snapshot();
        let route = snapshot.route(to).and_then(Route::tunnel);
        let Some(tunnel) = route.filter(|tunnel| tunnel.is_alive()) else {
            return false;
        };
        let from = self.shared.settings.tunnel_address;
        let Some(packet) = message::packet(from, to, message) else {
            return false;
        };
        // If the session has expired, what is sent is an initiation.
        let mut encrypted = vec![0; TIMED.max(packet.len() + message::WIREGUARD_OVERHEAD)];
        let mut state = tunnel.lock();
        let endpoint = state.endpoint;
        match (state.tunn.encapsulate(&packet, &mut encrypted), endpoint) {
            (TunnResult::WriteToNetwork(encrypted), Some(endpoint)) => {
                self.shared.socket.send_now(encrypted, endpoint).is_ok()
            }
            _ => false,
        }
    }

    /// The state of the tunnel to each peer, ordered by tunnel address.
    pub fn status(&self) -> Vec<PeerStatus> {
        let snapshot = self.shared.snapshot();
        let mut all: Vec<_> = snapshot
            .routes()
            .filter_map(|route| Some(route.tunnel()?.status()))
            .collect();
        all.sort_by_key(|status| status.tunnel_address);
        all
    }

    /// The state of the tunnel to one peer.
    pub fn status_of(&self, tunnel_address: Ipv4Addr) -> Option<PeerStatus> {
        let snapshot = self.shared.snapshot();
        Some(snapshot.route(tunnel_address)?.tunnel()?.status())
    }

    /// Whether frames are carried. If not, only a new sleeve helps: the device was deleted, or
    /// a thread panicked.
    pub fn is_alive(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// What was dropped since the sleeve was started.
    pub fn drops(&self) -> Drops {
        self.shared.counters.read()
    }
}

impl Drop for Sleeve {
    fn drop(&mut self) {
        if let Err(error) = self.shared.stop.write(1) {
            tracing::error!(%error, "the sleeve's threads cannot be stopped");
            return;
        }
        for thread in self.threads.drain(..) {
            // A panic was logged when it happened.
            let _ = thread.join();
        }
    }
}

/// Renews sessions, repeats initiations, sends keepalives.
fn run_timers(shared: &Shared) {
    let mut buffer = [0; TIMED];
    let mut limited = Instant::now();
    let mut round = 0;
    while shared.wait(TIMERS_EVERY) {
        let snapshot = shared.snapshot();
        if limited.elapsed() >= LIMIT_EVERY {
            limited = Instant::now();
            for identity in &snapshot.identities {
                identity.limiter.reset_count();
            }
            let initiations = shared.initiations.lock();
            initiations.unwrap_or_else(PoisonError::into_inner).clear();
        }
        shared.initiate_due(Instant::now());
        let rounds = snapshot.tunnels_all().count().div_ceil(TIMED_MAX).max(1);
        round = (round + 1) % rounds;
        for tunnel in snapshot.tunnels_all() {
            if tunnel.index as usize % rounds != round || !tunnel.is_alive() {
                continue;
            }
            let mut state = tunnel.lock();
            let mut result = state.tunn.update_timers(&mut buffer);
            // A mesh never gives up on a peer; the endpoint may have been wrong.
            let expired = matches!(result, TunnResult::Err(_));
            if expired {
                state.reset_endpoint();
            }
            let Some(endpoint) = state.endpoint else {
                continue;
            };
            if expired && tunnel.initiates() {
                result = state.tunn.format_handshake_initiation(&mut buffer, true);
            }
            if matches!(result, TunnResult::Done) && state.keepalive_due(Instant::now()) {
                result = state.tunn.encapsulate(&[], &mut buffer);
            }
            if let TunnResult::WriteToNetwork(packet) = result {
                shared.send(packet, endpoint);
            }
        }
    }
}
