//! Fuzz targets: queries, answers, and the host's `resolv.conf`.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use kontena_fuzz::{Input, Target};
use kontena_schema::agent::{Endpoint, GridSettings};
use kontena_schema::ids::{GridId, LeaseNumber, NodeId, PlacementId};

use super::answer::{HEADER_BYTES, Transport, Verdict, answer};
use super::exchange::answers;
use super::resolv_conf::{RESOLVERS_MAX, ResolvConf};
use super::zone::Zone;
use crate::directory::Directory;

/// Anything that looks like a query gets a readable answer to its question that fits, or
/// is forwarded if its name is foreign; an answer is never answered.
pub(crate) const DNS: Target = Target {
    name: "dns",
    check: dns,
    seeds: dns_seeds,
};

/// An answer accepted for a query has its ID, and its question or none.
pub(crate) const ANSWERS: Target = Target {
    name: "answers",
    check: answers_match,
    seeds: answers_seeds,
};

/// A few addresses, all named in the text.
pub(crate) const RESOLVERS: Target = Target {
    name: "resolvers",
    check: resolvers,
    seeds: || {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 172.17.0.1\n\
                    nameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver 2001:db8::53\n";
        vec![text.as_bytes().to_vec()]
    },
};

/// More instances than fit into a datagram.
const INSTANCES: u8 = 100;

static ZONE: LazyLock<Zone> = LazyLock::new(zone);

fn zone() -> Zone {
    let mut directory = Directory {
        grid: Some(GridSettings {
            id: GridId(1),
            name: "demo".to_owned(),
            subnet: "10.81.0.0/19".parse().expect("it is a network"),
            supernet: "10.81.0.0/17".parse().expect("it is a network"),
            trusted_subnets: Vec::new(),
            inner_subnet: kontena_schema::address::InnerSubnet::default(),
            vni: 4096,
        }),
        ..Directory::default()
    };
    for last in 1..=INSTANCES {
        let endpoint = Endpoint {
            placement: PlacementId(last.into()),
            node: NodeId(2),
            address: [10, 81, 1, last].into(),
            lease: LeaseNumber(last.into()),
            stack: Some("testapp".to_owned()),
            // One has its own service.
            service: if last == 1 { "db" } else { "web" }.to_owned(),
            instance: last.into(),
            ready: true,
        };
        directory.endpoints.insert(endpoint.placement, endpoint);
    }
    Zone::build(&directory, [])
}

/// The first octet selects the transport.
fn dns(octets: &[u8]) {
    let mut input = Input::new(octets);
    let over = if input.octet() & 1 == 0 {
        Transport::Udp
    } else {
        Transport::Tcp
    };
    let packet = input.rest();
    let silent = packet.len() < HEADER_BYTES || packet[2] & 0x80 != 0;
    match answer(&ZONE, packet, over) {
        Verdict::Drop => assert!(silent, "a query gets no answer"),
        Verdict::Forward => {
            let name = asked(packet).expect("what is handed on asks for something");
            assert!(!silent && !is_ours(&name), "{name} is handed on");
        }
        Verdict::Reply(reply) => {
            assert!(!silent, "an answer is answered");
            is_reply(packet, &reply, over);
        }
    }
}

fn asked(packet: &[u8]) -> Option<Name> {
    let mut decoder = BinDecoder::new(packet);
    decoder.read_slice(HEADER_BYTES).ok()?;
    let query = Query::read(&mut decoder).ok()?;
    Some(query.name().clone())
}

/// By label, not as text: a label may contain dots.
fn is_ours(name: &Name) -> bool {
    let labels: Vec<Vec<u8>> = name.iter().map(<[u8]>::to_ascii_lowercase).collect();
    let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
    match labels[..] {
        [.., b"kontena", b"local"] => true,
        [d, c, b, a, b"in-addr", b"arpa"] => {
            let text = [a, b, c, d].map(String::from_utf8_lossy).join(".");
            let address: Option<Ipv4Addr> = text.parse().ok();
            address.is_some_and(|address| ZONE.has_reverse(address))
        }
        _ => false,
    }
}

fn is_reply(packet: &[u8], reply: &[u8], over: Transport) {
    assert_eq!(reply[..2], packet[..2], "the number");
    assert_eq!(
        reply[2] & 0xf9,
        0x80 | packet[2] & 0x79,
        "an answer of the same kind"
    );
    let code = ResponseCode::from(0, reply[3] & 0xf);
    if reply.len() == HEADER_BYTES {
        let refused = [ResponseCode::FormErr, ResponseCode::NotImp].contains(&code);
        return assert!(refused, "a bare {code}");
    }
    let request = Message::from_vec(packet).expect("what is answered can be read");
    let said = Message::from_vec(reply).expect("an answer can be read");
    assert!(
        reply.len() <= most(&request, over),
        "{} octets",
        reply.len()
    );
    assert_eq!(said.queries, request.queries, "the question");
    let name = request.queries[0].name();
    assert!(is_ours(name), "{name} is not ours");
    are_addresses(name, &said);
}

/// The longest answer the sender takes.
fn most(request: &Message, over: Transport) -> usize {
    let told = request.edns.as_ref().map(Edns::max_payload);
    match over {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp => usize::from(told.unwrap_or(512).clamp(512, 1232)),
    }
}

/// The answers are addresses of the name, without duplicates, and all of them unless
/// truncated.
fn are_addresses(name: &Name, said: &Message) {
    let known = ZONE.addresses(name.to_ascii().to_ascii_lowercase().trim_end_matches('.'));
    let mut addresses = Vec::new();
    for record in &said.answers {
        assert_eq!((&record.name, record.ttl), (name, 1));
        if let RData::A(address) = &record.data {
            addresses.push(address.0);
        }
    }
    let count = addresses.len();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), count, "an address is there twice");
    let known = known.unwrap_or_default();
    assert!(addresses.iter().all(|address| known.contains(address)));
    let cut = said.metadata.truncation;
    assert!(
        count == 0 || cut == (count < known.len()),
        "{count} answers"
    );
}

fn dns_seeds() -> Vec<Vec<u8>> {
    let query = |name: &str, kind, edns: Option<u16>| {
        let mut message = Message::query();
        message.metadata.id = 4711;
        message.metadata.recursion_desired = true;
        let name = Name::from_ascii(name).expect("it is a name");
        message.add_query(Query::query(name, kind));
        if let Some(bytes) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(bytes);
            message.set_edns(edns);
        }
        message.to_vec().expect("it is short")
    };
    let queries = [
        query("testapp-web.demo.kontena.local.", RecordType::A, None),
        query("TestApp-web.kontena.LOCAL.", RecordType::A, Some(4096)),
        query("testapp-db.demo.kontena.local.", RecordType::ANY, Some(0)),
        query("kontena.local.", RecordType::SOA, None),
        query("nobody.demo.kontena.local.", RecordType::AAAA, None),
        query("2.1.81.10.in-addr.arpa.", RecordType::PTR, Some(1232)),
        query("example.com.", RecordType::A, None),
        // The zone's name inside a label of another one.
        query(r"x\.kontena.local.", RecordType::A, None),
        query(r"testapp-web\.demo.kontena.local.", RecordType::A, None),
        query(".", RecordType::NS, None),
    ];
    let both = |query: Vec<u8>| [0, 1].map(|over| [&[over][..], &query].concat());
    queries.into_iter().flat_map(both).collect()
}

fn resolvers(octets: &[u8]) {
    let text = String::from_utf8_lossy(octets);
    let found = ResolvConf::parse(&text).nameservers;
    assert!(found.len() <= RESOLVERS_MAX);
    let canonical = |word: &str| word.parse().map(|ip: IpAddr| ip.to_canonical());
    let named = |ip: &IpAddr| {
        text.split_whitespace()
            .any(|word| canonical(word) == Ok(*ip))
    };
    assert!(found.iter().all(named), "{found:?} are not all named");
    let line = |ip: &IpAddr| format!("nameserver {ip}\n");
    let again: String = found.iter().map(line).collect();
    assert_eq!(ResolvConf::parse(&again).nameservers, found);
}

/// The first octet is the length of the query; the answer follows it.
fn answers_match(octets: &[u8]) {
    let mut input = Input::new(octets);
    let length = usize::from(input.octet());
    let (query, answer) = input.rest().split_at_checked(length).unwrap_or_default();
    if answers(query, answer) {
        assert_eq!(query[..2], answer[..2], "the number");
        assert!(answer[2] & 0x80 != 0, "a query answers nothing");
        let bare = answer[4..6] == [0, 0];
        assert!(bare || asked(query) == asked(answer), "the question");
        assert!(
            !bare || ![0, 3].contains(&(answer[3] & 0xf)),
            "it says something"
        );
    }
}

fn answers_seeds() -> Vec<Vec<u8>> {
    let queries = dns_seeds().into_iter().map(|seed| seed[1..].to_vec());
    let seed = |query: Vec<u8>| {
        let mut answer = query.clone();
        answer[2] |= 0x80;
        let bare = [&answer[..3], &[0x85, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
        let length = u8::try_from(query.len()).expect("it is short");
        [answer, bare].map(|answer| [&[length], &query[..], &answer].concat())
    };
    queries.flat_map(seed).collect()
}
