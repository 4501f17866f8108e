//! The door: TCP port 6783, where an agent says that it is there.
//!
//! A peer that gets no answer at the encrypted path's port checks here (`check.rs`). Who
//! connects is told one line, and that is the end of the connection: a word, and the
//! address from which he is seen to come, which is another one behind a nat.
//!
//! Invariants: it is open to the world, so it tells nothing of the grid, of nodes or of
//! versions; it reads nothing, keeps nothing of anybody, and has one connection at a
//! time. A new one has room for the line, so nobody is waited for; who comes in a crowd
//! waits in the kernel's queue, which is short.
//!
//! Absent on purpose: any word about who may connect. It opens its port in the namespace
//! of the runtime's threads, as all that the overlay starts by itself.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use kontena_schema::limits::DOOR_PORT;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

/// What an agent says before the address.
const WORD: &str = "kontena-agent ";
/// More than the line ever has: 14 octets, 21 of an address with its port, and its end.
pub(crate) const LINE_BYTES_MAX: usize = 48;
/// Who waits for an answer in the kernel. All peers of a full grid at once are more than
/// come in the time of a few answers.
const WAITING_MAX: u32 = 64;
/// Between two answers: 500 a second are few enough to cost nothing, and many more than
/// peers ask for.
const PAUSE: Duration = Duration::from_millis(2);
/// After an error that is no caller's, such as too many open files.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(200);
/// How soon a port that something else has is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// CheckOutcomes at the door, for ever. A port that cannot be had is waited for: only the
/// reasons that peers have become worse without it.
pub(crate) async fn keep_open() {
    let mut told = false;
    loop {
        match open((Ipv4Addr::UNSPECIFIED, DOOR_PORT)) {
            Ok(door) => {
                tracing::debug!(port = DOOR_PORT, "peers may check");
                return answer_all(&door).await;
            }
            Err(err) if !told => {
                let port = DOOR_PORT;
                tracing::warn!(port, %err, "peers that cannot reach this host do not learn why");
                told = true;
            }
            Err(_) => {}
        }
        sleep(RETRY_EVERY).await;
    }
}

fn open(at: (Ipv4Addr, u16)) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // A predecessor's connections may still be closing.
    socket.set_reuseaddr(true)?;
    socket.bind(at.into())?;
    socket.listen(WAITING_MAX)
}

async fn answer_all(door: &TcpListener) {
    loop {
        let pause = match door.accept().await {
            Ok((stream, SocketAddr::V4(from))) => {
                // Who is gone already learns nothing.
                let _ = answer(stream, from);
                PAUSE
            }
            Ok(_) => PAUSE,
            Err(err) => {
                tracing::debug!(%err, "nobody is answered");
                PAUSE_AFTER_ERROR
            }
        };
        sleep(pause).await;
    }
}

/// Never waits: the socket is still as tokio made it.
fn answer(stream: TcpStream, from: SocketAddrV4) -> io::Result<()> {
    stream.into_std()?.write_all(line(from).as_bytes())
}

/// What the agent says to who comes from there.
fn line(from: SocketAddrV4) -> String {
    format!("{WORD}{from}\n")
}

/// The address that an agent named; none if it was no agent that spoke.
pub(crate) fn read(line: &[u8]) -> Option<SocketAddrV4> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    line.strip_prefix(WORD)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    /// A door at a port of its own.
    fn door() -> (SocketAddr, AbortOnDropHandle<()>) {
        let door = open((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = door.local_addr().unwrap();
        let task = tokio::spawn(async move { answer_all(&door).await });
        (at, AbortOnDropHandle::new(task))
    }

    async fn connect(at: SocketAddr) -> TcpStream {
        timeout(BOUND, TcpStream::connect(at))
            .await
            .unwrap()
            .unwrap()
    }

    /// All that is advertised until the connection is closed.
    async fn hear(stream: &mut TcpStream) -> Vec<u8> {
        let mut advertised = Vec::new();
        let heard = timeout(BOUND, stream.read_to_end(&mut advertised)).await;
        heard.expect("it is closed").unwrap();
        advertised
    }

    #[test]
    fn what_is_said_is_understood_and_nothing_else_is() {
        let from = "255.255.255.255:65535".parse().unwrap();
        assert!(line(from).len() <= LINE_BYTES_MAX);
        assert_eq!(read(line(from).as_bytes()), Some(from));
        for other in [
            &b""[..],
            b"kontena-agent 198.51.100.7:40000",
            b"kontena-agent 198.51.100.7\n",
            b"kontena-agent [2001:db8::7]:1\n",
            b"kontena-agent 198.51.100.7:40000\nand more\n",
            b"SSH-2.0-OpenSSH_9.2\n",
            b"\xff\n",
        ] {
            assert_eq!(read(other), None, "{other:?}");
        }
    }

    #[tokio::test]
    async fn who_connects_learns_his_address_and_is_let_go() {
        let (at, _door) = door();
        let mut stream = connect(at).await;
        let SocketAddr::V4(own) = stream.local_addr().unwrap() else {
            unreachable!()
        };
        assert_eq!(read(&hear(&mut stream).await), Some(own));
    }

    #[tokio::test]
    async fn strangers_who_hold_on_or_talk_keep_nobody_out() {
        let (at, _door) = door();
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(connect(at).await);
        }
        // Who talks is cut off, sooner or later, and nobody listens meanwhile.
        let mut talker = connect(at).await;
        let much = vec![7; 1 << 20];
        let talk = async { while talker.write_all(&much).await.is_ok() {} };
        timeout(BOUND, talk).await.expect("it does not hang");
        let mut peer = connect(at).await;
        assert!(read(&hear(&mut peer).await).is_some());
        // Everybody was let go, though none of them asked for it.
        for stream in &mut held {
            assert!(read(&hear(stream).await).is_some());
        }
    }

    #[tokio::test]
    async fn a_crowd_is_answered_no_faster_than_it_may_cost() {
        let (at, _door) = door();
        let began = Instant::now();
        for _ in 0..50 {
            let mut stream = connect(at).await;
            assert!(read(&hear(&mut stream).await).is_some());
        }
        assert!(began.elapsed() >= PAUSE * 49, "{:?}", began.elapsed());
    }
}
