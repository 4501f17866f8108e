//! When an agent that has just started knows enough to deny that a name exists. Pure.
//!
//! It must have seen what runs here and heard from the Master what happened while it was
//! down. It does not wait long for a Master that is away: a client with search domains
//! finds a name only after the candidates before it are denied.

use std::time::{Duration, Instant};

use kontena_schema::ids::Epoch;

use crate::directory::{Directory, Reached};

/// How long to wait for the Master; connecting takes a fraction of a second.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// What an agent had stored when it started, and whether its startup is over.
#[derive(Debug)]
pub struct Startup {
    began: Instant,
    stored: (Option<Epoch>, Option<Reached>),
    over: bool,
}

impl Startup {
    /// Starts with a stored directory.
    pub fn new(stored: &Directory, now: Instant) -> Self {
        Self {
            began: now,
            stored: position(stored),
            over: false,
        }
    }

    /// Whether names may be denied; `own_known` says whether it is known what runs here.
    /// Once they may, they always may.
    pub fn is_over(&mut self, directory: &Directory, own_known: bool, now: Instant) -> bool {
        let heard = position(directory) != self.stored;
        let waited = now.duration_since(self.began) >= HEARD_WITHIN;
        self.over |= own_known && (heard || waited);
        self.over
    }
}

fn position(directory: &Directory) -> (Option<Epoch>, Option<Reached>) {
    let epoch = directory.me.as_ref().map(|me| me.epoch);
    (epoch, directory.reached.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::{directory, snapshot};

    #[test]
    fn names_are_denied_when_host_and_master_were_heard() {
        let (now, stored) = (Instant::now(), directory());
        let mut newer = stored.clone();
        newer.merge(snapshot(8)).unwrap();
        let mut again = stored.clone();
        again.me.as_mut().unwrap().epoch = Epoch(99);
        for heard in [newer, again] {
            let mut startup = Startup::new(&stored, now);
            assert!(!startup.is_over(&stored, true, now));
            assert!(!startup.is_over(&heard, false, now));
            assert!(startup.is_over(&heard, true, now));
            assert!(
                startup.is_over(&heard, false, now),
                "it does not begin again"
            );
        }
    }

    #[test]
    fn a_master_that_is_away_is_not_waited_for_long() {
        let (now, stored) = (Instant::now(), directory());
        let mut startup = Startup::new(&stored, now);
        let later = now + HEARD_WITHIN;
        assert!(!startup.is_over(&stored, true, later - Duration::from_millis(1)));
        assert!(!startup.is_over(&stored, false, later));
        assert!(startup.is_over(&stored, true, later));
    }
}
