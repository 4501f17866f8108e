//! The host's kernel: what it has of ours, and how one step changes that.
//!
//! [`observe`] reads and changes nothing; [`apply`] executes and decides nothing. The other
//! modules each cover a part of the kernel: the packet filter ([`filter`], [`anti_spoofing`],
//! [`port_filter`], [`forwarding`], all through [`nft`] or `iptables`; and without a program
//! [`fast_peers`] and [`filter_events`]), forwarding tables ([`fdb`]), and counters ([`drops`]).

pub(crate) mod announce;
pub(crate) mod anti_spoofing;
pub(crate) mod apply;
mod container_end;
pub(crate) mod drops;
pub(crate) mod fast_peers;
pub(crate) mod fdb;
pub(crate) mod filter;
pub(crate) mod filter_events;
mod filter_frame;
pub(crate) mod forwarding;
mod link;
mod live_table;
pub(crate) mod nft;
pub(crate) mod observe;
pub(crate) mod port_filter;
pub(crate) mod tables;
