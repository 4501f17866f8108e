//! Two hosts with a session, driven as a sleeve's threads would: real sockets on loopback,
//! and a sequenced-packet socket in place of the TAP device (it preserves write boundaries).

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

use super::frames::{self, normalized, parted};
use crate::inbound;
use crate::key::PrivateKey;
use crate::message::{Message, WIREGUARD_OVERHEAD};
use crate::shared::{Settings, Shared};
use crate::snapshot::Snapshot;
use crate::table::{Peer, Table};
use crate::tap::Tap;
use crate::udp::Socket;
use crate::vxlan::Encapsulation;

/// The tunnel addresses of the two hosts.
pub(super) const TUNNEL_ADDRESSES: [Ipv4Addr; 2] = [
    Ipv4Addr::new(100, 127, 81, 1),
    Ipv4Addr::new(100, 127, 81, 2),
];
const VNI: u32 = 4096;
/// The encapsulation of frames from the first host to the second.
pub(crate) const ENCAPSULATION: Encapsulation = Encapsulation {
    from: TUNNEL_ADDRESSES[0],
    to: TUNNEL_ADDRESSES[1],
    vni: VNI,
};
/// The MACs of containers on the first host, and on the second.
const FIRST: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 3]];
pub(super) const SECOND: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// How many inputs two hosts process before they are replaced: setting up a session costs more
/// than an input does, and no session may expire.
const INPUTS: u32 = 512;
/// Buffer space for the frames of one burst.
const BRIDGE_BYTES: usize = 4 << 20;
/// The longest wait for a packet on loopback.
const TIMEOUT_MS: u16 = 2000;

/// Two hosts: the first sends, the second receives.
pub(crate) struct Ends([End; 2]);

pub(crate) struct End {
    pub(crate) shared: Shared,
    pub(crate) snapshot: Snapshot,
    bridge: File,
    messages: Arc<Mutex<Vec<Message>>>,
}

/// Checks an input with two hosts. After a failed check they are not used again.
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
        let mut ends = TUNNEL_ADDRESSES.map(End::new);
        let ports = [0, 1].map(|at: usize| ends[at].address());
        for (at, end) in ends.iter_mut().enumerate() {
            let peer = Peer {
                current: keys[1 - at].public(),
                next: None,
                endpoint: Some(ports[1 - at]),
            };
            let table = Table {
                own: vec![keys[at].clone()],
                peers: BTreeMap::from([(TUNNEL_ADDRESSES[1 - at], peer)]),
                owners: owners(),
                floods: BTreeSet::from([TUNNEL_ADDRESSES[1 - at]]),
            };
            (end.snapshot, _) = Snapshot::next(&Snapshot::default(), &table, &mut 0);
        }
        let ends = Self(ends);
        ends.handshake();
        ends
    }

    pub(crate) fn first(&self) -> &End {
        &self.0[0]
    }

    pub(crate) fn second(&self) -> &End {
        &self.0[1]
    }

    /// A handshake, and the keepalive that confirms the session.
    fn handshake(&self) {
        let first = self.first();
        for tunnel in first.snapshot.tunnels_all() {
            first.shared.initiate(tunnel, Instant::now());
        }
        for end in [self.second(), first, self.second()] {
            assert!(end.receives(TIMEOUT_MS), "the handshake is stuck");
            inbound::Work::new(&end.shared).receive(&end.snapshot);
        }
        let alive = |end: &End| end.snapshot.tunnels_all().all(|tunnel| tunnel.is_alive());
        assert!(self.0.iter().all(alive), "there is no session");
    }

    /// A packet as the first host would encrypt it for the second.
    pub(crate) fn encrypted(&self, packet: &[u8]) -> Vec<u8> {
        let mut encrypted = vec![0; packet.len() + WIREGUARD_OVERHEAD];
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
    let first = FIRST.map(|mac| (Mac(mac), TUNNEL_ADDRESSES[0]));
    first
        .into_iter()
        .chain([(Mac(SECOND), TUNNEL_ADDRESSES[1])])
        .collect()
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

/// Whether the second host accepts this frame from the first: its source is a container of the
/// first, and it is neither ARP nor tagged.
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
        // Without CAP_NET_ADMIN, the system's limit applies.
        let _ = setsockopt(&tap, sockopt::SndBufForce, &BRIDGE_BYTES);
        let settings = Settings {
            device: String::new(),
            port: 0,
            tunnel_address,
            vni: VNI,
        };
        let socket = Socket::bind(settings.port).expect("there are ports");
        let messages = Arc::new(Mutex::default());
        let inbox = Arc::clone(&messages);
        let inbox = move |message| push(&inbox, message);
        let tap = Tap::of(tap.into());
        Self {
            shared: Shared::new(settings, (tap, socket), inbox).expect("there are descriptors"),
            snapshot: Snapshot::default(),
            bridge: bridge.into(),
            messages,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let port = self.shared.socket.port().expect("it is bound");
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// Whether a packet arrives within the timeout.
    pub(crate) fn receives(&self, timeout_ms: u16) -> bool {
        let mut fds = [PollFd::new(self.shared.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout_ms).is_ok_and(|ready| ready > 0)
    }

    /// Sends a frame out of the bridge, to the sleeve.
    #[cfg(test)]
    pub(crate) fn offer(&self, frame: &[u8]) {
        let header = crate::virtio::Header::default().format(0);
        let whole = [&header[..], frame].concat();
        nix::unistd::write(&self.bridge, &whole).expect("the buffer is not full");
    }

    /// The frames that the bridge received since the last call, as they were sent.
    pub(crate) fn delivered(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            match (&self.bridge).read(&mut buffer) {
                Ok(length) => {
                    let (header, frame) = parted(&buffer[..length]);
                    let pieces = frames::segment_all(header, &frame)
                        .expect("coalesced frames can be segmented");
                    frames.extend(pieces.into_iter().map(normalized));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return frames,
                Err(error) => panic!("the bridge cannot be read: {error}"),
            }
        }
    }

    /// The messages that the agent received since the last call.
    pub(super) fn messages(&self) -> Vec<Message> {
        let mut messages = self.messages.lock().expect("no holder panics");
        std::mem::take(&mut messages)
    }

    /// How many packets and frames were dropped.
    pub(super) fn dropped(&self) -> u64 {
        let drops = self.shared.counters.read();
        drops.named().map(|(_, count)| count).sum()
    }
}

fn push(messages: &Mutex<Vec<Message>>, message: Message) {
    messages.lock().expect("no holder panics").push(message);
}
