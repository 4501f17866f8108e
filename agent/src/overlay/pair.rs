//! A pair of nodes, as one of the two sees it: where the other is tried, and whether
//! packets between them may be clear.
//!
//! Everything begins sealed. To send in clear, this end must know that the other one
//! is who it says, at exactly the address that the directory names: so it needs a
//! live tunnel to that address, and a probe that came through it and says that the
//! other end knows the same of the pair, hears this end at exactly *its* address, and
//! takes clear packets. To take them, all but the last is needed:
//!
//! ```text
//!            tunnel at the address, ends agree      the peer accepts, trials arrive
//!   No ------------------------------------> Accept ------------------------------> Send
//!   ^                                          |  ^--------------------------------- |
//!   +--- any of it ends, or 30 s of silence ---+-------------------------------------+
//! ```
//!
//! All of that is said through the sealed path, and says nothing of whether the clear one
//! carries: UDP port 6784 may be closed on the way. So trials go out with probes, in clear
//! (`trial.rs`), and the peer says which of them came.
//!
//! Two ends that disagree, because one of them does not know yet what the Master
//! decided, are sealed as soon as the first probe says so. A pair that falls back again
//! and again stays so for longer each time, as routes that flap do (RFC 2439): every
//! change is work for the kernel, and a peer must not be able to order it.
//!
//! It is pure: time is passed in, and what it says is sent by others.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use kontena_schema::key::PublicKey;
use kontena_schema::limits::WIREGUARD_PORT;
use kontena_schema::mac::Mac;

use super::falls::Falls;
use super::knock::{Answers, Knocks};
use super::probe::{Probe, Trials};
use super::trial::{Trial, Tried};

/// A peer that is not heard for so long at one of its addresses is tried at the
/// other one.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a pair stays clear without a probe: an agent that is restarted comes
/// back sooner, and a host that took a dead one's address gets nothing afterwards.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);
/// Probes whose times are remembered; answers come within the next few.
const REMEMBERED: usize = 16;
/// How soon after a probe a trial is answered with the next one.
const ANSWER_EVERY: Duration = Duration::from_millis(50);
/// By how many probes a trial may be ahead of the last one that came.
const TRIALS_AHEAD_MAX: u32 = 16;
/// Probes over which losses are counted.
const WINDOW: u32 = 64;

/// How far a pair may use clear packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clear {
    /// All is sealed.
    #[default]
    No,
    /// Clear packets of the peer are taken; what is sent is sealed.
    Accept,
    /// They are sent, too.
    Send,
}

/// What the directory says of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The peer's address inside the tunnel.
    pub(crate) inner: Ipv4Addr,
    /// The MAC of its bridge.
    pub(crate) mac: Mac,
    /// What the path depends on (`schema::path::agreement`).
    pub(crate) agreement: u64,
    /// The addresses of a fast path; none if it is to be sealed.
    pub(crate) fast: Option<Ends>,
    /// Where the peer may be found, the right address first.
    pub(crate) places: Vec<Ipv4Addr>,
}

/// The addresses that the two ends use for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The peer's address for this node.
    pub peer: Ipv4Addr,
    /// This node's address for the peer.
    pub own: Ipv4Addr,
}

/// What the plan needs of a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairState {
    /// How far it may be clear.
    pub clear: Clear,
    /// Between which addresses that was proven; none where all is sealed.
    pub ends: Option<Ends>,
    /// Where the peer is tried.
    pub place: Option<Ipv4Addr>,
    /// Whether the peer was heard lately.
    pub alive: bool,
    /// Whether it was ever heard where it is tried now.
    pub met: bool,
    /// Where it was heard last.
    pub heard_at: Option<Ipv4Addr>,
    /// The key that it uses.
    pub key: Option<PublicKey>,
    /// Both ends take clear packets, and for a while none of this one's has arrived.
    pub lost: bool,
    /// What was found where it is tried in vain.
    pub answers: Answers,
}

/// How the tunnel to the peer is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tunnel {
    /// Where the peer was heard in a session.
    pub(crate) heard_at: Option<SocketAddr>,
    /// Whether it was heard lately.
    pub(crate) alive: bool,
    /// The key that it uses.
    pub(crate) key: Option<PublicKey>,
}

/// A pair.
#[derive(Debug)]
pub(crate) struct Pair {
    wanted: Wanted,
    /// Which of the places is tried, and since when in vain.
    place: usize,
    in_vain_since: Instant,
    met: bool,
    knocks: Knocks,
    tunnel: Tunnel,
    clear: Clear,
    falls: Falls,
    waits: bool,
    /// Until then the state of a former run stands, if no probe contradicts.
    adopted_until: Option<Instant>,
    /// Whether the kernel takes clear packets of the peer.
    accepted: bool,
    /// This end's probes: how many, and when the last ones were sent.
    sent: u32,
    sent_at: VecDeque<(u32, Instant)>,
    /// What the last one said.
    said: Option<Said>,
    heard: Option<Heard>,
    round_trip: Option<Duration>,
    trials: Tried,
}

/// What a probe says besides numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    agreement: u64,
    hears_at: Option<SocketAddrV4>,
    accepts: bool,
    /// Whether a trial goes with it.
    tries: bool,
}

#[derive(Debug)]
struct Heard {
    probe: Probe,
    at: Instant,
    /// Which of the last probes came; the lowest bit is the newest.
    came: u64,
}

impl Pair {
    pub(crate) fn new(wanted: Wanted, now: Instant) -> Self {
        Self {
            wanted,
            place: 0,
            in_vain_since: now,
            met: false,
            knocks: Knocks::new(now),
            tunnel: Tunnel::default(),
            clear: Clear::No,
            falls: Falls::default(),
            waits: false,
            adopted_until: None,
            accepted: false,
            sent: 0,
            sent_at: VecDeque::with_capacity(REMEMBERED),
            said: None,
            heard: None,
            round_trip: None,
            trials: Tried::default(),
        }
    }

    /// The kernel was left like this by a former run of the agent.
    pub(crate) fn adopt(&mut self, clear: Clear, now: Instant) {
        self.clear = clear;
        self.accepted = clear >= Clear::Accept;
        self.adopted_until = Some(now + SILENCE);
    }

    /// Takes what the directory says now.
    pub(crate) fn want(&mut self, wanted: Wanted, now: Instant) {
        if self.wanted.places != wanted.places {
            self.place = 0;
            self.in_vain_since = now;
            self.met = false;
            self.knocks = Knocks::new(now);
        }
        if self.wanted != wanted {
            self.falls = Falls::default();
        }
        if self.wanted.fast != wanted.fast {
            self.trials.forget(self.sent);
        }
        if (self.wanted.fast, self.wanted.agreement) != (wanted.fast, wanted.agreement) {
            // What a former run left was proven of something else.
            self.adopted_until = None;
        }
        self.wanted = wanted;
    }

    /// Whether the kernel takes clear packets of the peer.
    pub(crate) fn set_accepted(&mut self, accepted: bool) {
        self.accepted = accepted;
    }

    /// Whether the peer was ever heard where it is tried now.
    pub(crate) fn met(&self) -> bool {
        self.met
    }

    /// Whether it stays sealed for now, if it is.
    pub(crate) fn set_waits(&mut self, waits: bool) {
        self.waits = waits;
    }

    pub(crate) fn inner(&self) -> Ipv4Addr {
        self.wanted.inner
    }

    pub(crate) fn mac(&self) -> Mac {
        self.wanted.mac
    }

    /// What the plan needs.
    pub(crate) fn state(&self) -> PairState {
        let heard_at = self.tunnel.heard_at.filter(|_| self.tunnel.alive);
        PairState {
            clear: self.clear,
            ends: self.wanted.fast.filter(|_| self.clear > Clear::No),
            place: self.wanted.places.get(self.place).copied(),
            alive: self.tunnel.alive,
            met: self.met,
            lost: self.trials.lost(),
            answers: self.knocks.answers(),
            key: self.tunnel.key,
            heard_at: heard_at.and_then(|at| match at {
                SocketAddr::V4(at) => Some(*at.ip()),
                SocketAddr::V6(_) => None,
            }),
        }
    }

    /// When the peer's door is to be knocked at, if it stays silent.
    pub(crate) fn knock_due(&self, times: u32) -> Option<Instant> {
        let tried = !self.tunnel.alive && !self.wanted.places.is_empty();
        tried.then(|| self.knocks.due(times))
    }

    /// Begins to knock; where.
    pub(crate) fn knock(&mut self, now: Instant, times: u32, jitter: f32) -> Vec<Ipv4Addr> {
        self.knocks.begin(now, times, jitter);
        self.wanted.places.clone()
    }

    /// What was found. It counts no more when the peer lives.
    pub(crate) fn knocked(&mut self, answers: Answers) {
        if !self.tunnel.alive {
            self.knocks.end(answers);
        }
    }

    /// How long probes take to the peer and back.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The share of the peer's last probes that did not come.
    pub(crate) fn loss(&self) -> Option<f32> {
        let heard = self.heard.as_ref()?;
        let sent = heard.probe.number.clamp(1, WINDOW);
        let came = (heard.came & (u64::MAX >> (WINDOW - sent))).count_ones();
        Some((sent - came) as f32 / sent as f32)
    }

    /// A probe came through the tunnel; whether it says anything.
    pub(crate) fn hear(&mut self, probe: Probe, now: Instant) -> bool {
        self.measure(&probe, now);
        let run = self.heard.as_ref().map(|before| before.probe.run);
        let came = match &self.heard {
            Some(before) if before.probe.run == probe.run => {
                let ahead = probe.number.wrapping_sub(before.probe.number);
                if ahead == 0 || ahead > u32::MAX / 2 {
                    // It was overtaken; what came later counts.
                    let behind = ahead.wrapping_neg();
                    let bit = 1_u64.checked_shl(behind).unwrap_or(0);
                    let came = before.came | bit;
                    if let Some(heard) = &mut self.heard {
                        heard.came = came;
                    }
                    return false;
                }
                before.came.checked_shl(ahead).unwrap_or(0) | 1
            }
            // Of what was sent before this end listened, nothing is known.
            _ => u64::MAX,
        };
        self.heard = Some(Heard {
            probe,
            at: now,
            came,
        });
        self.adopted_until = None;
        if run != Some(probe.run) {
            self.trials.begin(self.clear == Clear::Send, self.sent, now);
        }
        self.trials.told(probe.trials, self.sent, now);
        true
    }

    /// A trial came through the tunnel's device; whether it is one that the peer may have
    /// sent now. Others see what is sent in clear, and must not speak for it.
    pub(crate) fn hear_trial(&mut self, trial: Trial) -> bool {
        let of_now = |heard: &Heard| {
            let ahead = trial.number.saturating_sub(heard.probe.number);
            heard.probe.run == trial.run && ahead <= TRIALS_AHEAD_MAX
        };
        let taken = self.clear > Clear::No && self.heard.as_ref().is_some_and(of_now);
        taken && self.trials.hear(trial)
    }

    fn measure(&mut self, probe: &Probe, now: Instant) {
        let Some((number, ago)) = probe.heard else {
            return;
        };
        let sent = self.sent_at.iter().find(|(sent, _)| *sent == number);
        let Some(taken) = sent.map(|(_, at)| now.saturating_duration_since(*at)) else {
            return;
        };
        let taken = taken.saturating_sub(ago);
        // Smoothed as TCP does (RFC 6298 section 2).
        self.round_trip = Some(match self.round_trip {
            Some(before) => (before * 7 + taken) / 8,
            None => taken,
        });
    }

    /// Looks at everything again.
    pub(crate) fn look(&mut self, tunnel: Tunnel, now: Instant) {
        self.tunnel = tunnel;
        if tunnel.alive {
            self.in_vain_since = now;
            self.met = true;
            self.knocks = Knocks::new(now);
        } else if now.saturating_duration_since(self.in_vain_since) >= PATIENCE {
            self.in_vain_since = now;
            self.place = (self.place + 1) % self.wanted.places.len().max(1);
        }
        let decided = self.decide(now);
        if decided < self.clear {
            self.falls.add(now);
        }
        let waits = self.waits && self.clear == Clear::No;
        if decided < self.clear || !(waits || self.falls.hold(now)) {
            self.clear = decided;
        }
        if self.clear == Clear::No {
            self.trials.forget(self.sent);
        }
        let in_vain = self.tries() && decided == Clear::Accept;
        self.trials.look(in_vain, self.sent, now);
    }

    fn decide(&self, now: Instant) -> Clear {
        let Some(ends) = self.wanted.fast else {
            return Clear::No;
        };
        let elsewhere = self.tunnel.heard_at != Some(at(ends.peer).into());
        if self.adopted_until.is_some_and(|until| now < until) {
            let contradicted = self.tunnel.heard_at.is_some() && elsewhere;
            return if contradicted { Clear::No } else { self.clear };
        }
        let here = self.tunnel.alive && !elsewhere;
        let Some(heard) = self.heard.as_ref().filter(|_| here) else {
            return Clear::No;
        };
        let silent = now.saturating_duration_since(heard.at) >= SILENCE;
        let agrees = heard.probe.agreement == self.wanted.agreement
            && heard.probe.hears_at == Some(at(ends.own));
        let carries = heard.probe.accepts && self.carries(heard, now);
        match (agrees && !silent, carries) {
            (false, _) => Clear::No,
            (true, false) => Clear::Accept,
            (true, true) => Clear::Send,
        }
    }

    /// Whether clear packets may go to the peer, and trials do.
    fn tries(&self) -> bool {
        let ready = |heard: &Heard| heard.probe.accepts && heard.probe.trials != Trials::Unknown;
        self.accepts() && self.heard.as_ref().is_some_and(ready)
    }

    fn accepts(&self) -> bool {
        self.accepted && self.clear >= Clear::Accept
    }

    fn carries(&self, heard: &Heard, now: Instant) -> bool {
        self.trials.carries(&heard.probe, self.sent, now)
    }

    /// The trial that goes with a probe, and to which address.
    pub(crate) fn trial(&self, with: &Probe, now: Instant) -> Option<(Ipv4Addr, Trial)> {
        let to = self.wanted.fast.filter(|_| self.tries())?.peer;
        let known = |heard| self.carries(heard, now);
        let trial = Trial {
            run: with.run,
            number: with.number,
            asks: !self.heard.as_ref().is_some_and(known),
        };
        Some((to, trial))
    }

    /// Where the peer is heard.
    fn hears_at(&self) -> Option<SocketAddrV4> {
        match self.tunnel.heard_at.filter(|_| self.tunnel.alive) {
            Some(SocketAddr::V4(at)) => Some(at),
            _ => None,
        }
    }

    /// What the peer must know at once.
    fn says(&self) -> Said {
        Said {
            agreement: self.wanted.agreement,
            // Where all is sealed, nothing follows from it.
            hears_at: self.hears_at().filter(|_| self.wanted.fast.is_some()),
            accepts: self.accepts(),
            tries: self.tries(),
        }
    }

    /// The next probe, if the peer must know something new or it is time for one.
    pub(crate) fn probe(&mut self, run: u32, every: Duration, now: Instant) -> Option<Probe> {
        let (hears_at, says) = (self.hears_at(), self.says());
        let last = self.sent_at.back().map(|(_, at)| *at);
        let due = |pause| last.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        let asked = self.trials.asked && due(ANSWER_EVERY);
        if !due(every) && !asked && self.said == Some(says) {
            return None;
        }
        let heard = self.heard.as_ref().map(|heard| {
            let ago = now.saturating_duration_since(heard.at);
            (heard.probe.number, ago)
        });
        Some(Probe {
            agreement: says.agreement,
            hears_at,
            accepts: says.accepts,
            number: self.sent.checked_add(1).unwrap_or(1),
            run,
            heard,
            trials: self.trials.heard.map_or(Trials::None, Trials::UpTo),
        })
    }

    /// That probe was sent.
    pub(crate) fn sent(&mut self, probe: &Probe, now: Instant) {
        self.sent = probe.number;
        self.said = Some(self.says());
        self.trials.asked = false;
        if self.sent_at.len() == REMEMBERED {
            self.sent_at.pop_front();
        }
        self.sent_at.push_back((probe.number, now));
    }
}

fn at(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, WIREGUARD_PORT)
}

#[cfg(test)]
#[path = "pair_tests.rs"]
pub(super) mod tests;
#[cfg(test)]
#[path = "pair_trial_tests.rs"]
mod trial_tests;
