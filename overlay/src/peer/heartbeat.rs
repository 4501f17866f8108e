//! What two agents tell each other inside the tunnel.
//!
//! A heartbeat proves that the tunnel works, statistics it, and says what its sender
//! knows of the peer: whether both ends know the same, from where the sender hears
//! the receiver, whether it takes clear packets, and which path_probes of the clear way came
//! (`path_probe.rs`). It has a fixed length:
//!
//! ```text
//! 0  magic "KNP1"           24 u32  number of the last heartbeat heard, 0 for none
//! 4  u8   flags: 1 accepts  28 u32  microseconds since that one was heard
//! 5  3 octets, zero         32 4 o  IPv4 address at which the receiver is heard
//! 8  u64  agreement         36 u16  and its UDP port
//! 16 u32  number, from 1    38 2 octets, zero
//! 20 u32  run of the sender 40 u32  number of the last path_probe heard, 0 for none
//! ```
//!
//! One that ends after 40 octets is of a version that knows no path_probes.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

const MAGIC: [u8; 4] = *b"KNP1";
const ACCEPTS: u8 = 1;
/// Octets of a heartbeat, and of one that knows no path_probes.
pub(crate) const BYTES: usize = 44;
pub(crate) const BYTES_WITHOUT_PATH_PROBES: usize = 40;

/// One heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// What the path depends on, as the sender knows it (`schema::path::agreement`).
    pub(crate) agreement: u64,
    /// Where the sender hears the receiver.
    pub(crate) hears_at: Option<SocketAddrV4>,
    /// Whether the sender takes clear packets of the receiver.
    pub(crate) accepts: bool,
    /// The sender's count of heartbeats in this run, from 1.
    pub(crate) number: u32,
    /// Tells the runs of the sender apart, in which it counts anew.
    pub(crate) run: u32,
    /// The last heartbeat of the receiver that the sender heard, and how long ago.
    pub(crate) heard: Option<(u32, Duration)>,
    /// Which path_probes of the receiver the sender heard.
    pub(crate) path_probes: ProbesHeard,
}

/// Which path_probes somebody heard, by the numbers of the heartbeats that they went out with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbesHeard {
    /// It is of a version that hears none.
    Unknown,
    /// None.
    None,
    /// The last one was this.
    UpTo(u32),
}

impl Heartbeat {
    /// As it is sent.
    pub(crate) fn write(&self) -> [u8; BYTES] {
        let mut octets = [0; BYTES];
        octets[..4].copy_from_slice(&MAGIC);
        octets[4] = if self.accepts { ACCEPTS } else { 0 };
        octets[8..16].copy_from_slice(&self.agreement.to_be_bytes());
        octets[16..20].copy_from_slice(&self.number.to_be_bytes());
        octets[20..24].copy_from_slice(&self.run.to_be_bytes());
        if let Some((number, ago)) = self.heard {
            let ago = u32::try_from(ago.as_micros()).unwrap_or(u32::MAX);
            octets[24..28].copy_from_slice(&number.to_be_bytes());
            octets[28..32].copy_from_slice(&ago.to_be_bytes());
        }
        if let Some(at) = self.hears_at {
            octets[32..36].copy_from_slice(&at.ip().octets());
            octets[36..38].copy_from_slice(&at.port().to_be_bytes());
        }
        if let ProbesHeard::UpTo(number) = self.path_probes {
            octets[40..44].copy_from_slice(&number.to_be_bytes());
        }
        octets
    }

    /// What was received; none if it is no heartbeat. Longer ones are of a later
    /// version, which adds at the end.
    pub(crate) fn read(octets: &[u8]) -> Option<Self> {
        let path_probes = octets
            .get(BYTES_WITHOUT_PATH_PROBES..)
            .and_then(<[u8]>::first_chunk);
        let path_probes = match path_probes.map(|number| u32::from_be_bytes(*number)) {
            None => ProbesHeard::Unknown,
            Some(0) => ProbesHeard::None,
            Some(number) => ProbesHeard::UpTo(number),
        };
        let octets = octets.first_chunk::<BYTES_WITHOUT_PATH_PROBES>()?;
        let word = |at: usize| {
            let word = octets.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(word))
        };
        let number = word(16).filter(|number| *number > 0)?;
        let heard = word(24).filter(|number| *number > 0);
        let ago = Duration::from_micros(word(28)?.into());
        let port = u16::from_be_bytes([octets[36], octets[37]]);
        let at = SocketAddrV4::new(Ipv4Addr::from_bits(word(32)?), port);
        let heartbeat = Self {
            agreement: u64::from(word(8)?) << 32 | u64::from(word(12)?),
            hears_at: (port > 0).then_some(at),
            accepts: octets[4] & ACCEPTS != 0,
            number,
            run: word(20)?,
            heard: heard.map(|number| (number, ago)),
            path_probes,
        };
        (octets[..4] == MAGIC).then_some(heartbeat)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::HEARTBEAT;

    prop_compose! {
        fn any_heartbeat()(
            agreement: u64,
            at in proptest::option::of((any::<u32>(), 1_u16..)),
            accepts: bool,
            number in 1_u32..,
            run: u32,
            heard in proptest::option::of((1_u32.., any::<u32>())),
            path_probes in proptest::option::of(1_u32..),
        ) -> Heartbeat {
            Heartbeat {
                agreement,
                hears_at: at.map(|(ip, port)| SocketAddrV4::new(Ipv4Addr::from_bits(ip), port)),
                accepts,
                number,
                run,
                heard: heard.map(|(number, us)| (number, Duration::from_micros(us.into()))),
                path_probes: path_probes.map_or(ProbesHeard::None, ProbesHeard::UpTo),
            }
        }
    }

    proptest! {
        #[test]
        fn a_heartbeat_is_read_as_it_was_written(heartbeat in any_heartbeat(), more in prop::collection::vec(any::<u8>(), 0..9)) {
            let octets = [&heartbeat.write()[..], &more].concat();
            prop_assert_eq!(Heartbeat::read(&octets), Some(heartbeat));
            for length in 0..BYTES {
                // As a version reads and writes it that knows no path_probes.
                let before = Heartbeat { path_probes: ProbesHeard::Unknown, ..heartbeat };
                let before = (length >= BYTES_WITHOUT_PATH_PROBES).then_some(before);
                prop_assert_eq!(Heartbeat::read(&octets[..length]), before);
            }
            (HEARTBEAT.check)(&octets);
        }

        #[test]
        fn no_octets_are_too_strange_to_be_looked_at(octets in prop::collection::vec(any::<u8>(), 0..64)) {
            (HEARTBEAT.check)(&octets);
        }
    }

    #[test]
    fn the_octets_are_those_of_the_table() {
        let heartbeat = Heartbeat {
            agreement: 0x0102_0304_0506_0708,
            hears_at: Some("198.51.100.7:6783".parse().unwrap()),
            accepts: true,
            number: 5,
            run: 6,
            heard: Some((9, Duration::from_micros(256))),
            path_probes: ProbesHeard::UpTo(4),
        };
        let wanted = [
            &b"KNP1\x01\0\0\0"[..],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 9, 0, 0, 1, 0],
            &[198, 51, 100, 7, 0x1a, 0x7f, 0, 0, 0, 0, 0, 4],
        ];
        assert_eq!(heartbeat.write()[..], wanted.concat());
    }
}
