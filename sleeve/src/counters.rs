//! Counters of dropped packets, by reason.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! drops {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How many packets or frames were dropped since the start, by reason.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Drops { $($(#[$doc])* pub $name: u64,)* }

        impl Drops {
            /// Each counter with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        /// The same, as shared counters.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)* }

        impl Counters {
            pub(crate) fn read(&self) -> Drops {
                Drops { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

drops! {
    /// From the bridge: contradicts its own headers, or is too long.
    malformed_out,
    /// From the bridge: no peer owns the destination MAC.
    unknown_target,
    /// From the bridge: ARP, a VLAN tag (behind which there may be ARP), or an IPv6 neighbour
    /// solicitation. Addresses are resolved on the host or not at all.
    arp_out,
    /// The underlay did not accept it.
    not_sent,
    /// From the underlay: not a WireGuard message, or not from a peer.
    not_authenticated,
    /// From the underlay: encrypted by a peer, but not VXLAN of this grid, or with outer
    /// addresses that are not this peer's and ours.
    wrong_encapsulation,
    /// From the underlay: the source MAC belongs to another peer, or to none.
    wrong_sender,
    /// From the underlay: ARP, or a VLAN tag. No host sends those to another.
    arp_in,
    /// The bridge did not accept it.
    not_delivered,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
