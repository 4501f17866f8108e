//! The results of reachability checks at the addresses of a silent peer.

use std::net::Ipv4Addr;

/// A peer has at most two addresses: a public and a private one.
const CANDIDATES_MAX: usize = 2;

/// The result at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// An agent answers.
    Agent {
        /// It sees this host at another address than its own.
        translated: bool,
    },
    /// Something listens that sends nothing, or what no agent sends.
    Other,
    /// Connections are refused.
    Closed,
    /// There is no answer.
    Silent,
    /// This host has no route there.
    NoRoute,
}

/// The results at the addresses of a peer, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOutcomes([Option<(Ipv4Addr, CheckOutcome)>; CANDIDATES_MAX]);

impl CheckOutcomes {
    /// The result at this address.
    pub fn at(&self, candidate: Ipv4Addr) -> Option<CheckOutcome> {
        let mut found = self.0.iter().flatten();
        found.find_map(|(at, answer)| (*at == candidate).then_some(*answer))
    }
}

impl FromIterator<(Ipv4Addr, CheckOutcome)> for CheckOutcomes {
    fn from_iter<I: IntoIterator<Item = (Ipv4Addr, CheckOutcome)>>(found: I) -> Self {
        let mut answers = Self::default();
        for (candidate, found) in answers.0.iter_mut().zip(found) {
            *candidate = Some(found);
        }
        answers
    }
}
