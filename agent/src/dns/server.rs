//! The sockets of the name server.
//!
//! The clients are containers and may be hostile: each can hold only a fair share of this
//! server ([`super::shares`]), and every wait for one has a timeout.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use kontena_task::TaskSet;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::answer::{Transport, Verdict, answer, failure};
use super::forward::Forwarder;
use super::shares::{Place, Shares};
use super::stream::{read_message, write_message};
use super::upstream::Upstreams;
use super::zone::Zone;

/// Foreign queries under way over UDP: each holds a socket for up to 4.5 s, and up to three while
/// resolvers are silent. Over TCP each connection has one.
const FORWARDS_MAX: usize = 256;
/// Open TCP connections: each holds a descriptor while its client is idle.
const CONNECTIONS_MAX: usize = 128;
/// An idle connection is closed after this time (RFC 7766 section 6.2.3 speaks of
/// seconds).
const IDLE_MAX: Duration = Duration::from_secs(10);
/// The longest query, over UDP or TCP; real ones are far smaller.
const QUERY_BYTES_MAX: usize = 4096;
/// How soon a failed bind is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// How long accepting pauses after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const PORT: u16 = 53;

/// The current zone.
pub type ZoneSlot = watch::Receiver<Arc<Zone>>;

/// Serves on the bridge's address, for ever, and follows it when it changes.
pub async fn run(
    mut bridge: watch::Receiver<Option<Ipv4Addr>>,
    zone: ZoneSlot,
    upstreams: Arc<Upstreams>,
) {
    let mut told = false;
    loop {
        let Some(address) = *bridge.borrow_and_update() else {
            let _ = bridge.changed().await;
            continue;
        };
        let forwarder = Forwarder::new(upstreams.clone(), address);
        let served = async {
            let server = Server::bind(address, PORT, zone.clone(), forwarder).await?;
            info!(%address, "serving DNS");
            told = false;
            server.serve().await
        };
        tokio::select! {
            Ok(()) = bridge.changed() => {}
            Err(err) = served => {
                if !told {
                    warn!(%address, %err, "not serving DNS");
                    told = true;
                }
                sleep(RETRY_EVERY).await;
            }
        }
    }
}

/// A bound server.
pub struct Server {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    zone: ZoneSlot,
    forwarder: Forwarder,
    forwards: Arc<Shares>,
    connections: Arc<Shares>,
}

impl Server {
    /// Binds both sockets to the same port; 0 takes any.
    pub async fn bind(
        address: Ipv4Addr,
        port: u16,
        zone: ZoneSlot,
        forwarder: Forwarder,
    ) -> io::Result<Self> {
        let tcp = TcpListener::bind((address, port)).await?;
        let udp = UdpSocket::bind(tcp.local_addr()?).await?;
        let shared = Shared {
            zone,
            forwarder,
            forwards: Shares::new("queries", FORWARDS_MAX),
            connections: Shares::new("connections", CONNECTIONS_MAX),
        };
        Ok(Self {
            udp: Arc::new(udp),
            tcp,
            shared: Arc::new(shared),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Serves until a socket breaks.
    pub async fn serve(self) -> io::Result<Infallible> {
        let Self { udp, tcp, shared } = self;
        tokio::select! {
            broken = serve_udp(udp, shared.clone()) => broken,
            broken = serve_tcp(tcp, shared) => broken,
        }
    }
}

impl Shared {
    fn decide(&self, query: &[u8], over: Transport) -> Verdict {
        let zone = self.zone.borrow().clone();
        answer(&zone, query, over)
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) -> io::Result<Infallible> {
    // One byte more reveals a query that is too long.
    let mut buffer = vec![0; QUERY_BYTES_MAX + 1];
    let mut forwards = TaskSet::new("dns forwards");
    loop {
        let (length, from) = tokio::select! {
            received = socket.recv_from(&mut buffer) => received?,
            Some(_) = forwards.next() => continue,
        };
        if length > QUERY_BYTES_MAX {
            continue;
        }
        let query = &buffer[..length];
        match shared.decide(query, Transport::Udp) {
            Verdict::Reply(reply) => send(&socket, &reply, from).await,
            Verdict::Drop => {}
            Verdict::Forward => match shared.forwards.take(from.ip()) {
                None => send(&socket, &failure(query, ResponseCode::Refused), from).await,
                Some(place) => {
                    let (socket, shared) = (socket.clone(), shared.clone());
                    let query = query.to_vec();
                    forwards.spawn(async move {
                        let _place = place;
                        let asked = shared.forwarder.forward(&query, Transport::Udp, from.ip());
                        send(&socket, &asked.await, from).await;
                    });
                }
            },
        }
    }
}

/// Does not fail if the client is gone.
async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(err) = socket.send_to(reply, to).await {
        debug!(%to, %err, "cannot send an answer");
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) -> io::Result<Infallible> {
    let mut connections = TaskSet::new("dns connections");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.next() => continue,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(err) => {
                // One connection failed, or all descriptors are in use.
                debug!(%err, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A client beyond its share finds the connection closed.
        if let Some(place) = shared.connections.take(from.ip()) {
            connections.spawn(connection(stream, from, shared.clone(), place));
        }
    }
}

async fn connection(stream: TcpStream, from: SocketAddr, shared: Arc<Shared>, _place: Place) {
    if let Err(err) = serve_connection(stream, from.ip(), &shared).await {
        debug!(%from, %err, "a connection failed");
    }
}

async fn serve_connection(mut stream: TcpStream, from: IpAddr, shared: &Shared) -> io::Result<()> {
    loop {
        // Bounds both silent and slow clients.
        let read = timeout(IDLE_MAX, read_message(&mut stream, QUERY_BYTES_MAX));
        let Ok(read) = read.await else { return Ok(()) };
        let Some(query) = read? else { return Ok(()) };
        let reply = match shared.decide(&query, Transport::Tcp) {
            Verdict::Reply(reply) => reply,
            Verdict::Forward => shared.forwarder.forward(&query, Transport::Tcp, from).await,
            Verdict::Drop => return Ok(()),
        };
        match timeout(IDLE_MAX, write_message(&mut stream, &reply)).await {
            Ok(written) => written?,
            Err(_) => return Ok(()),
        }
    }
}
