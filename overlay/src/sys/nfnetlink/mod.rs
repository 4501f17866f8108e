//! The packet filter's own netlink protocol (`linux/netfilter/nf_tables.h`), as far as it
//! is spoken here without the program `nft`: what is written or asked every few seconds, what
//! a program that hangs must not delay, and what must belong to a socket of this process.
//!
//! A batch is one transaction: all of it is done, or nothing. The kernel carries it out
//! while the message is sent, and may wait for other transactions of the namespace as it
//! does, without a limit; so a batch is sent by a thread that may wait.
//!
//! Absent on purpose: reading rules. What is there is read through `nft`, which knows all
//! of the format.

mod message;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, NetlinkAddr, SockProtocol, recv, sendto};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use message::Attributes;
use message::{
    ANY, FLAG_REQUEST, Message, NFTABLES, attributes, error, message, messages, request, text,
};

use crate::error::Cause;
use crate::sys::notifications::{self, Notifications};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const FLAG_ACK: u16 = 4;
const FLAG_CREATE: u16 = 0x400;
/// `NLM_F_DUMP`.
const FLAG_DUMP: u16 = 0x300;
/// `NFT_MSG_*` of what is asked for, and of the answers.
const NEW_TABLE: u8 = 0;
const GET_TABLE: u16 = 1;
const NEW_ELEMENTS: u8 = 12;
const GET_ELEMENTS: u16 = 13;
const NEW_GENERATION: u8 = 15;
const GET_GENERATION: u16 = 16;
const NEW_OBJECT: u8 = 18;
const GET_OBJECT: u16 = 19;
/// The kernel answers at once, unless another transaction is under way.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often a dump is asked for that transactions interrupt.
const DUMPS_MAX: usize = 5;
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `NFNLGRP_NFTABLES`.
const GROUP: libc::c_int = 7;
/// The most that the kernel puts into one message to us.
const MESSAGE_BYTES_MAX: usize = 1 << 16;

/// What is done to an object, `NFT_MSG_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Operation {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewSet = 9,
    NewElements = 12,
    DeleteElements = 14,
}

/// A transaction.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    messages: Vec<(Operation, Attributes)>,
}

impl Batch {
    /// How many messages it has.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn add(&mut self, operation: Operation, attributes: Attributes) {
        self.messages.push((operation, attributes));
    }

    /// The last message asks for an answer, so that there is one to every batch.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        message(&mut bytes, (BATCH_BEGIN, FLAG_REQUEST), (0, NFTABLES), &[]);
        for (at, (operation, attributes)) in self.messages.iter().enumerate() {
            let ack = if at + 1 == self.messages.len() {
                FLAG_ACK
            } else {
                0
            };
            let kind = (NFTABLES << 8) | *operation as u16;
            let flags = FLAG_REQUEST | FLAG_CREATE | ack;
            message(&mut bytes, (kind, flags), (INET, 0), &attributes.0);
        }
        message(&mut bytes, (BATCH_END, FLAG_REQUEST), (0, NFTABLES), &[]);
        bytes
    }
}

/// A socket for batches and questions. A table that is made through it with the flag `owner`
/// is this socket's: it goes with it, and nobody else can change it.
pub(crate) struct Nftables(OwnedFd);

impl Nftables {
    /// A socket in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        notifications::socket(SockProtocol::NetlinkNetFilter).map(Self)
    }

    /// Carries a batch out. It blocks for as long as the kernel does.
    pub(crate) fn send(&self, batch: &Batch) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut codes = Vec::new();
        self.ask(&batch.encode(), |answer| codes.extend(error(answer)))?;
        match codes.iter().find(|code| **code != 0).or(codes.first()) {
            Some(0) => Ok(()),
            Some(&code) => Err(io::Error::from_raw_os_error(code)),
            None => Err(no_answer()),
        }
    }

    /// The number of the ruleset's generation: each transaction of the namespace, whoever
    /// carries it out, adds one. The kernel waits for nobody as it answers.
    pub(crate) fn generation(&self) -> io::Result<u32> {
        const NUMBER: u16 = 1;
        let mut generation = None;
        let request = request((GET_GENERATION, 0), ANY, &Attributes::default());
        self.ask(&request, |answer| {
            if answer.operation() == Some(NEW_GENERATION) {
                let number = answer.attributes().find(|(kind, _)| *kind == NUMBER);
                generation = number.and_then(|(_, value)| value.try_into().ok());
            }
        })?;
        generation.map(u32::from_be_bytes).ok_or_else(no_answer)
    }

    /// The tables of all families, each with its family's number.
    pub(crate) fn tables(&self) -> io::Result<BTreeSet<(u8, String)>> {
        let request = request((GET_TABLE, FLAG_DUMP), ANY, &Attributes::default());
        self.dump(&request, |all: &mut BTreeSet<_>, answer| {
            all.extend(present_table(answer));
        })
    }

    /// How many packets the counters of the tables of this name counted since they were
    /// written, by name.
    pub(crate) fn counters(&self, table: &str) -> io::Result<BTreeMap<String, u64>> {
        const TABLE: u16 = 1;
        const KIND: u16 = 3;
        const COUNTER: u32 = 1;
        let which = Attributes::default().text(TABLE, table);
        let which = which.number(KIND, COUNTER);
        let request = request((GET_OBJECT, FLAG_DUMP), ANY, &which);
        self.dump(&request, |counters: &mut BTreeMap<_, _>, answer| {
            counters.extend(counter(answer).filter(|(of, ..)| of == table).map(named));
        })
    }

    /// The elements of a set in a table of ours that have not expired.
    pub(crate) fn elements(&self, table: &str, set: &str) -> io::Result<Vec<Vec<u8>>> {
        const TABLE: u16 = 1;
        const SET: u16 = 2;
        let which = Attributes::default().text(TABLE, table).text(SET, set);
        let request = request((GET_ELEMENTS, FLAG_DUMP), INET, &which);
        self.dump(&request, |all: &mut Vec<_>, answer| {
            all.extend(elements(answer));
        })
    }

    /// Asks for everything of a kind, again where a transaction interrupts the answer.
    fn dump<T: Default>(
        &self,
        request: &[u8],
        mut take: impl FnMut(&mut T, Message<'_>),
    ) -> io::Result<T> {
        for _ in 0..DUMPS_MAX {
            let mut all = T::default();
            let (mut ended, mut interrupted) = (None, false);
            self.ask(request, |answer| {
                interrupted |= answer.is_interrupted();
                ended = ended.or(error(answer)).or(answer.end());
                take(&mut all, answer);
            })?;
            match ended {
                Some(0) if interrupted => {}
                Some(0) => return Ok(all),
                Some(code) => return Err(io::Error::from_raw_os_error(code)),
                None => return Err(no_answer()),
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// Sends messages and reads the answers. The kernel answers while it takes them, and
    /// the rest of a long answer as the socket is read.
    fn ask(&self, request: &[u8], mut take: impl FnMut(Message<'_>)) -> io::Result<()> {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        // The rest of an earlier answer, or that some of it was lost.
        while !matches!(self.read(&mut buffer), Ok(None)) {}
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), request, &kernel, MsgFlags::empty())?;
        while let Some(length) = self.read(&mut buffer)? {
            messages(&buffer[..length]).for_each(&mut take);
        }
        Ok(())
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(Some(length)),
            Err(nix::errno::Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Uses a socket in a thread of this runtime that may wait, one at a time. The runtime's
/// also is who waits for its turn: one that got it and no processor keeps it from all others.
pub(crate) async fn in_thread<S: Send + 'static, T: Send + 'static>(
    runtime: &Handle,
    socket: &Arc<Mutex<S>>,
    used: impl FnOnce(&mut S) -> io::Result<T> + Send + 'static,
) -> Result<T, Cause> {
    let late = |_| Cause::Kernel(io::ErrorKind::TimedOut.into());
    let socket = Arc::clone(socket);
    let done = async move {
        let mut socket = socket.lock_owned().await;
        spawn_blocking(move || used(&mut socket)).await
    };
    let done = AbortOnDropHandle::new(runtime.spawn(done));
    match timeout(ANSWER_WITHIN, done).await.map_err(late)? {
        Ok(Ok(done)) => done.map_err(Cause::Kernel),
        Ok(Err(failed)) | Err(failed) => Err(Cause::Netlink(failed.to_string())),
    }
}

fn no_answer() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

fn present_table(message: Message<'_>) -> Option<(u8, String)> {
    let (operation, name) = table(message)?;
    let family = message.family()?;
    (operation == NEW_TABLE).then_some((family, name))
}

/// The table, the name and the packets of a counter.
fn counter(message: Message<'_>) -> Option<(String, String, u64)> {
    const TABLE: u16 = 1;
    const NAME: u16 = 2;
    const DATA: u16 = 4;
    const PACKETS: u16 = 2;
    if message.operation() != Some(NEW_OBJECT) {
        return None;
    }
    let (mut table, mut name, mut packets) = (None, None, None);
    for (kind, value) in message.attributes() {
        match kind {
            TABLE => table = Some(text(value)),
            NAME => name = Some(text(value)),
            DATA => packets = attributes(value).find(|(kind, _)| *kind == PACKETS),
            _ => {}
        }
    }
    let packets = packets?.1.try_into().ok()?;
    Some((table?, name?, u64::from_be_bytes(packets)))
}

/// The elements in a message of a set's (`NFTA_SET_ELEM_*`).
fn elements(message: Message<'_>) -> Vec<Vec<u8>> {
    const ELEMENTS: u16 = 3;
    const KEY: u16 = 1;
    const VALUE: u16 = 1;
    if message.operation() != Some(NEW_ELEMENTS) {
        return Vec::new();
    }
    let inside = |bytes, kind| attributes(bytes).find(|(of, _)| *of == kind);
    let key = |(_, element)| {
        let (_, key) = inside(element, KEY)?;
        inside(key, VALUE).map(|(_, value)| value.to_vec())
    };
    let lists = message.attributes().filter(|(kind, _)| *kind == ELEMENTS);
    lists
        .flat_map(|(_, list)| attributes(list).filter_map(key))
        .collect()
}

fn named((_, name, packets): (String, String, u64)) -> (String, u64) {
    (name, packets)
}

/// What each notification is about, as far as it is one of the packet filter.
pub(crate) fn tables(bytes: &[u8]) -> Vec<(u8, String)> {
    messages(bytes).filter_map(table).collect()
}

/// What a notification is about: each kind of object has its table's name first.
fn table(message: Message<'_>) -> Option<(u8, String)> {
    const NAME: u16 = 1;
    let operation = message.operation()?;
    let (_, name) = message.attributes().find(|(kind, _)| *kind == NAME)?;
    Some((operation, text(name)))
}

/// Notifications of what is done to the packet filter, in transactions that begin with one
/// of these operations.
pub(crate) fn notifications(operations: &[u8]) -> io::Result<Notifications> {
    let kind = |&operation: &u8| (NFTABLES << 8) | u16::from(operation);
    let kinds: Vec<u16> = operations.iter().map(kind).collect();
    Notifications::open((SockProtocol::NetlinkNetFilter, GROUP), &kinds)
}

/// A notification as the kernel would send it, for tests.
#[cfg(any(test, fuzzing))]
pub(crate) fn notification(operation: u16, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let attributes = Attributes::default().number(2, 7).text(1, name);
    let kind = ((NFTABLES << 8) | operation, 0);
    message(&mut bytes, kind, (INET, 0), &attributes.0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_says_what_was_done_to_which_table() {
        let both = [notification(2, "kontena"), notification(8, "firewall")].concat();
        let wanted = [(2, "kontena".to_owned()), (8, "firewall".to_owned())];
        assert_eq!(tables(&both), wanted);
    }

    #[test]
    fn what_is_cut_short_says_nothing() {
        let whole = notification(2, "kontena");
        for length in 0..whole.len() {
            assert_eq!(tables(&whole[..length]), [], "{length}");
        }
        let mut of_another_protocol = whole;
        of_another_protocol[5] = 1;
        assert_eq!(tables(&of_another_protocol), []);
        assert_eq!(tables(&[0; 64]), [], "a message shorter than its header");
    }

    #[test]
    fn only_the_last_message_of_a_batch_asks_for_an_answer() {
        let mut batch = Batch::default();
        for operation in [Operation::NewTable, Operation::DeleteTable] {
            batch.add(operation, Attributes::default().text(1, "t"));
        }
        let bytes = batch.encode();
        let mut rest = &bytes[..];
        let mut asks = Vec::new();
        while let [a, b, c, d, _, _, flags, ..] = *rest {
            asks.push(u16::from(flags) & FLAG_ACK != 0);
            rest = &rest[u32::from_ne_bytes([a, b, c, d]) as usize..];
        }
        assert_eq!(asks, [false, false, true, false]);
    }
}
