//! External names, from a client's socket through the server to resolvers of this test
//! and back.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::forward::Forwarder;
use super::server::Server;
use super::stream::{read_message, write_message};
use super::testing::{BOUND, Resolver, Says, name, resolvers, root, upstreams};
use super::zone::Zone;
use crate::directory::tests::directory;
use crate::testing::TempDir;
use kontena_task::Tasks;

const RIGHT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

struct Bed {
    address: SocketAddr,
    _tasks: Tasks,
    dir: TempDir,
}

async fn bed_at(own: Ipv4Addr, port: u16, resolvers: &[Resolver]) -> Bed {
    let dir = root(resolvers);
    let forwarder = Forwarder::new(upstreams(&[&dir], port), own);
    let (_, zone) = watch::channel(Arc::new(Zone::build(&directory(), [])));
    let server = Server::bind(own, 0, zone, forwarder).await.unwrap();
    let address = server.address().unwrap();
    let mut tasks = Tasks::new();
    tasks.spawn("server", async move { drop(server.serve().await) });
    Bed {
        address,
        _tasks: tasks,
        dir,
    }
}

async fn bed(port: u16, resolvers: &[Resolver]) -> Bed {
    bed_at([127, 0, 0, 9].into(), port, resolvers).await
}

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.add_query(Query::query(Name::from_str(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

impl Bed {
    /// Sends a query from a loopback address.
    async fn send(&self, from: Ipv4Addr, name: &str) -> UdpSocket {
        let socket = UdpSocket::bind((from, 0)).await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket.send(&query(name)).await.unwrap();
        socket
    }

    async fn udp_from(&self, from: Ipv4Addr, name: &str) -> Message {
        received(&self.send(from, name).await).await
    }

    async fn udp(&self) -> Message {
        self.udp_from(Ipv4Addr::LOCALHOST, "example.com.").await
    }

    async fn tcp(&self) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        write_message(&mut stream, &query("example.com."))
            .await
            .unwrap();
        let answer = timeout(BOUND, read_message(&mut stream, 4096))
            .await
            .expect("no answer over TCP");
        Message::from_vec(&answer.unwrap().unwrap()).unwrap()
    }
}

async fn received(socket: &UdpSocket) -> Message {
    let mut answer = vec![0; 4096];
    let length = timeout(BOUND, socket.recv(&mut answer))
        .await
        .expect("no answer over UDP")
        .unwrap();
    let answer = Message::from_vec(&answer[..length]).unwrap();
    assert_eq!((answer.metadata.id, answer.queries.len()), (7, 1));
    answer
}

fn said(answer: &Message) -> (ResponseCode, Vec<IpAddr>) {
    let addresses = answer
        .answers
        .iter()
        .filter_map(|record| match record.data {
            RData::A(a) => Some(a.0.into()),
            _ => None,
        });
    (answer.metadata.response_code, addresses.collect())
}

fn right(ip: Ipv4Addr) -> (ResponseCode, Vec<IpAddr>) {
    (ResponseCode::NoError, vec![ip.into()])
}

#[tokio::test]
async fn after_a_refusal_or_a_failure_the_next_resolver_is_asked() {
    for code in [
        ResponseCode::ServFail,
        ResponseCode::Refused,
        ResponseCode::NotImp,
    ] {
        let (port, resolvers) = resolvers([Says::Code(code), Says::Address(RIGHT)]).await;
        let bed = bed(port, &resolvers).await;
        assert_eq!(said(&bed.udp().await), right(RIGHT), "{code}");
        assert_eq!(said(&bed.tcp().await), right(RIGHT), "{code}");
    }
}

#[tokio::test]
async fn that_there_is_no_such_name_is_an_answer() {
    let says = [Says::Code(ResponseCode::NXDomain), Says::Address(RIGHT)];
    let (port, resolvers) = resolvers(says).await;
    let bed = bed(port, &resolvers).await;
    assert_eq!(said(&bed.udp().await).0, ResponseCode::NXDomain);
    assert_eq!(resolvers[1].asked(), 0);
}

#[tokio::test]
async fn when_none_answers_well_what_was_said_is_passed_on() {
    use ResponseCode::{Refused, ServFail};
    for (first, second, best) in [
        (Says::Code(Refused), Says::Code(Refused), Refused),
        (Says::Code(Refused), Says::Code(ServFail), ServFail),
        (Says::Code(Refused), Says::Nothing, Refused),
        (Says::Nothing, Says::Nothing, ServFail),
    ] {
        let (port, resolvers) = resolvers([first, second]).await;
        let bed = bed(port, &resolvers).await;
        assert_eq!(said(&bed.udp().await).0, best, "{first:?} {second:?}");
    }
}

#[tokio::test]
async fn a_dead_resolver_is_skipped_and_comes_back() {
    let (port, resolvers) = resolvers([Says::Nothing, Says::Address(OTHER)]).await;
    let bed = bed(port, &resolvers).await;
    let name = "example.com.";
    // Once it is found dead, at most one of the later queries asks it again.
    for _ in 0..20 {
        let answer = bed.udp_from(Ipv4Addr::LOCALHOST, name).await;
        assert_eq!(said(&answer), right(OTHER));
    }
    assert!(resolvers[0].asked() < 5, "{}", resolvers[0].asked());
    resolvers[0].says(Says::Address(RIGHT));
    let back = async {
        while said(&bed.udp_from(Ipv4Addr::LOCALHOST, name).await) != right(RIGHT) {
            tokio::task::yield_now().await;
        }
    };
    timeout(BOUND, back).await.expect("it is not asked again");
}

#[tokio::test]
async fn when_all_are_dead_they_are_asked_all_the_same() {
    let (port, resolvers) = resolvers([Says::Nothing, Says::Nothing]).await;
    let bed = bed(port, &resolvers).await;
    assert_eq!(said(&bed.udp().await).0, ResponseCode::ServFail);
    resolvers[1].says(Says::Address(RIGHT));
    assert_eq!(said(&bed.udp().await), right(RIGHT));
}

#[tokio::test]
async fn only_an_answer_to_the_question_counts() {
    let (port, resolvers) = resolvers([Says::Late(RIGHT)]).await;
    let bed = bed(port, &resolvers).await;
    assert_eq!(said(&bed.udp().await), right(RIGHT));
}

#[tokio::test]
async fn one_client_does_not_use_up_all_forwards() {
    let (port, resolvers) = resolvers([Says::Nothing]).await;
    let bed = bed(port, &resolvers).await;
    // More than there are slots, and none is answered.
    let greedy = UdpSocket::bind("127.0.0.77:0").await.unwrap();
    greedy.connect(bed.address).await.unwrap();
    let wait = async {
        loop {
            for _ in 0..16 {
                greedy.send(&query("slow.example.")).await.unwrap();
            }
            let mut answer = vec![0; 512];
            if let Ok(Ok(_)) = timeout(Duration::from_millis(1), greedy.recv(&mut answer)).await {
                break Message::from_vec(&answer).unwrap();
            }
        }
    };
    let refused = timeout(BOUND, wait).await.expect("there is no end of it");
    resolvers[0].says(Says::Address(RIGHT));
    let answer = bed.udp_from([127, 0, 0, 78].into(), "example.com.").await;
    assert_eq!(said(&answer), right(RIGHT));
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    // Go keeps waiting if an answer lacks the question.
    assert_eq!(refused.queries.len(), 1);
}

#[tokio::test]
async fn one_client_does_not_use_up_all_connections() {
    let (port, resolvers) = resolvers([Says::Address(RIGHT)]).await;
    let bed = bed(port, &resolvers).await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(bed.address).await.unwrap());
    }
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.78:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(bed.address).await.unwrap();
    write_message(&mut stream, &query("example.com."))
        .await
        .unwrap();
    // Less than the timeout of idle connections.
    let answer = timeout(Duration::from_secs(5), read_message(&mut stream, 4096)).await;
    let answer = answer.expect("no answer").unwrap().expect("closed");
    assert_eq!(said(&Message::from_vec(&answer).unwrap()), right(RIGHT));
}

#[tokio::test]
async fn what_the_host_asks_goes_to_no_resolver_of_the_host() {
    let (port, resolvers) = resolvers([Says::Address(RIGHT)]).await;
    let own = Ipv4Addr::new(127, 0, 0, 9);
    let bed = bed_at(own, port, &resolvers).await;
    let answer = bed.udp_from(own, "example.com.").await;
    assert_eq!(said(&answer).0, ResponseCode::ServFail);
    assert_eq!(resolvers[0].asked(), 0);
}

#[tokio::test]
async fn another_list_of_resolvers_is_noticed() {
    let (port, resolvers) = resolvers([Says::Address(RIGHT), Says::Address(OTHER)]).await;
    let bed = bed(port, &resolvers[..1]).await;
    assert_eq!(said(&bed.udp().await), right(RIGHT));
    name(&bed.dir, [resolvers[1].ip]);
    let noticed = async { while said(&bed.udp().await) != right(OTHER) {} };
    timeout(BOUND, noticed).await.expect("it is not noticed");
}

#[tokio::test]
async fn what_is_too_long_for_a_query_goes_nowhere() {
    let (port, resolvers) = resolvers([Says::Address(RIGHT)]).await;
    let bed = bed(port, &resolvers).await;
    let long = [query("example.com."), vec![0; 5000]].concat();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&long, bed.address).await.unwrap();
    let mut stream = TcpStream::connect(bed.address).await.unwrap();
    write_message(&mut stream, &long).await.unwrap();
    let end = timeout(BOUND, read_message(&mut stream, 4096)).await;
    let end = end.expect("the connection stays open");
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    // The next query is answered, so the long one was read.
    assert_eq!(said(&bed.udp().await), right(RIGHT));
    assert_eq!(resolvers[0].asked(), 1);
}
