//! A TCP proxy that breaks what passes through it: it cuts connections, stalls
//! them and delays their bytes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

/// What is read at once; larger messages pass in several pieces.
const CHUNK: usize = 16 << 10;

/// A proxy in front of one address.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: SocketAddr,
    next: AtomicU64,
    /// The connections that are open, with the port from which each reaches the target.
    open: Mutex<BTreeMap<u64, (AbortHandle, u16)>>,
    stalled: watch::Sender<bool>,
    delay_ms: AtomicU64,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, (AbortHandle, u16)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target,
            next: AtomicU64::new(0),
            open: Mutex::default(),
            stalled: watch::Sender::new(false),
            delay_ms: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            accepting,
        }
    }

    /// Cuts the connections that `chosen` says yes to, and tells how many.
    pub fn cut(&self, mut chosen: impl FnMut() -> bool) -> usize {
        let open = self.shared.open();
        let cut = open.values().filter(|_| chosen());
        cut.map(|(connection, _)| connection.abort()).count()
    }

    /// Lets no byte through, in either direction, until it is called with false.
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.send_replace(stalled);
    }

    /// Holds each piece back for so long.
    pub fn delay(&self, delay: Duration) {
        let ms = u64::try_from(delay.as_millis()).unwrap();
        self.shared.delay_ms.store(ms, Ordering::Relaxed);
    }

    /// The ports from which the target is reached now.
    pub fn ports(&self) -> Vec<i32> {
        let open = self.shared.open();
        open.values().map(|(_, port)| i32::from(*port)).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut(|| true);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let place = Open(id, Arc::clone(&shared));
        // Held while the connection begins, so that it cannot end before it is noted.
        let mut open = shared.open();
        let connection = tokio::spawn(pass(client, place));
        open.insert(id, (connection.abort_handle(), 0));
    }
}

/// A connection's place among the open ones; it leaves when this is dropped.
struct Open(u64, Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.1.open().remove(&self.0);
    }
}

async fn pass(client: TcpStream, place: Open) {
    let Open(id, shared) = &place;
    // A client whose server is not there sees the connection end.
    let Ok(server) = TcpStream::connect(shared.target).await else {
        return;
    };
    if let (Some(entry), Ok(from)) = (shared.open().get_mut(id), server.local_addr()) {
        entry.1 = from.port();
    }
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, shared) => {}
        () = pump(from_server, to_client, shared) => {}
    }
}

/// Passes bytes on until either side ends; then both do.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) {
    let mut stalled = shared.stalled.subscribe();
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let delay = shared.delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            // The fault itself: bytes that are late.
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let _ = stalled.wait_for(|stalled| !stalled).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        address
    }

    async fn reply(stream: &mut TcpStream) -> Option<u8> {
        stream.write_all(b"x").await.ok()?;
        let read = tokio::time::timeout(Duration::from_millis(200), stream.read_u8());
        read.await.ok()?.ok()
    }

    #[tokio::test]
    async fn bytes_pass_until_they_are_stalled_or_the_connection_is_cut() {
        let proxy = Proxy::start(echo().await).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(reply(&mut stream).await, Some(b'x'));
        assert_eq!(proxy.ports().len(), 1);
        proxy.stall(true);
        assert_eq!(reply(&mut stream).await, None);
        proxy.stall(false);
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        proxy.delay(Duration::from_millis(20));
        let began = tokio::time::Instant::now();
        assert_eq!(reply(&mut stream).await, Some(b'x'));
        assert!(began.elapsed() >= Duration::from_millis(40));
        assert_eq!(proxy.cut(|| false), 0);
        assert_eq!(proxy.cut(|| true), 1);
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
    }
}
