//! From the bytes of a query to the bytes of its answer. Pure: no sockets.
//!
//! The header and the question decide. A question about an external name is forwarded
//! unchanged, byte for byte; one about a grid's name is answered authoritatively. A
//! malformed query gets `FORMERR`; what may be an answer gets none, so that two
//! servers never talk to each other.

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use hickory_proto::op::{
    Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::{A, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use kontena_schema::name::ZONE;

use super::zone::Zone;

/// The longest answer over UDP without EDNS (RFC 1035 section 4.2.1).
const UDP_BYTES: usize = 512;
/// The longest with EDNS: fits every path unfragmented (DNS flag day 2020).
const EDNS_BYTES: u16 = 1232;
/// The longest over TCP.
const TCP_BYTES: usize = u16::MAX as usize;
/// An A record with a compressed name.
const A_BYTES: usize = 16;
/// Seconds for which a client may cache an answer or a denial.
const TTL: u32 = 1;
/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 12;

/// The zone of the grids' names.
static APEX: LazyLock<Name> = LazyLock::new(|| {
    let apex = Name::from_ascii(format!("{ZONE}."));
    apex.expect("short labels of letters")
});

/// How a query arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In a datagram; long answers are truncated.
    Udp,
    /// In a stream.
    Tcp,
}

/// What to do with a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send this back.
    Reply(Vec<u8>),
    /// Ask the host's resolvers.
    Forward,
    /// Do not answer.
    Drop,
}

/// Decides what to do with a query.
pub fn answer(zone: &Zone, packet: &[u8], over: Transport) -> Verdict {
    if packet.len() < HEADER_BYTES || packet[2] & 0x80 != 0 {
        return Verdict::Drop;
    }
    let mut decoder = BinDecoder::new(packet);
    let Ok(header) = Header::read(&mut decoder) else {
        return Verdict::Reply(refusal(packet, ResponseCode::FormErr));
    };
    if header.metadata.op_code != OpCode::Query {
        return Verdict::Reply(refusal(packet, ResponseCode::NotImp));
    }
    if header.counts.queries != 1 {
        return Verdict::Reply(refusal(packet, ResponseCode::FormErr));
    }
    let Ok(query) = Query::read(&mut decoder) else {
        return Verdict::Reply(refusal(packet, ResponseCode::FormErr));
    };
    let Some(subject) = Subject::of(zone, query.name()) else {
        return Verdict::Forward;
    };
    let Ok(request) = Message::from_vec(packet) else {
        return Verdict::Reply(refusal(packet, ResponseCode::FormErr));
    };
    let reply = encode(response(zone, &request, query, &subject), &request, over);
    Verdict::Reply(reply.unwrap_or_else(|| refusal(packet, ResponseCode::ServFail)))
}

/// The header of `packet` alone, as an answer with a code.
pub fn refusal(packet: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut reply = vec![0; HEADER_BYTES];
    reply[..2].copy_from_slice(&packet[..2]);
    // QR, the opcode and RD of the query; RA and the code.
    reply[2] = 0x80 | (packet[2] & 0x79);
    reply[3] = 0x80 | code.low();
    reply
}

/// Header and question of `packet`, as an answer with a code. Without the question, some
/// clients keep waiting (Go's).
pub fn failure(packet: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut reply = refusal(packet, code);
    if packet[4..6] == [0, 1]
        && let Some(end) = question_end(packet)
    {
        reply.extend(&packet[HEADER_BYTES..end]);
        reply[5] = 1;
    }
    reply
}

/// Where the first question ends, if its name is uncompressed.
fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match usize::from(*packet.get(at)?) {
            0 => break,
            length @ 1..=63 => at += 1 + length,
            _ => return None,
        }
    }
    let end = at + 1 + 4;
    (end <= packet.len()).then_some(end)
}

/// A name that is answered here.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    /// In lower case, without the trailing dot.
    Name(String),
    /// A reverse name.
    Address(Ipv4Addr),
}

impl Subject {
    fn of(zone: &Zone, name: &Name) -> Option<Self> {
        let text = name.to_ascii().to_ascii_lowercase();
        let text = text.trim_end_matches('.');
        // By label: one may contain a dot, and then the name is foreign.
        if APEX.zone_of(name) {
            return Some(Self::Name(text.to_owned()));
        }
        let octets: Vec<&str> = text
            .strip_suffix(".in-addr.arpa")?
            .split('.')
            .rev()
            .collect();
        let address = octets.join(".").parse().ok()?;
        zone.has_reverse(address).then_some(Self::Address(address))
    }

    /// Whether an empty answer about it is certain to be right.
    fn is_settled(&self, zone: &Zone) -> bool {
        zone.is_complete()
            || match self {
                Self::Name(name) => zone.addresses(name).is_some_and(|known| !known.is_empty()),
                Self::Address(address) => zone.name(*address).is_some(),
            }
    }

    /// The owner of the zone's SOA.
    fn apex(&self) -> Name {
        match self {
            Self::Name(_) => APEX.clone(),
            Self::Address(address) => {
                let [a, b, c, _] = address.octets();
                let text = format!("{c}.{b}.{a}.in-addr.arpa.");
                Name::from_ascii(text).expect("short labels of letters and digits")
            }
        }
    }
}

fn response(zone: &Zone, request: &Message, query: Query, subject: &Subject) -> Message {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.authoritative = true;
    metadata.recursion_available = true;
    let mut reply = Message::new(metadata.id, MessageType::Response, metadata.op_code);
    if let Some(asked) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_BYTES);
        edns.set_version(0);
        if asked.version() > 0 {
            metadata.response_code = ResponseCode::BADVERS;
            edns.set_rcode_high(ResponseCode::BADVERS.high());
        }
        reply.set_edns(edns);
    }
    if metadata.response_code == ResponseCode::NoError {
        metadata.response_code = fill(&mut reply, zone, &query, subject);
    }
    reply.metadata = metadata;
    reply.add_query(query);
    reply
}

/// Adds the records.
fn fill(reply: &mut Message, zone: &Zone, query: &Query, subject: &Subject) -> ResponseCode {
    if !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
        return ResponseCode::Refused;
    }
    let (exists, records) = records(zone, query, subject);
    if records.is_empty() && !subject.is_settled(zone) {
        return ResponseCode::ServFail;
    }
    let soa = soa(zone, subject);
    if records.is_empty() {
        reply.add_authority(soa);
    }
    reply.add_answers(records);
    if exists {
        ResponseCode::NoError
    } else {
        ResponseCode::NXDomain
    }
}

/// Whether the name exists, and its records of the type asked for.
fn records(zone: &Zone, query: &Query, subject: &Subject) -> (bool, Vec<Record>) {
    let owner = query.name();
    let asked = |kind| query.query_type() == kind || query.query_type() == RecordType::ANY;
    match subject {
        Subject::Name(name) => {
            let Some(addresses) = zone.addresses(name) else {
                return (false, Vec::new());
            };
            if name == ZONE && asked(RecordType::SOA) {
                return (true, vec![soa(zone, subject)]);
            }
            if !asked(RecordType::A) {
                return (true, Vec::new());
            }
            let mut addresses = addresses.to_vec();
            fastrand::shuffle(&mut addresses);
            let record = |ip| Record::from_rdata(owner.clone(), TTL, RData::A(A(ip)));
            (true, addresses.into_iter().map(record).collect())
        }
        Subject::Address(address) => {
            let Some(name) = zone.name(*address) else {
                return (false, Vec::new());
            };
            let Ok(name) = Name::from_ascii(format!("{name}.")) else {
                return (true, Vec::new());
            };
            let record = Record::from_rdata(owner.clone(), TTL, RData::PTR(PTR(name)));
            (
                true,
                if asked(RecordType::PTR) {
                    vec![record]
                } else {
                    Vec::new()
                },
            )
        }
    }
}

fn soa(zone: &Zone, subject: &Subject) -> Record {
    let name = |label: &str| {
        Name::from_ascii(format!("{label}.{ZONE}.")).expect("short labels of letters")
    };
    // The zone is never transferred; the last field is how long to cache a denial.
    let soa = SOA::new(
        name("ns"),
        name("hostmaster"),
        zone.serial(),
        3600,
        600,
        86400,
        TTL,
    );
    Record::from_rdata(subject.apex(), TTL, RData::SOA(soa))
}

/// As many answers as fit. Over UDP the client retries over TCP; over TCP 4000
/// addresses are enough for any client.
fn encode(mut reply: Message, request: &Message, over: Transport) -> Option<Vec<u8>> {
    let limit = match (over, &request.edns) {
        (Transport::Tcp, _) => TCP_BYTES,
        (Transport::Udp, None) => UDP_BYTES,
        (Transport::Udp, Some(edns)) => {
            usize::from(edns.max_payload().min(EDNS_BYTES)).max(UDP_BYTES)
        }
    };
    let count = reply.answers.len();
    // More cannot fit, and encoding them would be wasted work.
    reply.answers.truncate(limit / A_BYTES);
    let mut bytes = reply.to_vec().ok()?;
    if bytes.len() > limit {
        let rest = bytes.len() - reply.answers.len() * A_BYTES;
        reply.answers.truncate(limit.saturating_sub(rest) / A_BYTES);
    }
    if reply.answers.len() < count {
        reply.metadata.truncation = over == Transport::Udp;
        bytes = reply.to_vec().ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
