//! What was dropped, and why.

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

        /// The same, while it is counted.
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
    /// From the bridge: it is not what its header says, or too long.
    malformed_out,
    /// From the bridge: no peer has the target's MAC.
    unknown_target,
    /// From the bridge: ARP, what has a VLAN tag and may be ARP, or IPv6's neighbour
    /// solicitation. Who has an address is answered on the host, or not at all.
    arp_out,
    /// The underlay did not take it.
    not_sent,
    /// From the underlay: no message of WireGuard, or not from a peer.
    not_authenticated,
    /// From the underlay: encrypted by a peer, but not what it may send: no VXLAN of
    /// this grid, or an encapsulation with addresses of others.
    wrong_encapsulation,
    /// From the underlay: the table does not name that peer for the source MAC.
    wrong_sender,
    /// From the underlay: ARP, or what has a VLAN tag. No host sends it to another.
    arp_in,
    /// The bridge did not take it.
    not_delivered,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
