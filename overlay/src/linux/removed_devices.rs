//! Which devices of ours have left the network namespace, or a bridge.
//!
//! One socket for all who ask: whatever any namespace of the machine tells anybody, of
//! addresses, neighbours or FDB entries, the kernel looks at each socket that listens to
//! anything (1.3 of 66 s of processor time in the mesh benchmark, with two of an agent).

use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::SockProtocol;
use tokio::sync::watch;

use crate::error::Cause;
use crate::model::devices::Link;
use crate::sys::netlink::name_of;
use crate::sys::notifications::Notifications;

/// `RTNLGRP_LINK`, and `RTM_DELLINK`.
const LINKS: libc::c_int = 1;
const LINK_REMOVED: u16 = 17;

/// The devices of ours that go in one namespace.
pub(crate) struct RemovedDevices {
    notifications: Notifications,
    buffer: Mutex<Vec<u8>>,
    so_far: watch::Sender<Removed>,
}

/// How many have gone. What the kernel had no room to tell counts as one of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(super) all: u64,
    /// Without those of containers.
    pub(super) of_host: u64,
}

impl RemovedDevices {
    /// Those of the calling thread's network namespace.
    pub(crate) fn here() -> Result<Self, Cause> {
        let all = Notifications::open((SockProtocol::NetlinkRoute, LINKS), &[LINK_REMOVED]);
        Ok(Self {
            notifications: all.map_err(Cause::io("notifications of devices"))?,
            buffer: Mutex::default(),
            so_far: watch::Sender::default(),
        })
    }

    /// How many have gone by now.
    pub(super) fn so_far(&self) -> Removed {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = Removed::default();
        self.notifications
            .read_all(&mut buffer, |told| new.count(told));
        self.so_far.send_if_modified(|so_far| {
            so_far.all += new.all;
            so_far.of_host += new.of_host;
            new != Removed::default()
        });
        *self.so_far.borrow()
    }

    /// Waits until there may be more than these, whoever asks for them. Cancel-safe.
    pub(super) async fn more_than(&self, seen: Removed) -> std::io::Result<()> {
        let mut so_far = self.so_far.subscribe();
        tokio::select! {
            readable = self.notifications.readable() => readable,
            _ = so_far.wait_for(|so_far| *so_far != seen) => Ok(()),
        }
    }
}

impl Removed {
    /// Counts what was told; none if that was lost.
    fn count(&mut self, told: Option<&[u8]>) {
        let link = told.map(device);
        let counts = |ours: fn(Link) -> bool| match link {
            Some(link) => u64::from(link.is_some_and(ours)),
            None => 1,
        };
        self.all += counts(|_| true);
        self.of_host += counts(|link| !matches!(link, Link::HostEnd(_)));
    }
}

/// The device of ours that the first message is about.
fn device(told: &[u8]) -> Option<Link> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(told).ok()?;
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
            name_of(&link).and_then(Link::named)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use kontena_schema::ids::PlacementId;
    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;
    use crate::model::devices::{BRIDGE, TAP, VXLAN, WIREGUARD};

    fn told(device: &str) -> Vec<u8> {
        let mut link = LinkMessage::default();
        link.attributes
            .push(LinkAttribute::IfName(device.to_owned()));
        let told = NetlinkPayload::from(RouteNetlinkMessage::DelLink(link));
        let mut told = NetlinkMessage::new(NetlinkHeader::default(), told);
        told.finalize();
        let mut octets = vec![0; told.buffer_len()];
        told.serialize(&mut octets);
        octets
    }

    #[test]
    fn devices_of_ours_are_counted_and_those_of_the_host_apart() {
        let of = |told: Option<&[u8]>| {
            let mut removed = Removed::default();
            removed.count(told);
            [removed.all, removed.of_host]
        };
        for device in [BRIDGE, VXLAN, TAP, WIREGUARD] {
            assert_eq!(of(Some(&told(device))), [1, 1], "{device}");
        }
        let of_container = Link::HostEnd(PlacementId(7)).name();
        assert_eq!(of(Some(&told(&of_container))), [1, 0]);
        assert_eq!(of(Some(&told("docker0"))), [0, 0]);
        assert_eq!(of(Some(&[])), [0, 0]);
        assert_eq!(of(None), [1, 1], "something was lost");
    }

    #[test]
    fn what_one_has_read_the_other_hears_of() {
        let (_keeper, netns) = kontena_lab::Keeper::start();
        let test = async {
            let removed = RemovedDevices::here().unwrap();
            let before = removed.so_far();
            netns.run(&format!("ip link add {TAP} type bridge"));
            assert_eq!(removed.so_far(), before);
            netns.run(&format!("ip link del {TAP}"));
            removed.more_than(before).await.unwrap();
            let after = removed.so_far();
            assert_eq!(after, Removed { all: 1, of_host: 1 });
            // The socket is empty now.
            removed.more_than(before).await.unwrap();
            assert_eq!(removed.so_far(), after);
        };
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        netns.inside(|| runtime.enable_all().build().unwrap().block_on(test));
    }
}
