//! Pings without a process for each: whoever pings everybody sends them by the
//! thousand.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvfrom, sendto, socket,
};

use crate::Netns;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// `ICMP_FILTER` of linux/icmp.h: a bit for each type that is not wanted.
const ICMP_FILTER: libc::c_int = 1;
/// An IPv4 header without options, and the eight bytes of an echo.
const ANSWER_BYTES: usize = 20 + 8;

/// A netns's own ICMP socket; it never waits.
pub struct Pinger {
    socket: OwnedFd,
    /// Tells its pings from those of others in the netns.
    id: u16,
}

impl Pinger {
    /// Opens the socket.
    pub fn open(netns: &Netns) -> Self {
        let socket = netns.inside(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let kind = (AddressFamily::Inet, SockType::Raw, SockProtocol::Icmp);
            socket(kind.0, kind.1, flags, kind.2).unwrap()
        });
        let unwanted: u32 = !(1 << ECHO_REPLY);
        // SAFETY: the pointer is valid for the length beside it during the call.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_RAW,
                ICMP_FILTER,
                std::ptr::from_ref(&unwanted).cast(),
                size_of_val(&unwanted) as libc::socklen_t,
            )
        };
        assert_eq!(set, 0);
        let id = std::process::id() as u16;
        Self { socket, id }
    }

    /// Sends one ping.
    pub fn send(&self, to: Ipv4Addr) -> io::Result<()> {
        let octets = to.octets();
        let to = SockaddrIn::new(octets[0], octets[1], octets[2], octets[3], 0);
        let ping = request(self.id);
        sendto(self.socket.as_raw_fd(), &ping, &to, MsgFlags::empty())?;
        Ok(())
    }

    /// Who answered, if an answer is there.
    pub fn receive(&self) -> Option<Ipv4Addr> {
        let mut answer = [0; 256];
        loop {
            let (length, from) =
                recvfrom::<SockaddrIn>(self.socket.as_raw_fd(), &mut answer).ok()?;
            if is_answer(&answer[..length], self.id) {
                return Some(from?.ip());
            }
        }
    }
}

impl AsFd for Pinger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An echo request with its checksum (RFC 792, RFC 1071).
fn request(id: u16) -> [u8; 8] {
    let [high, low] = id.to_be_bytes();
    let mut sum = u32::from(ECHO_REQUEST) << 8;
    sum += u32::from(id);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    let [check_high, check_low] = sum.to_be_bytes();
    [ECHO_REQUEST, 0, check_high, check_low, high, low, 0, 0]
}

fn is_answer(packet: &[u8], id: u16) -> bool {
    let header = packet
        .first()
        .map_or(0, |first| usize::from(first & 15) * 4);
    let Some([kind, _, _, _, high, low, ..]) = packet.get(header..) else {
        return false;
    };
    packet.len() >= ANSWER_BYTES && *kind == ECHO_REPLY && [*high, *low] == id.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keeper, eventually};

    #[test]
    fn a_host_answers_itself() {
        let (_keeper, netns) = Keeper::start();
        let pinger = Pinger::open(&netns);
        pinger.send(Ipv4Addr::LOCALHOST).unwrap();
        let from = eventually("an answer", || pinger.receive().ok_or(String::new()));
        assert_eq!(from, Ipv4Addr::LOCALHOST);
        // Nothing leads there.
        assert!(pinger.send(Ipv4Addr::new(192, 0, 2, 1)).is_err());
    }
}
