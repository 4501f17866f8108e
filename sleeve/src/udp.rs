//! The UDP socket on the underlay, which sends and receives bursts.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};

/// The most packets of one call: `UDP_MAX_SEGMENTS` of kernels before 6.11.
const PACKETS: usize = 64;
/// The most bytes of one call: the longest UDP payload over IPv4.
const BYTES: usize = 65_507;
/// Buffer space for what arrives while a burst is processed: 5 ms at 6 Gbit/s.
const BUFFER_BYTES: usize = 4 << 20;

/// The socket.
pub(crate) struct Socket {
    socket: UdpSocket,
    /// Whether the underlay's device supports segmentation offload. One without checksum offload
    /// does not.
    segments: AtomicBool,
}

impl Socket {
    pub(crate) fn bind(port: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_nonblocking(true)?;
        // Beyond the system's limit where that is allowed, else up to it.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::SndBuf, &BUFFER_BYTES)?;
        }
        // Without it, each call returns one packet.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        Ok(Self {
            socket,
            segments: AtomicBool::new(true),
        })
    }

    /// For the fuzzer and tests: the bound port.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Sends one packet, unless that would block.
    pub(crate) fn send_now(&self, packet: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.send_to(packet, to).map(drop)
    }

    /// Sends a burst; returns how many packets could not be sent.
    fn send_burst(&self, burst: &Burst, to: SocketAddr, timeout: &mut SendTimeout) -> u64 {
        if burst.count > 1 && self.segments.load(Ordering::Relaxed) {
            match self.send_as_one(burst, to, timeout) {
                Ok(()) => return 0,
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    self.segments.store(false, Ordering::Relaxed);
                }
                // Longer than the path MTU: one by one they can be fragmented.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE)) => {}
                Err(_) => return burst.count as u64,
            }
        }
        let mut lost = 0;
        for (number, packet) in burst.bytes.chunks(burst.size).enumerate() {
            let sent = timeout.wait(&self.socket, || self.send_now(packet, to));
            match sent {
                Ok(()) => {}
                // The rest would fail, too.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return lost + (burst.count - number) as u64;
                }
                Err(_) => lost += 1,
            }
        }
        lost
    }

    fn send_as_one(
        &self,
        burst: &Burst,
        to: SocketAddr,
        timeout: &mut SendTimeout,
    ) -> io::Result<()> {
        let SocketAddr::V4(to) = to else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let size = burst.size as u16;
        let control = [ControlMessage::UdpGsoSegments(&size)];
        let pieces = [IoSlice::new(&burst.bytes)];
        let target = SockaddrIn::from(to);
        let fd = self.socket.as_raw_fd();
        timeout.wait(&self.socket, || {
            sendmsg(fd, &pieces, &control, MsgFlags::empty(), Some(&target))?;
            Ok(())
        })
    }

    /// Receives a burst of packets of one sender: its length, the length of each packet but the
    /// last, and the sender. Does not block.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, usize, SocketAddr)> {
        let mut control = cmsg_space!(i32);
        let mut pieces = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let message =
            recvmsg::<SockaddrIn>(fd, &mut pieces, Some(&mut control), MsgFlags::empty())?;
        let from = message.address.ok_or(Errno::EINVAL)?;
        let mut size = message.bytes;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::UdpGroSegments(segment) = control {
                size = usize::try_from(segment).unwrap_or(size);
            }
        }
        Ok((message.bytes, size.max(1), SocketAddr::V4(from.into())))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How long to wait for an underlay that accepts nothing, in milliseconds. It is for all packets
/// together: after one wait in vain there is no other.
#[derive(Clone, Copy)]
pub(crate) struct SendTimeout(pub(crate) u16);

impl SendTimeout {
    /// Blocks until the socket can send: this is what slows down a sender that is too fast.
    fn wait(
        &mut self,
        socket: &UdpSocket,
        mut send: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            match send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut fds, self.0) {
                        Ok(0) => {
                            self.0 = 0;
                            return Err(io::ErrorKind::TimedOut.into());
                        }
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// Packets for one receiver that are sent in one call: all of one size but the last, which may
/// be shorter.
#[derive(Default)]
pub(crate) struct Burst {
    bytes: Vec<u8>,
    size: usize,
    count: usize,
    /// A shorter packet was added: none can follow.
    closed: bool,
}

impl Burst {
    /// How many packets it has.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Whether this packet can be sent with those that it has.
    pub(crate) fn takes(&self, packet: &[u8]) -> bool {
        let same = !self.closed && packet.len() <= self.size;
        let room = self.count < PACKETS && self.bytes.len() + packet.len() <= BYTES;
        self.count == 0 || same && room
    }

    /// Adds a packet that it takes.
    pub(crate) fn add(&mut self, packet: &[u8]) {
        if self.count == 0 {
            self.size = packet.len();
        }
        self.closed = packet.len() < self.size;
        self.bytes.extend_from_slice(packet);
        self.count += 1;
    }

    /// Sends what it has; returns how many packets could not be sent.
    pub(crate) fn send(
        &mut self,
        socket: &Socket,
        to: SocketAddr,
        timeout: &mut SendTimeout,
    ) -> u64 {
        if self.count == 0 {
            return 0;
        }
        let lost = socket.send_burst(self, to, timeout);
        self.bytes.clear();
        self.count = 0;
        self.closed = false;
        lost
    }
}
