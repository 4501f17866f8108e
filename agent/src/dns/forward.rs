//! Foreign names: the query goes to the host's resolvers as it came, and the
//! answer back as it came.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tracing::debug;

use super::answer::{Transport, refusal};
use super::stream::{read_message, write_message};

/// One resolver gets this long; clients mostly give up after five seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// More resolvers than this are not tried: libc does not either.
const RESOLVERS_MAX: usize = 3;
/// How old the list of resolvers may be.
const READ_EVERY: Duration = Duration::from_secs(1);
const PORT: u16 = 53;

/// The host's resolvers.
pub struct Forwarder {
    resolv_confs: Vec<PathBuf>,
    /// This server itself: asking it would go round in circles.
    own: Ipv4Addr,
    port: u16,
    read: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl Forwarder {
    /// Forwards to the resolvers of the first file like `/etc/resolv.conf` that
    /// names any.
    pub fn new(resolv_confs: Vec<PathBuf>, own: Ipv4Addr) -> Self {
        Self {
            resolv_confs,
            own,
            port: PORT,
            read: Mutex::new(None),
        }
    }

    /// For tests: the resolvers listen on another port.
    #[cfg(test)]
    pub fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The answer of the first resolver that gives one, else a refusal.
    pub async fn forward(&self, query: &[u8], over: Transport) -> Vec<u8> {
        for resolver in self.resolvers() {
            let asked = async {
                match over {
                    Transport::Udp => ask_udp(resolver, query).await,
                    Transport::Tcp => ask_tcp(resolver, query).await,
                }
            };
            match timeout(ANSWER_WITHIN, asked).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(err)) => debug!(%resolver, %err, "no answer"),
                Err(_) => debug!(%resolver, "no answer in time"),
            }
        }
        refusal(query, ResponseCode::ServFail)
    }

    fn resolvers(&self) -> Vec<SocketAddr> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match &*read {
            Some((at, resolvers)) if at.elapsed() < READ_EVERY => resolvers.clone(),
            _ => {
                let named = |file| {
                    let text = std::fs::read_to_string(file).unwrap_or_default();
                    nameservers(&text, self.own)
                };
                let mut files = self.resolv_confs.iter().map(named);
                let found = files.find(|resolvers| !resolvers.is_empty());
                let resolvers = found
                    .into_iter()
                    .flatten()
                    .map(|ip| SocketAddr::new(ip, self.port))
                    .collect::<Vec<_>>();
                *read = Some((Instant::now(), resolvers.clone()));
                resolvers
            }
        }
    }
}

pub(super) fn nameservers(text: &str, own: Ipv4Addr) -> Vec<IpAddr> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
    };
    text.lines()
        .filter_map(parse)
        .filter(|ip| *ip != own)
        .take(RESOLVERS_MAX)
        .collect()
}

async fn ask_udp(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A socket of its own: the kernel chooses a port that nobody can guess.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answers(query, &answer[..length]) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    write_message(&mut stream, query).await?;
    let answer = read_message(&mut stream).await?;
    let answer = answer.filter(|answer| answers(query, answer));
    answer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer to nothing asked"))
}

/// Same id, and a response.
fn answers(query: &[u8], answer: &[u8]) -> bool {
    answer.len() >= 12 && answer[..2] == query[..2] && answer[2] & 0x80 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn the_first_file_that_names_a_resolver_counts() {
        let dir = TempDir::new();
        let files = ["missing", "own", "good", "unused"].map(|name| dir.path().join(name));
        let own = Ipv4Addr::new(172, 17, 0, 1);
        for (file, text) in files
            .iter()
            .zip(["", "172.17.0.1", "192.0.2.1", "192.0.2.2"])
            .skip(1)
        {
            std::fs::write(file, format!("nameserver {text}\n")).unwrap();
        }
        let forwarder = Forwarder::new(files.to_vec(), own);
        assert_eq!(forwarder.resolvers(), ["192.0.2.1:53".parse().unwrap()]);
    }

    #[test]
    fn the_server_never_asks_itself() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 172.17.0.1\n\
                    nameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver 2001:db8::53\n";
        let found = nameservers(text, [172, 17, 0, 1].into());
        let expected: [IpAddr; 2] = [
            "192.0.2.53".parse().unwrap(),
            "2001:db8::53".parse().unwrap(),
        ];
        assert_eq!(found, expected);
    }
}
