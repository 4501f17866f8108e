//! What a reachability check found at the addresses of a silent peer.

use std::net::Ipv4Addr;

/// A peer has two addresses at most: a public one and a private one.
const CANDIDATES_MAX: usize = 2;

/// What was found at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// An agent answers.
    Agent {
        /// It sees this host at another address than the one that it has.
        translated: bool,
    },
    /// Something listens and says nothing, or what no agent says.
    Other,
    /// Connections are refused.
    Closed,
    /// Nothing comes back.
    Silent,
    /// This host knows no way there.
    NoRoute,
}

/// What was found at the addresses of a peer, as far as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOutcomes([Option<(Ipv4Addr, CheckOutcome)>; CANDIDATES_MAX]);

impl CheckOutcomes {
    /// What was found there.
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
