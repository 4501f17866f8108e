//! Operations on links of every kind.

use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use rtnetlink::LinkUnspec;

use crate::error::Cause;
use crate::sys::netlink::Netlink;

/// Sets a link's MTU, and brings it up.
pub(crate) async fn set_link(netlink: &Netlink, index: u32, mtu: u32) -> Result<(), Cause> {
    let links = netlink.handle.link();
    links
        .set(LinkUnspec::new_with_index(index).mtu(mtu).build())
        .execute()
        .await?;
    Ok(links
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await?)
}

/// Our links, also in containers, get no IPv6 link-local address: they would chatter over
/// the VXLAN device. Where the kernel has no IPv6 there is nothing to do.
pub(crate) async fn no_ipv6_address(netlink: &Netlink, index: u32) -> Result<(), Cause> {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]);
    let link = LinkUnspec::new_with_index(index)
        .append_extra_attribute(spec)
        .build();
    match netlink
        .handle
        .link()
        .set(link)
        .execute()
        .await
        .map_err(Cause::from)
    {
        Err(Cause::Kernel(e)) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
        other => other,
    }
}

/// What is to be removed may be gone already.
pub(crate) fn gone_is_fine(result: Result<(), Cause>) -> Result<(), Cause> {
    match result {
        Err(cause) if cause.is_missing() => Ok(()),
        other => other,
    }
}
