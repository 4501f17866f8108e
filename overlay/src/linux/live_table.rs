//! The live table: the part of the packet filter that only this agent can remove, and that
//! ends with it.
//!
//! It filters clear packets as the ordinary table does (`filter.rs`), but does less: only
//! fast peers send to the VXLAN device or get anything from it, and nothing for it is
//! forwarded out of the overlay. It comes after the ordinary table, which counts, and finds something to drop
//! only while that is missing.
//!
//! Every packet of a host passes it, so each hook has one rule that most packets leave at
//! its first match.

use kontena_schema::limits::VXLAN_PORT;

use crate::model::devices::{BRIDGE, WIREGUARD};
use crate::sys::nfnetlink::{Attributes, Batch, Operation};

pub(super) const NAME: &str = "kontena-live";
/// The addresses of fast peers; the set has this name in both tables.
pub(super) const FAST_PEERS: &str = "fast_peers";
/// `NFT_TABLE_F_OWNER`.
const OWNER: u32 = 2;
/// Right after the ordinary table's.
const PRIORITY: i32 = -299;
/// `NFT_SET_TIMEOUT`, and what `nft` calls the type `ipv4_addr`.
const TIMEOUT: u32 = 0x10;
const IPV4_ADDR: u32 = 7;
/// The set's id within the transaction.
const SET_ID: u32 = 1;

/// The hooks (`NF_INET_*`), and the offset of the other host's address in an IPv4 header.
const HOOKS: [(&str, u32, Option<u32>); 3] = [
    ("input", 1, Some(12)),
    ("forward", 2, None),
    ("output", 3, Some(16)),
];

/// Creates the table, with an empty set. One that exists is of an earlier attempt.
pub(super) fn create() -> Batch {
    let mut batch = Batch::default();
    batch.add(Operation::NewTable, table());
    batch.add(Operation::NewSet, set());
    for (name, hook, peer) in HOOKS {
        batch.add(Operation::NewChain, chain(name, hook));
        batch.add(Operation::NewRule, rule(name, peer));
    }
    batch
}

pub(super) fn delete() -> Batch {
    let mut batch = Batch::default();
    batch.add(Operation::DeleteTable, Attributes::default().text(1, NAME));
    batch
}

/// `NFTA_TABLE_*`.
fn table() -> Attributes {
    const NAME_OF: u16 = 1;
    const FLAGS: u16 = 2;
    Attributes::default()
        .text(NAME_OF, NAME)
        .number(FLAGS, OWNER)
}

/// `NFTA_SET_*`.
fn set() -> Attributes {
    const TABLE: u16 = 1;
    const NAME_OF: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_TYPE: u16 = 4;
    const KEY_BYTES: u16 = 5;
    const ID: u16 = 10;
    Attributes::default()
        .text(TABLE, NAME)
        .text(NAME_OF, FAST_PEERS)
        .number(FLAGS, TIMEOUT)
        .number(KEY_TYPE, IPV4_ADDR)
        .number(KEY_BYTES, 4)
        .number(ID, SET_ID)
}

/// `NFTA_CHAIN_*`; what no rule drops passes.
fn chain(name: &str, hook: u32) -> Attributes {
    const TABLE: u16 = 1;
    const NAME_OF: u16 = 3;
    const HOOK: u16 = 4;
    const KIND: u16 = 7;
    const NUMBER: u16 = 1;
    const PRIORITY_OF: u16 = 2;
    let hook = Attributes::default()
        .number(NUMBER, hook)
        .number(PRIORITY_OF, PRIORITY.cast_unsigned());
    Attributes::default()
        .text(TABLE, NAME)
        .text(NAME_OF, name)
        .nested(HOOK, &hook)
        .text(KIND, "filter")
}

/// `NFTA_RULE_*`. Where a peer is at the other end, its address is matched without a check
/// for IPv4: the VXLAN device has no other socket.
fn rule(chain: &str, peer: Option<u32>) -> Attributes {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let mut all = [protocol_is_udp(), port_is_ours()].concat();
    let device = if chain == "input" { IIFNAME } else { OIFNAME };
    match peer {
        Some(at) => all.extend([differs(device, WIREGUARD), not_fast(at)].concat()),
        // Containers may send to this port of each other.
        None => all.extend(differs(device, BRIDGE)),
    }
    all.push(drop());
    let item = |all: Attributes, one: &Attributes| all.nested(1, one);
    let expressions = all.iter().fold(Attributes::default(), item);
    Attributes::default()
        .text(TABLE, NAME)
        .text(CHAIN, chain)
        .nested(EXPRESSIONS, &expressions)
}

/// `NFT_META_*`.
const IIFNAME: u32 = 6;
const OIFNAME: u32 = 7;
const L4PROTO: u32 = 16;
/// `NFT_PAYLOAD_*_HEADER`.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// `NFT_CMP_EQ` and `NFT_CMP_NEQ`.
const EQUALS: u32 = 0;
const DIFFERS: u32 = 1;
/// `NFT_REG_1`; one is enough, as each match is about one thing.
const REGISTER: u32 = 1;
/// `IFNAMSIZ`.
const INTERFACE_BYTES: usize = 16;

fn protocol_is_udp() -> Vec<Attributes> {
    vec![meta(L4PROTO), compare(EQUALS, &[17])]
}

fn port_is_ours() -> Vec<Attributes> {
    let port = VXLAN_PORT.to_be_bytes();
    vec![payload(TRANSPORT, 2, 2), compare(EQUALS, &port)]
}

/// The device that a packet came from, or leaves through, is not this one.
fn differs(device: u32, from: &str) -> Vec<Attributes> {
    let mut name = [0; INTERFACE_BYTES];
    name[..from.len()].copy_from_slice(from.as_bytes());
    vec![meta(device), compare(DIFFERS, &name)]
}

fn not_fast(at: u32) -> Vec<Attributes> {
    const SET_OF: u16 = 1;
    const SOURCE: u16 = 2;
    const ID: u16 = 4;
    const FLAGS: u16 = 5;
    const INVERTED: u32 = 1;
    let lookup = Attributes::default()
        .text(SET_OF, FAST_PEERS)
        .number(SOURCE, REGISTER)
        .number(ID, SET_ID)
        .number(FLAGS, INVERTED);
    vec![payload(NETWORK, at, 4), expression("lookup", &lookup)]
}

fn meta(key: u32) -> Attributes {
    const TARGET: u16 = 1;
    const KEY: u16 = 2;
    let meta = Attributes::default().number(TARGET, REGISTER);
    expression("meta", &meta.number(KEY, key))
}

fn payload(base: u32, at: u32, bytes: u32) -> Attributes {
    const TARGET: u16 = 1;
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    const BYTES: u16 = 4;
    let payload = Attributes::default()
        .number(TARGET, REGISTER)
        .number(BASE, base)
        .number(OFFSET, at)
        .number(BYTES, bytes);
    expression("payload", &payload)
}

fn compare(how: u32, with: &[u8]) -> Attributes {
    const SOURCE: u16 = 1;
    const HOW: u16 = 2;
    const DATA: u16 = 3;
    let compare = Attributes::default()
        .number(SOURCE, REGISTER)
        .number(HOW, how)
        .nested(DATA, &Attributes::default().bytes(1, with));
    expression("cmp", &compare)
}

fn drop() -> Attributes {
    const TARGET: u16 = 1;
    const DATA: u16 = 2;
    const VERDICT: u16 = 2;
    const CODE: u16 = 1;
    const REG_VERDICT: u32 = 0;
    const DROP: u32 = 0;
    let verdict = Attributes::default().number(CODE, DROP);
    let immediate = Attributes::default()
        .number(TARGET, REG_VERDICT)
        .nested(DATA, &Attributes::default().nested(VERDICT, &verdict));
    expression("immediate", &immediate)
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::default().text(1, name).nested(2, data)
}
