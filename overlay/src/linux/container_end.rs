//! The container's end of a veth pair, set up from inside its namespace.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netlink_packet_route::route::RouteScope;
use rtnetlink::RouteMessageBuilder;

use crate::error::Cause;
use crate::linux::link::{gone_is_fine, no_ipv6_address, set_link};
use crate::model::devices::CONTAINER_INTERFACE;
use crate::model::intent::Attachment;
use crate::sys::netlink::{MULTICAST, Namespace, Netlink};

/// Removes another interface that has the name.
pub(crate) async fn remove_leftover(namespace: &Namespace) -> Result<(), Cause> {
    let inside = Netlink::inside(namespace).await?;
    let Some(link) = inside.link(CONTAINER_INTERFACE).await? else {
        return Ok(());
    };
    let deleted = inside.handle.link().del(link.header.index).execute().await;
    gone_is_fine(deleted.map_err(Cause::from))
}

/// Sets up the container's end.
pub(crate) async fn configure(
    to: &Attachment,
    address: Ipv4Network,
    mtu: u32,
) -> Result<(), Cause> {
    let inside = Netlink::inside(&Namespace::of(to.process)?).await?;
    let missing = || Cause::NoInterface(CONTAINER_INTERFACE.to_owned());
    let index = inside
        .link(CONTAINER_INTERFACE)
        .await?
        .ok_or_else(missing)?
        .header
        .index;
    inside.remove_addresses(index, |it| it != address).await?;
    no_ipv6_address(&inside, index).await?;
    set_link(&inside, index, mtu).await?;
    let (group, prefix) = MULTICAST;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(group, prefix)
        .output_interface(index)
        .scope(RouteScope::Link)
        .build();
    inside.handle.route().add(route).replace().execute().await?;
    let addresses = inside.handle.address();
    Ok(addresses
        .add(index, address.ip().into(), address.prefix())
        .replace()
        .execute()
        .await?)
}
