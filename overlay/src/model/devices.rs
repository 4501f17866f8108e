//! The names of the interfaces that belong to the overlay.

use kontena_schema::ids::PlacementId;

/// The name of the bridge that carries the overlay.
pub const BRIDGE: &str = "kontena";
/// The name of the VXLAN device.
pub const VXLAN: &str = "kontena-vx";
/// The name of the sleeve's device.
pub const TAP: &str = "kontena-tap";
/// The name of the WireGuard device.
pub const WIREGUARD: &str = "kontena-wg";
/// The name of a container's overlay interface.
pub const CONTAINER_INTERFACE: &str = "ethwe";

/// A link of ours in the host's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    Bridge,
    Vxlan,
    Tap,
    WireGuard,
    HostEnd(PlacementId),
}

/// What the names of host ends begin with.
const HOST_END_PREFIX: &str = "vethwe";
/// Hexadecimal digits that fit behind the prefix into an interface's name
/// (15 bytes, `IFNAMSIZ` less the final zero).
const HOST_END_DIGITS: usize = 9;

impl Link {
    /// The interface's name. Placements are counted from 1 in a database's
    /// sequence; the 2^36 that fit into a name are not reached.
    pub(crate) fn name(self) -> String {
        match self {
            Link::Bridge => BRIDGE.to_owned(),
            Link::Vxlan => VXLAN.to_owned(),
            Link::Tap => TAP.to_owned(),
            Link::WireGuard => WIREGUARD.to_owned(),
            Link::HostEnd(placement) => format!("{HOST_END_PREFIX}{:x}", placement.0),
        }
    }

    /// The link of ours that has this name. Others may use names with our
    /// prefix (`vethwe-bridge` of Weave), so all of the name must fit.
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
    fn names_of_links_fit_and_lead_back_to_them() {
        for link in [Link::Bridge, Link::Vxlan, Link::Tap, Link::WireGuard]
            .into_iter()
            .chain([1, 0x1f, (1 << 36) - 1].map(|id| Link::HostEnd(PlacementId(id))))
        {
            assert!(link.name().len() <= 15, "{}", link.name());
            assert_eq!(Link::named(&link.name()), Some(link));
        }
    }

    #[test]
    fn names_of_others_are_left_alone() {
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
