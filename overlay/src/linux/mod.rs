//! The host's kernel: what it has of ours, and how one step changes that.
//!
//! [`observe`] reads and changes nothing; [`apply`] executes and decides nothing. The other
//! modules each cover a part of the kernel: the packet filter ([`filter`], [`anti_spoofing`],
//! [`port_filter`], [`forwarding`], all through [`nft`] or `iptables`; all three
//! tables in [`tables`]; without a program, and through the [`ruleset`]'s one socket,
//! [`fast_peers`] with the sets of [`access`]), forwarding tables ([`fdb`]),
//! counters ([`drops`]), and what is removed by others ([`removals`], [`removed_devices`]).

mod access;
pub(crate) mod announce;
pub(crate) mod anti_spoofing;
pub(crate) mod apply;
mod container_end;
pub(crate) mod drops;
pub(crate) mod fast_peers;
pub(crate) mod fdb;
pub(crate) mod filter;
mod filter_frame;
pub(crate) mod forwarding;
mod link;
mod live_table;
pub(crate) mod nft;
pub(crate) mod observe;
pub(crate) mod port_filter;
pub(crate) mod removals;
pub(crate) mod removed_devices;
pub(crate) mod ruleset;
pub(crate) mod tables;
