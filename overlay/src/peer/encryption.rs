//! The encrypted path of this host, as the peers use it: the state of each tunnel, and messages
//! to and from the peers' agents.
//!
//! The sleeve is part of the agent and provides both. WireGuard is polled, and messages are
//! datagrams of a socket on its device; on the wire they are the same.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket as StdSocket};
use std::path::PathBuf;
use std::sync::Arc;

use kontena_schema::key::PublicKey;
use kontena_schema::limits::PROBE_PORT;
use kontena_sleeve::{Drops, Message, PeerStatus, Sleeve, Table};
use kontena_task::{Task, supervise};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use std::os::fd::AsRawFd;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::error::Cause;
use crate::model::devices::WIREGUARD;
use crate::model::state::{Encryption, SleeveIdentity};
use crate::wireguard::{Control, Kernel, Moment, Watch};

/// The most octets of a message that are read: a heartbeat, and what later versions append.
const MESSAGE_BYTES: usize = 1024;

/// What encrypts on a host. It is decided when the agent starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncryptedBy {
    /// The sleeve, in the agent.
    Sleeve,
    /// The kernel's WireGuard.
    Kernel,
    /// A WireGuard in user space in place of the kernel's, which has created its device and is
    /// configured through this socket.
    UserSpace(PathBuf),
}

impl EncryptedBy {
    /// The kernel if it has WireGuard, else the sleeve.
    pub(crate) async fn of_this_host() -> Result<Self, Cause> {
        let kernel = Kernel::here().map_err(Cause::io("generic netlink"))?;
        let supported = kernel.is_supported().await?;
        Ok(if supported {
            Self::Kernel
        } else {
            Self::Sleeve
        })
    }

    /// The access to WireGuard's configuration; none without WireGuard.
    pub(crate) fn control(&self) -> Result<Option<Control>, Cause> {
        match self {
            Self::Sleeve => Ok(None),
            Self::Kernel => Control::kernel().map(Some),
            Self::UserSpace(socket) => Ok(Some(Control::user_space(socket))),
        }
    }

    pub(crate) fn encryption(&self) -> Encryption {
        match self {
            Self::Sleeve => Encryption::Sleeve,
            Self::Kernel | Self::UserSpace(_) => Encryption::WireGuard,
        }
    }
}

/// The running encrypted path.
pub(crate) enum EncryptedPath {
    Sleeve(RunningSleeve),
    WireGuard(Box<Watched>),
}

/// The sleeve and its configuration.
pub(crate) struct RunningSleeve {
    pub(crate) sleeve: Sleeve,
    pub(crate) identity: SleeveIdentity,
    pub(crate) table: Table,
}

/// WireGuard, as it was last observed, and its heartbeat socket.
#[derive(Default)]
pub(crate) struct Watched {
    pub(crate) watch: Watch,
    pub(crate) socket: Option<HeartbeatSocket>,
}

impl EncryptedPath {
    /// The state of the tunnel to each peer.
    pub(crate) fn status(&self) -> Vec<PeerStatus> {
        match self {
            Self::Sleeve(running) => running.sleeve.status(),
            Self::WireGuard(watched) => watched.watch.status(Moment::now()).into_values().collect(),
        }
    }

    /// The state of the tunnel to one peer.
    pub(crate) fn status_of(&self, tunnel_address: Ipv4Addr) -> Option<PeerStatus> {
        match self {
            Self::Sleeve(running) => running.sleeve.status_of(tunnel_address),
            Self::WireGuard(watched) => watched.watch.status_of(tunnel_address, Moment::now()),
        }
    }

    /// Sends a message to a peer's agent if the peer is alive; whether it was sent.
    pub(crate) fn send(&self, to: Ipv4Addr, message: &[u8]) -> bool {
        match self {
            Self::Sleeve(running) => running.sleeve.send(to, message),
            Self::WireGuard(watched) => {
                let alive = self.status_of(to).is_some_and(|status| status.is_alive());
                let socket = watched.socket.as_ref().filter(|_| alive);
                socket.is_some_and(|socket| socket.send(to, message))
            }
        }
    }

    /// The next keys of peers that it is configured with.
    pub(crate) fn next_keys(&self) -> BTreeSet<PublicKey> {
        match self {
            Self::Sleeve(running) => {
                let peers = running.table.peers.values();
                peers.filter_map(|peer| peer.next).collect()
            }
            Self::WireGuard(watched) => watched.watch.next_keys(),
        }
    }

    /// What it dropped since it was started. WireGuard does not count its drops.
    pub(crate) fn drops(&self) -> Option<Drops> {
        match self {
            Self::Sleeve(running) => Some(running.sleeve.drops()),
            Self::WireGuard(_) => None,
        }
    }
}

/// The socket for messages through the WireGuard device.
pub(crate) struct HeartbeatSocket {
    /// Its tunnel address, and the index of the device: another device of the same name needs
    /// another socket.
    pub(crate) at: (Ipv4Addr, u32),
    socket: Arc<UdpSocket>,
    _reader: Task,
}

impl HeartbeatSocket {
    /// Opens the socket in the namespace of the calling thread; must be called inside a tokio
    /// runtime.
    pub(crate) fn open(at: (Ipv4Addr, u32), inbox: mpsc::Sender<Message>) -> io::Result<Self> {
        let socket = Arc::new(UdpSocket::from_std(bound(at.0)?)?);
        let received = Arc::clone(&socket);
        let reader = move || read(Arc::clone(&received), inbox.clone());
        Ok(Self {
            at,
            socket,
            _reader: supervise("heartbeats", reader),
        })
    }

    fn send(&self, to: Ipv4Addr, message: &[u8]) -> bool {
        let to = SocketAddrV4::new(to, PROBE_PORT);
        self.socket.try_send_to(message, to.into()).is_ok()
    }
}

/// Bound to the device before it has an address, so that it never receives from elsewhere.
fn bound(tunnel_address: Ipv4Addr) -> io::Result<StdSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(WIREGUARD))?;
    let at = SockaddrIn::from(SocketAddrV4::new(tunnel_address, PROBE_PORT));
    bind(socket.as_raw_fd(), &at)?;
    Ok(socket.into())
}

/// Forwards messages to the inbox, for ever. Agents send them from the port that they go to; other
/// processes on their hosts cannot (`filter.rs`).
async fn read(socket: Arc<UdpSocket>, inbox: mpsc::Sender<Message>) {
    let mut buffer = [0; MESSAGE_BYTES];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, SocketAddr::V4(from))) if from.port() == PROBE_PORT => {
                let message = Message {
                    from: *from.ip(),
                    contents: buffer[..length].to_vec(),
                };
                // What does not fit is repeated.
                let _ = inbox.try_send(message);
            }
            Ok(_) => {}
            // An error is reported once and belongs to an earlier send.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
