use proptest::prelude::*;

use super::*;
use crate::directory::tests::{directory, endpoint, placement};
use crate::dns::zone::Local;

/// The sample directory with `instances` more instances on the other node.
fn zone(instances: u8) -> Zone {
    let mut directory = directory();
    for last in 0..instances {
        let endpoint = endpoint(100 + i64::from(last), 2, 100 + last, true);
        directory.endpoints.insert(endpoint.placement, endpoint);
    }
    Zone::build(&directory, &Local::of(&placement(11, 1)))
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask(zone: &Zone, query: &Message, over: Transport) -> Message {
    match answer(zone, &query.to_vec().unwrap(), over) {
        Verdict::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn code(zone: &Zone, name: &str, kind: RecordType) -> (ResponseCode, usize) {
    let reply = ask(zone, &query(name, kind), Transport::Udp);
    assert_eq!(reply.metadata.id, 4711);
    assert!(reply.metadata.authoritative && reply.metadata.recursion_desired);
    let soa = reply
        .authorities
        .iter()
        .any(|record| record.record_type() == RecordType::SOA);
    assert_eq!(soa, reply.answers.is_empty(), "{name}");
    (reply.metadata.response_code, reply.answers.len())
}

#[test]
fn names_answer_by_type_and_unknown_ones_are_denied() {
    use ResponseCode::{NXDomain, NoError};
    let zone = zone(0);
    for (name, kind, expected) in [
        (
            "testapp-web.demo.kontena.local.",
            RecordType::A,
            (NoError, 2),
        ),
        ("testapp-web-1.kontena.local.", RecordType::A, (NoError, 1)),
        (
            "web.testapp.demo.kontena.local.",
            RecordType::ANY,
            (NoError, 2),
        ),
        (
            "testapp-web.demo.kontena.local.",
            RecordType::AAAA,
            (NoError, 0),
        ),
        (
            "testapp-web.demo.kontena.local.",
            RecordType::TXT,
            (NoError, 0),
        ),
        ("testapp.demo.kontena.local.", RecordType::A, (NoError, 0)),
        ("kontena.local.", RecordType::SOA, (NoError, 1)),
        ("nobody.demo.kontena.local.", RecordType::A, (NXDomain, 0)),
        (
            "web.example.com.testapp.demo.kontena.local.",
            RecordType::AAAA,
            (NXDomain, 0),
        ),
        ("2.1.81.10.in-addr.arpa.", RecordType::PTR, (NoError, 1)),
        ("2.1.81.10.in-addr.arpa.", RecordType::A, (NoError, 0)),
        ("99.1.81.10.in-addr.arpa.", RecordType::PTR, (NXDomain, 0)),
    ] {
        assert_eq!(code(&zone, name, kind), expected, "{name} {kind}");
    }
}

#[test]
fn the_case_of_the_question_is_kept() {
    let name = "TestApp-WEB-1.Demo.Kontena.LOCAL.";
    let reply = ask(&zone(0), &query(name, RecordType::A), Transport::Udp);
    assert_eq!(reply.queries[0].name().to_ascii(), name);
    assert_eq!(reply.answers[0].name.to_ascii(), name);
    assert_eq!(reply.answers[0].ttl, 1);
}

#[test]
fn foreign_names_are_forwarded() {
    for name in [
        "example.com.",
        "xkontena.local.",
        // One label with a dot in it.
        r"x\.kontena.local.",
        "local.",
        "1.0.168.192.in-addr.arpa.",
        ".",
    ] {
        let packet = query(name, RecordType::A).to_vec().unwrap();
        assert_eq!(
            answer(&zone(0), &packet, Transport::Udp),
            Verdict::Forward,
            "{name}"
        );
    }
}

#[test]
fn while_there_may_be_more_nothing_is_denied_and_what_is_known_is_served() {
    use RecordType::{A, AAAA, PTR};
    use ResponseCode::{NoError, ServFail};
    let stored = Zone::build(&directory(), []).incomplete();
    let never_joined = Zone::default();
    for (zone, name, kind, expected) in [
        // One on this host, in the directory but not yet observed.
        (&stored, "testapp-web-1.kontena.local.", A, (ServFail, 0)),
        (&stored, "testapp-web-1.kontena.local.", AAAA, (ServFail, 0)),
        (&stored, "1.1.81.10.in-addr.arpa.", PTR, (ServFail, 0)),
        (&stored, "nobody.demo.kontena.local.", A, (ServFail, 0)),
        (&stored, "testapp.demo.kontena.local.", A, (ServFail, 0)),
        // One on another node.
        (&stored, "testapp-web.demo.kontena.local.", A, (NoError, 1)),
        (&stored, "testapp-web-2.kontena.local.", AAAA, (NoError, 0)),
        (&stored, "2.1.81.10.in-addr.arpa.", PTR, (NoError, 1)),
        (
            &never_joined,
            "testapp-web.kontena.local.",
            A,
            (ServFail, 0),
        ),
        (&never_joined, "kontena.local.", A, (ServFail, 0)),
    ] {
        let reply = ask(zone, &query(name, kind), Transport::Udp);
        let said = (reply.metadata.response_code, reply.answers.len());
        assert_eq!(said, expected, "{name} {kind}");
    }
}

#[test]
fn long_answers_are_cut_to_what_the_client_takes_and_whole_over_tcp() {
    let zone = zone(100);
    let mut query = query("testapp-web.demo.kontena.local.", RecordType::A);
    let size = |query: &Message, over| match answer(&zone, &query.to_vec().unwrap(), over) {
        Verdict::Reply(bytes) => bytes.len(),
        other => panic!("{other:?}"),
    };
    assert!((480..=512).contains(&size(&query, Transport::Udp)));
    assert!(ask(&zone, &query, Transport::Udp).metadata.truncation);
    let whole = ask(&zone, &query, Transport::Tcp);
    assert_eq!(
        (whole.answers.len(), whole.metadata.truncation),
        (102, false)
    );

    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    query.set_edns(edns);
    assert!((1200..=1232).contains(&size(&query, Transport::Udp)));
    let reply = ask(&zone, &query, Transport::Udp);
    assert!(reply.metadata.truncation && reply.edns.is_some());
}

#[test]
fn a_later_edns_is_refused_by_its_version() {
    let mut query = query("testapp-web.demo.kontena.local.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    query.set_edns(edns);
    let reply = ask(&zone(0), &query, Transport::Udp);
    // 16 has two names: BADVERS here, BADSIG with a signature.
    assert_eq!(
        u16::from(reply.metadata.response_code),
        u16::from(ResponseCode::BADVERS)
    );
}

#[test]
fn what_is_no_query_gets_a_refusal_or_silence() {
    let zone = zone(0);
    let packet = query("testapp-web.kontena.local.", RecordType::A)
        .to_vec()
        .unwrap();
    let change = |at: usize, to: u8| {
        let mut packet = packet.clone();
        packet[at] = to;
        answer(&zone, &packet, Transport::Udp)
    };
    let code = |verdict| match verdict {
        Verdict::Reply(bytes) => bytes[3] & 0x0f,
        other => panic!("{other:?}"),
    };
    assert_eq!(change(2, 0x80), Verdict::Drop);
    assert_eq!(code(change(2, 0x28)), ResponseCode::NotImp.low());
    assert_eq!(code(change(5, 2)), ResponseCode::FormErr.low());
    assert_eq!(
        code(answer(&zone, &packet[..20], Transport::Udp)),
        ResponseCode::FormErr.low()
    );
    assert_eq!(answer(&zone, &packet[..11], Transport::Udp), Verdict::Drop);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = answer(&zone(0), &bytes, Transport::Udp);
    }

    #[test]
    fn no_change_of_a_query_makes_it_panic(at in 0_usize..70, to in any::<u8>(), cut in 0_usize..80) {
        let mut query = query("testapp-web.demo.kontena.local.", RecordType::A);
        query.set_edns(Edns::new());
        let mut bytes = query.to_vec().unwrap();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = to;
        }
        bytes.truncate(cut.max(1));
        let _ = answer(&zone(0), &bytes, Transport::Tcp);
    }
}
