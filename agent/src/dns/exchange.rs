//! One query to one resolver, and its answer.
//!
//! Not only the resolver may send to the port: containers reach the host, and may spoof the
//! resolver's address. So each query has its own socket on an unpredictable port and a random
//! ID in place of the client's, which may be a weak one, and only an answer to its question
//! counts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use tokio::net::{TcpStream, UdpSocket};

use super::answer::{HEADER_BYTES, Transport};
use super::stream::{read_message, write_message};

/// Asks, without a timeout.
pub async fn ask(resolver: SocketAddr, query: &[u8], over: Transport) -> io::Result<Vec<u8>> {
    let mut sent = query.to_vec();
    sent[..2].copy_from_slice(&fastrand::u16(..).to_be_bytes());
    let mut answer = match over {
        Transport::Udp => ask_udp(resolver, &sent).await?,
        Transport::Tcp => ask_tcp(resolver, &sent).await?,
    };
    answer[..2].copy_from_slice(&query[..2]);
    Ok(answer)
}

async fn ask_udp(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    // Room for the longest one; only pages written to use memory.
    let mut answer = Vec::with_capacity(usize::from(u16::MAX));
    loop {
        answer.clear();
        socket.recv_buf(&mut answer).await?;
        if answers(query, &answer) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    write_message(&mut stream, query).await?;
    let answer = read_message(&mut stream, usize::from(u16::MAX)).await?;
    let answer = answer.filter(|answer| answers(query, answer));
    answer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer to nothing asked"))
}

/// Whether this answers that query: the same ID, opcode and question. A bare error may
/// leave the question out.
pub(super) fn answers(query: &[u8], answer: &[u8]) -> bool {
    if query.len() < HEADER_BYTES || answer.len() < HEADER_BYTES {
        return false;
    }
    let same_kind = answer[2] & 0xf8 == query[2] & 0x78 | 0x80;
    if answer[..2] != query[..2] || !same_kind {
        return false;
    }
    match answer[4..6] {
        [0, 0] => ![ResponseCode::NoError, ResponseCode::NXDomain].contains(&code(answer)),
        [0, 1] => question(query).is_some_and(|asked| question(answer) == Some(asked)),
        _ => false,
    }
}

/// The response code of an answer.
pub(super) fn code(answer: &[u8]) -> ResponseCode {
    ResponseCode::from(0, answer[3] & 0xf)
}

/// The only question; it compares without case.
fn question(packet: &[u8]) -> Option<Query> {
    let mut decoder = BinDecoder::new(packet);
    decoder.read_slice(HEADER_BYTES).ok()?;
    Query::read(&mut decoder).ok()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use hickory_proto::rr::RecordType;

    use super::*;

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 0x1234;
        message.add_query(Query::query(name.parse().unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn answer(name: &str, kind: RecordType, change: &[(usize, u8)]) -> Vec<u8> {
        let mut packet = query(name, kind);
        packet[2] |= 0x80;
        for (at, to) in change {
            packet[*at] = *to;
        }
        packet
    }

    #[test]
    fn an_answer_has_number_operation_and_question_of_its_query() {
        use RecordType::{A, AAAA};
        let asked = query("example.com.", A);
        let is = |answer: &[u8]| answers(&asked, answer);
        assert!(is(&answer("eXample.com.", A, &[])));
        assert!(!is(&answer("example.org.", A, &[])));
        assert!(!is(&answer("example.com.", AAAA, &[])));
        assert!(!is(&answer("example.com.", A, &[(0, 0)])), "the number");
        assert!(!is(&answer("example.com.", A, &[(2, 0xa8)])), "a notify");
        assert!(!is(&answer("example.com.", A, &[(5, 2)])), "two questions");
        assert!(!is(&asked), "a query");
        let bare = |code: u8| answer("example.com.", A, &[(5, 0), (3, code)])[..12].to_vec();
        for (code, counts) in [(0, false), (1, true), (2, true), (3, false), (5, true)] {
            assert_eq!(is(&bare(code)), counts, "{code}");
        }
        for length in 0..asked.len() {
            assert!(!is(&answer("example.com.", A, &[])[..length]), "{length}");
        }
    }
}
