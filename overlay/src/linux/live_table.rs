//! The live table: the part of the packet filter that only this agent can remove, and that
//! ends with it.
//!
//! It filters clear packets as the ordinary table does (`filter.rs`), but does less: only
//! fast peers send to the VXLAN device or get anything from it, and nothing for it is
//! forwarded out of the overlay. It comes after the ordinary table, which counts, and finds something to drop
//! only while that is missing.
//!
//! Every packet of a host passes it, so each rule is one that most packets leave at its
//! first match.

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
/// Has UDP, for as long as the filter is open for fast peers; in both tables, too.
pub(super) const OPEN: &str = "open";
/// The protocol's number.
pub(super) const UDP: u8 = 17;

/// A set: its name, its id within the transaction, its flags, and what `nft` calls the type
/// of its elements and how many octets that has.
struct Set {
    name: &'static str,
    id: u32,
    flags: u32,
    kind: u32,
    bytes: u32,
}

const SET_OF_PEERS: Set = Set {
    name: FAST_PEERS,
    id: 1,
    flags: 0,
    // `ipv4_addr`
    kind: 7,
    bytes: 4,
};
const SET_OF_OPEN: Set = Set {
    name: OPEN,
    id: 2,
    // `NFT_SET_TIMEOUT`
    flags: 0x10,
    // `inet_proto`
    kind: 12,
    bytes: 1,
};

/// The hooks (`NF_INET_*`), and the offset of the other host's address in an IPv4 header.
const HOOKS: [(&str, u32, Option<u32>); 3] = [
    ("input", 1, Some(12)),
    ("forward", 2, None),
    ("output", 3, Some(16)),
];

/// Creates the table, with empty sets, in place of one that may exist.
pub(super) fn create_anew() -> Batch {
    let mut batch = Batch::default();
    // It must exist to be deleted.
    batch.add(Operation::NewTable, table());
    batch.add(Operation::DeleteTable, Attributes::default().text(1, NAME));
    batch.add(Operation::NewTable, table());
    for set in [SET_OF_PEERS, SET_OF_OPEN] {
        batch.add(Operation::NewSet, self::set(&set));
    }
    for (name, hook, peer) in HOOKS {
        batch.add(Operation::NewChain, chain(name, hook));
        for rule in rules(name, peer) {
            batch.add(Operation::NewRule, rule);
        }
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
fn set(set: &Set) -> Attributes {
    const TABLE: u16 = 1;
    const NAME_OF: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_TYPE: u16 = 4;
    const KEY_BYTES: u16 = 5;
    const ID: u16 = 10;
    Attributes::default()
        .text(TABLE, NAME)
        .text(NAME_OF, set.name)
        .number(FLAGS, set.flags)
        .number(KEY_TYPE, set.kind)
        .number(KEY_BYTES, set.bytes)
        .number(ID, set.id)
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

/// What a chain drops. Where a peer is at the other end, its address is matched without a
/// check for IPv4: the VXLAN device has no other socket.
fn rules(chain: &str, peer: Option<u32>) -> Vec<Attributes> {
    let device = if chain == "input" { IIFNAME } else { OIFNAME };
    let all = match peer {
        Some(at) => vec![
            [
                protocol_is_udp(),
                port_is_ours(),
                differs(device, WIREGUARD),
                vec![meta(L4PROTO), not_in(&SET_OF_OPEN)],
            ]
            .concat(),
            [
                protocol_is_udp(),
                port_is_ours(),
                differs(device, WIREGUARD),
                vec![payload(NETWORK, at, 4), not_in(&SET_OF_PEERS)],
            ]
            .concat(),
        ],
        // Containers may send to this port of each other.
        None => vec![[protocol_is_udp(), port_is_ours(), differs(device, BRIDGE)].concat()],
    };
    all.into_iter().map(|what| rule(chain, what)).collect()
}

/// `NFTA_RULE_*`: drops this.
fn rule(chain: &str, mut what: Vec<Attributes>) -> Attributes {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    what.push(drop());
    let item = |all: Attributes, one: &Attributes| all.nested(1, one);
    let expressions = what.iter().fold(Attributes::default(), item);
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
    vec![meta(L4PROTO), compare(EQUALS, &[UDP])]
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

/// What was loaded last is not in this set.
fn not_in(set: &Set) -> Attributes {
    const SET_OF: u16 = 1;
    const SOURCE: u16 = 2;
    const ID: u16 = 4;
    const FLAGS: u16 = 5;
    const INVERTED: u32 = 1;
    let lookup = Attributes::default()
        .text(SET_OF, set.name)
        .number(SOURCE, REGISTER)
        .number(ID, set.id)
        .number(FLAGS, INVERTED);
    expression("lookup", &lookup)
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
