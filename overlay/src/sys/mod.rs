//! Access to the operating system that several parts use: netlink sockets and network
//! namespaces, packet sockets, and the programs that own the packet filter's formats.

pub(crate) mod netlink;
pub(crate) mod nfnetlink;
pub(crate) mod notifications;
pub(crate) mod packet;
pub(crate) mod priority;
pub(crate) mod program;
pub(crate) mod turn;
