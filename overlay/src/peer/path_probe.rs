//! ProbesHeard: frames that show whether the clear way to a peer carries any.
//!
//! What is known of a peer is advertised through the encrypted path, which says nothing of the clear
//! one: a firewall may pass UDP port 6783 and swallow 6784, or the largest packets. So
//! beside a heartbeat a path_probe with the heartbeat's number goes out in clear, just as the tunnel's
//! device would send a frame of the largest size, and the next heartbeat of the peer says
//! whether it came. Who hears of none goes on sending encrypted.
//!
//! A path_probe is a frame of an own type from bridge to bridge: it passes our filter and our
//! anti_spoofing like any frame, and no rule of the host that is about IP. It carries the run of
//! its sender, which only the peer was told, encrypted.
//!
//! ```text
//! 0  magic "KNT1"   8  u32  number of the heartbeat that it goes with
//! 4  u32  run       12 u8   flags: 1 asks for a heartbeat at once
//! ```
//!
//! Zeros follow, up to the MTU of the overlay.

use std::time::{Duration, Instant};

use crate::peer::heartbeat::{Heartbeat, ProbesHeard};

const MAGIC: [u8; 4] = *b"KNT1";
const ASKS: u8 = 1;
/// Octets of a path_probe before the zeros.
pub(crate) const BYTES: usize = 13;
/// How many heartbeats may have come since the last path_probe that did; where some are lost, not
/// all are.
const BEHIND_MAX: u32 = 5;
/// Where heartbeats are rare, the same: two in so long a time.
const SILENT_AFTER: Duration = Duration::from_secs(20);
/// How long, and how many, path_probes must have been lost before people are told: longer than a
/// peer takes to turn clear.
const LOST_AFTER: Duration = Duration::from_secs(8);
const LOST_MANY: u32 = 4;

/// One path_probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathProbe {
    /// The run of the sender, as in its heartbeats.
    pub(crate) run: u32,
    /// The heartbeat that it goes with.
    pub(crate) number: u32,
    /// Whether the sender waits for word of it.
    pub(crate) asks: bool,
}

impl PathProbe {
    /// As it is sent.
    pub(crate) fn write(&self) -> [u8; BYTES] {
        let mut octets = [0; BYTES];
        octets[..4].copy_from_slice(&MAGIC);
        octets[4..8].copy_from_slice(&self.run.to_be_bytes());
        octets[8..12].copy_from_slice(&self.number.to_be_bytes());
        octets[12] = if self.asks { ASKS } else { 0 };
        octets
    }

    /// What was received; none if it is no path_probe. More octets may follow.
    pub(crate) fn read(octets: &[u8]) -> Option<Self> {
        let octets = octets.first_chunk::<BYTES>()?;
        let word = |at: usize| {
            let word = octets.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(word))
        };
        let path_probe = Self {
            run: word(4)?,
            number: word(8)?,
            asks: octets[12] & ASKS != 0,
        };
        (octets[..4] == MAGIC && path_probe.number > 0).then_some(path_probe)
    }
}

/// What is known of the clear way between two nodes, as one of them sees it. It is
/// forgotten when the peer is encrypted.
#[derive(Debug, Default)]
pub(crate) struct PathProbing {
    /// The last path_probe of the peer that came.
    pub(crate) heard: Option<u32>,
    /// The peer waits for word of its path_probe.
    pub(crate) asked: bool,
    /// The last of this end's heartbeats whose path_probe came, or need not have, and when that was
    /// told.
    arrived: Option<(u32, Instant)>,
    /// ProbesHeard of heartbeats up to this one were of another time.
    forgotten: u32,
    /// Since when, and since which heartbeat, path_probes are sent in vain, and whether that is long.
    in_vain_since: Option<(Instant, u32)>,
    lost: bool,
}

impl PathProbing {
    /// A path_probe of the peer came; whether it is a new one.
    pub(crate) fn hear(&mut self, path_probe: PathProbe) -> bool {
        let new = self.heard < Some(path_probe.number);
        if new {
            self.heard = Some(path_probe.number);
            self.asked |= path_probe.asks;
        }
        new
    }

    /// The peer, or this end, was started anew; `sends` says whether clear packets went to
    /// the peer, which a restart is no reason to doubt.
    pub(crate) fn begin(&mut self, sends: bool, sent: u32, now: Instant) {
        self.heard = None;
        self.arrived = sends.then_some((sent, now));
    }

    /// The peer advertised which path_probes came, when so many heartbeats were sent.
    pub(crate) fn told(&mut self, path_probes: ProbesHeard, sent: u32, now: Instant) {
        let ProbesHeard::UpTo(number) = path_probes else {
            return;
        };
        let known = self.arrived.map_or(self.forgotten, |(arrived, _)| arrived);
        if number > known && number <= sent {
            self.arrived = Some((number, now));
        }
    }

    /// Looks at whether path_probes are sent in vain.
    pub(crate) fn look(&mut self, in_vain: bool, sent: u32, now: Instant) {
        self.in_vain_since = in_vain.then(|| self.in_vain_since.unwrap_or((now, sent)));
        let long = |(since, from): (Instant, u32)| {
            let many = sent.saturating_sub(from) >= LOST_MANY;
            many && now.saturating_duration_since(since) >= LOST_AFTER
        };
        self.lost = self.in_vain_since.is_some_and(long);
    }

    /// Whether path_probes were sent in vain for long.
    pub(crate) fn lost(&self) -> bool {
        self.lost
    }

    /// What follows is another time.
    pub(crate) fn forget(&mut self, sent: u32) {
        *self = Self {
            forgotten: sent,
            ..Self::default()
        };
    }

    /// Whether the clear way to the peer carries, by what it advertised last.
    pub(crate) fn carries(&self, advertised: &Heartbeat, sent: u32, now: Instant) -> bool {
        if advertised.path_probes == ProbesHeard::Unknown {
            return true;
        }
        let Some((arrived, told_at)) = self.arrived else {
            return false;
        };
        // What it heard of a former run says nothing.
        let encrypted = advertised.heard.map(|(number, _)| number);
        let encrypted = encrypted.filter(|number| *number <= sent).unwrap_or(0);
        let behind = encrypted.saturating_sub(arrived);
        let long_ago = now.saturating_duration_since(told_at) >= SILENT_AFTER;
        behind <= BEHIND_MAX && !(behind > 1 && long_ago)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_path_probe_is_read_as_it_was_written(
            run: u32, number in 1_u32.., asks: bool, more in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let path_probe = PathProbe { run, number, asks };
            let octets = [&path_probe.write()[..], &more].concat();
            prop_assert_eq!(PathProbe::read(&octets), Some(path_probe));
            for length in 0..BYTES {
                prop_assert_eq!(PathProbe::read(&octets[..length]), None);
            }
        }

        #[test]
        fn no_octets_are_too_strange_to_be_looked_at(octets in prop::collection::vec(any::<u8>(), 0..32)) {
            let _ = PathProbe::read(&octets);
        }
    }

    #[test]
    fn the_octets_are_those_of_the_table() {
        let path_probe = PathProbe {
            run: 6,
            number: 5,
            asks: true,
        };
        assert_eq!(path_probe.write(), *b"KNT1\0\0\0\x06\0\0\0\x05\x01");
    }
}
