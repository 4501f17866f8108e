//! What the sleeve's threads share, and what each of them may do with it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::counters::Counters;
use crate::initiation;
use crate::message::{Message, is_initiation};
use crate::outgoing::Outgoing;
use crate::peer::{State, Tunnel};
use crate::snapshot::Snapshot;
use crate::tap::Tap;
use crate::udp::Socket;

/// Handshake initiations a second from one address; a whole region may be behind one NAT.
const INITIATIONS_PER_S: u32 = 64;
/// The most addresses that are counted: more than a grid has nodes.
const SOURCES: usize = 1024;
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// The longest packet that a timer sends: a handshake initiation.
pub(crate) const TIMED: usize = 256;

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

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) tap: Tap,
    pub(crate) socket: Socket,
    pub(crate) counters: Counters,
    pub(crate) inbox: Box<dyn Fn(Message) + Send + Sync>,
    /// Its holder carries frames to the underlay. It is locked before a tunnel, never after.
    pub(crate) outgoing: Mutex<Outgoing>,
    pub(crate) snapshot: RwLock<Arc<Snapshot>>,
    /// Handshake initiations received in this second, by source address.
    pub(crate) initiations: Mutex<HashMap<IpAddr, u32>>,
    /// The approximate number of our initiations that are unanswered.
    unanswered: AtomicUsize,
    pub(crate) stop: EventFd,
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
            outgoing: Mutex::new(Outgoing::new()),
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
    pub(crate) fn wait(&self, time: Duration) -> bool {
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
    pub(crate) fn initiate_due(&self, now: Instant) {
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
