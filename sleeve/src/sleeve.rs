//! The sleeve: what its threads share, and how it is changed.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::counters::{Counters, Drops};
use crate::inbound::is_initiation;
use crate::message::{self, Message};
use crate::peer::{PeerStatus, State, Tunnel};
use crate::snapshot::{Route, Snapshot};
use crate::table::Table;
use crate::tap::Tap;
use crate::udp::Socket;
use crate::{inbound, initiation, outbound};

/// Handshake initiations a second from one address; a whole region may be behind one NAT.
const INITIATIONS_PER_S: u32 = 64;
/// The most addresses that are counted: more than a grid has nodes.
const SOURCES: usize = 1024;
/// The resolution of the tunnels' timers; that of boringtun's own device.
const TIMERS_EVERY: Duration = Duration::from_millis(250);
/// How many tunnels' timers run each time; with more tunnels, each runs less often. Nothing that
/// a WireGuard timer does is due within 4 s of its last event.
const TIMED_MAX: usize = 64;
const LIMIT_EVERY: Duration = Duration::from_secs(1);
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// The longest packet that a timer sends: a handshake initiation.
const TIMED: usize = 256;
/// The settings that a sleeve keeps for life.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of the TAP device.
    pub device: String,
    /// The UDP port on the underlay.
    pub port: u16,
    /// This host's address inside the tunnel.
    pub tunnel_address: Ipv4Addr,
    /// The grid's VXLAN network identifier.
    pub vni: u32,
}

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

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) tap: Tap,
    pub(crate) socket: Socket,
    pub(crate) counters: Counters,
    pub(crate) inbox: Box<dyn Fn(Message) + Send + Sync>,
    /// Its holder carries frames to the underlay. It is locked before a tunnel, never after.
    pub(crate) outgoing: Mutex<outbound::Kept>,
    snapshot: RwLock<Arc<Snapshot>>,
    /// Handshake initiations received in this second, by source address.
    initiations: Mutex<HashMap<IpAddr, u32>>,
    /// The approximate number of our initiations that are unanswered.
    unanswered: AtomicUsize,
    stop: EventFd,
}

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

impl Shared {
    pub(crate) fn new(
        settings: Settings,
        (tap, socket): (Tap, Socket),
        inbox: impl Fn(Message) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Ok(Self {
            settings,
            tap,
            socket,
            counters: Counters::default(),
            inbox: Box::new(inbox),
            outgoing: Mutex::new(outbound::Kept::new()),
            snapshot: RwLock::default(),
            initiations: Mutex::default(),
            unanswered: AtomicUsize::new(0),
            stop: EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?,
        })
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until there is something to read; false once the sleeve stops.
    pub(crate) fn wait_readable(&self, source: &impl AsFd) -> bool {
        let mut fds = [
            PollFd::new(source.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        // An interruption counts as nothing to read.
        let _ = poll(&mut fds, PollTimeout::NONE);
        !fds[1].any().unwrap_or(false)
    }

    /// Waits; false once the sleeve stops.
    fn wait(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut fds, timeout);
        !fds[0].any().unwrap_or(false)
    }

    /// Whether to accept one more initiation from this address. Under load, only senders that
    /// proved their address get this far.
    pub(crate) fn accepts_initiation(&self, from: IpAddr) -> bool {
        let mut initiations = self
            .initiations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if initiations.len() >= SOURCES && !initiations.contains_key(&from) {
            return false;
        }
        let count = initiations.entry(from).or_insert(0);
        *count += 1;
        *count <= INITIATIONS_PER_S
    }

    /// Sends a handshake message or queued data; a lost handshake is repeated.
    pub(crate) fn send(&self, packet: &[u8], to: SocketAddr) {
        let lost = self.socket.send_now(packet, to).is_err();
        self.not_sent(u64::from(lost));
    }

    /// Sends the initiations that are due and may be sent.
    fn initiate_due(&self, now: Instant) {
        let snapshot = self.snapshot();
        let mut waiting = 0;
        let mut due = Vec::new();
        for tunnel in snapshot.tunnels_all() {
            if !tunnel.initiates() {
                continue;
            }
            let state = &mut tunnel.lock();
            if state.endpoint.is_none() {
                continue;
            }
            let initiation = &mut state.initiation;
            waiting += usize::from(initiation.awaits_response(now));
            let priority = initiation.priority(tunnel.is_alive(), now);
            due.extend(priority.map(|priority| (priority, tunnel)));
        }
        let selected = initiation::select(due, waiting);
        let unanswered = waiting + selected.len();
        self.unanswered.store(unanswered, Ordering::Relaxed);
        for tunnel in selected {
            self.initiate(tunnel, now);
        }
    }

    /// Whether a frame for this peer may be encrypted, or queued until it can be. Traffic
    /// triggers no more handshakes than may be unanswered.
    pub(crate) fn admits(&self, tunnel: &Tunnel, state: &mut State) -> bool {
        if tunnel.is_alive() || state.initiation.tried() {
            return true;
        }
        let unanswered = self.unanswered.load(Ordering::Relaxed);
        let admits = state.initiation.admits(unanswered, Instant::now());
        self.unanswered
            .fetch_add(usize::from(admits), Ordering::Relaxed);
        admits
    }

    pub(crate) fn initiate(&self, tunnel: &Tunnel, now: Instant) {
        let mut buffer = [0; TIMED];
        let mut state = tunnel.lock();
        if state.initiation.sent(now) {
            state.reset_endpoint();
        }
        let Some(endpoint) = state.endpoint else {
            return;
        };
        // One may be due by the tunnel's own timer, too.
        let mut result = state.tunn.update_timers(&mut buffer);
        if !matches!(&result, TunnResult::WriteToNetwork(packet) if is_initiation(packet)) {
            result = state.tunn.format_handshake_initiation(&mut buffer, true);
        }
        if let TunnResult::WriteToNetwork(packet) = result {
            self.send(packet, endpoint);
        }
    }

    pub(crate) fn not_sent(&self, packets: u64) {
        self.counters.not_sent.fetch_add(packets, Ordering::Relaxed);
    }

    /// Delivers a frame to the bridge. A frame that the device does not accept, because it is
    /// down, is lost.
    pub(crate) fn deliver(&self, pieces: &[&[u8]]) {
        if self.tap.write(pieces).is_err() {
            self.counters.not_delivered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Pauses before retrying what is not ready and cannot be polled.
pub(crate) fn retry_later() {
    std::thread::sleep(RETRY_AFTER);
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
