//! Sockets that the kernel tells of changes in a network namespace.
//!
//! Some hosts change hundreds of rules and devices a second, so the kernel is told what
//! is of interest, and the rest wakes nobody.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `NETLINK_ADD_MEMBERSHIP`.
const ADD_MEMBERSHIP: libc::c_int = 1;
/// Room for what was told and not read: more than the rules that a host gets at once.
const WAITING_BYTES: usize = 1 << 20;
/// The most that the kernel tells at once.
const MESSAGES_BYTES_MAX: usize = 1 << 16;

/// A netlink socket in the network namespace of the calling thread.
pub(super) fn socket(protocol: SockProtocol) -> io::Result<OwnedFd> {
    let socket = nix::sys::socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// A socket that hears of one group of changes.
pub(crate) struct Notifications(OwnedFd);

impl Notifications {
    /// A socket in the network namespace of the calling thread. The kernel keeps from it
    /// what begins with a message of a type that is none of these.
    pub(crate) fn open(
        (protocol, group): (SockProtocol, libc::c_int),
        types: &[u16],
    ) -> io::Result<Self> {
        let socket = socket(protocol)?;
        setsockopt(&socket, sockopt::RcvBufForce, &WAITING_BYTES)?;
        only(&socket, types)?;
        set(&socket, libc::SOL_NETLINK, ADD_MEMBERSHIP, &group)?;
        Ok(Self(socket))
    }

    /// Waits until something was told. It registers for each wait anew, so that nothing
    /// wakes between two.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        let socket = self.0.as_fd();
        // SAFETY: the descriptor is borrowed, so it stays open and the same meanwhile.
        let socket = unsafe {
            AsyncFd::<BorrowedFd<'_>>::register_with_interest(socket, Interest::READABLE)
        }?;
        socket.readable().await.map(drop)
    }

    /// Reads all that was told; none stands for what was lost.
    pub(crate) fn read_all(&self, buffer: &mut Vec<u8>, mut take: impl FnMut(Option<&[u8]>)) {
        loop {
            match self.read(buffer) {
                Ok(Some(told)) => take(Some(told)),
                Ok(None) => return,
                Err(err) => {
                    tracing::debug!(%err, "notifications are lost");
                    if err.raw_os_error() != Some(libc::ENOBUFS) {
                        return;
                    }
                    take(None);
                }
            }
        }
    }

    /// The messages that were told next; none if nothing was; an error if more was than
    /// there is room for.
    fn read<'a>(&self, buffer: &'a mut Vec<u8>) -> io::Result<Option<&'a [u8]>> {
        buffer.resize(MESSAGES_BYTES_MAX, 0);
        match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(Some(&buffer[..length])),
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Lets only messages in whose first one has one of these types.
fn only(socket: &OwnedFd, types: &[u16]) -> io::Result<()> {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// Where the type is in `struct nlmsghdr`, which is in this machine's order of octets,
    /// while the program loads in that of networks.
    const TYPE_AT: u32 = 4;
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut program = vec![step(LOAD_HALF, 0, TYPE_AT)];
    for (at, kind) in types.iter().enumerate() {
        let to_accept = u8::try_from(types.len() - at).expect("a few types");
        program.push(step(JUMP_IF_EQUAL, to_accept, kind.to_be().into()));
    }
    program.push(step(RETURN, 0, 0));
    program.push(step(RETURN, 0, u32::MAX));
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a few types"),
        filter: program.as_mut_ptr(),
    };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value is as long as is said, and what it points at lives during the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
