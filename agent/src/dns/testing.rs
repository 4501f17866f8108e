//! Resolvers for tests: real sockets on loopback addresses, all on one port, that
//! answer what the test wants.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::stream::{read_message, write_message};
use super::upstream::{Root, Upstreams};
use crate::testing::TempDir;
use kontena_task::Tasks;

/// Nothing that a test waits for takes this long.
pub const BOUND: Duration = Duration::from_secs(20);

/// How a resolver answers every query.
#[derive(Clone, Copy, Debug)]
pub enum Says {
    /// With this address, if asked for one.
    Address(Ipv4Addr),
    /// The same; over UDP a truncated answer.
    Truncated(Ipv4Addr),
    /// With this code alone.
    Code(ResponseCode),
    /// Not at all.
    Nothing,
    /// First with another ID, then to another question, each with a wrong address, then with
    /// this address.
    Late(Ipv4Addr),
}

/// A resolver.
pub struct Resolver {
    pub ip: IpAddr,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
    _tasks: Tasks,
}

impl Resolver {
    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Changes its answer.
    pub fn says(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }
}

/// A root whose `resolv.conf` names these resolvers.
pub fn root(resolvers: &[Resolver]) -> TempDir {
    let root = TempDir::new();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    name(&root, resolvers.iter().map(|resolver| resolver.ip));
    root
}

/// Makes a root name these resolvers.
pub fn name(root: &TempDir, resolvers: impl IntoIterator<Item = IpAddr>) {
    let lines: Vec<String> = resolvers
        .into_iter()
        .map(|ip| format!("nameserver {ip}\n"))
        .collect();
    std::fs::write(root.path().join("etc/resolv.conf"), lines.concat()).unwrap();
}

/// The resolvers of these roots, on one port.
pub fn upstreams(roots: &[&TempDir], port: u16) -> Arc<Upstreams> {
    let root = |dir: &&TempDir| Root {
        path: dir.path().to_path_buf(),
        loopback: true,
    };
    Arc::new(Upstreams::new(roots.iter().map(root).collect()).with_port(port))
}

/// Resolvers at 127.0.1.1 and up, and their port.
pub async fn resolvers<const N: usize>(says: [Says; N]) -> (u16, [Resolver; N]) {
    'ports: loop {
        let mut port = 0;
        let mut started = Vec::new();
        for (last, says) in (1..).zip(says) {
            // The kernel chooses the first one's port, which may be taken at the next address.
            let Ok(resolver) = resolver([127, 0, 1, last].into(), &mut port, says).await else {
                continue 'ports;
            };
            started.push(resolver);
        }
        let started = started.try_into().unwrap_or_else(|_| unreachable!());
        return (port, started);
    }
}

async fn resolver(ip: Ipv4Addr, port: &mut u16, says: Says) -> io::Result<Resolver> {
    let tcp = TcpListener::bind((ip, *port)).await?;
    let udp = UdpSocket::bind(tcp.local_addr()?).await?;
    *port = tcp.local_addr()?.port();
    let says = Arc::new(Mutex::new(says));
    let asked = Arc::new(AtomicUsize::new(0));
    let mut tasks = Tasks::new();
    tasks.spawn("udp", serve_udp(udp, says.clone(), asked.clone()));
    tasks.spawn("tcp", serve_tcp(tcp, says.clone(), asked.clone()));
    Ok(Resolver {
        ip: ip.into(),
        says,
        asked,
        _tasks: tasks,
    })
}

async fn serve_udp(socket: UdpSocket, says: Arc<Mutex<Says>>, asked: Arc<AtomicUsize>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        asked.fetch_add(1, Ordering::SeqCst);
        let says = *says.lock().unwrap();
        for answer in answers(&buffer[..length], says, true) {
            // The client may have moved on to another resolver.
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, says: Arc<Mutex<Says>>, asked: Arc<AtomicUsize>) {
    let mut held = Vec::<TcpStream>::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let Ok(Some(query)) = read_message(&mut stream, 65_535).await else {
            continue;
        };
        asked.fetch_add(1, Ordering::SeqCst);
        let says = *says.lock().unwrap();
        for answer in answers(&query, says, false) {
            let _ = write_message(&mut stream, &answer).await;
        }
        held.push(stream);
    }
}

/// The answers to a query, in order.
fn answers(query: &[u8], says: Says, udp: bool) -> Vec<Vec<u8>> {
    let query = Message::from_vec(query).unwrap();
    let reply = |code| {
        let mut reply = Message::new(
            query.metadata.id,
            MessageType::Response,
            query.metadata.op_code,
        );
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = code;
        reply.add_query(query.queries[0].clone());
        reply
    };
    let with = |ip: Ipv4Addr| {
        let mut reply = reply(ResponseCode::NoError);
        if query.queries[0].query_type() == RecordType::A {
            let owner = query.queries[0].name().clone();
            reply.add_answer(Record::from_rdata(owner, 60, RData::A(A(ip))));
        }
        reply
    };
    let messages = match says {
        Says::Nothing => Vec::new(),
        Says::Code(code) => vec![reply(code)],
        Says::Truncated(_) if udp => {
            let mut cut = reply(ResponseCode::NoError);
            cut.metadata.truncation = true;
            vec![cut]
        }
        Says::Address(ip) | Says::Truncated(ip) => vec![with(ip)],
        Says::Late(ip) => {
            let mut numbered = with(WRONG);
            numbered.metadata.id = numbered.metadata.id.wrapping_add(1);
            let mut other = with(WRONG);
            other.queries[0].set_name("other.example.".parse().unwrap());
            vec![numbered, other, with(ip)]
        }
    };
    let encode = |message: Message| message.to_vec().unwrap();
    messages.into_iter().map(encode).collect()
}

/// Must never be believed.
pub const WRONG: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
