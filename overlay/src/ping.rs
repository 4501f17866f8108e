//! Echoes over the overlay (ICMP, RFC 792), from this node's own address on it.
//!
//! They leave through the bridge like a container's frames, and so take exactly the path that
//! those take, encrypted or in clear. The other host's kernel answers, whether or not an agent
//! runs there.
//!
//! Absent on purpose: any judgement. A lost echo is counted and nothing more.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket as StdSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use kontena_schema::limits::{OVERLAY_MTU, PING_COUNT_MAX};
use kontena_sleeve::internet_checksum;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, setsockopt, socket,
    sockopt,
};
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::error::{Cause, OverlayError};
use crate::model::devices::BRIDGE;
use crate::sys::netlink::Namespace;
use crate::sys::packet;

/// The interval between echoes.
const EVERY: Duration = Duration::from_millis(200);
/// The timeout of an answer.
const WITHIN: Duration = Duration::from_secs(1);
/// The payload of an echo; that of the usual `ping`.
const PAYLOAD: usize = 56;
/// The payload of the longest packet.
const PAYLOAD_MAX: usize = OVERLAY_MTU as usize - IPV4 - HEADER;
/// How many full-size echoes are tried if short ones are answered: the loss of a single one says
/// little about its size.
const FULL_SIZE_TRIES: u16 = 3;
/// The sequence number of the first of them; short ones count from 1.
const FULL_SIZE_FROM: u16 = 1000;

/// Octets of an IPv4 header without options, and of an ICMP echo header.
const IPV4: usize = 20;
const HEADER: usize = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// The result of a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echoes {
    /// How many were sent.
    pub sent: u16,
    /// The round-trip time of each that was answered.
    pub round_trips: Vec<Duration>,
    /// Whether an echo as long as the overlay's MTU, and its answer, passed unfragmented.
    pub full_size_passes: bool,
}

/// Sends so many echoes from the own overlay address to another one, and then some of full size.
/// It takes up to 8 s.
pub(crate) async fn echo(
    namespace: &Namespace,
    (from, to): (Ipv4Addr, Ipv4Addr),
    count: u16,
) -> Result<Echoes, OverlayError> {
    let failed = |cause| OverlayError::Step {
        step: format!("send echoes from {from}"),
        cause,
    };
    let socket = namespace.inside(move || open(from, to)).await;
    let socket = UdpSocket::from_std(socket.map_err(failed)?);
    let line = Line {
        socket: socket.map_err(Cause::io("the socket")).map_err(failed)?,
        id: fastrand::u16(..),
    };
    let sent = count.clamp(1, PING_COUNT_MAX);
    let round_trips = series(&line, sent).await;
    let full_size_passes = !round_trips.is_empty() && full_size(&line).await;
    Ok(Echoes {
        sent,
        round_trips,
        full_size_passes,
    })
}

/// A socket for echoes between two addresses, through the bridge only. It never fragments.
fn open(from: Ipv4Addr, to: Ipv4Addr) -> io::Result<StdSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (family, icmp) = (AddressFamily::Inet, SockProtocol::Icmp);
    let socket = socket(family, SockType::Raw, flags, icmp)?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(BRIDGE))?;
    packet::set_mtu_discovery(&socket, libc::IP_PMTUDISC_DO)?;
    let at = |address| SockaddrIn::from(SocketAddrV4::new(address, 0));
    bind(socket.as_raw_fd(), &at(from))?;
    // Nothing from other addresses is received.
    connect(socket.as_raw_fd(), &at(to))?;
    // It is a raw socket; std's UdpSocket has the calls that are needed.
    Ok(socket.into())
}

/// The socket of one ping.
struct Line {
    socket: UdpSocket,
    /// Distinguishes it from other pings between the two.
    id: u16,
}

impl Line {
    /// Sends an echo. One that the kernel does not accept is lost like any other.
    async fn send(&self, number: u16, payload: usize) {
        let echo = request(self.id, number, payload);
        if let Err(err) = self.socket.send(&echo).await {
            tracing::debug!(%err, number, "an echo was not sent");
        }
    }

    /// The next answer: its sequence number, and the size of its payload.
    async fn answer(&self) -> (u16, usize) {
        let mut packet = [0; OVERLAY_MTU as usize];
        loop {
            match self.socket.recv(&mut packet).await {
                Ok(length) => {
                    if let Some(answer) = answer(&packet[..length], self.id) {
                        return answer;
                    }
                }
                // An error is reported once and belongs to an earlier send.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}

/// Sends echoes, and waits for their answers.
async fn series(line: &Line, count: u16) -> Vec<Duration> {
    let mut sent = Vec::with_capacity(count.into());
    let mut answered = BTreeMap::new();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut end = Instant::now() + WITHIN;
    let all = usize::from(count);
    while answered.len() < all {
        tokio::select! {
            (number, _) = line.answer() => {
                let at: Option<&Instant> = sent.get(usize::from(number).wrapping_sub(1));
                let took = at.map(Instant::elapsed).filter(|took| *took <= WITHIN);
                if let Some(took) = took {
                    answered.entry(number).or_insert(took);
                }
            }
            _ = ticks.tick(), if sent.len() < all => {
                let now = Instant::now();
                sent.push(now);
                // The number is small.
                line.send(sent.len() as u16, PAYLOAD).await;
                end = now + WITHIN;
            }
            () = sleep_until(end), if sent.len() == all => break,
        }
    }
    answered.into_values().collect()
}

/// Whether an echo as long as the MTU is answered.
async fn full_size(line: &Line) -> bool {
    for number in (FULL_SIZE_FROM..).take(FULL_SIZE_TRIES.into()) {
        line.send(number, PAYLOAD_MAX).await;
        let passed = async {
            loop {
                let (answered, payload) = line.answer().await;
                if answered >= FULL_SIZE_FROM && payload == PAYLOAD_MAX {
                    break;
                }
            }
        };
        if timeout(WITHIN, passed).await.is_ok() {
            return true;
        }
    }
    false
}

/// An echo request with its checksum.
fn request(id: u16, number: u16, payload: usize) -> Vec<u8> {
    let mut echo = Vec::with_capacity(HEADER + payload);
    echo.extend([ECHO_REQUEST, 0, 0, 0]);
    echo.extend(id.to_be_bytes());
    echo.extend(number.to_be_bytes());
    echo.extend((0..=u8::MAX).cycle().take(payload));
    let checksum = internet_checksum(&echo).to_be_bytes();
    echo[2..4].copy_from_slice(&checksum);
    echo
}

/// Parses an answer: the echo's sequence number, and the size of its payload.
fn answer(packet: &[u8], id: u16) -> Option<(u16, usize)> {
    let header = usize::from(packet.first()? & 15) * 4;
    let [kind, _, _, _, of @ .., high, low] = packet.get(header..)?.first_chunk::<HEADER>()?;
    let ours = *kind == ECHO_REPLY && *of == id.to_be_bytes();
    let number = u16::from_be_bytes([*high, *low]);
    ours.then_some((number, packet.len() - header - HEADER))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The answer as it is received.
    fn reply(id: u16, number: u16, payload: usize) -> Vec<u8> {
        let mut packet = vec![0x45];
        packet.resize(IPV4, 0);
        packet.extend(request(id, number, payload));
        packet[IPV4] = ECHO_REPLY;
        packet
    }

    #[test]
    fn an_echo_has_a_valid_checksum_and_its_answer_is_recognised() {
        let echo = request(0x1234, 7, PAYLOAD);
        assert_eq!(echo.len(), HEADER + PAYLOAD);
        assert_eq!(internet_checksum(&echo), 0, "with the checksum in it");
        assert_eq!(
            answer(&reply(0x1234, 7, PAYLOAD), 0x1234),
            Some((7, PAYLOAD))
        );
        let full = reply(0x1234, 1000, PAYLOAD_MAX);
        assert_eq!(full.len(), 1370);
        assert_eq!(answer(&full, 0x1234), Some((1000, PAYLOAD_MAX)));
        assert_eq!(answer(&full, 0x1235), None, "another ping's");
        let mut other = full.clone();
        other[IPV4] = ECHO_REQUEST;
        assert_eq!(answer(&other, 0x1234), None, "not an answer");
        for length in 0..IPV4 + HEADER {
            assert_eq!(answer(&full[..length], 0x1234), None);
        }
    }

    proptest! {
        #[test]
        fn any_packet_can_be_read(
            packet in prop::collection::vec(any::<u8>(), 0..96),
            id: u16,
        ) {
            let _ = answer(&packet, id);
        }
    }
}
