//! Tells the containers of this host that an address has a new MAC.
//!
//! An address that is leased again has another MAC, but a container that talked
//! to the previous holder caches the old one for many seconds. A gratuitous ARP
//! on the local bridge corrects that at once. It stays on this host: the bridge
//! does not forward such frames to a port that suppresses ARP, and every other
//! host tells its own containers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use kontena_schema::mac::Mac;
use nix::sys::socket::{MsgFlags, sendto};

use crate::error::Cause;
use crate::sys::packet;

const BROADCAST: Mac = Mac([0xff; 6]);
/// Ethernet, IPv4, lengths of both addresses, request (RFC 826).
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const ARP_BYTES: usize = 28;

/// Announces each address with its MAC on a link.
pub(crate) fn announce(index: u32, holders: &BTreeMap<Ipv4Addr, Mac>) -> Result<(), Cause> {
    let socket = packet::open().map_err(Cause::io("packet socket"))?;
    let everybody = packet::address(index, libc::ETH_P_ARP as u16, BROADCAST);
    for (&address, &mac) in holders {
        let message = gratuitous(address, mac);
        let sent = sendto(socket.as_raw_fd(), &message, &everybody, MsgFlags::empty());
        sent.map_err(|errno| Cause::io("ARP")(errno.into()))?;
    }
    Ok(())
}

/// "Who has `address`? Tell `address`, which is at `mac`."
fn gratuitous(address: Ipv4Addr, mac: Mac) -> [u8; ARP_BYTES] {
    let ip = address.octets();
    let fields: [&[u8]; 5] = [&REQUEST, &mac.0, &ip, &[0; 6], &ip];
    let mut message = [0; ARP_BYTES];
    for (candidate, octet) in message.iter_mut().zip(fields.concat()) {
        *candidate = octet;
    }
    message
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
