//! The state machine of one peer: at which candidate address it is tried, and whether packets to
//! and from it may be clear.
//!
//! Every peer starts encrypted. To send in clear, this end needs proof that the peer is at exactly
//! the address that the directory names: a live tunnel to that address, and a heartbeat through it
//! which says that the peer has the same settings, sees this end at exactly *its* address, and
//! accepts clear packets. To accept them, everything but the last is needed:
//!
//! ```text
//!         tunnel at the address, ends agree     the peer accepts, path probes arrive
//!   No ------------------------------------> Accept ------------------------------> Send
//!   ^                                          |  ^--------------------------------- |
//!   +--- any of it ends, or 30 s of silence ---+-------------------------------------+
//! ```
//!
//! All of that is exchanged over the encrypted path and does not show whether the clear one works:
//! UDP port 6784 may be blocked on the way. So path probes are sent in clear with heartbeats
//! (`path_probe.rs`), and the peer reports which of them arrived.
//!
//! Two ends that disagree, because one of them does not have the Master's last decision yet,
//! are encrypted as soon as the first heartbeat shows it. A peer that falls back again and again
//! stays encrypted for longer each time, as flapping routes do (RFC 2439): every change is work
//! for the kernel, and a peer must not be able to cause any amount of it.
//!
//! It is pure: time is passed in, and the caller sends what it returns.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use kontena_schema::key::PublicKey;
use kontena_schema::limits::WIREGUARD_PORT;
use kontena_schema::mac::Mac;

use crate::model::peer::{Clear, PeerConfig, PeerState, SILENCE};
use crate::model::reachability::CheckOutcomes;
use crate::peer::damping::FlapDamping;
use crate::peer::heartbeat::{Heartbeat, ProbesReceived};
use crate::peer::path_probe::{PathProbe, PathProbing};
use crate::peer::reachability::schedule::CheckSchedule;

/// After so long without a packet at one candidate address, the next one is tried.
const CANDIDATE_TIMEOUT: Duration = Duration::from_secs(15);
/// How many heartbeats' send times are kept; answers arrive within the next few.
const REMEMBERED: usize = 16;
/// How soon after a heartbeat the next one may answer a path probe.
const ANSWER_EVERY: Duration = Duration::from_millis(50);
/// By how many heartbeats a path probe may be ahead of the last one received.
const PATH_PROBES_AHEAD_MAX: u32 = 16;
/// Heartbeats over which the loss is computed.
const WINDOW: u32 = 64;

/// The state of the tunnel to the peer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tunnel {
    /// Where packets of its session came from.
    pub(crate) heard_at: Option<SocketAddr>,
    /// Whether anything was received lately.
    pub(crate) alive: bool,
    /// The key that it uses.
    pub(crate) key: Option<PublicKey>,
}

/// A peer.
#[derive(Debug)]
pub(crate) struct Peer {
    config: PeerConfig,
    /// The candidate address that is tried, and since when without an answer.
    candidate: usize,
    unanswered_since: Instant,
    met: bool,
    checks: CheckSchedule,
    tunnel: Tunnel,
    clear: Clear,
    damping: FlapDamping,
    held_down: bool,
    /// Until then the state of a former run is kept, unless a heartbeat contradicts it.
    adopted_until: Option<Instant>,
    /// Whether the kernel accepts clear packets of the peer.
    accepted: bool,
    /// This end's heartbeats: their count, and when the last ones were sent.
    sent: u32,
    sent_at: VecDeque<(u32, Instant)>,
    /// What the last one advertised.
    advertised: Option<Advertised>,
    last: Option<LastHeartbeat>,
    round_trip: Option<Duration>,
    path_probes: PathProbing,
}

/// What a heartbeat tells the peer that the peer acts upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Advertised {
    agreement: u64,
    sees_peer_at: Option<SocketAddrV4>,
    accepts: bool,
    /// Whether a path probe is sent with it.
    probes: bool,
}

/// The peer's last heartbeat.
#[derive(Debug)]
struct LastHeartbeat {
    heartbeat: Heartbeat,
    at: Instant,
    /// Which of the last heartbeats arrived; the lowest bit is the newest.
    arrived: u64,
}

impl Peer {
    pub(crate) fn new(config: PeerConfig, now: Instant) -> Self {
        Self {
            config,
            candidate: 0,
            unanswered_since: now,
            met: false,
            checks: CheckSchedule::new(now),
            tunnel: Tunnel::default(),
            clear: Clear::No,
            damping: FlapDamping::default(),
            held_down: false,
            adopted_until: None,
            accepted: false,
            sent: 0,
            sent_at: VecDeque::with_capacity(REMEMBERED),
            advertised: None,
            last: None,
            round_trip: None,
            path_probes: PathProbing::default(),
        }
    }

    /// Takes over the state that a former run left in the kernel.
    pub(crate) fn adopt(&mut self, clear: Clear, now: Instant) {
        self.clear = clear;
        self.accepted = clear >= Clear::Accept;
        self.adopted_until = Some(now + SILENCE);
    }

    /// Applies the directory.
    pub(crate) fn configure(&mut self, config: PeerConfig, now: Instant) {
        if self.config.candidates != config.candidates {
            self.candidate = 0;
            self.unanswered_since = now;
            self.met = false;
            self.checks = CheckSchedule::new(now);
        }
        if self.config != config {
            self.damping = FlapDamping::default();
        }
        if self.config.fast != config.fast {
            self.path_probes.reset(self.sent);
        }
        if (self.config.fast, self.config.agreement) != (config.fast, config.agreement) {
            // The state of a former run was proven for other settings.
            self.adopted_until = None;
        }
        self.config = config;
    }

    /// Whether the kernel accepts clear packets of the peer.
    pub(crate) fn set_accepted(&mut self, accepted: bool) {
        self.accepted = accepted;
    }

    /// Whether the peer was ever reached at the candidate that is tried now.
    pub(crate) fn met(&self) -> bool {
        self.met
    }

    /// Whether the start-up hold-down keeps it encrypted, if it is.
    pub(crate) fn set_held_down(&mut self, held_down: bool) {
        self.held_down = held_down;
    }

    pub(crate) fn tunnel_address(&self) -> Ipv4Addr {
        self.config.tunnel_address
    }

    pub(crate) fn mac(&self) -> Mac {
        self.config.mac
    }

    /// Its state for the plan.
    pub(crate) fn state(&self) -> PeerState {
        let heard_at = self.tunnel.heard_at.filter(|_| self.tunnel.alive);
        PeerState {
            clear: self.clear,
            ends: self.config.fast.filter(|_| self.clear > Clear::No),
            candidate: self.config.candidates.get(self.candidate).copied(),
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

    /// When its reachability is to be checked, if it stays silent.
    pub(crate) fn check_due(&self, times: u32) -> Option<Instant> {
        let tried = !self.tunnel.alive && !self.config.candidates.is_empty();
        tried.then(|| self.checks.due(times))
    }

    /// A check starts; returns the addresses to check.
    pub(crate) fn check(&mut self, now: Instant, times: u32, jitter: f32) -> Vec<Ipv4Addr> {
        self.checks.start(now, times, jitter);
        self.config.candidates.clone()
    }

    /// A check ended. Its result is discarded if the peer is alive by now.
    pub(crate) fn checked(&mut self, answers: CheckOutcomes) {
        if !self.tunnel.alive {
            self.checks.finish(answers);
        }
    }

    /// The round-trip time of heartbeats.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The share of the peer's last heartbeats that were lost.
    pub(crate) fn loss(&self) -> Option<f32> {
        let last = self.last.as_ref()?;
        let sent = last.heartbeat.number.clamp(1, WINDOW);
        let came = (last.arrived & (u64::MAX >> (WINDOW - sent))).count_ones();
        Some((sent - came) as f32 / sent as f32)
    }

    /// A heartbeat was received through the tunnel; whether it is newer than the last one.
    pub(crate) fn receive_heartbeat(&mut self, heartbeat: Heartbeat, now: Instant) -> bool {
        self.measure(&heartbeat, now);
        let run = self.last.as_ref().map(|before| before.heartbeat.run);
        let arrived = match &self.last {
            Some(before) if before.heartbeat.run == heartbeat.run => {
                let ahead = heartbeat.number.wrapping_sub(before.heartbeat.number);
                if ahead == 0 || ahead > u32::MAX / 2 {
                    // It was overtaken; the newer one counts.
                    let behind = ahead.wrapping_neg();
                    let bit = 1_u64.checked_shl(behind).unwrap_or(0);
                    let arrived = before.arrived | bit;
                    if let Some(last) = &mut self.last {
                        last.arrived = arrived;
                    }
                    return false;
                }
                before.arrived.checked_shl(ahead).unwrap_or(0) | 1
            }
            // What was sent before this end listened does not count as lost.
            _ => u64::MAX,
        };
        self.last = Some(LastHeartbeat {
            heartbeat,
            at: now,
            arrived,
        });
        self.adopted_until = None;
        if run != Some(heartbeat.run) {
            self.path_probes
                .restart(self.clear == Clear::Send, self.sent, now);
        }
        self.path_probes
            .acknowledge(heartbeat.path_probes, self.sent, now);
        true
    }

    /// A path probe was received; whether it is new and the peer can have sent it now. What is
    /// sent in clear can be seen, and must not be forged or replayed.
    pub(crate) fn receive_path_probe(&mut self, path_probe: PathProbe) -> bool {
        let is_current = |last: &LastHeartbeat| {
            let ahead = path_probe.number.saturating_sub(last.heartbeat.number);
            last.heartbeat.run == path_probe.run && ahead <= PATH_PROBES_AHEAD_MAX
        };
        let accepted = self.clear > Clear::No && self.last.as_ref().is_some_and(is_current);
        accepted && self.path_probes.receive(path_probe)
    }

    fn measure(&mut self, heartbeat: &Heartbeat, now: Instant) {
        let Some((number, ago)) = heartbeat.last_received else {
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

    /// Applies the state of the tunnel, and decides again.
    pub(crate) fn update(&mut self, tunnel: Tunnel, now: Instant) {
        self.tunnel = tunnel;
        if tunnel.alive {
            self.unanswered_since = now;
            self.met = true;
            self.checks = CheckSchedule::new(now);
        } else if now.saturating_duration_since(self.unanswered_since) >= CANDIDATE_TIMEOUT {
            self.unanswered_since = now;
            self.candidate = (self.candidate + 1) % self.config.candidates.len().max(1);
        }
        let decided = self.decide(now);
        if decided < self.clear {
            self.damping.add(now);
        }
        let held_down = self.held_down && self.clear == Clear::No;
        if decided < self.clear || !(held_down || self.damping.hold(now)) {
            self.clear = decided;
        }
        if self.clear == Clear::No {
            self.path_probes.reset(self.sent);
        }
        let failing = self.probes() && decided == Clear::Accept;
        self.path_probes.update(failing, self.sent, now);
    }

    fn decide(&self, now: Instant) -> Clear {
        let Some(ends) = self.config.fast else {
            return Clear::No;
        };
        let elsewhere = self.tunnel.heard_at != Some(at(ends.peer).into());
        if self.adopted_until.is_some_and(|until| now < until) {
            let contradicted = self.tunnel.heard_at.is_some() && elsewhere;
            return if contradicted { Clear::No } else { self.clear };
        }
        let here = self.tunnel.alive && !elsewhere;
        let Some(last) = self.last.as_ref().filter(|_| here) else {
            return Clear::No;
        };
        let silent = now.saturating_duration_since(last.at) >= SILENCE;
        let agrees = last.heartbeat.agreement == self.config.agreement
            && last.heartbeat.sees_peer_at == Some(at(ends.own));
        let works = last.heartbeat.accepts && self.clear_path_works(last, now);
        match (agrees && !silent, works) {
            (false, _) => Clear::No,
            (true, false) => Clear::Accept,
            (true, true) => Clear::Send,
        }
    }

    /// Whether path probes are sent: clear packets may go to the peer, and it knows probes.
    fn probes(&self) -> bool {
        let ready = |last: &LastHeartbeat| {
            last.heartbeat.accepts && last.heartbeat.path_probes != ProbesReceived::Unknown
        };
        self.accepts() && self.last.as_ref().is_some_and(ready)
    }

    fn accepts(&self) -> bool {
        self.accepted && self.clear >= Clear::Accept
    }

    fn clear_path_works(&self, last: &LastHeartbeat, now: Instant) -> bool {
        self.path_probes.works(&last.heartbeat, self.sent, now)
    }

    /// The path probe to send with a heartbeat, and its address.
    pub(crate) fn path_probe(
        &self,
        with: &Heartbeat,
        now: Instant,
    ) -> Option<(Ipv4Addr, PathProbe)> {
        let to = self.config.fast.filter(|_| self.probes())?.peer;
        let known = |last| self.clear_path_works(last, now);
        let path_probe = PathProbe {
            run: with.run,
            number: with.number,
            wants_answer: !self.last.as_ref().is_some_and(known),
        };
        Some((to, path_probe))
    }

    /// The endpoint at which the peer is seen.
    fn sees_peer_at(&self) -> Option<SocketAddrV4> {
        match self.tunnel.heard_at.filter(|_| self.tunnel.alive) {
            Some(SocketAddr::V4(at)) => Some(at),
            _ => None,
        }
    }

    /// What the peer must know at once.
    fn advertisement(&self) -> Advertised {
        Advertised {
            agreement: self.config.agreement,
            // A peer that is to be encrypted does not act upon it.
            sees_peer_at: self.sees_peer_at().filter(|_| self.config.fast.is_some()),
            accepts: self.accepts(),
            probes: self.probes(),
        }
    }

    /// The next heartbeat, if there is something new to advertise or one is due.
    pub(crate) fn heartbeat(
        &mut self,
        run: u32,
        every: Duration,
        now: Instant,
    ) -> Option<Heartbeat> {
        let (sees_peer_at, current) = (self.sees_peer_at(), self.advertisement());
        let last_sent = self.sent_at.back().map(|(_, at)| *at);
        let due = |pause| last_sent.is_none_or(|at| now.saturating_duration_since(at) >= pause);
        let answers = self.path_probes.answer_wanted && due(ANSWER_EVERY);
        if !due(every) && !answers && self.advertised == Some(current) {
            return None;
        }
        let last_received = self.last.as_ref().map(|last| {
            let ago = now.saturating_duration_since(last.at);
            (last.heartbeat.number, ago)
        });
        Some(Heartbeat {
            agreement: current.agreement,
            sees_peer_at,
            accepts: current.accepts,
            number: self.sent.checked_add(1).unwrap_or(1),
            run,
            last_received,
            path_probes: self
                .path_probes
                .last_received
                .map_or(ProbesReceived::None, ProbesReceived::UpTo),
        })
    }

    /// This heartbeat was sent.
    pub(crate) fn sent(&mut self, heartbeat: &Heartbeat, now: Instant) {
        self.sent = heartbeat.number;
        self.advertised = Some(self.advertisement());
        self.path_probes.answer_wanted = false;
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
#[path = "machine_check_tests.rs"]
mod check_tests;
#[cfg(test)]
#[path = "path_probe_tests.rs"]
mod path_probe_tests;
#[cfg(test)]
#[path = "machine_tests.rs"]
pub(super) mod tests;
