//! What outcomes mean, and when a check ends.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::*;
use crate::model::peer::PeerState;

const PLACE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

#[test]
fn what_is_said_tells_an_agent_from_others() {
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
fn a_failure_tells_what_it_says_of_the_other_end_and_no_more() {
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
fn answers_are_known_by_their_place() {
    let found = [(PLACE, CheckOutcome::Closed), (OTHER, CheckOutcome::Silent)];
    let answers: CheckOutcomes = found.into_iter().collect();
    assert_eq!(answers.at(PLACE), Some(CheckOutcome::Closed));
    assert_eq!(answers.at(OTHER), Some(CheckOutcome::Silent));
    assert_eq!(answers.at(Ipv4Addr::LOCALHOST), None);
    let answers: CheckOutcomes = found.into_iter().skip(1).collect();
    assert_eq!(answers.at(PLACE), None);
}

/// A host that says this to whom it lets in, and closes or does not.
async fn host(says: &'static [u8], closes: bool) -> (Ipv4Addr, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let SocketAddr::V4(at) = listener.local_addr().unwrap() else {
        unreachable!()
    };
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(says).await.unwrap();
        if !closes {
            sleep(10 * WITHIN).await;
        }
    });
    (*at.ip(), at.port())
}

#[tokio::test]
async fn a_check_ends_whatever_there_is_behind_the_port() {
    let agent = host(b"kontena-agent 127.0.0.1:1\n", true).await;
    let known = CheckOutcome::Agent { translated: false };
    assert_eq!(check(agent).await, Some(known));
    let elsewhere = host(b"kontena-agent 203.0.113.9:1\n", true).await;
    let hidden = CheckOutcome::Agent { translated: true };
    assert_eq!(check(elsewhere).await, Some(hidden));
    // It says enough to fill any buffer, or nothing, and never closes.
    static MUCH: [u8; 1 << 16] = [b'x'; 1 << 16];
    for says in [&MUCH[..], b""] {
        let began = Instant::now();
        assert_eq!(
            check(host(says, false).await).await,
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
async fn a_check_is_given_up_when_the_peer_lives_or_is_none_any_more() {
    let node = NodeId(2);
    let silent = PeerStates::from([(node, PeerState::default())]);
    let lives = PeerState {
        alive: true,
        ..PeerState::default()
    };
    for over in [PeerStates::from([(node, lives)]), PeerStates::new()] {
        let (states, seen) = watch::channel(silent.clone());
        let mute = host(b"", false).await;
        let began = Instant::now();
        let checked = tokio::spawn(check_peer(node, vec![mute], seen));
        states.send_replace(over);
        assert_eq!(checked.await.unwrap(), None);
        assert!(began.elapsed() < WITHIN);
    }
    // And it is not while nothing changes.
    let (_states, seen) = watch::channel(silent);
    let mute = host(b"", false).await;
    let found = check_peer(node, vec![mute], seen).await.unwrap();
    assert_eq!(found.at(mute.0), Some(CheckOutcome::Other));
}
