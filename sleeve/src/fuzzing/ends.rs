//! Two hosts with a session, as the threads of a sleeve work for them: real sockets on
//! loopback, and instead of the TAP device a socket that keeps the bounds of writes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use boringtun::noise::TunnResult;
use kontena_schema::mac::Mac;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use super::frames::{self, parted, plain};
use crate::inbound;
use crate::key::PrivateKey;
use crate::message::{Message, SEAL};
use crate::sleeve::{Settings, Shared};
use crate::snapshot::Snapshot;
use crate::table::{Peer, Table};
use crate::tap::Tap;
use crate::udp::Socket;
use crate::vxlan::Encapsulation;

/// The tunnel addresses of the two.
pub(super) const INNER: [Ipv4Addr; 2] = [
    Ipv4Addr::new(100, 127, 81, 1),
    Ipv4Addr::new(100, 127, 81, 2),
];
const VNI: u32 = 4096;
/// What is around a frame from the first to the second.
pub(crate) const ENCAPSULATION: Encapsulation = Encapsulation {
    from: INNER[0],
    to: INNER[1],
    vni: VNI,
};
/// Who is behind the first, and behind the second.
const FIRST: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 3]];
pub(super) const SECOND: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// How many inputs two hosts get before they are made anew: a session costs more than
/// what an input does with it, and none may become old.
const INPUTS: u32 = 512;
/// Room for what a burst becomes, until it is looked at.
const BRIDGE_BYTES: usize = 4 << 20;
/// The longest wait for a packet on loopback.
const PATIENCE_MS: u16 = 2000;

/// Two hosts: the first sends, the second receives.
pub(crate) struct Ends([End; 2]);

pub(crate) struct End {
    pub(crate) shared: Shared,
    pub(crate) snapshot: Snapshot,
    bridge: File,
    heard: Arc<Mutex<Vec<Message>>>,
}

/// Lets an input be checked with two hosts. Those that were left in the middle of one are
/// not used again.
pub(crate) fn with_ends(check: impl FnOnce(&Ends)) {
    thread_local! {
        static KEPT: RefCell<Option<(u32, Ends)>> = const { RefCell::new(None) };
    }
    let kept = KEPT.take().filter(|(inputs, _)| *inputs < INPUTS);
    let (inputs, ends) = kept.unwrap_or_else(|| (0, Ends::new()));
    check(&ends);
    KEPT.set(Some((inputs + 1, ends)));
}

impl Ends {
    fn new() -> Self {
        let keys = [1, 2].map(|octet| PrivateKey::from_octets([octet; 32]));
        let mut ends = INNER.map(End::new);
        let ports = [0, 1].map(|at: usize| ends[at].address());
        for (at, end) in ends.iter_mut().enumerate() {
            let peer = Peer {
                current: keys[1 - at].public(),
                next: None,
                endpoint: Some(ports[1 - at]),
            };
            let table = Table {
                own: vec![keys[at].clone()],
                peers: BTreeMap::from([(INNER[1 - at], peer)]),
                owners: owners(),
                floods: BTreeSet::from([INNER[1 - at]]),
            };
            (end.snapshot, _) = Snapshot::next(&Snapshot::default(), &table, &mut 0);
        }
        let ends = Self(ends);
        ends.meet();
        ends
    }

    pub(crate) fn first(&self) -> &End {
        &self.0[0]
    }

    pub(crate) fn second(&self) -> &End {
        &self.0[1]
    }

    /// A handshake, and the sign of life that makes it the session of both.
    fn meet(&self) {
        let first = self.first();
        for tunnel in first.snapshot.tunnels_all() {
            first.shared.initiate(tunnel, Instant::now());
        }
        for end in [self.second(), first, self.second()] {
            assert!(end.receives(PATIENCE_MS), "the handshake is stuck");
            inbound::Work::new(&end.shared).receive(&end.snapshot);
        }
        let alive = |end: &End| end.snapshot.tunnels_all().all(|tunnel| tunnel.is_alive());
        assert!(self.0.iter().all(alive), "there is no session");
    }

    /// What the first would send to the second.
    pub(crate) fn encrypted(&self, packet: &[u8]) -> Vec<u8> {
        let mut encrypted = vec![0; packet.len() + SEAL];
        let tunnel = self
            .first()
            .snapshot
            .tunnels_all()
            .next()
            .expect("there is one");
        let state = &mut tunnel.lock();
        match state.tunn.encapsulate(packet, &mut encrypted) {
            TunnResult::WriteToNetwork(_) => encrypted,
            other => panic!("the session is gone: {other:?}"),
        }
    }
}

fn owners() -> BTreeMap<Mac, Ipv4Addr> {
    let first = FIRST.map(|mac| (Mac(mac), INNER[0]));
    first.into_iter().chain([(Mac(SECOND), INNER[1])]).collect()
}

/// A frame from the first's container to the second's, of a type for experiments (IEEE 802).
pub(crate) fn short() -> Vec<u8> {
    [&SECOND[..], &FIRST[0], &[0x88, 0xb5], &[0; 28]].concat()
}

/// The second's answer to it.
#[cfg(test)]
pub(crate) fn short_answer() -> Vec<u8> {
    [&FIRST[0], &SECOND[..], &[0x88, 0xb5], &[1; 28]].concat()
}

/// ARP, or a tag of IEEE 802.1Q or 802.1ad.
pub(super) fn is_arp(kind: &[u8]) -> bool {
    [[8, 6], [0x81, 0], [0x88, 0xa8]]
        .iter()
        .any(|of| of == kind)
}

/// Whether the second takes this frame from the first: it is from one behind the first, no
/// ARP, and without a tag.
pub(super) fn is_admitted(frame: &[u8]) -> bool {
    let is_first = |mac: &[u8]| FIRST.iter().any(|known| known == mac);
    let kind = frame.get(12..14);
    kind.is_some_and(|kind| is_first(&frame[6..12]) && !is_arp(kind))
}

impl End {
    fn new(tunnel_address: Ipv4Addr) -> Self {
        let (tap, bridge) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        )
        .expect("there are sockets");
        // Without the right to more, the system's bound must do.
        let _ = setsockopt(&tap, sockopt::SndBufForce, &BRIDGE_BYTES);
        let settings = Settings {
            device: String::new(),
            port: 0,
            tunnel_address,
            vni: VNI,
        };
        let socket = Socket::bind(settings.port).expect("there are ports");
        let heard = Arc::new(Mutex::default());
        let inbox = Arc::clone(&heard);
        let inbox = move |message| push(&inbox, message);
        let tap = Tap::of(tap.into());
        Self {
            shared: Shared::new(settings, (tap, socket), inbox).expect("there are descriptors"),
            snapshot: Snapshot::default(),
            bridge: bridge.into(),
            heard,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let port = self.shared.socket.port().expect("it is bound");
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// Whether something comes in so many milliseconds.
    pub(crate) fn receives(&self, patience_ms: u16) -> bool {
        let mut fds = [PollFd::new(self.shared.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, patience_ms).is_ok_and(|ready| ready > 0)
    }

    /// Gives the sleeve a frame, as it is.
    #[cfg(test)]
    pub(crate) fn offer(&self, frame: &[u8]) {
        let header = crate::virtio::Header::default().format(0);
        let whole = [&header[..], frame].concat();
        nix::unistd::write(&self.bridge, &whole).expect("there is room");
    }

    /// The frames that the bridge got since the last time, each as it was sent.
    pub(crate) fn delivered(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            match (&self.bridge).read(&mut buffer) {
                Ok(length) => {
                    let (header, frame) = parted(&buffer[..length]);
                    let pieces = frames::cut_all(header, &frame).expect("what is coalesced is cut");
                    frames.extend(pieces.into_iter().map(plain));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return frames,
                Err(error) => panic!("the bridge cannot be read: {error}"),
            }
        }
    }

    /// What the agent got since the last time.
    pub(super) fn heard(&self) -> Vec<Message> {
        let mut heard = self.heard.lock().expect("nobody panics with it");
        std::mem::take(&mut heard)
    }

    /// How many packets and frames were dropped.
    pub(super) fn dropped(&self) -> u64 {
        let drops = self.shared.counters.read();
        drops.named().map(|(_, count)| count).sum()
    }
}

fn push(heard: &Mutex<Vec<Message>>, message: Message) {
    heard.lock().expect("nobody panics with it").push(message);
}
