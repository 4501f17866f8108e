//! Path probes: frames in clear that show whether the clear path to a peer works.
//!
//! Heartbeats go through the encrypted path, which says nothing about the clear one: a firewall may
//! pass UDP port 6783 and drop 6784, or only the largest packets. So with a heartbeat, a path probe
//! of the same number is sent in clear, exactly as the VXLAN device would send a frame of the
//! largest size, and the peer's next heartbeat reports whether it arrived. A node whose probes do
//! not arrive keeps sending encrypted.
//!
//! A path probe is a frame with an Ethertype of its own from bridge to bridge: it passes our packet
//! filter and our anti-spoofing filter like any frame, and none of the host's IP rules match it.
//! It carries its sender's run, which only the peer knows, from the encrypted path.
//!
//! ```text
//! 0  magic "KNT1"   8  u32  number of the heartbeat that it was sent with
//! 4  u32  run       12 u8   flags: 1 requests a heartbeat at once
//! ```
//!
//! Zeros follow, up to the overlay's MTU.

use std::time::{Duration, Instant};

use crate::peer::heartbeat::{Heartbeat, ProbesReceived};

const MAGIC: [u8; 4] = *b"KNT1";
const WANTS_ANSWER: u8 = 1;
/// Octets of a path probe before the zeros.
pub(crate) const BYTES: usize = 13;
/// How many heartbeats may have arrived since the last path probe did: some probes may be lost, not
/// all of them.
const BEHIND_MAX: u32 = 5;
/// The same where heartbeats are rare: two in so long a time.
const SILENT_AFTER: Duration = Duration::from_secs(20);
/// For how long, and how many, path probes must have been lost before that is reported: longer than
/// a peer takes to turn clear.
const LOST_AFTER: Duration = Duration::from_secs(8);
const LOST_MANY: u32 = 4;

/// A path probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathProbe {
    /// The run of the sender, as in its heartbeats.
    pub(crate) run: u32,
    /// The number of the heartbeat that it was sent with.
    pub(crate) number: u32,
    /// Whether the sender wants to know at once that it arrived.
    pub(crate) wants_answer: bool,
}

impl PathProbe {
    /// Its octets, without the zeros.
    pub(crate) fn write(&self) -> [u8; BYTES] {
        let mut octets = [0; BYTES];
        octets[..4].copy_from_slice(&MAGIC);
        octets[4..8].copy_from_slice(&self.run.to_be_bytes());
        octets[8..12].copy_from_slice(&self.number.to_be_bytes());
        octets[12] = if self.wants_answer { WANTS_ANSWER } else { 0 };
        octets
    }

    /// Parses a path probe; none if it is not one. More octets may follow.
    pub(crate) fn read(octets: &[u8]) -> Option<Self> {
        let octets = octets.first_chunk::<BYTES>()?;
        let word = |at: usize| {
            let word = octets.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(word))
        };
        let path_probe = Self {
            run: word(4)?,
            number: word(8)?,
            wants_answer: octets[12] & WANTS_ANSWER != 0,
        };
        (octets[..4] == MAGIC && path_probe.number > 0).then_some(path_probe)
    }
}

/// What is known of the clear path between two nodes, as one of them sees it. It is reset when
/// the peer turns encrypted.
#[derive(Debug, Default)]
pub(crate) struct PathProbing {
    /// The last path probe of the peer that was received.
    pub(crate) last_received: Option<u32>,
    /// The peer wants to know at once that it arrived.
    pub(crate) answer_wanted: bool,
    /// The last of this end's path probes that arrived, or need not have arrived, and when that
    /// was reported.
    arrived: Option<(u32, Instant)>,
    /// Path probes up to this number were sent before the last reset.
    reset_at: u32,
    /// Since when, and since which heartbeat, no path probe arrived, and whether that is long.
    failing_since: Option<(Instant, u32)>,
    lost: bool,
}

impl PathProbing {
    /// A path probe was received; whether it is new.
    pub(crate) fn receive(&mut self, path_probe: PathProbe) -> bool {
        let new = self.last_received < Some(path_probe.number);
        if new {
            self.last_received = Some(path_probe.number);
            self.answer_wanted |= path_probe.wants_answer;
        }
        new
    }

    /// The peer, or this end, was restarted; `sends` is whether clear packets are sent to the
    /// peer, which a restart does not change.
    pub(crate) fn restart(&mut self, sends: bool, sent: u32, now: Instant) {
        self.last_received = None;
        self.arrived = sends.then_some((sent, now));
    }

    /// The peer reported which path probes arrived, when `sent` heartbeats had been sent.
    pub(crate) fn acknowledge(&mut self, path_probes: ProbesReceived, sent: u32, now: Instant) {
        let ProbesReceived::UpTo(number) = path_probes else {
            return;
        };
        let known = self.arrived.map_or(self.reset_at, |(arrived, _)| arrived);
        if number > known && number <= sent {
            self.arrived = Some((number, now));
        }
    }

    /// Updates whether path probes are lost; `failing` is whether none arrives now.
    pub(crate) fn update(&mut self, failing: bool, sent: u32, now: Instant) {
        self.failing_since = failing.then(|| self.failing_since.unwrap_or((now, sent)));
        let long = |(since, from): (Instant, u32)| {
            let many = sent.saturating_sub(from) >= LOST_MANY;
            many && now.saturating_duration_since(since) >= LOST_AFTER
        };
        self.lost = self.failing_since.is_some_and(long);
    }

    /// Whether path probes have been lost for long.
    pub(crate) fn lost(&self) -> bool {
        self.lost
    }

    /// Starts over: what was sent so far no longer counts.
    pub(crate) fn reset(&mut self, sent: u32) {
        *self = Self {
            reset_at: sent,
            ..Self::default()
        };
    }

    /// Whether the clear path to the peer works, by the peer's last heartbeat.
    pub(crate) fn works(&self, last: &Heartbeat, sent: u32, now: Instant) -> bool {
        if last.path_probes == ProbesReceived::Unknown {
            return true;
        }
        let Some((arrived, reported_at)) = self.arrived else {
            return false;
        };
        // A number of a former run says nothing.
        let heartbeats = last.last_received.map(|(number, _)| number);
        let heartbeats = heartbeats.filter(|number| *number <= sent).unwrap_or(0);
        let behind = heartbeats.saturating_sub(arrived);
        let long_ago = now.saturating_duration_since(reported_at) >= SILENT_AFTER;
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
            run: u32, number in 1_u32.., wants_answer: bool, more in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let path_probe = PathProbe { run, number, wants_answer };
            let octets = [&path_probe.write()[..], &more].concat();
            prop_assert_eq!(PathProbe::read(&octets), Some(path_probe));
            for length in 0..BYTES {
                prop_assert_eq!(PathProbe::read(&octets[..length]), None);
            }
        }

        #[test]
        fn any_octets_can_be_read(octets in prop::collection::vec(any::<u8>(), 0..32)) {
            let _ = PathProbe::read(&octets);
        }
    }

    #[test]
    fn the_octets_match_the_table() {
        let path_probe = PathProbe {
            run: 6,
            number: 5,
            wants_answer: true,
        };
        assert_eq!(path_probe.write(), *b"KNT1\0\0\0\x06\0\0\0\x05\x01");
    }
}
