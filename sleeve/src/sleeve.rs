//! The parts together: what the threads share, and how it is changed.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::counters::{Counters, Drops};
use crate::message::{self, Message};
use crate::peer::{PeerStatus, Tunnel};
use crate::table::Table;
use crate::tap::Tap;
use crate::udp::Socket;
use crate::view::{Route, View};
use crate::{inbound, outbound};

/// Handshakes a second from one address; a whole region may be behind one NAT, and
/// repeats its greetings every 5 s.
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
/// How many greetings may be unanswered. Hosts that all come up at once would drown in
/// greetings that are repeated before they are read; a few dead peers hold up nobody,
/// and traffic to a peer begins a handshake without waiting for a turn.
const UNANSWERED_MAX: usize = 32;
/// After that a greeting is repeated (WireGuard whitepaper section 6.1), so it counts as
/// unanswered no more.
const REPEATED_AFTER: Duration = Duration::from_secs(5);
/// How long the side with the higher address leaves it to the other one to begin: two
/// handshakes at once are one too many.
const GREETED_WITHIN: Duration = Duration::from_secs(1);
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
    pub inner: Ipv4Addr,
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
        /// What the kernel said.
        error: io::Error,
    },
    /// There is no socket.
    #[error("UDP port {port} cannot be used: {error}")]
    Port {
        /// The port.
        port: u16,
        /// What the kernel said.
        error: io::Error,
    },
    /// There are no threads.
    #[error("no thread can be started: {0}")]
    Thread(io::Error),
}

/// A sealed path to many peers. It ends when this is dropped.
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
    view: RwLock<Arc<View>>,
    /// Handshakes that began in this second, by who began them.
    greetings: Mutex<HashMap<IpAddr, u32>>,
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
        let stop = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC);
        let shared = Arc::new(Shared {
            settings,
            tap,
            socket,
            counters: Counters::default(),
            inbox: Box::new(inbox),
            view: RwLock::default(),
            greetings: Mutex::default(),
            stop: stop.map_err(|errno| SleeveError::Thread(errno.into()))?,
        });
        let mut sleeve = Self {
            shared,
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
        let (view, greeted) = View::next(&self.shared.view(), table, &mut next_index);
        *self
            .shared
            .view
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        let now = Instant::now();
        for tunnel in &greeted {
            let other = tunnel.inner < self.shared.settings.inner && tunnel.heard().is_none();
            let pause = if other {
                GREETED_WITHIN
            } else {
                Duration::ZERO
            };
            tunnel.lock().greet_at = Some(now + pause);
        }
        // Only now an answer would find its tunnel.
        let mut turns = self.shared.turns(now);
        for tunnel in greeted {
            self.shared.greet(&tunnel, now, &mut turns);
        }
    }

    /// Sends a message to the agent of a peer, if there is a session with it; whether
    /// it was sent.
    pub fn send(&self, to: Ipv4Addr, message: &[u8]) -> bool {
        let view = self.shared.view();
        let route = view.route(to).and_then(Route::tunnel);
        let Some(tunnel) = route.filter(|tunnel| tunnel.is_alive()) else {
            return false;
        };
        let from = self.shared.settings.inner;
        let Some(packet) = message::packet(from, to, message) else {
            return false;
        };
        // Where the session is over, what is sent is a greeting.
        let mut sealed = vec![0; TIMED.max(packet.len() + message::SEAL)];
        let mut state = tunnel.lock();
        let endpoint = state.endpoint;
        match (state.tunn.encapsulate(&packet, &mut sealed), endpoint) {
            (TunnResult::WriteToNetwork(sealed), Some(endpoint)) => {
                self.shared.socket.send_now(sealed, endpoint).is_ok()
            }
            _ => false,
        }
    }

    /// How the way to each peer is, in the order of the inner addresses.
    pub fn status(&self) -> Vec<PeerStatus> {
        let view = self.shared.view();
        let mut all: Vec<_> = view
            .routes()
            .filter_map(|route| Some(route.tunnel()?.status()))
            .collect();
        all.sort_by_key(|status| status.inner);
        all
    }

    /// How the way to one peer is.
    pub fn status_of(&self, inner: Ipv4Addr) -> Option<PeerStatus> {
        let view = self.shared.view();
        Some(view.route(inner)?.tunnel()?.status())
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
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
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
        let mut greetings = self
            .greetings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if greetings.len() >= SOURCES && !greetings.contains_key(&from) {
            return false;
        }
        let greetings = greetings.entry(from).or_insert(0);
        *greetings += 1;
        *greetings <= GREETINGS_PER_S
    }

    /// Sends a message that may be lost: all but data is repeated.
    pub(crate) fn send(&self, packet: &[u8], to: SocketAddr) {
        let lost = self.socket.send_now(packet, to).is_err();
        self.not_sent(u64::from(lost));
    }

    /// Begins a handshake, if it is time and there is a turn left; whether one is to be
    /// begun, now or later.
    fn greet(&self, tunnel: &Tunnel, now: Instant, turns: &mut usize) -> bool {
        let mut state = tunnel.lock();
        let Some(at) = state.greet_at else {
            return false;
        };
        if at > now || *turns == 0 {
            return true;
        }
        state.greet_at = None;
        let Some(endpoint) = state.endpoint else {
            return true;
        };
        *turns -= 1;
        state.greeted = Some(now);
        let mut buffer = [0; TIMED];
        let greeting = state.tunn.format_handshake_initiation(&mut buffer, true);
        if let TunnResult::WriteToNetwork(packet) = greeting {
            self.send(packet, endpoint);
        }
        true
    }

    /// How many greetings may be sent now.
    fn turns(&self, now: Instant) -> usize {
        let view = self.view();
        let waits = |tunnel: &&Arc<Tunnel>| {
            let greeted = tunnel.lock().greeted;
            greeted.is_some_and(|at| now.saturating_duration_since(at) < REPEATED_AFTER)
        };
        UNANSWERED_MAX.saturating_sub(view.tunnels_all().filter(waits).count())
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
        let view = shared.view();
        if limited.elapsed() >= LIMIT_EVERY {
            limited = Instant::now();
            for identity in &view.identities {
                identity.limiter.reset_count();
            }
            let greetings = shared.greetings.lock();
            greetings.unwrap_or_else(PoisonError::into_inner).clear();
        }
        let now = Instant::now();
        let mut turns = shared.turns(now);
        let rounds = view.tunnels_all().count().div_ceil(TIMED_MAX).max(1);
        round = (round + 1) % rounds;
        // Who was never greeted goes before who did not answer.
        let waits = |tunnel: &&Arc<Tunnel>| !shared.greet(tunnel, now, &mut turns);
        let others: Vec<_> = view.tunnels_all().filter(waits).collect();
        for tunnel in others {
            if tunnel.index as usize % rounds != round {
                continue;
            }
            // What only answers has nothing to say before it was asked.
            if !tunnel.begins() && !tunnel.is_alive() {
                continue;
            }
            let alive = tunnel.is_alive();
            if !alive && turns == 0 {
                continue;
            }
            let mut state = tunnel.lock();
            let mut said = state.tunn.update_timers(&mut buffer);
            // A mesh never gives a peer up; where it went to may have been wrong.
            let lost = matches!(said, TunnResult::Err(_));
            if lost {
                state.forget_endpoint();
            }
            let Some(endpoint) = state.endpoint else {
                continue;
            };
            if lost && tunnel.begins() {
                said = state.tunn.format_handshake_initiation(&mut buffer, true);
            }
            if let TunnResult::WriteToNetwork(packet) = said {
                if !alive {
                    turns = turns.saturating_sub(1);
                    state.greeted = Some(now);
                }
                shared.send(packet, endpoint);
            }
        }
    }
}
