//! A netlink connection to one network namespace, and the few requests that the
//! crate below us does not offer.
//!
//! A netlink socket stays in the namespace in which it was opened. A container's
//! is therefore reached from a thread that enters the namespace, opens the
//! socket and ends; no thread of the runtime ever changes its own. The
//! connection must not be kept: it would keep a dead container's namespace, and
//! so its interface, alive.

use std::collections::BTreeSet;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use futures_util::{Stream, StreamExt, TryStreamExt};
use ipnetwork::Ipv4Network;
use kontena_task::{Task, spawn};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;

use crate::error::Cause;
use crate::process::Process;

/// A connection to one network namespace.
pub(crate) struct Netlink {
    pub(crate) handle: Handle,
    _connection: Task,
}

/// What becomes of a neighbour or FDB entry.
#[derive(Clone, Copy)]
pub(crate) enum Put {
    /// It takes the place of the one that is there.
    Replace,
    /// It is added to the targets of the same MAC.
    Append,
    /// It goes, if it is there.
    Delete,
}

/// Requests whose answers are waited for together; the kernel's buffer for answers holds
/// many more.
const TOGETHER: usize = 64;

impl Netlink {
    /// A connection to the namespace of the calling thread.
    pub(crate) fn here() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self::spawned(connection, handle))
    }

    /// A connection to another namespace.
    pub(crate) async fn inside(namespace: &Namespace) -> Result<Self, Cause> {
        let (connection, handle, _) = namespace.inside(rtnetlink::new_connection).await?;
        Ok(Self::spawned(connection, handle))
    }

    fn spawned(connection: impl Future<Output = ()> + Send + 'static, handle: Handle) -> Self {
        Self {
            handle,
            _connection: spawn("netlink", connection),
        }
    }

    pub(crate) async fn links(&self) -> Result<Vec<LinkMessage>, Cause> {
        Ok(self.handle.link().get().execute().try_collect().await?)
    }

    /// The link of this name, if there is one.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<LinkMessage>, Cause> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match found.try_next().await.map_err(Cause::from) {
            Err(cause) if cause.is_missing() => Ok(None),
            other => other,
        }
    }

    pub(crate) async fn neighbours(
        &self,
        family: AddressFamily,
    ) -> Result<Vec<NeighbourMessage>, Cause> {
        let request = self.handle.neighbours().get().set_address_family(family);
        Ok(request.execute().try_collect().await?)
    }

    /// The IPv4 addresses of a link, with their prefixes.
    pub(crate) async fn addresses(&self, index: u32) -> Result<BTreeSet<Ipv4Network>, Cause> {
        let messages = self.address_messages(index).await?;
        Ok(messages.iter().filter_map(address_of).collect())
    }

    /// The IPv4 routes of all tables.
    pub(crate) async fn routes(&self) -> Result<Vec<RouteMessage>, Cause> {
        let mut all = RouteMessage::default();
        all.header.address_family = AddressFamily::Inet;
        let routes = self.handle.route().get(all).execute();
        Ok(routes.try_collect().await?)
    }

    /// Removes these IPv4 addresses of a link, with one listing: a container may give itself
    /// thousands.
    pub(crate) async fn remove_addresses(
        &self,
        index: u32,
        these: impl Fn(Ipv4Network) -> bool,
    ) -> Result<(), Cause> {
        for message in self.address_messages(index).await? {
            if address_of(&message).is_some_and(&these) {
                let removed = self.handle.address().del(message).execute().await;
                match removed.map_err(Cause::from) {
                    // It went with the first one of its subnet.
                    Err(cause) if cause.is_missing() => {}
                    removed => removed?,
                }
            }
        }
        Ok(())
    }

    async fn address_messages(&self, index: u32) -> Result<Vec<AddressMessage>, Cause> {
        let all = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute();
        let ipv4 = |message: &AddressMessage| message.header.family == AddressFamily::Inet;
        let messages: Vec<_> = all.try_collect().await?;
        Ok(messages.into_iter().filter(ipv4).collect())
    }

    /// Changes neighbour and FDB entries in this order, and answers for each. The crate's
    /// own request cannot append, and would wait for each answer: a grid has thousands.
    pub(crate) async fn put_entries(
        &self,
        entries: Vec<(NeighbourMessage, Put)>,
    ) -> Vec<Result<(), Cause>> {
        let mut results = Vec::with_capacity(entries.len());
        let mut entries = entries.into_iter();
        loop {
            let some = entries.by_ref().take(TOGETHER);
            let asked: Vec<_> = some
                .map(|(entry, put)| (self.handle.clone().request(request(entry, put)), put))
                .collect();
            if asked.is_empty() {
                return results;
            }
            for (answers, put) in asked {
                results.push(match answers {
                    Ok(answers) => done(answers, put).await,
                    Err(error) => Err(error.into()),
                });
            }
        }
    }

    /// Changes one.
    pub(crate) async fn put_entry(&self, entry: NeighbourMessage, put: Put) -> Result<(), Cause> {
        done(self.handle.clone().request(request(entry, put))?, put).await
    }
}

fn request(entry: NeighbourMessage, put: Put) -> NetlinkMessage<RouteNetlinkMessage> {
    let (message, flags) = match put {
        Put::Replace => (
            RouteNetlinkMessage::NewNeighbour(entry),
            NLM_F_CREATE | NLM_F_REPLACE,
        ),
        Put::Append => (
            RouteNetlinkMessage::NewNeighbour(entry),
            NLM_F_CREATE | NLM_F_APPEND,
        ),
        Put::Delete => (RouteNetlinkMessage::DelNeighbour(entry), 0),
    };
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    request
}

async fn done(
    mut answers: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
    put: Put,
) -> Result<(), Cause> {
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload {
            return match Cause::from(error) {
                cause if cause.is_missing() && matches!(put, Put::Delete) => Ok(()),
                cause => Err(cause),
            };
        }
    }
    Ok(())
}

fn address_of(message: &AddressMessage) -> Option<Ipv4Network> {
    // On a link that is no point-to-point link, `Local` is the address.
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(std::net::IpAddr::V4(ip)) => {
                Ipv4Network::new(*ip, message.header.prefix_len).ok()
            }
            _ => None,
        })
}

/// The name of a link.
pub(crate) fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
}

/// A network namespace.
pub(crate) struct Namespace {
    file: File,
    /// Tells namespaces apart.
    pub(crate) id: (u64, u64),
}

impl Namespace {
    /// The namespace of the calling thread.
    pub(crate) fn here() -> Result<Self, Cause> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The namespace of a process, and of no other that has its number by now.
    pub(crate) fn of(process: Process) -> Result<Self, Cause> {
        let path = format!("/proc/{}/ns/net", process.pid);
        let namespace = Self::open(&path)?;
        // Whoever has the number after the file was opened had it then.
        match Process::of(process.pid).map_err(Cause::io(path))? {
            now if now == process => Ok(namespace),
            _ => Err(Cause::AnotherProcess(process.pid)),
        }
    }

    fn open(path: &str) -> Result<Self, Cause> {
        let file = File::open(path).map_err(Cause::io(path))?;
        let metadata = file.metadata().map_err(Cause::io(path))?;
        Ok(Self {
            file,
            id: (metadata.dev(), metadata.ino()),
        })
    }

    /// Runs a function on a thread inside, which ends with it; for opening what stays in
    /// the namespace in which it was opened.
    pub(crate) async fn inside<T: Send + 'static>(
        &self,
        open: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Cause> {
        let file = self.file.try_clone().map_err(Cause::io("dup"))?;
        let runtime = tokio::runtime::Handle::current();
        let (give, take) = tokio::sync::oneshot::channel();
        let inside = move || {
            let _runtime = runtime.enter();
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            open()
        };
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || give.send(inside()).map_err(drop))
            .map_err(Cause::io("thread"))?;
        take.await
            .map_err(|_| Cause::Netlink("the thread in the namespace ended".to_owned()))?
            .map_err(Cause::io("in the namespace"))
    }

    /// The open file, for messages that name the namespace.
    pub(crate) fn fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.file)
    }
}

/// The metric of a route that counts only where there is no other: beyond what programs
/// give theirs.
pub(crate) const LAST_METRIC: u32 = 0xff00_0400;

/// The route of multicast: what a container sends to a group goes to the
/// overlay, as the original had it.
pub(crate) const MULTICAST: (Ipv4Addr, u8) = (Ipv4Addr::new(224, 0, 0, 0), 4);
