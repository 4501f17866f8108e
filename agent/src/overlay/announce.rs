//! Tells the containers of this host that an address has a new MAC.
//!
//! An address that is leased again has another MAC, but a container that talked
//! to the former holder remembers the old one for many seconds. A gratuitous ARP
//! on the local bridge corrects it at once. It stays on this host: the bridge
//! does not pass such frames to a port that suppresses ARP, and every other host
//! tells its own containers.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use kontena_schema::mac::Mac;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::error::Cause;

const BROADCAST: [u8; 6] = [0xff; 6];
/// Ethernet, IPv4, lengths of both addresses, request (RFC 826).
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const ARP_BYTES: usize = 28;

/// Announces each address with its MAC on a link.
pub(crate) fn announce(index: u32, holders: &BTreeMap<Ipv4Addr, Mac>) -> Result<(), Cause> {
    // Protocol 0: the socket sends, and receives nothing.
    let kind = SockType::Datagram;
    let socket = socket(AddressFamily::Packet, kind, SockFlag::SOCK_CLOEXEC, None)
        .map_err(io::Error::from)
        .map_err(Cause::io("packet socket"))?;
    for (&address, &mac) in holders {
        send(&socket, index, &gratuitous(address, mac)).map_err(Cause::io("ARP"))?;
    }
    Ok(())
}

/// "Who has `address`? Tell `address`, which is at `mac`."
fn gratuitous(address: Ipv4Addr, mac: Mac) -> [u8; ARP_BYTES] {
    let ip = address.octets();
    let fields: [&[u8]; 5] = [&REQUEST, &mac.0, &ip, &[0; 6], &ip];
    let mut message = [0; ARP_BYTES];
    for (place, octet) in message.iter_mut().zip(fields.concat()) {
        *place = octet;
    }
    message
}

fn send(socket: &OwnedFd, index: u32, message: &[u8]) -> io::Result<()> {
    let mut sll_addr = [0; 8];
    sll_addr[..BROADCAST.len()].copy_from_slice(&BROADCAST);
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ARP as u16).to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: BROADCAST.len() as u8,
        sll_addr,
    };
    // SAFETY: each pointer is valid for the length beside it during the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
            ptr::from_ref(&to).cast(),
            size_of_val(&to) as libc::socklen_t,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_names_the_holder_as_sender_and_target() {
        let message = gratuitous(Ipv4Addr::new(10, 81, 1, 2), Mac([2, 0, 0, 0, 0, 7]));
        assert_eq!(message[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(message[8..18], [2, 0, 0, 0, 0, 7, 10, 81, 1, 2]);
        assert_eq!(message[18..], [0, 0, 0, 0, 0, 0, 10, 81, 1, 2]);
    }
}
