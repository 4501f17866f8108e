//! Echoes over the overlay (ICMP, RFC 792), from this node's own address on it.
//!
//! They leave through the bridge like the frames of a container, and so take exactly the
//! way that those take, encrypted or in clear. The kernel of the other host answers, whether
//! an agent lives there or not.
//!
//! Absent on purpose: judgement. An echo that is lost is counted and nothing more.

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

/// From one echo to the next.
const EVERY: Duration = Duration::from_millis(200);
/// An answer that takes longer does not count.
const WITHIN: Duration = Duration::from_secs(1);
/// What an echo carries, as everybody's `ping` has it.
const PAYLOAD: usize = 56;
/// What the longest packet carries.
const PAYLOAD_MAX: usize = OVERLAY_MTU as usize - IPV4 - HEADER;
/// How often an echo of full length is tried where short ones are answered: that one was
/// lost says little of its length.
const FULL_SIZE_TRIES: u16 = 3;
/// The number of the first of those; the short ones count from 1.
const FULL_SIZE_FROM: u16 = 1000;

/// Octets of an IPv4 header without options, and of an echo's.
const IPV4: usize = 20;
const HEADER: usize = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// What came of echoes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echoes {
    /// How many were sent.
    pub sent: u16,
    /// How long each that was answered took there and back.
    pub round_trips: Vec<Duration>,
    /// Whether an echo as long as the overlay's MTU, and its answer, passed in one piece.
    pub full_size_passes: bool,
}

/// Sends so many echoes from the own address on the overlay to another one, and then some
/// of full length. It takes up to 8 s.
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

/// A socket for echoes between two addresses, through the bridge and nothing else. What
/// it sends is not cut into pieces.
fn open(from: Ipv4Addr, to: Ipv4Addr) -> io::Result<StdSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (family, icmp) = (AddressFamily::Inet, SockProtocol::Icmp);
    let socket = socket(family, SockType::Raw, flags, icmp)?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(BRIDGE))?;
    packet::set_mtu_discovery(&socket, libc::IP_PMTUDISC_DO)?;
    let at = |address| SockaddrIn::from(SocketAddrV4::new(address, 0));
    bind(socket.as_raw_fd(), &at(from))?;
    // Nothing of others comes in.
    connect(socket.as_raw_fd(), &at(to))?;
    // It is of ICMP all the same; what is sent and received is the same call.
    Ok(socket.into())
}

/// The way of one ping's echoes.
struct Line {
    socket: UdpSocket,
    /// Tells them from those of other pings between the two.
    id: u16,
}

impl Line {
    /// Sends an echo. One that the kernel does not take is lost like any other.
    async fn send(&self, number: u16, payload: usize) {
        let echo = request(self.id, number, payload);
        if let Err(err) = self.socket.send(&echo).await {
            tracing::debug!(%err, number, "an echo was not sent");
        }
    }

    /// The next answer: its number, and how much it carries.
    async fn answer(&self) -> (u16, usize) {
        let mut packet = [0; OVERLAY_MTU as usize];
        loop {
            match self.socket.recv(&mut packet).await {
                Ok(length) => {
                    if let Some(answer) = answer(&packet[..length], self.id) {
                        return answer;
                    }
                }
                // An error is told once and is of what was sent.
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
                // There are few.
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

/// What a packet answers, if it is an answer: the echo's number, and how much it carries.
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

    /// As it comes in when the other host has turned it round.
    fn reply(id: u16, number: u16, payload: usize) -> Vec<u8> {
        let mut packet = vec![0x45];
        packet.resize(IPV4, 0);
        packet.extend(request(id, number, payload));
        packet[IPV4] = ECHO_REPLY;
        packet
    }

    #[test]
    fn an_echo_has_a_right_checksum_and_its_answer_is_known() {
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
        assert_eq!(answer(&other, 0x1234), None, "no answer");
        for length in 0..IPV4 + HEADER {
            assert_eq!(answer(&full[..length], 0x1234), None);
        }
    }

    proptest! {
        #[test]
        fn no_packet_is_too_strange_to_be_looked_at(
            packet in prop::collection::vec(any::<u8>(), 0..96),
            id: u16,
        ) {
            let _ = answer(&packet, id);
        }
    }
}
