//! Looking at every packet of a device while something happens.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};

use crate::Netns;

/// What waits to be looked at; more than a whole test sends in a burst.
const BUFFER: usize = 1 << 30;

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How many packets were looked at. What the kernel does not cut on this device is
    /// one packet.
    pub packets: u64,
    /// How many of them held the marker, by the UDP port that they went to; 0 for what
    /// is not UDP over IPv4.
    pub marked: BTreeMap<u16, u64>,
    /// How many came and were not looked at.
    pub lost: u32,
}

/// Looks at the packets of a device meanwhile, in both directions, up to the last that
/// came before the end.
pub fn capture(netns: &Netns, device: &str, marker: &[u8], work: impl FnOnce()) -> Seen {
    let socket = netns.inside(|| listen(device));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| look(&socket, marker, &done));
        // Who looks must be told of the end before a failure goes on.
        let worked = catch_unwind(AssertUnwindSafe(work));
        done.store(true, Ordering::Release);
        let seen = looking.join().unwrap();
        worked.unwrap_or_else(|failure| resume_unwind(failure));
        seen
    })
}

fn listen(device: &str) -> OwnedFd {
    let (all, flags) = (SockProtocol::EthAll, SockFlag::SOCK_NONBLOCK);
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, all).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).unwrap();
    let name = std::ffi::CString::new(device).unwrap();
    // SAFETY: a `sockaddr_ll` of zeroes is one, and every pointer is valid for the
    // length beside it during its call.
    let bound = unsafe {
        let mut at: libc::sockaddr_ll = std::mem::zeroed();
        at.sll_family = libc::AF_PACKET as u16;
        at.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        at.sll_ifindex = libc::if_nametoindex(name.as_ptr()).cast_signed();
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&at).cast(),
            size_of_val(&at) as libc::socklen_t,
        )
    };
    assert_eq!(bound, 0, "{device}");
    socket
}

fn look(socket: &OwnedFd, marker: &[u8], done: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut packet = vec![0; 1 << 17];
    loop {
        // Asked first: what came before it was said is still read.
        let last = done.load(Ordering::Acquire);
        if let Ok(length) = nix::unistd::read(socket, &mut packet) {
            seen.packets += 1;
            let packet = &packet[..length];
            if packet.windows(marker.len()).any(|window| window == marker) {
                *seen.marked.entry(udp_port(packet)).or_default() += 1;
            }
        } else if last {
            seen.lost = lost(socket);
            return seen;
        } else {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, 10u8).unwrap();
        }
    }
}

/// The port that a frame goes to, if it is UDP over IPv4 without options.
fn udp_port(frame: &[u8]) -> u16 {
    let udp = frame.get(12..15) == Some(&[8, 0, 0x45]) && frame.get(23) == Some(&17);
    match frame.get(36..38) {
        Some(&[high, low]) if udp => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

fn lost(socket: &OwnedFd) -> u32 {
    /// `struct tpacket_stats` of `linux/if_packet.h`.
    #[repr(C)]
    #[derive(Default)]
    struct Statistics {
        packets: u32,
        drops: u32,
    }
    let mut statistics = Statistics::default();
    let mut length = size_of::<Statistics>() as libc::socklen_t;
    // SAFETY: both pointers are valid during the call, and the length is that of what
    // the first one points at.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            std::ptr::from_mut(&mut statistics).cast(),
            &raw mut length,
        )
    };
    assert_eq!(got, 0);
    statistics.drops
}
