//! The host's kernel: what of ours it has, and how one step changes it.
//!
//! [`observe`] reads and changes nothing; [`apply`] carries out and decides nothing.
//! Beside them stand the parts of the kernel that need words of their own: the packet
//! filter ([`filter`], [`anti_spoofing`], [`forwarding`], all through [`nft`] or
//! `iptables`), forwarding tables ([`fdb`]), and counters ([`drops`]).

pub(crate) mod announce;
pub(crate) mod anti_spoofing;
pub(crate) mod apply;
pub(crate) mod drops;
pub(crate) mod fdb;
pub(crate) mod filter;
pub(crate) mod forwarding;
pub(crate) mod nft;
pub(crate) mod observe;
