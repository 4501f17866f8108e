//! The parts together: what the threads share, and how it is changed.

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

/// Handshakes a second from one address; a whole region may be behind one NAT.
const GREETINGS_PER_S: u32 = 64;
/// Most addresses that are counted: more than a grid has nodes.
const SOURCES: usize = 1024;
/// How exactly the tunnels' timers are kept; as boringtun's own device does.
const TIMERS_EVERY: Duration = Duration::from_millis(250);
/// How many tunnels are looked after each time; of more, each gets its turn less often.
/// Nothing that a timer of WireGuard does is due within 4 s of what came before.
const TIMED_MAX: usize = 64;
const LIMIT_EVERY: Duration = Duration::from_secs(1);
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// The longest that a timer has to say: a handshake.
const TIMED: usize = 256;

/// What a sleeve keeps through its life.
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

/// Why a sleeve cannot work.
#[derive(Debug, thiserror::Error)]
pub enum SleeveError {
    /// There is no device.
    #[error("the device {name} cannot be made: {error}")]
    Device {
        /// Its name.
        name: String,
        /// What the kernel advertised.
        error: io::Error,
    },
    /// There is no socket.
    #[error("UDP port {port} cannot be used: {error}")]
    Port {
        /// The port.
        port: u16,
        /// What the kernel advertised.
        error: io::Error,
    },
    /// There are no threads.
    #[error("no thread can be started: {0}")]
    Thread(io::Error),
}

/// An encrypted path to many peers. It ends when this is dropped.
pub struct Sleeve {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The number of the next tunnel; also keeps two changes apart.
    next_index: Mutex<u32>,
}

/// What a thread does until the sleeve stops.
type Part = fn(&Shared);

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) tap: Tap,
    pub(crate) socket: Socket,
    pub(crate) counters: Counters,
    pub(crate) inbox: Box<dyn Fn(Message) + Send + Sync>,
    /// Who has it carries frames to the underlay. It is taken before a tunnel's lock, never
    /// after.
    pub(crate) outgoing: Mutex<outbound::Kept>,
    snapshot: RwLock<Arc<Snapshot>>,
    /// Handshakes that began in this second, by who began them.
    initiations: Mutex<HashMap<IpAddr, u32>>,
    /// How many handshakes that began here were not answered yet, about.
    unanswered: AtomicUsize,
    stop: EventFd,
}

impl Sleeve {
    /// Makes the device, down, and the socket, in the network namespace of the
    /// calling thread, with a table without peers.
    ///
    /// `inbox` gets the messages of peers' agents, on the thread that carries frames:
    /// it must not wait.
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
            ("sleeve-time", keep_time),
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

    /// Replaces the table. A peer that stays keeps its session and, unless the
    /// table names another one than before, the endpoint where it was last heard.
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
        // Only now an answer would find its tunnel.
        let now = Instant::now();
        let own = self.shared.settings.tunnel_address.to_bits();
        for tunnel in initiating {
            let initiation_delay = match tunnel.heard() {
                Some(_) => Duration::ZERO,
                None => initiation::initiation_delay(
                    own,
                    tunnel.tunnel_address.to_bits(),
                    table.peers.len(),
                ),
            };
            tunnel.lock().initiation.begin(now + initiation_delay);
        }
        self.shared.greet_due(now);
    }

    /// Sends a message to the agent of a peer, if there is a session with it; whether
    /// it was sent.
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
        // Where the session is over, what is sent is a initiation.
        let mut encrypted = vec![0; TIMED.max(packet.len() + message::SEAL)];
        let mut state = tunnel.lock();
        let endpoint = state.endpoint;
        match (state.tunn.encapsulate(&packet, &mut encrypted), endpoint) {
            (TunnResult::WriteToNetwork(encrypted), Some(endpoint)) => {
                self.shared.socket.send_now(encrypted, endpoint).is_ok()
            }
            _ => false,
        }
    }

    /// How the way to each peer is, in the order of the tunnel addresses.
    pub fn status(&self) -> Vec<PeerStatus> {
        let snapshot = self.shared.snapshot();
        let mut all: Vec<_> = snapshot
            .routes()
            .filter_map(|route| Some(route.tunnel()?.status()))
            .collect();
        all.sort_by_key(|status| status.tunnel_address);
        all
    }

    /// How the way to one peer is.
    pub fn status_of(&self, tunnel_address: Ipv4Addr) -> Option<PeerStatus> {
        let snapshot = self.shared.snapshot();
        Some(snapshot.route(tunnel_address)?.tunnel()?.status())
    }

    /// Whether frames are carried. If not, only a new sleeve helps: the device was
    /// deleted, or a thread met a fault of ours.
    pub fn is_alive(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// What was dropped since the start.
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
            // Its panic was told when it happened.
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
        // An interruption is as good as nothing to read.
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

    /// Whether one more handshake may begin from there. Only a sender that proved
    /// its address under load gets here often.
    pub(crate) fn greets(&self, from: IpAddr) -> bool {
        let mut initiations = self
            .initiations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if initiations.len() >= SOURCES && !initiations.contains_key(&from) {
            return false;
        }
        let initiations = initiations.entry(from).or_insert(0);
        *initiations += 1;
        *initiations <= GREETINGS_PER_S
    }

    /// Sends a message that may be lost: all but data is repeated.
    pub(crate) fn send(&self, packet: &[u8], to: SocketAddr) {
        let lost = self.socket.send_now(packet, to).is_err();
        self.not_sent(u64::from(lost));
    }

    /// Begins handshakes with those whose turn it is.
    fn greet_due(&self, now: Instant) {
        let snapshot = self.snapshot();
        let mut waiting = 0;
        let mut due = Vec::new();
        for tunnel in snapshot.tunnels_all() {
            if !tunnel.begins() {
                continue;
            }
            let state = &mut tunnel.lock();
            if state.endpoint.is_none() {
                continue;
            }
            let initiation = &mut state.initiation;
            waiting += usize::from(initiation.waits(now));
            let turn = initiation.turn(tunnel.is_alive(), now);
            due.extend(turn.map(|turn| (turn, tunnel)));
        }
        let chosen = initiation::chosen(due, waiting);
        let unanswered = waiting + chosen.len();
        self.unanswered.store(unanswered, Ordering::Relaxed);
        for tunnel in chosen {
            self.initiate(tunnel, now);
        }
    }

    /// Whether a frame for this peer may be encrypted, or wait until it can be. Nobody's
    /// traffic begins more handshakes than may be unanswered.
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
            state.forget_endpoint();
        }
        let Some(endpoint) = state.endpoint else {
            return;
        };
        // It may be time for one by the tunnel's own clock, too.
        let mut advertised = state.tunn.update_timers(&mut buffer);
        if !matches!(&advertised, TunnResult::WriteToNetwork(packet) if is_initiation(packet)) {
            advertised = state.tunn.format_handshake_initiation(&mut buffer, true);
        }
        if let TunnResult::WriteToNetwork(packet) = advertised {
            self.send(packet, endpoint);
        }
    }

    pub(crate) fn not_sent(&self, packets: u64) {
        self.counters.not_sent.fetch_add(packets, Ordering::Relaxed);
    }

    /// Gives the bridge a frame. One that the device does not take, because it is
    /// down, is lost like on any cable.
    pub(crate) fn deliver(&self, pieces: &[&[u8]]) {
        if self.tap.write(pieces).is_err() {
            self.counters.not_delivered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Between two looks at what is not ready and cannot be waited for.
pub(crate) fn retry_later() {
    std::thread::sleep(RETRY_AFTER);
}

/// Renews sessions, repeats handshakes, sends signs of life.
fn keep_time(shared: &Shared) {
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
        shared.greet_due(Instant::now());
        let rounds = snapshot.tunnels_all().count().div_ceil(TIMED_MAX).max(1);
        round = (round + 1) % rounds;
        for tunnel in snapshot.tunnels_all() {
            if tunnel.index as usize % rounds != round || !tunnel.is_alive() {
                continue;
            }
            let mut state = tunnel.lock();
            let mut advertised = state.tunn.update_timers(&mut buffer);
            // A mesh never gives a peer up; where it went to may have been wrong.
            let lost = matches!(advertised, TunnResult::Err(_));
            if lost {
                state.forget_endpoint();
            }
            let Some(endpoint) = state.endpoint else {
                continue;
            };
            if lost && tunnel.begins() {
                advertised = state.tunn.format_handshake_initiation(&mut buffer, true);
            }
            if matches!(advertised, TunnResult::Done) && state.keeps_alive(Instant::now()) {
                advertised = state.tunn.encapsulate(&[], &mut buffer);
            }
            if let TunnResult::WriteToNetwork(packet) = advertised {
                shared.send(packet, endpoint);
            }
        }
    }
}
