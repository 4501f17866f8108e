//! WireGuard in user space: the same questions and requests as text over a socket, as
//! "Cross-platform Userspace Implementation" of wireguard.com has it.

use std::fmt::Write;
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kontena_schema::key::PublicKey;
use kontena_sleeve::PrivateKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::device::{How, Message, Observed, ObservedPeer, PeerChange};
use crate::error::Cause;

const QUESTION: &str = "get=1\n\n";
/// It answers in milliseconds, or hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Where a WireGuard in user space is asked.
pub(crate) struct Socket(pub(crate) PathBuf);

impl Socket {
    /// Reads the device; None if nobody answers for it.
    pub(super) async fn observe(&self) -> Result<Option<Observed>, Cause> {
        match self.ask(QUESTION).await {
            Ok(answer) => read(&answer).map(Some).ok_or_else(|| self.unclear()),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Makes the changes of one message.
    pub(super) async fn change(&self, message: &Message) -> Result<(), Cause> {
        let answer = self.ask(&request(message)).await;
        let answer = answer.map_err(|error| self.failed(error))?;
        let done = answer.lines().any(|line| line == "errno=0");
        done.then_some(()).ok_or_else(|| self.unclear())
    }

    async fn ask(&self, text: &str) -> std::io::Result<String> {
        let talk = async {
            let mut stream = UnixStream::connect(&self.0).await?;
            stream.write_all(text.as_bytes()).await?;
            let mut answer = Vec::new();
            while !answer.ends_with(b"\n\n") {
                if stream.read_buf(&mut answer).await? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
            String::from_utf8(answer).map_err(|_| ErrorKind::InvalidData.into())
        };
        let talked = tokio::time::timeout(ANSWER_WITHIN, talk).await;
        talked.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    }

    fn failed(&self, error: Error) -> Cause {
        Cause::io(self.0.display().to_string())(error)
    }

    fn unclear(&self) -> Cause {
        self.failed(ErrorKind::InvalidData.into())
    }
}

/// A program that ends may leave its socket behind, and end in the middle of an answer.
fn is_gone(error: &Error) -> bool {
    use ErrorKind::{ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(
        error.kind(),
        NotFound | ConnectionRefused | ConnectionReset | UnexpectedEof
    )
}

/// The request that a message makes.
pub(super) fn request(message: &Message) -> String {
    let mut text = "set=1\n".to_owned();
    if let Some(key) = &message.private_key {
        line(&mut text, "private_key", hex(&key.to_octets()));
    }
    if let Some(port) = message.listen_port {
        line(&mut text, "listen_port", port);
    }
    for change in &message.peers {
        peer(&mut text, change);
    }
    text.push('\n');
    text
}

fn peer(text: &mut String, change: &PeerChange) {
    line(text, "public_key", hex(&change.key.0));
    match change.how {
        How::Add => {}
        How::Update => line(text, "update_only", true),
        How::Narrow => {
            line(text, "update_only", true);
            line(text, "replace_allowed_ips", true);
        }
        How::Remove => line(text, "remove", true),
    }
    if let Some(endpoint) = change.endpoint {
        line(text, "endpoint", endpoint);
    }
    if let Some(seconds) = change.keepalive_s {
        line(text, "persistent_keepalive_interval", seconds);
    }
    for network in &change.allowed {
        line(text, "allowed_ip", network);
    }
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "{key}={value}");
}

fn hex(octets: &[u8; 32]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn octets(hex: &str) -> Option<[u8; 32]> {
    // Whoever parses numbers takes a sign for a digit's candidate.
    if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut octets = [0; 32];
    for (at, octet) in octets.iter_mut().enumerate() {
        *octet = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(octets)
}

/// What an answer says; none if it is no answer.
pub(super) fn read(answer: &str) -> Option<Observed> {
    let mut observed = Observed::default();
    let mut peer: Option<PublicKey> = None;
    for line in answer.lines().filter(|line| !line.is_empty()) {
        let (key, value) = line.split_once('=')?;
        match (key, peer) {
            ("errno", _) if value != "0" => return None,
            ("private_key", _) => {
                let key = PrivateKey::from_octets(octets(value)?);
                observed.public_key = Some(key.public());
            }
            ("listen_port", _) => observed.listen_port = value.parse().ok()?,
            ("public_key", _) => {
                let key = PublicKey(octets(value)?);
                observed.peers.insert(key, ObservedPeer::default());
                peer = Some(key);
            }
            (_, Some(of)) => add(observed.peers.get_mut(&of)?, key, value)?,
            _ => {}
        }
    }
    Some(observed)
}

fn add(peer: &mut ObservedPeer, key: &str, value: &str) -> Option<()> {
    match key {
        "endpoint" => peer.endpoint = Some(value.parse::<SocketAddr>().ok()?),
        "allowed_ip" => drop(peer.allowed.insert(value.parse().ok()?)),
        "persistent_keepalive_interval" => peer.keepalive_s = value.parse().ok()?,
        "last_handshake_time_sec" => more(peer, Duration::from_secs(value.parse().ok()?))?,
        "last_handshake_time_nsec" => more(peer, Duration::from_nanos(value.parse().ok()?))?,
        "rx_bytes" => peer.received_bytes = value.parse().ok()?,
        "tx_bytes" => peer.sent_bytes = value.parse().ok()?,
        _ => {}
    }
    Some(())
}

/// The time of a handshake comes in two parts, which are 0 if there was none.
fn more(peer: &mut ObservedPeer, part: Duration) -> Option<()> {
    if !part.is_zero() {
        let before = peer.last_handshake.unwrap_or(SystemTime::UNIX_EPOCH);
        peer.last_handshake = Some(before.checked_add(part)?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn private() -> PrivateKey {
        PrivateKey::from_octets([7; 32])
    }

    #[test]
    fn a_message_is_said_in_the_words_of_the_protocol() {
        let mut add = PeerChange::new(PublicKey([0xab; 32]), How::Add);
        add.endpoint = Some("198.51.100.2:6783".parse().unwrap());
        add.keepalive_s = Some(15);
        add.allowed = vec!["100.127.81.2/32".parse().unwrap()];
        let others = [How::Update, How::Narrow, How::Remove];
        let others = others.map(|how| PeerChange::new(PublicKey([1; 32]), how));
        let message = Message {
            private_key: Some(private()),
            listen_port: Some(6783),
            peers: [vec![add], others.to_vec()].concat(),
        };
        let (own, ab, one) = ("07".repeat(32), "ab".repeat(32), "01".repeat(32));
        let wanted = [
            "set=1",
            &format!("private_key={own}"),
            "listen_port=6783",
            &format!("public_key={ab}"),
            "endpoint=198.51.100.2:6783",
            "persistent_keepalive_interval=15",
            "allowed_ip=100.127.81.2/32",
            &format!("public_key={one}"),
            "update_only=true",
            &format!("public_key={one}"),
            "update_only=true",
            "replace_allowed_ips=true",
            &format!("public_key={one}"),
            "remove=true",
        ];
        assert_eq!(request(&message), wanted.join("\n") + "\n\n");
    }

    #[test]
    fn an_answer_is_read() {
        let (own, peer) = ("07".repeat(32), "ab".repeat(32));
        let answer = format!(
            "private_key={own}\nlisten_port=6783\npublic_key={peer}\nprotocol_version=1\n\
             endpoint=198.51.100.2:6783\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\n\
             tx_bytes=1\nrx_bytes=2\npersistent_keepalive_interval=15\n\
             allowed_ip=100.127.81.2/32\nerrno=0\n\n"
        );
        let observed = read(&answer).unwrap();
        assert_eq!(observed.public_key, Some(private().public()));
        assert_eq!(observed.listen_port, 6783);
        let peer = ObservedPeer {
            endpoint: Some("198.51.100.2:6783".parse().unwrap()),
            allowed: BTreeSet::from(["100.127.81.2/32".parse().unwrap()]),
            keepalive_s: 15,
            last_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(5, 6)),
            received_bytes: 2,
            sent_bytes: 1,
        };
        assert_eq!(observed.peers[&PublicKey([0xab; 32])], peer);
        let fresh = "errno=0\n\n";
        assert_eq!(read(fresh), Some(Observed::default()));
        let signed = format!("public_key={}\n\n", "+1".repeat(32));
        for wrong in ["errno=1\n\n", "what\n\n", "public_key=12\n\n", &signed] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
