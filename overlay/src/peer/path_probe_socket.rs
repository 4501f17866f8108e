//! Sends path probes as the VXLAN device would, and receives them on the bridge.
//!
//! They bypass the device, which may have no entry for the peer yet: the VXLAN header is written
//! here (RFC 7348 section 5). The packet filter treats both alike.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use kontena_schema::limits::VXLAN_PORT;
use kontena_schema::mac::Mac;
use kontena_sleeve::{VXLAN_HEADER, vxlan_header};
use kontena_task::{Task, supervise};
use nix::sys::socket::{LinkAddr, bind, recvfrom};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::model::state::PathProbeIdentity;
use crate::peer::path_probe::{BYTES, PathProbe};
use crate::sys::packet;

/// "Local Experimental Ethertype 1" (IEEE 802, listed in RFC 9542 appendix B).
const ETHERTYPE: u16 = 0x88b5;
const MAC: usize = 6;
const ETHERNET: usize = 14;

/// A path probe that was received.
#[derive(Debug)]
pub(crate) struct ReceivedPathProbe {
    /// The MAC of the peer's bridge.
    pub(crate) from: Mac,
    pub(crate) path_probe: PathProbe,
}

/// The sockets for path probes.
pub(crate) struct PathProbeSocket {
    identity: PathProbeIdentity,
    /// The index of the bridge: another bridge of the same name needs another socket.
    bridge: u32,
    out: UdpSocket,
    _reader: Task,
}

impl PathProbeSocket {
    /// Opens them in the namespace of the calling thread; must be called inside a tokio
    /// runtime.
    pub(crate) fn open(
        identity: PathProbeIdentity,
        bridge: u32,
        inbox: mpsc::Sender<ReceivedPathProbe>,
    ) -> io::Result<Self> {
        let out = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        out.set_nonblocking(true)?;
        // Like the device's own packets, which routers may fragment.
        packet::set_mtu_discovery(&out, libc::IP_PMTUDISC_DONT)?;
        let socket = packet::open()?;
        let at = packet::address(bridge, ETHERTYPE, identity.mac);
        bind(socket.as_raw_fd(), &at)?;
        // SAFETY: an owned descriptor stays the same one, and open, for as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        let socket = Arc::new(socket);
        let reader = move || read(Arc::clone(&socket), inbox.clone());
        Ok(Self {
            identity,
            bridge,
            out,
            _reader: supervise("path-probes", reader),
        })
    }

    /// Its identity, and the index of the bridge.
    pub(crate) fn at(&self) -> (PathProbeIdentity, u32) {
        (self.identity, self.bridge)
    }

    /// Sends a path probe to the bridge with this MAC on the host at this address.
    pub(crate) fn send(&self, to: Ipv4Addr, mac: Mac, path_probe: PathProbe) {
        let datagram = datagram(self.identity, mac, path_probe);
        let to = SocketAddrV4::new(to, VXLAN_PORT);
        // One that cannot be sent does not arrive, which is what it tests.
        let _ = self.out.send_to(&datagram, to);
    }
}

/// The VXLAN header, and a frame of the largest size.
fn datagram(identity: PathProbeIdentity, to: Mac, path_probe: PathProbe) -> Vec<u8> {
    let mut datagram = vec![0; VXLAN_HEADER + ETHERNET + (identity.mtu as usize).max(BYTES)];
    let (vxlan, frame) = datagram.split_at_mut(VXLAN_HEADER);
    let (ethernet, packet) = frame.split_at_mut(ETHERNET);
    vxlan.copy_from_slice(&vxlan_header(identity.vni));
    ethernet[..MAC].copy_from_slice(&to.0);
    ethernet[MAC..2 * MAC].copy_from_slice(&identity.mac.0);
    ethernet[2 * MAC..].copy_from_slice(&ETHERTYPE.to_be_bytes());
    packet[..BYTES].copy_from_slice(&path_probe.write());
    datagram
}

/// Forwards path probes to the inbox, for as long as the bridge exists.
async fn read(socket: Arc<AsyncFd<OwnedFd>>, inbox: mpsc::Sender<ReceivedPathProbe>) {
    // Only the start of a frame matters.
    let mut buffer = [0; BYTES];
    loop {
        let received = socket.async_io(Interest::READABLE, |socket| {
            Ok(recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer)?)
        });
        let Ok((length, from)) = received.await else {
            // An error is reported once, when the link goes down.
            tokio::task::yield_now().await;
            continue;
        };
        let from = from.and_then(|from| from.addr()).map(Mac);
        let path_probe = buffer.get(..length).and_then(PathProbe::read);
        if let (Some(from), Some(path_probe)) = (from, path_probe) {
            // What does not fit is lost.
            let _ = inbox.try_send(ReceivedPathProbe { from, path_probe });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_probe_is_a_vxlan_frame_of_the_largest_size() {
        let identity = PathProbeIdentity {
            vni: 0x0a_0b_0c,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: 1370,
        };
        let path_probe = PathProbe {
            run: 1,
            number: 2,
            wants_answer: false,
        };
        let datagram = datagram(identity, Mac([2, 0, 0, 0, 0, 2]), path_probe);
        assert_eq!(datagram.len(), 8 + 14 + 1370);
        let head = [
            &[8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0][..],
            &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5],
            b"KNT1",
        ];
        assert_eq!(datagram[..26], head.concat());
        assert_eq!(PathProbe::read(&datagram[22..]), Some(path_probe));
    }
}
