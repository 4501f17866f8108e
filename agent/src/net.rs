//! Addresses of this host's interfaces.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when an IPv4 address of this host comes or goes.
pub struct AddressEvents(AsyncFd<OwnedFd>);

impl AddressEvents {
    /// Those of the calling thread's network namespace, from now on; must be called
    /// inside a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        let groups = libc::RTMGRP_IPV4_IFADDR.cast_unsigned();
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // SAFETY: the descriptor is owned by what is returned, so it stays open and the same.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self(socket))
    }

    /// Waits until something has changed, which is to be read elsewhere. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            // It fails only where the runtime ends.
            let Ok(mut ready) = self.0.readable().await else {
                return;
            };
            if take_all(ready.get_inner()) {
                return;
            }
            ready.clear_ready();
        }
    }
}

/// Takes all that was told; whether anything was. What there was no room for may
/// have been anything.
fn take_all(socket: &OwnedFd) -> bool {
    // What is told is not read: a message that is longer is cut.
    let mut buffer = [0; 512];
    let mut any = false;
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(Errno::ENOBUFS) => any = true,
            Err(Errno::EINTR) => {}
            Err(_) => return any,
        }
    }
}

/// The first IPv4 address of an interface.
pub fn interface_address(name: &str) -> Option<Ipv4Addr> {
    let addresses = getifaddrs().ok()?;
    addresses
        .filter(|found| found.interface_name == name)
        .find_map(|found| Some(found.address?.as_sockaddr_in()?.ip()))
}

/// Whether an address of this host is on none of its interfaces, and thus a NAT's.
/// None if the interfaces cannot be read.
pub fn is_elsewhere(address: Ipv4Addr) -> Option<bool> {
    let mut addresses = getifaddrs().ok()?;
    let here = addresses.any(|found| {
        let found = found
            .address
            .and_then(|found| Some(found.as_sockaddr_in()?.ip()));
        found == Some(address)
    });
    Some(!here)
}

/// The interface of the default route with the lowest metric.
pub fn default_interface() -> Option<String> {
    default_interface_of(&std::fs::read_to_string("/proc/net/route").ok()?)
}

/// Reads `/proc/net/route`: columns Iface, Destination, Gateway, Flags, RefCnt,
/// Use, Metric, Mask; addresses in hexadecimal.
fn default_interface_of(table: &str) -> Option<String> {
    let mut best: Option<(u32, &str)> = None;
    for line in table.lines().skip(1) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [name, "00000000", _, _, _, _, metric, "00000000", ..] = columns[..] else {
            continue;
        };
        let metric = metric.parse().unwrap_or(u32::MAX);
        if best.is_none_or(|(least, _)| metric < least) {
            best = Some((metric, name));
        }
    }
    best.map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_with_the_lowest_metric_is_taken() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n\
                     wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                     eth9\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                     eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_interface_of(table).as_deref(), Some("eth9"));
        assert_eq!(default_interface_of("Iface\n"), None);
    }

    #[test]
    fn the_loopback_has_its_address_and_a_stranger_none() {
        assert_eq!(interface_address("lo"), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(interface_address("no-such-if"), None);
    }

    #[test]
    fn an_address_that_comes_is_told_and_nothing_else() {
        let (_keeper, netns) = kontena_lab::Keeper::start();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        netns.inside(|| {
            runtime.block_on(async {
                let mut events = AddressEvents::open().unwrap();
                netns.run("ip link add br7 type bridge");
                assert!(!take_all(events.0.get_ref()), "no address has come");
                netns.run("ip addr add 192.0.2.1/24 dev br7");
                assert!(take_all(events.0.get_ref()));
                netns.run("ip addr del 192.0.2.1/24 dev br7");
                netns.run("ip addr add 192.0.2.1/24 dev br7");
                events.changed().await;
                assert_eq!(interface_address("br7"), Some(Ipv4Addr::new(192, 0, 2, 1)));
            });
        });
    }

    #[test]
    fn an_address_of_no_interface_is_elsewhere() {
        assert_eq!(is_elsewhere(Ipv4Addr::LOCALHOST), Some(false));
        // TEST-NET-3 (RFC 5737).
        assert_eq!(is_elsewhere(Ipv4Addr::new(203, 0, 113, 7)), Some(true));
    }
}
