//! The parts together: what the threads share, and how it is changed.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use kontena_schema::mac::Mac;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::counters::{Counters, Drops};
use crate::peer::{KEEPALIVE_S, PeerStatus, Tunnel};
use crate::table::{Peer, Table};
use crate::tap::Tap;
use crate::udp::Socket;
use crate::{inbound, outbound};

/// Handshakes a second beyond which a sender must prove its address: a whole grid
/// that begins at once is below it. Each is counted twice.
const HANDSHAKES_PER_S: u64 = 1024;
/// Handshakes a second from one address; a whole region may be behind one NAT, and
/// repeats its greetings every 5 s.
const GREETINGS_PER_S: u32 = 64;
/// Most addresses that are counted: more than a grid has nodes.
const SOURCES: usize = 1024;
/// How exactly the tunnels' timers are kept; as boringtun's own device does.
const TIMERS_EVERY: Duration = Duration::from_millis(250);
const LIMIT_EVERY: Duration = Duration::from_secs(1);
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// The longest that a timer has to say: a handshake.
const TIMED: usize = 256;
/// Tunnels are numbered with 24 bits (boringtun).
const INDEXES: u32 = 1 << 24;

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
    view: RwLock<Arc<View>>,
    /// Handshakes that began in this second, by who began them.
    greetings: Mutex<HashMap<IpAddr, u32>>,
    stop: EventFd,
}

/// The table, as the threads need it; replaced as a whole.
pub(crate) struct View {
    pub(crate) identity: Identity,
    by_index: HashMap<u32, Arc<Tunnel>>,
    by_key: HashMap<PublicKey, (u32, Arc<Tunnel>)>,
    holders: HashMap<Mac, Ipv4Addr>,
    /// The tunnel that frames for a tunnel address take.
    senders: HashMap<Ipv4Addr, Arc<Tunnel>>,
    floods: Vec<Arc<Tunnel>>,
}

/// This host's key.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) private: StaticSecret,
    pub(crate) public: PublicKey,
    pub(crate) limiter: Arc<RateLimiter>,
}

impl Identity {
    fn new(private: StaticSecret) -> Self {
        let public = PublicKey::from(&private);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_S));
        Self {
            private,
            public,
            limiter,
        }
    }
}

impl View {
    fn empty(identity: Identity) -> Self {
        Self {
            identity,
            by_index: HashMap::new(),
            by_key: HashMap::new(),
            holders: HashMap::new(),
            senders: HashMap::new(),
            floods: Vec::new(),
        }
    }

    pub(crate) fn by_index(&self, index: u32) -> Option<&Arc<Tunnel>> {
        self.by_index.get(&index)
    }

    pub(crate) fn by_key(&self, key: &PublicKey) -> Option<&Arc<Tunnel>> {
        self.by_key.get(key).map(|(_, tunnel)| tunnel)
    }

    /// Behind which peer a MAC is.
    pub(crate) fn holder(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.holders.get(&mac).copied()
    }

    /// The tunnels that a frame for this MAC takes.
    pub(crate) fn targets(&self, mac: Mac) -> &[Arc<Tunnel>] {
        const FOR_MANY: u8 = 1;
        if mac.0[0] & FOR_MANY != 0 {
            return &self.floods;
        }
        let inner = self.holders.get(&mac);
        let sender = inner.and_then(|inner| self.senders.get(inner));
        sender.map_or(&[], std::slice::from_ref)
    }
}

impl Sleeve {
    /// Makes the device, down, and the socket, in the network namespace of the
    /// calling thread, with a table without peers.
    pub fn start(settings: Settings, private: StaticSecret) -> Result<Self, SleeveError> {
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
            view: RwLock::new(Arc::new(View::empty(Identity::new(private)))),
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
        let old = self.shared.view();
        let mut view = View::empty(old.identity.clone());
        let mut greeted = Vec::new();
        for peer in &table.peers {
            // Two tunnels to one key would take each other's sessions.
            if view.by_key.contains_key(&peer.key) {
                continue;
            }
            let (index, tunnel) = match old.by_key.get(&peer.key) {
                Some((index, kept)) if kept.inner == peer.inner => {
                    if kept.renamed(peer.endpoint) {
                        greeted.push(Arc::clone(kept));
                    }
                    (*index, Arc::clone(kept))
                }
                _ => {
                    let index = free_index(&mut next_index, &old, &view);
                    let new = Arc::new(tunnel(&view.identity, index, peer));
                    greeted.push(Arc::clone(&new));
                    (index, new)
                }
            };
            view.by_index.insert(index, Arc::clone(&tunnel));
            view.by_key.insert(peer.key, (index, Arc::clone(&tunnel)));
            if peer.sends {
                let first = !view.senders.contains_key(&peer.inner);
                if first && table.floods.contains(&peer.inner) {
                    view.floods.push(Arc::clone(&tunnel));
                }
                if first {
                    view.senders.insert(peer.inner, tunnel);
                }
            }
        }
        view.holders.clone_from(&table.macs);
        *self
            .shared
            .view
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        // Only now an answer would find its tunnel.
        for tunnel in greeted {
            self.shared.greet(&tunnel);
        }
    }

    /// How each tunnel is, in the order of the inner addresses.
    pub fn status(&self) -> Vec<PeerStatus> {
        let view = self.shared.view();
        let mut all: Vec<_> = view
            .by_index
            .values()
            .map(|tunnel| tunnel.status())
            .collect();
        all.sort_by_key(|status| (status.inner, status.key.to_bytes()));
        all
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

fn tunnel(identity: &Identity, index: u32, peer: &Peer) -> Tunnel {
    let tunn = Tunn::new(
        identity.private.clone(),
        peer.key,
        None,
        Some(KEEPALIVE_S),
        index,
        Some(Arc::clone(&identity.limiter)),
    );
    Tunnel::new(peer.key, peer.inner, tunn, peer.endpoint)
}

/// A number that no tunnel has, so that a late packet meets no other tunnel.
fn free_index(next: &mut u32, old: &View, new: &View) -> u32 {
    loop {
        let index = *next;
        *next = (index + 1) % INDEXES;
        if !old.by_index.contains_key(&index) && !new.by_index.contains_key(&index) {
            return index;
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

    /// Begins a handshake.
    fn greet(&self, tunnel: &Tunnel) {
        let mut buffer = [0; TIMED];
        let mut state = tunnel.lock();
        let endpoint = state.endpoint;
        let greeting = state.tunn.format_handshake_initiation(&mut buffer, true);
        if let TunnResult::WriteToNetwork(packet) = greeting {
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
    while shared.wait(TIMERS_EVERY) {
        let view = shared.view();
        if limited.elapsed() >= LIMIT_EVERY {
            limited = Instant::now();
            view.identity.limiter.reset_count();
            let greetings = shared.greetings.lock();
            greetings.unwrap_or_else(PoisonError::into_inner).clear();
        }
        for tunnel in view.by_index.values() {
            let mut state = tunnel.lock();
            let mut said = state.tunn.update_timers(&mut buffer);
            // A mesh never gives a peer up; where it went to may have been wrong.
            let lost = matches!(said, TunnResult::Err(_));
            if lost {
                state.forget_endpoint();
            }
            let endpoint = state.endpoint;
            if lost {
                said = state.tunn.format_handshake_initiation(&mut buffer, true);
            }
            if let TunnResult::WriteToNetwork(packet) = said {
                shared.send(packet, endpoint);
            }
        }
    }
}
