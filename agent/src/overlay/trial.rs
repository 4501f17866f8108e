//! Trials: frames that show whether the clear way to a peer carries any.
//!
//! What is known of a pair is said through the sealed path, which says nothing of the clear
//! one: a firewall may pass UDP port 6783 and swallow 6784, or the largest packets. So
//! beside a probe a trial with the probe's number goes out in clear, just as the tunnel's
//! device would send a frame of the largest size, and the next probe of the peer says
//! whether it came. Who hears of none goes on sending sealed.
//!
//! A trial is a frame of an own type from bridge to bridge: it passes our filter and our
//! guard like any frame, and no rule of the host that is about IP. It carries the run of
//! its sender, which only the peer was told, sealed.
//!
//! ```text
//! 0  magic "KNT1"   8  u32  number of the probe that it goes with
//! 4  u32  run       12 u8   flags: 1 asks for a probe at once
//! ```
//!
//! Zeros follow, up to the MTU of the overlay.

use std::time::{Duration, Instant};

use super::probe::{Probe, Trials};

const MAGIC: [u8; 4] = *b"KNT1";
const ASKS: u8 = 1;
/// Octets of a trial before the zeros.
pub(crate) const BYTES: usize = 13;
/// How many probes may have come since the last trial that did; where some are lost, not
/// all are.
const BEHIND_MAX: u32 = 5;
/// Where probes are rare, the same: two in so long a time.
const SILENT_AFTER: Duration = Duration::from_secs(20);
/// How long, and how many, trials must have been lost before people are told: longer than a
/// pair takes to turn clear.
const LOST_AFTER: Duration = Duration::from_secs(8);
const LOST_MANY: u32 = 4;

/// One trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trial {
    /// The run of the sender, as in its probes.
    pub(crate) run: u32,
    /// The probe that it goes with.
    pub(crate) number: u32,
    /// Whether the sender waits for word of it.
    pub(crate) asks: bool,
}

impl Trial {
    /// As it is sent.
    pub(crate) fn write(&self) -> [u8; BYTES] {
        let mut octets = [0; BYTES];
        octets[..4].copy_from_slice(&MAGIC);
        octets[4..8].copy_from_slice(&self.run.to_be_bytes());
        octets[8..12].copy_from_slice(&self.number.to_be_bytes());
        octets[12] = if self.asks { ASKS } else { 0 };
        octets
    }

    /// What was received; none if it is no trial. More octets may follow.
    pub(crate) fn read(octets: &[u8]) -> Option<Self> {
        let octets = octets.first_chunk::<BYTES>()?;
        let word = |at: usize| {
            let word = octets.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(word))
        };
        let trial = Self {
            run: word(4)?,
            number: word(8)?,
            asks: octets[12] & ASKS != 0,
        };
        (octets[..4] == MAGIC && trial.number > 0).then_some(trial)
    }
}

/// What is known of the clear way between two nodes, as one of them sees it. It is
/// forgotten when the pair is sealed.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    /// The last trial of the peer that came.
    pub(crate) heard: Option<u32>,
    /// The peer waits for word of its trial.
    pub(crate) asked: bool,
    /// The last of this end's probes whose trial came, or need not have, and when that was
    /// told.
    arrived: Option<(u32, Instant)>,
    /// Trials of probes up to this one were of another time.
    forgotten: u32,
    /// Since when, and since which probe, trials are sent in vain, and whether that is long.
    in_vain_since: Option<(Instant, u32)>,
    lost: bool,
}

impl Tried {
    /// A trial of the peer came; whether it is a new one.
    pub(crate) fn hear(&mut self, trial: Trial) -> bool {
        let new = self.heard < Some(trial.number);
        if new {
            self.heard = Some(trial.number);
            self.asked |= trial.asks;
        }
        new
    }

    /// The peer, or this end, was started anew; `sends` says whether clear packets went to
    /// the peer, which a restart is no reason to doubt.
    pub(crate) fn begin(&mut self, sends: bool, sent: u32, now: Instant) {
        self.heard = None;
        self.arrived = sends.then_some((sent, now));
    }

    /// The peer said which trials came, when so many probes were sent.
    pub(crate) fn told(&mut self, trials: Trials, sent: u32, now: Instant) {
        let Trials::UpTo(number) = trials else {
            return;
        };
        let known = self.arrived.map_or(self.forgotten, |(arrived, _)| arrived);
        if number > known && number <= sent {
            self.arrived = Some((number, now));
        }
    }

    /// Looks at whether trials are sent in vain.
    pub(crate) fn look(&mut self, in_vain: bool, sent: u32, now: Instant) {
        self.in_vain_since = in_vain.then(|| self.in_vain_since.unwrap_or((now, sent)));
        let long = |(since, from): (Instant, u32)| {
            let many = sent.saturating_sub(from) >= LOST_MANY;
            many && now.saturating_duration_since(since) >= LOST_AFTER
        };
        self.lost = self.in_vain_since.is_some_and(long);
    }

    /// Whether trials were sent in vain for long.
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

    /// Whether the clear way to the peer carries, by what it said last.
    pub(crate) fn carries(&self, said: &Probe, sent: u32, now: Instant) -> bool {
        if said.trials == Trials::Unknown {
            return true;
        }
        let Some((arrived, told_at)) = self.arrived else {
            return false;
        };
        // What it heard of a former run says nothing.
        let sealed = said.heard.map(|(number, _)| number);
        let sealed = sealed.filter(|number| *number <= sent).unwrap_or(0);
        let behind = sealed.saturating_sub(arrived);
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
        fn a_trial_is_read_as_it_was_written(
            run: u32, number in 1_u32.., asks: bool, more in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let trial = Trial { run, number, asks };
            let octets = [&trial.write()[..], &more].concat();
            prop_assert_eq!(Trial::read(&octets), Some(trial));
            for length in 0..BYTES {
                prop_assert_eq!(Trial::read(&octets[..length]), None);
            }
        }

        #[test]
        fn no_octets_are_too_strange_to_be_looked_at(octets in prop::collection::vec(any::<u8>(), 0..32)) {
            let _ = Trial::read(&octets);
        }
    }

    #[test]
    fn the_octets_are_those_of_the_table() {
        let trial = Trial {
            run: 6,
            number: 5,
            asks: true,
        };
        assert_eq!(trial.write(), *b"KNT1\0\0\0\x06\0\0\0\x05\x01");
    }
}
