//! Who has the device. The kernel is asked over netlink; a program in user space, which
//! stands in for it where it has none, over a socket. What they are asked is the same.

use std::path::Path;

use super::device::{Message, Observed};
use super::kernel::{Kernel, create_link};
use super::uapi::Socket;
use crate::error::Cause;
use crate::model::devices::WIREGUARD;
use crate::sys::netlink::Netlink;

/// The way to the device's configuration.
pub(crate) enum Control {
    Kernel(Kernel),
    UserSpace(Socket),
}

impl Control {
    /// The kernel's, in the namespace of the calling thread; must be called inside a tokio
    /// runtime.
    pub(crate) fn kernel() -> Result<Self, Cause> {
        let kernel = Kernel::here().map_err(Cause::io("generic netlink"))?;
        Ok(Self::Kernel(kernel))
    }

    /// A program's, at its socket.
    pub(crate) fn user_space(socket: &Path) -> Self {
        Self::UserSpace(Socket(socket.to_owned()))
    }

    /// Reads the device; None if there is none, or only something else of its name.
    pub(crate) async fn observe(&self) -> Result<Option<Observed>, Cause> {
        match self {
            Self::Kernel(kernel) => match kernel.observe().await {
                Err(Cause::Kernel(e)) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
                seen => seen,
            },
            Self::UserSpace(socket) => socket.observe().await,
        }
    }

    /// Makes the changes of one message.
    pub(crate) async fn change(&self, message: &Message) -> Result<(), Cause> {
        match self {
            Self::Kernel(kernel) => kernel.change(message).await,
            Self::UserSpace(socket) => socket.change(message).await,
        }
    }

    /// Makes the link; it stays down. A program in user space makes its own.
    pub(crate) async fn create_link(&self, netlink: &Netlink, mtu: u32) -> Result<(), Cause> {
        match self {
            Self::Kernel(_) => create_link(netlink, mtu).await,
            Self::UserSpace(_) => Err(Cause::NoInterface(WIREGUARD.to_owned())),
        }
    }
}
