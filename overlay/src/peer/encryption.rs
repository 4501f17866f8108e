//! What encrypts paths on this host, as the peers need it: how the way to each peer is, and
//! messages to its agent and from it.
//!
//! The sleeve is a part of the agent and tells both. WireGuard is looked at, and messages
//! are datagrams of a socket on its device; on the wire they are the same.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket as StdSocket};
use std::path::PathBuf;
use std::sync::Arc;

use kontena_schema::key::PublicKey;
use kontena_schema::limits::PROBE_PORT;
use kontena_sleeve::{Drops, Message, PeerStatus, Sleeve, Table};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use std::os::fd::AsRawFd;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::error::Cause;
use crate::model::devices::WIREGUARD;
use crate::model::state::{Encryption, SleeveIdentity};
use crate::wireguard::{Control, Kernel, Moment, Watch};

/// Most octets of a message that are read: a heartbeat, and what later versions add.
const MESSAGE_BYTES: usize = 1024;

/// What encrypts paths on a host. It is decided when the agent starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncryptedBy {
    /// The sleeve, a part of the agent.
    Sleeve,
    /// The kernel's WireGuard.
    Kernel,
    /// A WireGuard in user space in the kernel's candidate, which has made its device and
    /// takes its configuration at this socket.
    UserSpace(PathBuf),
}

impl EncryptedBy {
    /// The kernel where it has WireGuard, else the sleeve.
    pub(crate) async fn of_this_host() -> Result<Self, Cause> {
        let kernel = Kernel::here().map_err(Cause::io("generic netlink"))?;
        let supported = kernel.is_supported().await?;
        Ok(if supported {
            Self::Kernel
        } else {
            Self::Sleeve
        })
    }

    /// The way to WireGuard's configuration; none without WireGuard.
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

/// The encrypted path at work.
pub(crate) enum EncryptedPath {
    Sleeve(RunningSleeve),
    WireGuard(Box<Watched>),
}

/// The sleeve and how it was set.
pub(crate) struct RunningSleeve {
    pub(crate) sleeve: Sleeve,
    pub(crate) identity: SleeveIdentity,
    pub(crate) table: Table,
}

/// WireGuard, as far as it was looked at, and the messages through it.
#[derive(Default)]
pub(crate) struct Watched {
    pub(crate) watch: Watch,
    pub(crate) socket: Option<HeartbeatSocket>,
}

impl EncryptedPath {
    /// How the way to each peer is.
    pub(crate) fn status(&self) -> Vec<PeerStatus> {
        match self {
            Self::Sleeve(running) => running.sleeve.status(),
            Self::WireGuard(watched) => watched.watch.status(Moment::now()).into_values().collect(),
        }
    }

    /// How the way to one peer is.
    pub(crate) fn status_of(&self, tunnel_address: Ipv4Addr) -> Option<PeerStatus> {
        match self {
            Self::Sleeve(running) => running.sleeve.status_of(tunnel_address),
            Self::WireGuard(watched) => watched.watch.status_of(tunnel_address, Moment::now()),
        }
    }

    /// Sends a message to the agent of a peer that lives; whether it was sent.
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

    /// The keys that peers will use next and that it knows.
    pub(crate) fn next_keys(&self) -> BTreeSet<PublicKey> {
        match self {
            Self::Sleeve(running) => {
                let peers = running.table.peers.values();
                peers.filter_map(|peer| peer.next).collect()
            }
            Self::WireGuard(watched) => watched.watch.next_keys(),
        }
    }

    /// What it dropped since its start. What WireGuard drops nobody counts.
    pub(crate) fn drops(&self) -> Option<Drops> {
        match self {
            Self::Sleeve(running) => Some(running.sleeve.drops()),
            Self::WireGuard(_) => None,
        }
    }
}

/// Messages through WireGuard's device.
pub(crate) struct HeartbeatSocket {
    /// Where they come to, and the number of the device: another one of the same name
    /// needs another socket.
    pub(crate) at: (Ipv4Addr, u32),
    socket: Arc<UdpSocket>,
    _reader: AbortOnDropHandle<()>,
}

impl HeartbeatSocket {
    /// Opens the socket in the namespace of the calling thread; must be called inside a
    /// tokio runtime.
    pub(crate) fn open(at: (Ipv4Addr, u32), inbox: mpsc::Sender<Message>) -> io::Result<Self> {
        let socket = Arc::new(UdpSocket::from_std(bound(at.0)?)?);
        let reader = tokio::spawn(read(Arc::clone(&socket), inbox));
        Ok(Self {
            at,
            socket,
            _reader: AbortOnDropHandle::new(reader),
        })
    }

    fn send(&self, to: Ipv4Addr, message: &[u8]) -> bool {
        let to = SocketAddrV4::new(to, PROBE_PORT);
        self.socket.try_send_to(message, to.into()).is_ok()
    }
}

/// It is on the device before it has an address: nothing from elsewhere ever waits in it.
fn bound(tunnel_address: Ipv4Addr) -> io::Result<StdSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(WIREGUARD))?;
    let at = SockaddrIn::from(SocketAddrV4::new(tunnel_address, PROBE_PORT));
    bind(socket.as_raw_fd(), &at)?;
    Ok(socket.into())
}

/// Passes messages on, for ever. Agents send them from the port that they go to; others
/// on their hosts cannot (`filter.rs`).
async fn read(socket: Arc<UdpSocket>, inbox: mpsc::Sender<Message>) {
    let mut buffer = [0; MESSAGE_BYTES];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, SocketAddr::V4(from))) if from.port() == PROBE_PORT => {
                let message = Message {
                    from: *from.ip(),
                    contents: buffer[..length].to_vec(),
                };
                // What does not fit is sent again.
                let _ = inbox.try_send(message);
            }
            Ok(_) => {}
            // An error is told once and is of what was sent.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
