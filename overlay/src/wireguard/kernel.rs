//! The kernel's WireGuard: the link, and requests about its device.

use std::io;

use futures_util::StreamExt;
use genetlink::{GenetlinkError, GenetlinkHandle};
use kontena_task::{Task, spawn};
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::WireguardMessage;
use rtnetlink::LinkWireguard;

use super::WIREGUARD;
use super::codec;
use super::device::{Message, Observed};
use crate::error::Cause;
use crate::sys::netlink::Netlink;

/// A connection to the WireGuard of one network namespace.
pub(crate) struct Kernel {
    handle: GenetlinkHandle,
    _connection: Task,
}

impl Kernel {
    /// A connection to the namespace of the calling thread; must be called inside
    /// a tokio runtime.
    pub(crate) fn here() -> io::Result<Self> {
        let (connection, handle, _) = genetlink::new_connection()?;
        Ok(Self {
            handle,
            _connection: spawn("genetlink", connection),
        })
    }

    /// Whether the kernel has WireGuard. That loads its module, if there is one, and changes
    /// nothing else.
    pub(crate) async fn is_supported(&self) -> Result<bool, Cause> {
        let family = self.handle.resolve_family::<WireguardMessage>().await;
        match family.map_err(Cause::from) {
            Ok(_) => Ok(true),
            Err(cause) if cause.is_missing() => Ok(false),
            Err(cause) => Err(cause),
        }
    }

    /// Reads the device; none if there is no link of its name. A link of another kind is an error.
    pub(crate) async fn observe(&self) -> Result<Option<Observed>, Cause> {
        let answers = match self.request(codec::get_device(), NLM_F_DUMP).await {
            Err(cause) if cause.is_missing() => {
                // The family has another number when the module is loaded again.
                self.handle.clear_family_cache().await;
                return Ok(None);
            }
            answers => answers?,
        };
        if answers.is_empty() {
            return Err(Cause::Netlink(format!("no answer about {WIREGUARD}")));
        }
        let mut observed = Observed::default();
        for answer in &answers {
            codec::add_answer(&mut observed, answer);
        }
        Ok(Some(observed))
    }

    /// Applies one message. If a change fails, those before it are applied.
    pub(crate) async fn change(&self, message: &Message) -> Result<(), Cause> {
        let request = codec::request(message);
        self.request(request, NLM_F_ACK).await.map(drop)
    }

    async fn request(
        &self,
        message: WireguardMessage,
        flags: u16,
    ) -> Result<Vec<WireguardMessage>, Cause> {
        let mut request = NetlinkMessage::from(GenlMessage::from_payload(message));
        request.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.handle.clone().request(request).await?;
        let mut messages = Vec::new();
        while let Some(answer) = answers.next().await {
            let answer = answer?;
            if answer.header.flags & NLM_F_DUMP_INTR != 0 {
                let text = format!("{WIREGUARD} changed while it was read");
                return Err(Cause::Netlink(text));
            }
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message.payload),
                NetlinkPayload::Error(error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(messages)
    }
}

/// Creates the link, down. Without WireGuard the kernel answers `EOPNOTSUPP`.
pub(crate) async fn create_link(netlink: &Netlink, mtu: u32) -> Result<(), Cause> {
    let link = LinkWireguard::new(WIREGUARD).mtu(mtu).build();
    Ok(netlink.handle.link().add(link).execute().await?)
}

impl From<GenetlinkError> for Cause {
    fn from(error: GenetlinkError) -> Self {
        match error {
            GenetlinkError::NetlinkError(error) => Cause::Kernel(error),
            other => Cause::Netlink(other.to_string()),
        }
    }
}

impl From<DecodeError> for Cause {
    fn from(error: DecodeError) -> Self {
        Cause::Netlink(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::ops::RangeInclusive;

    use ipnetwork::IpNetwork;
    use nix::sched::{CloneFlags, unshare};

    use super::super::changes::changes;
    use super::super::device::{Device, WgPeer};
    use super::*;
    use kontena_schema::key::PublicKey;
    use kontena_sleeve::PrivateKey;

    /// Runs a test in a network namespace of its own.
    fn apart<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
        let run = move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(test());
        };
        std::thread::spawn(run).join().unwrap();
    }

    /// Each peer has the network of its number plus `shift`.
    fn device(numbers: RangeInclusive<u8>, shift: u8) -> Device {
        let peer = |number: u8| {
            let tunnel_address = Ipv4Addr::new(100, 127, 81, number + shift);
            let endpoint = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, number), 6783);
            let peer = WgPeer {
                endpoint: Some(endpoint),
                allowed: BTreeSet::from([tunnel_address.into()]),
                keepalive_s: 15,
            };
            (PublicKey([number; 32]), peer)
        };
        Device {
            private_key: PrivateKey::from_octets([0xff; 32]),
            listen_port: 6783,
            peers: numbers.map(peer).collect(),
        }
    }

    /// Configures the kernel's device as each of these in turn.
    async fn apply_all(kernel: &Kernel, devices: &[Device]) {
        let mut last_sent = BTreeMap::new();
        for wanted in devices {
            let there = kernel.observe().await.unwrap().unwrap();
            for message in changes(wanted, &last_sent, &there) {
                kernel.change(&message).await.unwrap();
            }
            last_sent = wanted.endpoints();
            let there = kernel.observe().await.unwrap().unwrap();
            assert_eq!(there.public_key, Some(wanted.private_key.public()));
            assert_eq!(there.listen_port, wanted.listen_port);
            assert!(there.peers.keys().eq(wanted.peers.keys()));
            for (key, peer) in &wanted.peers {
                let there = &there.peers[key];
                assert_eq!(there.endpoint, peer.endpoint.map(Into::into));
                assert_eq!(there.keepalive_s, peer.keepalive_s);
                let allowed = peer.allowed.iter().copied().map(IpNetwork::V4);
                assert_eq!(there.allowed, allowed.collect());
            }
            assert_eq!(changes(wanted, &last_sent, &there), vec![]);
        }
    }

    /// On a kernel with WireGuard it creates a device; elsewhere the kernel refuses.
    #[test]
    fn wireguard_is_supported_where_its_link_can_be_created() {
        apart(|| async {
            let (netlink, kernel) = (Netlink::here().unwrap(), Kernel::here().unwrap());
            let supported = kernel.is_supported().await.unwrap();
            assert_eq!(kernel.observe().await.unwrap(), None);
            match create_link(&netlink, 1420).await {
                Ok(()) => {
                    assert!(supported);
                    let devices = [device(1..=254, 0), device(2..=9, 1), device(9..=9, 3)];
                    apply_all(&kernel, &devices).await;
                }
                Err(Cause::Kernel(error)) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
                    assert!(!supported);
                }
                Err(other) => panic!("{other}"),
            }
            if let Some(link) = netlink.link(WIREGUARD).await.unwrap() {
                let deleted = netlink.handle.link().del(link.header.index);
                deleted.execute().await.unwrap();
            }
            assert_eq!(kernel.observe().await.unwrap(), None);
        });
    }
}
