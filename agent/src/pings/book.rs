//! Which pings were started, and their results. Pure.
//!
//! None is started twice: pings start in ascending order, and those that an earlier run
//! of the agent may have started are in its directory on disk. So no journal is needed.

use std::collections::BTreeMap;

use kontena_schema::agent::{Ping, PingReport, PingState};
use kontena_schema::ids::PingId;

use crate::directory::{Directory, PINGS_KEPT, Scope};

/// The pings of this run.
#[derive(Debug, Default)]
pub struct Book {
    scope: Option<Scope>,
    /// No ping up to this one is started again.
    begun_up_to: Option<PingId>,
    /// The states of the last ones.
    states: BTreeMap<PingId, PingState>,
}

impl Book {
    /// The book of an agent that starts with the directory of an earlier run: any of its
    /// pings may have been started.
    pub fn resumed(directory: &Directory) -> Self {
        let mut book = Self::default();
        book.enter(directory);
        for &ping in directory.pings.keys() {
            let error = "the agent was restarted meanwhile".to_owned();
            book.begun_up_to = Some(ping);
            book.set(ping, PingState::Interrupted { error });
        }
        book
    }

    /// Starts over where ids do; true if they do.
    pub fn enter(&mut self, directory: &Directory) -> bool {
        let scope = directory.scope();
        let anew = self.scope != scope;
        if anew {
            *self = Self {
                scope,
                ..Self::default()
            };
        }
        anew
    }

    /// The next ping to start, in ascending order; each is returned once.
    pub fn begin(&mut self, directory: &Directory) -> Option<Ping> {
        let mut pings = directory.pings.values();
        let ping = pings.find(|ping| Some(ping.id) > self.begun_up_to)?;
        self.begun_up_to = Some(ping.id);
        self.set(ping.id, PingState::Started);
        Some(*ping)
    }

    /// Records the result of a ping.
    pub fn ended(&mut self, ping: PingId, state: PingState) {
        self.set(ping, state);
    }

    /// What to report.
    pub fn reports(&self) -> Vec<PingReport> {
        let report = |(&ping, state): (&PingId, &PingState)| PingReport {
            ping,
            state: state.clone(),
        };
        self.states.iter().map(report).collect()
    }

    fn set(&mut self, ping: PingId, state: PingState) {
        self.states.insert(ping, state);
        while self.states.len() > PINGS_KEPT {
            self.states.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use kontena_schema::ids::NodeId;

    use super::*;
    use crate::directory::tests::{directory, welcome};

    fn with_pings(ids: &[i64]) -> Directory {
        let mut directory = directory();
        for &id in ids {
            let ping = Ping {
                id: PingId(id),
                peer: NodeId(2),
                count: 5,
            };
            directory.pings.insert(ping.id, ping);
        }
        directory
    }

    fn begun(book: &mut Book, directory: &Directory) -> Vec<i64> {
        book.enter(directory);
        std::iter::from_fn(|| book.begin(directory).map(|ping| ping.id.0)).collect()
    }

    fn failed(why: &str) -> PingState {
        let error = why.to_owned();
        PingState::Failed { error }
    }

    #[test]
    fn pings_are_begun_in_order_and_once() {
        let mut book = Book::default();
        assert_eq!(begun(&mut book, &with_pings(&[5, 3])), [3, 5]);
        assert!(begun(&mut book, &with_pings(&[3, 5])).is_empty());
        // A late one is not started out of order.
        assert_eq!(begun(&mut book, &with_pings(&[3, 4, 5, 6])), [6]);
        book.ended(PingId(5), failed("no address"));
        let told: Vec<_> = book
            .reports()
            .into_iter()
            .map(|r| (r.ping.0, r.state))
            .collect();
        let started = PingState::Started;
        let all = [
            (3, started.clone()),
            (5, failed("no address")),
            (6, started),
        ];
        assert_eq!(told, all);
    }

    #[test]
    fn what_a_former_run_may_have_begun_is_interrupted() {
        let mut book = Book::resumed(&with_pings(&[3, 4]));
        let interrupted = |r: &PingReport| matches!(r.state, PingState::Interrupted { .. });
        assert_eq!(book.reports().iter().filter(|r| interrupted(r)).count(), 2);
        assert!(begun(&mut book, &with_pings(&[3, 4])).is_empty());
        assert_eq!(begun(&mut book, &with_pings(&[3, 4, 5])), [5]);
    }

    #[test]
    fn ids_of_another_node_or_history_count_anew() {
        let mut book = Book::default();
        assert_eq!(begun(&mut book, &with_pings(&[9])), [9]);
        let mut other = with_pings(&[3]);
        other.me = Some((&welcome(2)).into());
        assert!(book.enter(&other));
        assert!(book.reports().is_empty());
        assert_eq!(begun(&mut book, &other), [3]);
        other.reached.as_mut().unwrap().timeline = "t2".to_owned();
        assert_eq!(begun(&mut book, &other), [3]);
    }

    #[test]
    fn only_the_last_ones_are_told() {
        let mut book = Book::default();
        let many: Vec<i64> = (1..=40).collect();
        assert_eq!(begun(&mut book, &with_pings(&many)).len(), 40);
        let told = book.reports();
        assert_eq!(told.len(), PINGS_KEPT);
        assert_eq!(told.last().unwrap().ping, PingId(40));
    }
}
