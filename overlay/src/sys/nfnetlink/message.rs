//! Messages of the packet filter's netlink protocol, as octets.

/// `NFNL_SUBSYS_NFTABLES`: the upper octet of each message's type.
pub(super) const NFTABLES: u16 = 10;
pub(super) const FLAG_REQUEST: u16 = 1;
pub(super) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`.
const FLAG_INTERRUPTED: u16 = 0x10;
/// `NFPROTO_UNSPEC`: all families.
pub(super) const ANY: u8 = 0;
/// Set in the type of an attribute that holds others.
pub(super) const NESTED: u16 = 0x8000;
/// `struct nlmsghdr`, and with `struct nfgenmsg` behind it.
pub(super) const HEADER: usize = 16;
pub(super) const HEADERS: usize = HEADER + 4;

/// The attributes of a message, or of one of its attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(pub(super) Vec<u8>);

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

pub(super) fn message(
    bytes: &mut Vec<u8>,
    (kind, flags): (u16, u16),
    (family, of): (u8, u16),
    rest: &[u8],
) {
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

/// A message that asks for something of this family.
pub(super) fn request(
    (operation, flags): (u16, u16),
    family: u8,
    attributes: &Attributes,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let kind = ((NFTABLES << 8) | operation, FLAG_REQUEST | flags);
    message(&mut bytes, kind, (family, 0), &attributes.0);
    bytes
}

/// What an answer says of a request, as a number of `errno`: 0 is "done".
pub(super) fn error(message: Message<'_>) -> Option<i32> {
    let code = message.body.first_chunk::<4>()?;
    let code = i32::from_ne_bytes(*code);
    (message.kind == NLMSG_ERROR).then_some(code.saturating_neg())
}

/// A string, without the zero that ends it.
pub(super) fn text(value: &[u8]) -> String {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(value).into_owned()
}

/// The whole attributes at the beginning of these bytes, with their kinds.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & !NESTED, value))
    })
}

/// A message as it came, without its header.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// What was done to the packet filter, or is told of it.
    pub(super) fn operation(self) -> Option<u8> {
        let [operation, subsystem] = self.kind.to_le_bytes();
        (u16::from(subsystem) == NFTABLES).then_some(operation)
    }

    /// The code at the end of a dump, as a number of `errno`: 0 is "all of it".
    pub(super) fn end(self) -> Option<i32> {
        let code = self.body.first_chunk::<4>().copied().unwrap_or_default();
        (self.kind == NLMSG_DONE).then_some(i32::from_ne_bytes(code).saturating_neg())
    }

    /// Whether a dump was interrupted by a transaction, so that it mixes old and new.
    pub(super) fn is_interrupted(self) -> bool {
        self.flags & FLAG_INTERRUPTED != 0
    }

    /// `NFPROTO_*`.
    pub(super) fn family(self) -> Option<u8> {
        self.body.first().copied()
    }

    pub(super) fn attributes(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        attributes(self.body.get(HEADERS - HEADER..).unwrap_or_default())
    }
}

/// The whole messages at the beginning of these bytes.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let [a, b, c, d, e, f, g, h, ..] = *bytes else {
            return None;
        };
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let (kind, flags) = (u16::from_ne_bytes([e, f]), u16::from_ne_bytes([g, h]));
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, body })
    })
}
