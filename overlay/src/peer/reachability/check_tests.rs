//! The outcomes of checks, and when a check ends.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::*;
use crate::model::peer::PeerState;

const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

#[test]
fn the_line_tells_an_agent_from_other_servers() {
    let agent = |translated| CheckOutcome::Agent { translated };
    for (line, answer) in [
        (&b"kontena-agent 198.51.100.1:40000\n"[..], agent(false)),
        (b"kontena-agent 203.0.113.9:40000\n", agent(true)),
        (b"kontena-agent 203.0.113.9:40000", CheckOutcome::Other),
        (b"SSH-2.0-OpenSSH_9.2\r\n", CheckOutcome::Other),
        (b"", CheckOutcome::Other),
    ] {
        assert_eq!(outcome(line, OWN), answer, "{line:?}");
    }
}

#[test]
fn only_errors_about_the_other_end_have_an_outcome() {
    for (errno, answer) in [
        (libc::ECONNREFUSED, Some(CheckOutcome::Closed)),
        (libc::ETIMEDOUT, Some(CheckOutcome::Silent)),
        (libc::EHOSTUNREACH, Some(CheckOutcome::Silent)),
        (libc::ENETUNREACH, Some(CheckOutcome::NoRoute)),
        (libc::EMFILE, None),
        (libc::EACCES, None),
        (libc::EADDRNOTAVAIL, None),
    ] {
        let err = io::Error::from_raw_os_error(errno);
        assert_eq!(refused(&err), answer, "{err}");
    }
}

#[test]
fn outcomes_are_found_by_their_address() {
    let found = [
        (PUBLIC, CheckOutcome::Closed),
        (PRIVATE, CheckOutcome::Silent),
    ];
    let answers: CheckOutcomes = found.into_iter().collect();
    assert_eq!(answers.at(PUBLIC), Some(CheckOutcome::Closed));
    assert_eq!(answers.at(PRIVATE), Some(CheckOutcome::Silent));
    assert_eq!(answers.at(Ipv4Addr::LOCALHOST), None);
    let answers: CheckOutcomes = found.into_iter().skip(1).collect();
    assert_eq!(answers.at(PUBLIC), None);
}

/// A server that sends this to a client, and then closes the connection or does not.
async fn host(sends: &'static [u8], closes: bool) -> (Ipv4Addr, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let SocketAddr::V4(at) = listener.local_addr().unwrap() else {
        unreachable!()
    };
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(sends).await.unwrap();
        if !closes {
            sleep(10 * WITHIN).await;
        }
    });
    (*at.ip(), at.port())
}

#[tokio::test]
async fn a_check_ends_whatever_the_server_does() {
    let agent = host(b"kontena-agent 127.0.0.1:1\n", true).await;
    let known = CheckOutcome::Agent { translated: false };
    assert_eq!(check(agent).await, Some(known));
    let elsewhere = host(b"kontena-agent 203.0.113.9:1\n", true).await;
    let hidden = CheckOutcome::Agent { translated: true };
    assert_eq!(check(elsewhere).await, Some(hidden));
    // It sends enough to fill any buffer, or nothing, and never closes.
    static MUCH: [u8; 1 << 16] = [b'x'; 1 << 16];
    for sends in [&MUCH[..], b""] {
        let began = Instant::now();
        assert_eq!(
            check(host(sends, false).await).await,
            Some(CheckOutcome::Other)
        );
        assert!(began.elapsed() < 2 * WITHIN);
    }
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let refused = check((Ipv4Addr::LOCALHOST, port)).await;
    assert_eq!(refused, Some(CheckOutcome::Closed));
}

#[tokio::test]
async fn a_check_is_cancelled_when_the_peer_is_alive_or_removed() {
    let node = NodeId(2);
    let silent = PeerStates::from([(node, PeerState::default())]);
    let alive = PeerState {
        alive: true,
        ..PeerState::default()
    };
    for over in [PeerStates::from([(node, alive)]), PeerStates::new()] {
        let (states, seen) = watch::channel(silent.clone());
        let mute = host(b"", false).await;
        let began = Instant::now();
        let checked = tokio::spawn(check_peer(node, vec![mute], seen));
        states.send_replace(over);
        assert_eq!(checked.await.unwrap(), None);
        assert!(began.elapsed() < WITHIN);
    }
    // It is not cancelled while nothing changes.
    let (_states, seen) = watch::channel(silent);
    let mute = host(b"", false).await;
    let found = check_peer(node, vec![mute], seen).await.unwrap();
    assert_eq!(found.at(mute.0), Some(CheckOutcome::Other));
}
