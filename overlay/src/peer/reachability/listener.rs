//! The reachability listener on TCP port 6783, which shows that an agent runs here.
//!
//! A peer that gets no answer on the encrypted path's port checks here (`check.rs`). A client gets
//! one line and the connection is closed: a word, and the address that the client is seen to come
//! from, which behind NAT is not its own.
//!
//! Invariants: it is open to the world, so it reveals nothing of the grid, of nodes or of
//! versions; it reads nothing, keeps nothing, and serves one connection at a time. A new
//! connection has buffer space for the line, so the listener never blocks; a burst waits in the
//! kernel's queue, which is short.
//!
//! Absent on purpose: any restriction of who may connect. The port is opened in the namespace of
//! the runtime's threads, like everything that the overlay starts by itself.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use kontena_schema::limits::DOOR_PORT;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

/// The word before the address.
const WORD: &str = "kontena-agent ";
/// More than the line ever has: 14 octets, 21 of an address with its port, and a newline.
pub(crate) const LINE_BYTES_MAX: usize = 48;
/// The kernel's queue of connections. All peers of a full grid at once are more than arrive in
/// the time of a few answers.
const WAITING_MAX: u32 = 64;
/// Between two answers: 500 a second are few enough to cost nothing, and many more than peers
/// need.
const PAUSE: Duration = Duration::from_millis(2);
/// After an error that no client caused, such as too many open files.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(200);
/// How often a port that is in use is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// Serves the reachability listener, for ever. If the port is in use it is retried: without it,
/// only the reasons that peers report are less precise.
pub(crate) async fn keep_open() {
    let mut warned = false;
    loop {
        match open((Ipv4Addr::UNSPECIFIED, DOOR_PORT)) {
            Ok(listener) => {
                tracing::debug!(port = DOOR_PORT, "the reachability listener is open");
                return answer_all(&listener).await;
            }
            Err(err) if !warned => {
                let port = DOOR_PORT;
                tracing::warn!(port, %err, "cannot open the reachability listener; peers that lose this host cannot find out why");
                warned = true;
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

async fn answer_all(listener: &TcpListener) {
    loop {
        let pause = match listener.accept().await {
            Ok((stream, SocketAddr::V4(from))) => {
                // The client may be gone already.
                let _ = answer(stream, from);
                PAUSE
            }
            Ok(_) => PAUSE,
            Err(err) => {
                tracing::debug!(%err, "cannot accept a reachability check");
                PAUSE_AFTER_ERROR
            }
        };
        sleep(pause).await;
    }
}

/// Never blocks: the socket is non-blocking, as tokio made it.
fn answer(stream: TcpStream, from: SocketAddrV4) -> io::Result<()> {
    stream.into_std()?.write_all(line(from).as_bytes())
}

/// The line for a client at this address.
fn line(from: SocketAddrV4) -> String {
    format!("{WORD}{from}\n")
}

/// The address in an agent's line; none if it is not an agent's.
pub(crate) fn read(line: &[u8]) -> Option<SocketAddrV4> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    line.strip_prefix(WORD)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use kontena_task::{Task, spawn};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    /// A listener on a port of its own.
    fn listener() -> (SocketAddr, Task) {
        let listener = open((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let task = spawn("listener", async move { answer_all(&listener).await });
        (at, task)
    }

    async fn connect(at: SocketAddr) -> TcpStream {
        timeout(BOUND, TcpStream::connect(at))
            .await
            .unwrap()
            .unwrap()
    }

    /// Everything that is sent until the connection is closed.
    async fn receive(stream: &mut TcpStream) -> Vec<u8> {
        let mut received = Vec::new();
        let read = timeout(BOUND, stream.read_to_end(&mut received)).await;
        read.expect("it is closed").unwrap();
        received
    }

    #[test]
    fn only_an_agent_s_line_is_accepted() {
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
    async fn a_client_gets_its_address_and_the_connection_is_closed() {
        let (at, _listener) = listener();
        let mut stream = connect(at).await;
        let SocketAddr::V4(own) = stream.local_addr().unwrap() else {
            unreachable!()
        };
        assert_eq!(read(&receive(&mut stream).await), Some(own));
    }

    #[tokio::test]
    async fn clients_that_stay_connected_or_send_data_block_no_other() {
        let (at, _listener) = listener();
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(connect(at).await);
        }
        // A client that sends is disconnected sooner or later, and nothing reads meanwhile.
        let mut sender = connect(at).await;
        let much = vec![7; 1 << 20];
        let send = async { while sender.write_all(&much).await.is_ok() {} };
        timeout(BOUND, send).await.expect("it does not hang");
        let mut peer = connect(at).await;
        assert!(read(&receive(&mut peer).await).is_some());
        // All were disconnected, though none of them closed.
        for stream in &mut held {
            assert!(read(&receive(stream).await).is_some());
        }
    }

    #[tokio::test]
    async fn a_burst_is_answered_at_a_limited_rate() {
        let (at, _listener) = listener();
        let began = Instant::now();
        for _ in 0..50 {
            let mut stream = connect(at).await;
            assert!(read(&receive(&mut stream).await).is_some());
        }
        assert!(began.elapsed() >= PAUSE * 49, "{:?}", began.elapsed());
    }
}
