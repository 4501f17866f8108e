//! The host's kernel: what of ours it has, and how one step changes it.
//!
//! [`observe`] reads and changes nothing; [`apply`] carries out and decides nothing.
//! Beside them stand the parts of the kernel that need words of their own: the packet
//! filter ([`filter`], [`anti_spoofing`], [`port_filter`], [`forwarding`], all through [`nft`] or
//! `iptables`; and without a program [`fast_peers`] and [`filter_events`]), forwarding tables ([`fdb`]), and counters ([`drops`]).

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
