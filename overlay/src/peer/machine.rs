//! A peer of nodes, as one of the two sees it: where the other is tried, and whether
//! packets between them may be clear.
//!
//! Everything begins encrypted. To send in clear, this end must know that the other one
//! is who it says, at exactly the address that the directory names: so it needs a
//! live tunnel to that address, and a heartbeat that came through it and says that the
//! other end knows the same of the peer, hears this end at exactly *its* address, and
//! takes clear packets. To take them, all but the last is needed:
//!
//! ```text
//!            tunnel at the address, ends agree      the peer accepts, path_probes arrive
//!   No ------------------------------------> Accept ------------------------------> Send
//!   ^                                          |  ^--------------------------------- |
//!   +--- any of it ends, or 30 s of silence ---+-------------------------------------+
//! ```
//!
//! All of that is advertised through the encrypted path, and says nothing of whether the clear one
//! carries: UDP port 6784 may be closed on the way. So path_probes go out with heartbeats, in clear
//! (`path_probe.rs`), and the peer says which of them came.
//!
//! Two ends that disagree, because one of them does not know yet what the Master
//! decided, are encrypted as soon as the first heartbeat says so. A peer that damping back again
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

use crate::model::peer::{Clear, PeerConfig, PeerState, SILENCE};
use crate::model::reachability::CheckOutcomes;
use crate::peer::damping::FlapDamping;
use crate::peer::heartbeat::{Heartbeat, ProbesHeard};
use crate::peer::path_probe::{PathProbe, PathProbing};
use crate::peer::reachability::schedule::CheckSchedule;

/// A peer that is not heard for so long at one of its addresses is tried at the
/// other one.
const CANDIDATE_TIMEOUT: Duration = Duration::from_secs(15);
/// Heartbeats whose times are remembered; answers come within the next few.
const REMEMBERED: usize = 16;
/// How soon after a heartbeat a path_probe is answered with the next one.
const ANSWER_EVERY: Duration = Duration::from_millis(50);
/// By how many heartbeats a path_probe may be ahead of the last one that came.
const PATH_PROBES_AHEAD_MAX: u32 = 16;
/// Heartbeats over which losses are counted.
const WINDOW: u32 = 64;

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

/// A peer.
#[derive(Debug)]
pub(crate) struct Peer {
    wanted: PeerConfig,
    /// Which of the candidates is tried, and since when in vain.
    candidate: usize,
    in_vain_since: Instant,
    met: bool,
    checks: CheckSchedule,
    tunnel: Tunnel,
    clear: Clear,
    damping: FlapDamping,
    waits: bool,
    /// Until then the state of a former run stands, if no heartbeat contradicts.
    adopted_until: Option<Instant>,
    /// Whether the kernel takes clear packets of the peer.
    accepted: bool,
    /// This end's heartbeats: how many, and when the last ones were sent.
    sent: u32,
    sent_at: VecDeque<(u32, Instant)>,
    /// What the last one advertised.
    advertised: Option<Advertised>,
    heard: Option<Heard>,
    round_trip: Option<Duration>,
    path_probes: PathProbing,
}

/// What a heartbeat says besides numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Advertised {
    agreement: u64,
    hears_at: Option<SocketAddrV4>,
    accepts: bool,
    /// Whether a path_probe goes with it.
    tries: bool,
}

#[derive(Debug)]
struct Heard {
    heartbeat: Heartbeat,
    at: Instant,
    /// Which of the last heartbeats came; the lowest bit is the newest.
    came: u64,
}

impl Peer {
    pub(crate) fn new(wanted: PeerConfig, now: Instant) -> Self {
        Self {
            wanted,
            candidate: 0,
            in_vain_since: now,
            met: false,
            checks: CheckSchedule::new(now),
            tunnel: Tunnel::default(),
            clear: Clear::No,
            damping: FlapDamping::default(),
            waits: false,
            adopted_until: None,
            accepted: false,
            sent: 0,
            sent_at: VecDeque::with_capacity(REMEMBERED),
            advertised: None,
            heard: None,
            round_trip: None,
            path_probes: PathProbing::default(),
        }
    }

    /// The kernel was left like this by a former run of the agent.
    pub(crate) fn adopt(&mut self, clear: Clear, now: Instant) {
        self.clear = clear;
        self.accepted = clear >= Clear::Accept;
        self.adopted_until = Some(now + SILENCE);
    }

    /// Takes what the directory says now.
    pub(crate) fn want(&mut self, wanted: PeerConfig, now: Instant) {
        if self.wanted.candidates != wanted.candidates {
            self.candidate = 0;
            self.in_vain_since = now;
            self.met = false;
            self.checks = CheckSchedule::new(now);
        }
        if self.wanted != wanted {
            self.damping = FlapDamping::default();
        }
        if self.wanted.fast != wanted.fast {
            self.path_probes.forget(self.sent);
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

    /// Whether it stays encrypted for now, if it is.
    pub(crate) fn set_waits(&mut self, waits: bool) {
        self.waits = waits;
    }

    pub(crate) fn tunnel_address(&self) -> Ipv4Addr {
        self.wanted.tunnel_address
    }

    pub(crate) fn mac(&self) -> Mac {
        self.wanted.mac
    }

    /// What the plan needs.
    pub(crate) fn state(&self) -> PeerState {
        let heard_at = self.tunnel.heard_at.filter(|_| self.tunnel.alive);
        PeerState {
            clear: self.clear,
            ends: self.wanted.fast.filter(|_| self.clear > Clear::No),
            candidate: self.wanted.candidates.get(self.candidate).copied(),
            alive: self.tunnel.alive,
            met: self.met,
            lost: self.path_probes.lost(),
            reachability: self.checks.answers(),
            key: self.tunnel.key,
            heard_at: heard_at.and_then(|at| match at {
                SocketAddr::V4(at) => Some(*at.ip()),
                SocketAddr::V6(_) => None,
            }),
        }
    }

    /// When the peer's door is to be checked at, if it stays silent.
    pub(crate) fn check_due(&self, times: u32) -> Option<Instant> {
        let tried = !self.tunnel.alive && !self.wanted.candidates.is_empty();
        tried.then(|| self.checks.due(times))
    }

    /// Begins to check; where.
    pub(crate) fn check(&mut self, now: Instant, times: u32, jitter: f32) -> Vec<Ipv4Addr> {
        self.checks.begin(now, times, jitter);
        self.wanted.candidates.clone()
    }

    /// What was found. It counts no more when the peer lives.
    pub(crate) fn checked(&mut self, answers: CheckOutcomes) {
        if !self.tunnel.alive {
            self.checks.end(answers);
        }
    }

    /// How long heartbeats take to the peer and back.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The share of the peer's last heartbeats that did not come.
    pub(crate) fn loss(&self) -> Option<f32> {
        let heard = self.heard.as_ref()?;
        let sent = heard.heartbeat.number.clamp(1, WINDOW);
        let came = (heard.came & (u64::MAX >> (WINDOW - sent))).count_ones();
        Some((sent - came) as f32 / sent as f32)
    }

    /// A heartbeat came through the tunnel; whether it says anything.
    pub(crate) fn hear(&mut self, heartbeat: Heartbeat, now: Instant) -> bool {
        self.measure(&heartbeat, now);
        let run = self.heard.as_ref().map(|before| before.heartbeat.run);
        let came = match &self.heard {
            Some(before) if before.heartbeat.run == heartbeat.run => {
                let ahead = heartbeat.number.wrapping_sub(before.heartbeat.number);
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
            heartbeat,
            at: now,
            came,
        });
        self.adopted_until = None;
        if run != Some(heartbeat.run) {
            self.path_probes
                .begin(self.clear == Clear::Send, self.sent, now);
        }
        self.path_probes.told(heartbeat.path_probes, self.sent, now);
        true
    }

    /// A path_probe came through the tunnel's device; whether it is one that the peer may have
    /// sent now. Others see what is sent in clear, and must not speak for it.
    pub(crate) fn hear_path_probe(&mut self, path_probe: PathProbe) -> bool {
        let of_now = |heard: &Heard| {
            let ahead = path_probe.number.saturating_sub(heard.heartbeat.number);
            heard.heartbeat.run == path_probe.run && ahead <= PATH_PROBES_AHEAD_MAX
        };
        let taken = self.clear > Clear::No && self.heard.as_ref().is_some_and(of_now);
        taken && self.path_probes.hear(path_probe)
    }

    fn measure(&mut self, heartbeat: &Heartbeat, now: Instant) {
        let Some((number, ago)) = heartbeat.heard else {
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
            self.checks = CheckSchedule::new(now);
        } else if now.saturating_duration_since(self.in_vain_since) >= CANDIDATE_TIMEOUT {
            self.in_vain_since = now;
            self.candidate = (self.candidate + 1) % self.wanted.candidates.len().max(1);
        }
        let decided = self.decide(now);
        if decided < self.clear {
            self.damping.add(now);
        }
        let waits = self.waits && self.clear == Clear::No;
        if decided < self.clear || !(waits || self.damping.hold(now)) {
            self.clear = decided;
        }
        if self.clear == Clear::No {
            self.path_probes.forget(self.sent);
        }
        let in_vain = self.tries() && decided == Clear::Accept;
        self.path_probes.look(in_vain, self.sent, now);
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
        let agrees = heard.heartbeat.agreement == self.wanted.agreement
            && heard.heartbeat.hears_at == Some(at(ends.own));
        let carries = heard.heartbeat.accepts && self.carries(heard, now);
        match (agrees && !silent, carries) {
            (false, _) => Clear::No,
            (true, false) => Clear::Accept,
            (true, true) => Clear::Send,
        }
    }

    /// Whether clear packets may go to the peer, and path_probes do.
    fn tries(&self) -> bool {
        let ready = |heard: &Heard| {
            heard.heartbeat.accepts && heard.heartbeat.path_probes != ProbesHeard::Unknown
        };
        self.accepts() && self.heard.as_ref().is_some_and(ready)
    }

    fn accepts(&self) -> bool {
        self.accepted && self.clear >= Clear::Accept
    }

    fn carries(&self, heard: &Heard, now: Instant) -> bool {
        self.path_probes.carries(&heard.heartbeat, self.sent, now)
    }

    /// The path_probe that goes with a heartbeat, and to which address.
    pub(crate) fn path_probe(
        &self,
        with: &Heartbeat,
        now: Instant,
    ) -> Option<(Ipv4Addr, PathProbe)> {
        let to = self.wanted.fast.filter(|_| self.tries())?.peer;
        let known = |heard| self.carries(heard, now);
        let path_probe = PathProbe {
            run: with.run,
            number: with.number,
            asks: !self.heard.as_ref().is_some_and(known),
        };
        Some((to, path_probe))
    }

    /// Where the peer is heard.
    fn hears_at(&self) -> Option<SocketAddrV4> {
        match self.tunnel.heard_at.filter(|_| self.tunnel.alive) {
            Some(SocketAddr::V4(at)) => Some(at),
            _ => None,
        }
    }

    /// What the peer must know at once.
    fn says(&self) -> Advertised {
        Advertised {
            agreement: self.wanted.agreement,
            // Where all is encrypted, nothing follows from it.
            hears_at: self.hears_at().filter(|_| self.wanted.fast.is_some()),
            accepts: self.accepts(),
            tries: self.tries(),
        }
    }

    /// The next heartbeat, if the peer must know something new or it is time for one.
    pub(crate) fn heartbeat(
        &mut self,
        run: u32,
        every: Duration,
        now: Instant,
    ) -> Option<Heartbeat> {
        let (hears_at, says) = (self.hears_at(), self.says());
        let last = self.sent_at.back().map(|(_, at)| *at);
        let due = |pause| last.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        let asked = self.path_probes.asked && due(ANSWER_EVERY);
        if !due(every) && !asked && self.advertised == Some(says) {
            return None;
        }
        let heard = self.heard.as_ref().map(|heard| {
            let ago = now.saturating_duration_since(heard.at);
            (heard.heartbeat.number, ago)
        });
        Some(Heartbeat {
            agreement: says.agreement,
            hears_at,
            accepts: says.accepts,
            number: self.sent.checked_add(1).unwrap_or(1),
            run,
            heard,
            path_probes: self
                .path_probes
                .heard
                .map_or(ProbesHeard::None, ProbesHeard::UpTo),
        })
    }

    /// That heartbeat was sent.
    pub(crate) fn sent(&mut self, heartbeat: &Heartbeat, now: Instant) {
        self.sent = heartbeat.number;
        self.advertised = Some(self.says());
        self.path_probes.asked = false;
        if self.sent_at.len() == REMEMBERED {
            self.sent_at.pop_front();
        }
        self.sent_at.push_back((heartbeat.number, now));
    }
}

fn at(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, WIREGUARD_PORT)
}

#[cfg(test)]
#[path = "path_probe_tests.rs"]
mod path_probe_tests;
#[cfg(test)]
#[path = "machine_tests.rs"]
pub(super) mod tests;
