//! Executes steps. Each is a few netlink messages or one transaction of a
//! packet filter; nothing is decided here.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use kontena_schema::ids::PlacementId;
use kontena_schema::limits::VXLAN_PORT;
use kontena_schema::mac::Mac;
use netlink_packet_route::link::{BridgeStpState, InfoData, InfoKind, InfoVeth};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan,
    RouteMessageBuilder,
};

use crate::error::Cause;
use crate::linux::announce::announce;
use crate::linux::container_end::{configure, remove_leftover};
use crate::linux::fast_peers::FastPeers;
use crate::linux::fdb::{self, UNKNOWN_MACS};
use crate::linux::link::{gone_is_fine, no_ipv6_address, set_link};
use crate::linux::port_filter::{self, Hooked};
use crate::linux::{anti_spoofing, filter, forwarding};
use crate::model::devices::{CONTAINER_INTERFACE, Link};
use crate::model::intent::Attachment;
use crate::model::state::{BridgeSettings, PortFilter, PortSettings, SleeveIdentity, TunnelRoute};
use crate::peer::manager::PeerManager;
use crate::plan::step::{EntryStep, FilterStep, Step, WireGuardStep};
use crate::sys::netlink::{LAST_METRIC, Namespace, Netlink, Put};

/// Executes the steps of one pass.
pub(crate) struct Executor<'a> {
    netlink: &'a Netlink,
    paths: &'a PeerManager,
    fast_peers: &'a FastPeers,
    /// The interface indexes that were looked up in this pass.
    indexes: BTreeMap<Link, u32>,
}

impl<'a> Executor<'a> {
    pub(crate) fn new(
        netlink: &'a Netlink,
        paths: &'a PeerManager,
        fast_peers: &'a FastPeers,
    ) -> Self {
        Self {
            netlink,
            paths,
            fast_peers,
            indexes: BTreeMap::new(),
        }
    }

    /// Executes one step, or consecutive entries; returns a result for each.
    pub(crate) async fn apply_all(&mut self, steps: &[&Step]) -> Vec<Result<(), Cause>> {
        let entry = |step: &&Step| match step {
            Step::Entry(entry) => Some(*entry),
            _ => None,
        };
        if let Some(entries) = steps.iter().map(entry).collect::<Option<Vec<_>>>() {
            return self.apply_entries(&entries).await;
        }
        let mut results = Vec::new();
        for step in steps {
            results.push(self.apply(step).await);
        }
        results
    }

    /// Executes one step.
    async fn apply(&mut self, step: &Step) -> Result<(), Cause> {
        match step {
            Step::Filter(step) => self.apply_filter(step).await,
            Step::InstallAntiSpoofing(senders) => anti_spoofing::install(senders).await,
            Step::ChangeAntiSpoofing { old, new } => anti_spoofing::change(old, new).await,
            Step::RemoveAntiSpoofing => anti_spoofing::remove().await,
            Step::SetPortFilters(filters) => self.set_port_filters(filters).await,
            Step::DiscardPortFilters(ports) => port_filter::discard_all(ports).await,
            Step::RemovePortFilters => port_filter::remove().await,
            Step::AllowForwarding(candidate) => forwarding::allow(*candidate).await,
            Step::ForgetForwarding(candidate) => forwarding::forget(*candidate).await,
            Step::CreateBridge { mac, mtu } => self.create_bridge(*mac, *mtu).await,
            Step::SetBridgeMac(mac) => self.set_bridge_mac(*mac).await,
            Step::SetBridge(settings) => self.set_bridge(*settings).await,
            Step::AddAddress(link, address) => self.add_address(*link, *address).await,
            Step::RemoveAddress(link, address) => self.remove_address(*link, *address).await,
            Step::CreateVxlan { vni, mtu } => self.create_vxlan(*vni, *mtu).await,
            Step::SetVxlan(port) => self.set_port(Link::Vxlan, *port).await,
            Step::StartSleeve(identity) => self.start_sleeve(*identity),
            Step::StopSleeve => {
                self.indexes.remove(&Link::Tap);
                self.paths.stop_sleeve();
                Ok(())
            }
            Step::SetTap(port) => self.set_port(Link::Tap, *port).await,
            Step::SetTable(table) => {
                self.paths.set_table(table);
                Ok(())
            }
            Step::WireGuard(step) => self.apply_wireguard(step).await,
            Step::ListenForPathProbes(identity) => {
                let index = self.index(Link::Bridge).await?;
                self.paths.listen_for_path_probes(*identity, index)
            }
            Step::DeleteLink(link) => self.delete_link(*link).await,
            Step::Attach { placement, to, mtu } => self.attach(*placement, to, *mtu).await,
            Step::SetHostEnd {
                placement,
                mac,
                port,
            } => self.set_host_end(*placement, *mac, *port).await,
            Step::Configure {
                to, address, mtu, ..
            } => configure(to, *address, *mtu).await,
            Step::Announce(holders) => announce(self.index(Link::Bridge).await?, holders),
            Step::Entry(step) => self.apply_entries(&[*step]).await.into_iter().collect(),
        }
    }

    async fn apply_filter(&self, step: &FilterStep) -> Result<(), Cause> {
        match step {
            FilterStep::Install(whole) => {
                filter::install(whole).await?;
                // The live table may exist without them.
                self.fast_peers.allow(&whole.peers).await
            }
            FilterStep::SetEgressPolicy { old, new } => filter::egress(old, new).await,
            FilterStep::SetAccess { old, new } => filter::access(old, new).await,
            FilterStep::AllowPeers(peers) => self.fast_peers.allow(peers).await,
            FilterStep::ForbidPeers(peers) => self.fast_peers.forbid(peers).await,
            FilterStep::Remove => filter::remove().await,
            FilterStep::StartLive(peers) => self.fast_peers.start_live(peers).await,
            FilterStep::StopLive => self.fast_peers.stop_live().await,
        }
    }

    async fn apply_wireguard(&mut self, step: &WireGuardStep) -> Result<(), Cause> {
        match step {
            WireGuardStep::AddRoute(route) => {
                let message = self.tunnel_route(*route).await?;
                let add = self.netlink.handle.route().add(message);
                let add = match route {
                    TunnelRoute::Unreachable(_) => add.replace(),
                    // A network that the host has there is not ours to replace.
                    TunnelRoute::Through(_) => add,
                };
                Ok(add.execute().await?)
            }
            WireGuardStep::DeleteRoute(route) => {
                let route = self.tunnel_route(*route).await?;
                let deleted = self.netlink.handle.route().del(route).execute().await;
                gone_is_fine(deleted.map_err(Cause::from))
            }
            WireGuardStep::CreateWireGuard { mtu } => {
                self.indexes.remove(&Link::WireGuard);
                match self.paths.control() {
                    Some(control) => control.create_link(self.netlink, *mtu).await,
                    None => Err(Cause::NoInterface(Link::WireGuard.name())),
                }
            }
            WireGuardStep::UpdateWireGuard(update) => self.paths.update(update).await,
            WireGuardStep::SetWireGuard { mtu } => {
                let index = self.index(Link::WireGuard).await?;
                no_ipv6_address(self.netlink, index).await?;
                set_link(self.netlink, index, *mtu).await
            }
            WireGuardStep::ListenForHeartbeats(tunnel_address) => {
                let index = self.index(Link::WireGuard).await?;
                self.paths.listen_for_heartbeats((*tunnel_address, index))
            }
        }
    }

    async fn tunnel_route(&mut self, route: TunnelRoute) -> Result<RouteMessage, Cause> {
        let (TunnelRoute::Unreachable(tunnel_address) | TunnelRoute::Through(tunnel_address)) =
            route;
        let tunnel_address = tunnel_address.network();
        let to = RouteMessageBuilder::<Ipv4Addr>::new();
        let to = to.destination_prefix(tunnel_address.ip(), tunnel_address.prefix());
        Ok(match route {
            TunnelRoute::Unreachable(_) => to
                .kind(RouteType::Unreachable)
                .priority(LAST_METRIC)
                .build(),
            TunnelRoute::Through(_) => to
                .output_interface(self.index(Link::WireGuard).await?)
                .scope(RouteScope::Link)
                .build(),
        })
    }

    async fn apply_entries(&mut self, steps: &[EntryStep]) -> Vec<Result<(), Cause>> {
        let (mut results, mut entries) = (Vec::new(), Vec::new());
        for &step in steps {
            let index = self.index(step.link()).await;
            results.push(index.map(|index| entries.push(entry(step, index))));
        }
        let mut answers = self.netlink.put_entries(entries).await.into_iter();
        for result in results.iter_mut().filter(|result| result.is_ok()) {
            let none = || Err(Cause::Netlink("the kernel did not answer".to_owned()));
            *result = answers.next().unwrap_or_else(none);
        }
        results
    }

    async fn index(&mut self, link: Link) -> Result<u32, Cause> {
        if let Some(&index) = self.indexes.get(&link) {
            return Ok(index);
        }
        let name = link.name();
        let found = self
            .netlink
            .link(&name)
            .await?
            .ok_or(Cause::NoInterface(name))?;
        self.indexes.insert(link, found.header.index);
        Ok(found.header.index)
    }

    async fn create_bridge(&mut self, mac: Mac, mtu: u32) -> Result<(), Cause> {
        let name = Link::Bridge.name();
        let bridge = LinkBridge::new(&name)
            .address(mac.0.to_vec())
            .mtu(mtu)
            .build();
        Ok(self.netlink.handle.link().add(bridge).execute().await?)
    }

    async fn set_bridge_mac(&mut self, mac: Mac) -> Result<(), Cause> {
        let index = self.index(Link::Bridge).await?;
        let bridge = LinkUnspec::new_with_index(index)
            .address(mac.0.to_vec())
            .build();
        Ok(self.netlink.handle.link().set(bridge).execute().await?)
    }

    async fn set_bridge(&mut self, settings: BridgeSettings) -> Result<(), Cause> {
        let index = self.index(Link::Bridge).await?;
        let stp = if settings.stp {
            BridgeStpState::KernelStp
        } else {
            BridgeStpState::Disabled
        };
        // By index alone: kernels before 6.2 take a name beside it for a rename, which they
        // refuse while the device is up.
        let bridge = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
            .index(index)
            .up()
            .stp_state(stp)
            .mcast_snooping(settings.multicast_snooping)
            .build();
        self.netlink.handle.link().change(bridge).execute().await?;
        no_ipv6_address(self.netlink, index).await?;
        set_link(self.netlink, index, settings.mtu).await
    }

    async fn add_address(&mut self, link: Link, address: Ipv4Network) -> Result<(), Cause> {
        let index = self.index(link).await?;
        let addresses = self.netlink.handle.address();
        Ok(addresses
            .add(index, address.ip().into(), address.prefix())
            .execute()
            .await?)
    }

    async fn remove_address(&mut self, link: Link, address: Ipv4Network) -> Result<(), Cause> {
        let index = self.index(link).await?;
        let removed = self.netlink.remove_addresses(index, |it| it == address);
        gone_is_fine(removed.await)
    }

    async fn create_vxlan(&mut self, vni: u32, mtu: u32) -> Result<(), Cause> {
        // No `local` and no lower device: routing decides where a packet leaves, also for
        // tunnel addresses. An outer checksum is wasted work, as the payload has its own
        // (RFC 7348 section 5: it should be zero). No ARP leaves it (`proxy`): a request for
        // an unknown address would go to all peers.
        let vxlan = LinkVxlan::new(&Link::Vxlan.name(), vni)
            .port(VXLAN_PORT)
            .learning(false)
            .proxy(true)
            .udp_csum(false)
            .mtu(mtu)
            .build();
        Ok(self.netlink.handle.link().add(vxlan).execute().await?)
    }

    /// Makes a link a port of the bridge; it comes up only when all is set.
    async fn set_port(&mut self, link: Link, port: PortSettings) -> Result<(), Cause> {
        let bridge = self.index(Link::Bridge).await?;
        let index = self.index(link).await?;
        let links = self.netlink.handle.link();
        let join = LinkUnspec::new_with_index(index).controller(bridge).build();
        links.set(join).execute().await?;
        let flags = LinkBridgePort::new(index)
            .learning(port.learning)
            .flood(port.flood)
            .isolated(port.isolated)
            .locked(port.locked)
            .neigh_suppress(port.neigh_suppress)
            .build();
        links.set_port(flags).execute().await?;
        no_ipv6_address(self.netlink, index).await?;
        set_link(self.netlink, index, port.mtu).await
    }

    fn start_sleeve(&mut self, identity: SleeveIdentity) -> Result<(), Cause> {
        self.indexes.remove(&Link::Tap);
        Ok(self.paths.start_sleeve(identity)?)
    }

    async fn delete_link(&mut self, link: Link) -> Result<(), Cause> {
        self.indexes.remove(&link);
        match link {
            Link::WireGuard => self.paths.forget_wireguard(),
            Link::Bridge => self.paths.close_path_probes(),
            _ => {}
        }
        let Some(found) = self.netlink.link(&link.name()).await? else {
            return Ok(());
        };
        let links = self.netlink.handle.link();
        gone_is_fine(
            links
                .del(found.header.index)
                .execute()
                .await
                .map_err(Cause::from),
        )
    }

    async fn attach(
        &mut self,
        placement: PlacementId,
        to: &Attachment,
        mtu: u32,
    ) -> Result<(), Cause> {
        let namespace = Namespace::of(to.process)?;
        remove_leftover(&namespace).await?;
        // The far end is made inside the container under its final name:
        // nothing is moved or renamed.
        let far = LinkMessageBuilder::<LinkUnspec>::new()
            .name(CONTAINER_INTERFACE)
            .address(to.mac.0.to_vec())
            .mtu(mtu)
            .setns_by_fd(namespace.fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(&Link::HostEnd(placement).name(), "")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .mtu(mtu)
            .build();
        Ok(self.netlink.handle.link().add(pair).execute().await?)
    }

    /// Sets them at once, or one by one if one of the ports has gone meanwhile.
    async fn set_port_filters(
        &mut self,
        filters: &BTreeMap<PlacementId, PortFilter>,
    ) -> Result<(), Cause> {
        let (mut ports, mut result) = (BTreeMap::new(), Ok(()));
        for (&placement, &filter) in filters {
            match self.index(Link::HostEnd(placement)).await {
                Ok(index) => drop(ports.insert(placement, Hooked { index, filter })),
                Err(cause) => result = Err(cause),
            }
        }
        match port_filter::set(&ports).await {
            Ok(()) => return result,
            Err(cause) if ports.len() < 2 => return Err(cause),
            Err(_) => {}
        }
        for port in ports {
            if let Err(cause) = port_filter::set(&BTreeMap::from([port])).await {
                result = Err(cause);
            }
        }
        result
    }

    async fn set_host_end(
        &mut self,
        placement: PlacementId,
        mac: Mac,
        port: PortSettings,
    ) -> Result<(), Cause> {
        let link = Link::HostEnd(placement);
        self.set_port(link, port).await?;
        let entry = fdb::port_entry(self.index(link).await?, mac);
        self.netlink.put_entry(entry, Put::Replace).await
    }
}

/// The entry of a step, on the link with this index, and what to do with it.
fn entry(step: EntryStep, index: u32) -> (NeighbourMessage, Put) {
    let all = |to| fdb::tunnel_entry(index, UNKNOWN_MACS, Some(to));
    match step {
        EntryStep::SetNeighbour(ip, mac) => (fdb::neighbour(index, ip, Some(mac)), Put::Replace),
        EntryStep::DeleteNeighbour(ip) => (fdb::neighbour(index, ip, None), Put::Delete),
        EntryStep::SetVxlanEntry(mac, to) => {
            (fdb::tunnel_entry(index, mac, Some(to)), Put::Replace)
        }
        EntryStep::DeleteVxlanEntry(mac) => (fdb::tunnel_entry(index, mac, None), Put::Delete),
        EntryStep::AddFlood(to) => (all(to), Put::Append),
        EntryStep::DeleteFlood(to) => (all(to), Put::Delete),
        EntryStep::SetBridgeEntry(mac, _) => (fdb::port_entry(index, mac), Put::Replace),
        EntryStep::DeleteBridgeEntry(mac, _) => (fdb::port_entry(index, mac), Put::Delete),
    }
}
