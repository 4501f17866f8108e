//! The sockets of the name server.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::answer::{Transport, Verdict, answer, refusal};
use super::forward::Forwarder;
use super::stream::{read_message, write_message};
use super::zone::Zone;
use crate::docker::bridge::BridgeSlot;

/// Foreign queries under way: each holds a socket for up to six seconds.
const FORWARDS_MAX: usize = 256;
/// Open TCP connections: each holds a descriptor while its client is idle.
const CONNECTIONS_MAX: usize = 128;
/// An idle connection is closed after this time (RFC 7766 section 6.2.3 speaks of
/// seconds).
const IDLE_MAX: Duration = Duration::from_secs(10);
/// A datagram with a query; queries are far smaller.
const QUERY_BYTES_MAX: usize = 4096;
/// How soon a failed bind is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(500);
const PORT: u16 = 53;
/// The host's own file, seen through its first process; a container's file, which
/// is what this agent itself has, was copied when the agent was created.
const RESOLV_CONFS: [&str; 2] = ["/proc/1/root/etc/resolv.conf", "/etc/resolv.conf"];

/// Where the names are to be seen.
pub type ZoneSlot = watch::Receiver<Arc<Zone>>;

/// Serves on the bridge's address, for ever, and follows it when it changes.
pub async fn run(mut bridge: BridgeSlot, zone: ZoneSlot) {
    let mut told = false;
    loop {
        let Some(address) = *bridge.borrow_and_update() else {
            let _ = bridge.changed().await;
            continue;
        };
        let forwarder = Forwarder::new(RESOLV_CONFS.map(PathBuf::from).to_vec(), address);
        let served = async {
            let server = Server::bind(address, PORT, zone.clone(), forwarder).await?;
            info!(%address, "names are served");
            told = false;
            server.serve().await
        };
        tokio::select! {
            Ok(()) = bridge.changed() => {}
            Err(err) = served => {
                if !told {
                    warn!(%address, %err, "names are not served");
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
    forwards: Semaphore,
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
            forwards: Semaphore::new(FORWARDS_MAX),
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

    /// Forwards, or refuses when too many are under way.
    async fn forward(&self, query: &[u8], over: Transport) -> Vec<u8> {
        match self.forwards.try_acquire() {
            Ok(_place) => self.forwarder.forward(query, over).await,
            Err(_) => refusal(query, ResponseCode::ServFail),
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) -> io::Result<Infallible> {
    let mut buffer = vec![0; QUERY_BYTES_MAX];
    let mut forwards = JoinSet::new();
    loop {
        let (length, from) = tokio::select! {
            received = socket.recv_from(&mut buffer) => received?,
            Some(_) = forwards.join_next() => continue,
        };
        let query = &buffer[..length];
        match shared.decide(query, Transport::Udp) {
            Verdict::Reply(reply) => send(&socket, &reply, from).await,
            Verdict::Drop => {}
            Verdict::Forward => {
                let (query, socket, shared) = (query.to_vec(), socket.clone(), shared.clone());
                forwards.spawn(async move {
                    let reply = shared.forward(&query, Transport::Udp).await;
                    send(&socket, &reply, from).await;
                });
            }
        }
    }
}

/// A client that is gone is no reason to stop.
async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(err) = socket.send_to(reply, to).await {
        debug!(%to, %err, "an answer was not sent");
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) -> io::Result<Infallible> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                let (stream, from) = accepted?;
                let shared = shared.clone();
                connections.spawn(async move {
                    if let Err(err) = serve_connection(stream, &shared).await {
                        debug!(%from, %err, "a connection broke");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let Ok(read) = timeout(IDLE_MAX, read_message(&mut stream)).await else {
            return Ok(());
        };
        let Some(query) = read? else { return Ok(()) };
        let reply = match shared.decide(&query, Transport::Tcp) {
            Verdict::Reply(reply) => reply,
            Verdict::Forward => shared.forward(&query, Transport::Tcp).await,
            Verdict::Drop => return Ok(()),
        };
        match timeout(IDLE_MAX, write_message(&mut stream, &reply)).await {
            Ok(written) => written?,
            Err(_) => return Ok(()),
        }
    }
}
