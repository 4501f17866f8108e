//! Fair shares of the server's limited resources.
//!
//! A client may hold as many as are free (the dynamic threshold of Choudhury and Hahne,
//! 1998): a greedy one alone gets half of all, two of them a third each, and a client that
//! holds none is served as long as any is free. Requests beyond a share are refused at
//! once, not queued.
//!
//! A client is an IP address. Over TCP it is genuine. Over UDP a container may spoof
//! addresses and so use up the forwards of UDP; TCP has its own limit.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

/// How often refusals are logged at most.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// A limited number of slots.
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
    /// This many slots.
    pub fn new(what: &'static str, total: usize) -> Arc<Self> {
        Arc::new(Self {
            what,
            total,
            state: Mutex::default(),
        })
    }

    /// A slot for a client; none if its share is used up.
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
            warn!(%client, what, held, used, refused, "a DNS client asks for more than its share");
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

    /// Fills the clients' shares in turn.
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
