//! The server on real sockets, with a resolver of our own behind it.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::forward::Forwarder;
use super::server::Server;
use super::stream::{read_message, write_message};
use super::testing::{BOUND, name, root, upstreams};
use super::zone::{Local, Zone};
use crate::directory::tests::{directory, placement};
use crate::testing::TempDir;
use kontena_task::Tasks;

/// Not the client's address: queries never go back to their sender.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

struct Bed {
    address: SocketAddr,
    zone: watch::Sender<Arc<Zone>>,
    _tasks: Tasks,
    _dir: TempDir,
}

/// A server whose resolver listens on `resolver`.
async fn bed(resolver: u16) -> Bed {
    let dir = root(&[]);
    name(&dir, [RESOLVER.into()]);
    let upstreams = upstreams(&[&dir], resolver);
    let forwarder = Forwarder::new(upstreams, Ipv4Addr::new(172, 17, 0, 1));
    let (zone, slot) = watch::channel(Arc::new(Zone::build(&directory(), [])));
    let server = Server::bind(Ipv4Addr::LOCALHOST, 0, slot, forwarder)
        .await
        .unwrap();
    let address = server.address().unwrap();
    let mut tasks = Tasks::new();
    tasks.spawn("server", async move { drop(server.serve().await) });
    Bed {
        address,
        zone,
        _tasks: tasks,
        _dir: dir,
    }
}

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.add_query(Query::query(Name::from_str(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

async fn ask_udp(address: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(query, address).await.unwrap();
    let mut answer = vec![0; 4096];
    let received = timeout(BOUND, socket.recv(&mut answer))
        .await
        .expect("no answer over UDP");
    answer.truncate(received.unwrap());
    answer
}

async fn ask_tcp(stream: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    write_message(stream, query).await.unwrap();
    let answer = timeout(BOUND, read_message(stream, 4096))
        .await
        .expect("no answer over TCP");
    answer.unwrap().expect("the connection ended")
}

#[tokio::test]
async fn both_transports_answer_and_follow_the_zone() {
    let bed = bed(1).await;
    let mut stream = TcpStream::connect(bed.address).await.unwrap();
    let local = Local::of(&placement(11, 1)).unwrap();
    for (count, local) in [(1, None), (2, Some(&local)), (1, None)] {
        bed.zone
            .send_replace(Arc::new(Zone::build(&directory(), local)));
        let query = query("testapp-web.demo.kontena.local.");
        for answer in [
            ask_udp(bed.address, &query).await,
            ask_tcp(&mut stream, &query).await,
        ] {
            assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), count);
        }
    }
}

#[tokio::test]
async fn foreign_queries_go_to_the_resolver_and_back_unchanged() {
    let tcp = TcpListener::bind((RESOLVER, 0)).await.unwrap();
    let udp = UdpSocket::bind(tcp.local_addr().unwrap()).await.unwrap();
    let bed = bed(udp.local_addr().unwrap().port()).await;
    // The resolver's answer is the query with the QR bit set and a mark.
    let answered = |query: &[u8], mark: &[u8]| {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        answer.extend(mark);
        answer
    };
    let mut tasks = Tasks::new();
    tasks.spawn("udp", async move {
        let mut buffer = vec![0; 512];
        let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
        // An answer to something else is not accepted.
        udp.send_to(&[0xff; 12], from).await.unwrap();
        udp.send_to(&answered(&buffer[..length], b"udp"), from)
            .await
            .unwrap();
    });
    tasks.spawn("tcp", async move {
        let (mut stream, _) = tcp.accept().await.unwrap();
        let query = read_message(&mut stream, 4096).await.unwrap().unwrap();
        write_message(&mut stream, &answered(&query, b"tcp"))
            .await
            .unwrap();
    });

    let query = query("example.com.");
    assert_eq!(ask_udp(bed.address, &query).await, answered(&query, b"udp"));
    let mut stream = TcpStream::connect(bed.address).await.unwrap();
    assert_eq!(ask_tcp(&mut stream, &query).await, answered(&query, b"tcp"));
}

#[tokio::test]
async fn without_a_resolver_a_foreign_name_fails_and_own_names_go_on() {
    // Port 1 refuses.
    let bed = bed(1).await;
    let answer = ask_udp(bed.address, &query("example.com.")).await;
    assert_eq!(
        u16::from(answer[3] & 0x0f),
        u16::from(ResponseCode::ServFail)
    );
    let answer = ask_udp(bed.address, &query("testapp-web.kontena.local.")).await;
    assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
}
