//! The names of the overlay's interfaces.

use kontena_schema::ids::PlacementId;

pub use crate::wireguard::WIREGUARD;

/// The bridge.
pub const BRIDGE: &str = "kontena";
/// The VXLAN device.
pub const VXLAN: &str = "kontena-vx";
/// The sleeve's TAP device.
pub const TAP: &str = "kontena-tap";
/// A container's overlay interface.
pub const CONTAINER_INTERFACE: &str = "ethwe";

/// A link of the overlay in the host's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    Bridge,
    Vxlan,
    Tap,
    WireGuard,
    HostEnd(PlacementId),
}

/// The prefix of host ends.
const HOST_END_PREFIX: &str = "vethwe";
/// Hexadecimal digits that fit behind the prefix into an interface's name
/// (15 bytes, `IFNAMSIZ` less the final zero).
const HOST_END_DIGITS: usize = 9;

impl Link {
    /// The interface's name. Placement ids are counted from 1 by a database sequence; the 2^36
    /// that fit into a name are never reached.
    pub(crate) fn name(self) -> String {
        match self {
            Link::Bridge => BRIDGE.to_owned(),
            Link::Vxlan => VXLAN.to_owned(),
            Link::Tap => TAP.to_owned(),
            Link::WireGuard => WIREGUARD.to_owned(),
            Link::HostEnd(placement) => format!("{HOST_END_PREFIX}{:x}", placement.0),
        }
    }

    /// The link with this name. Others use names with our prefix (`vethwe-bridge` of Weave), so
    /// the whole name must match.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            BRIDGE => return Some(Link::Bridge),
            VXLAN => return Some(Link::Vxlan),
            TAP => return Some(Link::Tap),
            WIREGUARD => return Some(Link::WireGuard),
            _ => {}
        }
        let digits = name.strip_prefix(HOST_END_PREFIX)?;
        let placement = i64::from_str_radix(digits, 16).ok()?;
        let link = Link::HostEnd(PlacementId(placement));
        (digits.len() <= HOST_END_DIGITS && link.name() == name).then_some(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_fit_and_can_be_parsed() {
        for link in [Link::Bridge, Link::Vxlan, Link::Tap, Link::WireGuard]
            .into_iter()
            .chain([1, 0x1f, (1 << 36) - 1].map(|id| Link::HostEnd(PlacementId(id))))
        {
            assert!(link.name().len() <= 15, "{}", link.name());
            assert_eq!(Link::named(&link.name()), Some(link));
        }
    }

    #[test]
    fn names_of_foreign_links_are_ignored() {
        for name in [
            "vethwe",
            "vethwe-bridge",
            "vethwepl12",
            "vethwe01",
            "vethwe+1",
            "vethweA",
            "eth0",
        ] {
            assert_eq!(Link::named(name), None, "{name}");
        }
    }
}
