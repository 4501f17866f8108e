//! What sockets need that speak of packets and frames themselves.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use kontena_schema::mac::Mac;
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike, socket};

/// Sets how a socket treats packets that are too large for a link on the way
/// (`IP_PMTUDISC_*`).
pub(crate) fn set_mtu_discovery(socket: &impl AsRawFd, how: libc::c_int) -> io::Result<()> {
    // SAFETY: the value is as long as is advertised, and lives during the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            ptr::from_ref(&how).cast(),
            size_of_val(&how) as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A socket for the contents of frames. It hears nothing until it is bound.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(
        AddressFamily::Packet,
        SockType::Datagram,
        flags,
        None,
    )?)
}

/// A MAC on the link of this number, for frames of this type.
pub(crate) fn address(index: u32, ethertype: u16, mac: Mac) -> LinkAddr {
    let mut sll_addr = [0; 8];
    sll_addr[..mac.0.len()].copy_from_slice(&mac.0);
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: mac.0.len() as u8,
        sll_addr,
    };
    let bytes = size_of_val(&raw) as libc::socklen_t;
    // SAFETY: it points to an address of this family and of this length.
    let address = unsafe { LinkAddr::from_raw(ptr::from_ref(&raw).cast(), Some(bytes)) };
    address.expect("its family and its length are right")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_what_it_was_made_of() {
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        let address = address(5, 0x0806, mac);
        assert_eq!((address.ifindex(), address.addr()), (5, Some(mac.0)));
        assert_eq!(address.protocol(), 0x0806_u16.to_be());
    }
}
