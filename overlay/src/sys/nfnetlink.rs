//! The packet filter's own netlink protocol (`linux/netfilter/nf_tables.h`), as far as it
//! is spoken here without the program `nft`: what is written every second or so, what a
//! program that hangs must not delay, and what must belong to a socket of this process.
//!
//! A batch is one transaction: all of it is done, or nothing. The kernel carries it out
//! while the message is sent, and may wait for other transactions of the namespace as it
//! does, without a limit; so a batch is sent by a thread that may wait.
//!
//! Absent on purpose: dumps, and reading rules. What is there is read through `nft`, which
//! knows all of the format.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};

/// `NFNL_SUBSYS_NFTABLES`: the upper octet of each message's type.
const NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
const FLAG_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// Set in the type of an attribute that holds others.
const NESTED: u16 = 0x8000;
/// `struct nlmsghdr`, and with `struct nfgenmsg` behind it.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
/// `NETLINK_ADD_MEMBERSHIP` and `NFNLGRP_NFTABLES`.
const ADD_MEMBERSHIP: libc::c_int = 1;
const GROUP: libc::c_int = 7;
/// Room for notifications that wait: more than the rules that a host gets at once.
const NOTIFICATIONS_BYTES: usize = 1 << 20;
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

/// The attributes of a message, or of one of its attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value)
    }

    /// A string, with the zero that ends it.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let value = [value.as_bytes(), &[0]].concat();
        self.put(kind, &value)
    }

    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(crate) fn long(self, kind: u16, value: u64) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(self, kind: u16, value: &Self) -> Self {
        self.put(kind | NESTED, &value.0)
    }

    fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("attributes of ours are short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// A transaction.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    messages: Vec<(Operation, Attributes)>,
}

impl Batch {
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

fn message(bytes: &mut Vec<u8>, (kind, flags): (u16, u16), (family, of): (u8, u16), rest: &[u8]) {
    let length = u32::try_from(HEADERS + rest.len()).expect("batches of ours are short");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Neither a number of the message nor a port: one batch is under way at a time.
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(of.to_be_bytes());
    bytes.extend(rest);
}

/// A socket for batches. A table that is made through it with the flag `owner` is this
/// socket's: it goes with it, and nobody else can change it.
pub(crate) struct Batches(OwnedFd);

impl Batches {
    /// A socket in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        open().map(Self)
    }

    /// Carries a batch out. It blocks for as long as the kernel does.
    pub(crate) fn send(&self, batch: &Batch) -> io::Result<()> {
        if batch.messages.is_empty() {
            return Ok(());
        }
        // What is left of a batch before is nothing to this one.
        while self.answers()?.is_some() {}
        let bytes = batch.encode();
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), &bytes, &kernel, MsgFlags::empty())?;
        let mut done = None;
        while let Some(answers) = self.answers()? {
            for answer in answers {
                let worst = done.unwrap_or(0);
                done = Some(if worst == 0 { answer } else { worst });
            }
        }
        match done {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            // The kernel answers while it takes the message.
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The errors of what was answered and not read yet, 0 for none; none if nothing was.
    fn answers(&self) -> io::Result<Option<Vec<i32>>> {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                let error = |message: Message<'_>| {
                    let code = message.body.first_chunk::<4>()?;
                    let code = i32::from_ne_bytes(*code);
                    (message.kind == NLMSG_ERROR).then_some(code.saturating_neg())
                };
                Ok(Some(
                    messages(&buffer[..length]).filter_map(error).collect(),
                ))
            }
            Err(nix::errno::Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A socket that hears of changes to the packet filter of its namespace.
pub(crate) struct Notifications(OwnedFd);

impl Notifications {
    /// A socket in the network namespace of the calling thread. The kernel keeps from it
    /// what begins with a message that `passes` does not have.
    pub(crate) fn open(passes: &[u8]) -> io::Result<Self> {
        let socket = open()?;
        setsockopt(&socket, sockopt::RcvBufForce, &NOTIFICATIONS_BYTES)?;
        only(&socket, passes)?;
        set(&socket, libc::SOL_NETLINK, ADD_MEMBERSHIP, &GROUP)?;
        Ok(Self(socket))
    }

    /// What was told since it was last asked, in the order of events: for each change what
    /// was done and the name of the table. None if nothing was; an error if more was than
    /// there is room for.
    pub(crate) fn read(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Vec<(u8, String)>>> {
        buffer.resize(MESSAGE_BYTES_MAX, 0);
        match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(Some(tables(&buffer[..length]))),
            Err(nix::errno::Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Notifications {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// What each notification is about, as far as it is one of the packet filter.
pub(crate) fn tables(bytes: &[u8]) -> Vec<(u8, String)> {
    messages(bytes).filter_map(table).collect()
}

/// What a notification is about: each kind of object has its table's name first.
fn table(message: Message<'_>) -> Option<(u8, String)> {
    const NAME: u16 = 1;
    let [operation, subsystem] = message.kind.to_le_bytes();
    if u16::from(subsystem) != NFTABLES {
        return None;
    }
    let mut rest = message.body.get(HEADERS - HEADER..)?;
    while let Some([a, b, c, d]) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([*c, *d]) & !NESTED == NAME {
            let name = value.strip_suffix(&[0]).unwrap_or(value);
            return Some((operation, String::from_utf8_lossy(name).into_owned()));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// A message as it came, without its header.
#[derive(Clone, Copy)]
struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

/// The whole messages at the beginning of these bytes.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let [a, b, c, d, e, f, ..] = *bytes else {
            return None;
        };
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let kind = u16::from_ne_bytes([e, f]);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, body })
    })
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// Lets only messages in whose first one is one of these operations on the packet filter.
fn only(socket: &OwnedFd, operations: &[u8]) -> io::Result<()> {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// Where the type is in `struct nlmsghdr`, which is in this machine's order of octets,
    /// while the program loads in that of networks.
    const TYPE_AT: u32 = 4;
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut program = vec![step(LOAD_HALF, 0, TYPE_AT)];
    for (at, &operation) in operations.iter().enumerate() {
        let kind = (NFTABLES << 8) | u16::from(operation);
        let to_accept = u8::try_from(operations.len() - at).expect("a few operations");
        program.push(step(JUMP_IF_EQUAL, to_accept, kind.to_be().into()));
    }
    program.push(step(RETURN, 0, 0));
    program.push(step(RETURN, 0, u32::MAX));
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a few operations"),
        filter: program.as_mut_ptr(),
    };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value is as long as is said, and what it points at lives during the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
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
