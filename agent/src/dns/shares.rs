//! Fair shares of what the server has a limited number of.
//!
//! A client may hold as many as are free (the dynamic threshold of Choudhury and Hahne,
//! 1998): one alone gets half of all, of two that want everything each gets a third, and
//! somebody who holds nothing is served as long as anything is free. What is beyond a
//! share is refused at once; nobody waits.
//!
//! A client is an IP address. Over TCP it is a true one. Over UDP a container may send from
//! invented addresses and so use up the forwards of UDP; what comes over TCP has its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

/// How often it is told that somebody asks for more than its share.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// So many places.
pub struct Shares {
    what: &'static str,
    total: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: HashMap<IpAddr, usize>,
    used: usize,
    refused: u64,
    told: Option<Instant>,
}

/// One of them, until it is dropped.
pub struct Place {
    shares: Arc<Shares>,
    client: IpAddr,
}

impl Shares {
    /// Places for so many at once.
    pub fn new(what: &'static str, total: usize) -> Arc<Self> {
        Arc::new(Self {
            what,
            total,
            state: Mutex::default(),
        })
    }

    /// A place for a client; none if it has its share.
    pub fn take(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut state = self.state();
        let held = state.held.get(&client).copied().unwrap_or_default();
        if held >= self.total - state.used {
            self.refuse(&mut state, client, held);
            return None;
        }
        *state.held.entry(client).or_default() += 1;
        state.used += 1;
        Some(Place {
            shares: self.clone(),
            client,
        })
    }

    #[cfg(test)]
    fn refused(&self) -> u64 {
        self.state().refused
    }

    fn refuse(&self, state: &mut State, client: IpAddr, held: usize) {
        state.refused += 1;
        if state.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            state.told = Some(Instant::now());
            let (what, used, refused) = (self.what, state.used, state.refused);
            warn!(%client, what, held, used, refused, "a client of the names has its share");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shares.state();
        state.used -= 1;
        if let Some(held) = state.held.get_mut(&self.client) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> IpAddr {
        [172, 17, 0, last].into()
    }

    /// Gives places in turn until nobody gets any more.
    fn fill(shares: &Arc<Shares>, clients: u8) -> Vec<Place> {
        let mut places = Vec::new();
        loop {
            let before = places.len();
            places.extend((1..=clients).filter_map(|last| shares.take(client(last))));
            if places.len() == before {
                return places;
            }
        }
    }

    #[test]
    fn whoever_holds_nothing_is_served_beside_greedy_ones() {
        for (clients, most) in [(1, 128), (2, 86), (8, 29), (100, 3)] {
            let shares = Shares::new("forwards", 256);
            let places = fill(&shares, clients);
            let of = |last| {
                places
                    .iter()
                    .filter(|place| place.client == client(last))
                    .count()
            };
            assert!(
                (1..=clients).all(|last| (1..=most).contains(&of(last))),
                "{clients}"
            );
            assert!(shares.take(client(200)).is_some(), "{clients}");
            assert!(shares.refused() > 0);
        }
    }

    #[test]
    fn what_is_given_back_is_free_again() {
        let shares = Shares::new("forwards", 4);
        for _ in 0..10 {
            let places = fill(&shares, 1);
            assert_eq!(places.len(), 2);
        }
        let state = shares.state();
        assert_eq!((state.used, state.held.len()), (0, 0));
    }

    #[test]
    fn without_places_nobody_gets_one() {
        assert!(Shares::new("forwards", 0).take(client(1)).is_none());
    }
}
