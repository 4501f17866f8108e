//! Commands, each started at most once, in the order of their numbers.
//!
//! A command is started once the journal on disk says so. Commands start in ascending
//! order and wait for nothing, so the journal needs one number: none up to it is
//! started again. A started command runs as soon as its own placement is free
//! (`jobs`); commands of one placement run one after the other, in order, and those
//! of another wait neither for them nor for its pull.
//!
//! A command with a start but no end in the journal was interrupted by the end of an
//! agent; whether it took effect is not known, and it is not started again.

use std::collections::BTreeMap;

use kontena_schema::agent::{Command, CommandReport, CommandState};
use kontena_schema::ids::CommandId;
use serde::{Deserialize, Serialize};

use crate::directory::{Directory, Scope};

/// Outcomes kept to be reported again; the Master asks for those of the last
/// minutes at most.
const OUTCOMES_MAX: usize = 256;

/// Which commands were started, and their outcomes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    scope: Option<Scope>,
    /// No command up to this one is started again.
    started_up_to: Option<CommandId>,
    outcomes: BTreeMap<CommandId, CommandReport>,
}

impl Journal {
    /// The journal of an agent that ended, as its successor continues it.
    pub fn resumed(mut self) -> Self {
        for outcome in self.outcomes.values_mut() {
            if outcome.state == CommandState::Started {
                outcome.state = CommandState::Interrupted;
                outcome.error = Some("the agent ended before the command did".to_owned());
            }
        }
        self
    }

    /// The journal of an agent that ended and whose own cannot be read: any
    /// command that it knew of may have been started.
    pub fn lost(directory: &Directory) -> Self {
        let mut journal = Self::default();
        journal.enter(directory);
        journal.started_up_to = directory.commands.keys().next_back().copied();
        journal
    }

    /// Starts over where ids do.
    pub fn enter(&mut self, directory: &Directory) {
        let Some(scope) = directory.scope() else {
            return;
        };
        if self.scope.as_ref() != Some(&scope) {
            *self = Self {
                scope: Some(scope),
                ..Self::default()
            };
        }
    }

    /// The next command to start, in ascending order.
    pub fn next<'a>(&self, directory: &'a Directory) -> Option<&'a Command> {
        let mut commands = directory.commands.values();
        commands.find(|command| Some(command.id) > self.started_up_to)
    }

    /// Records that a command is about to start.
    pub fn started(&mut self, command: CommandId) {
        self.started_up_to = self.started_up_to.max(Some(command));
        self.set(command, CommandState::Started, None);
    }

    /// Records its outcome.
    pub fn ended(&mut self, command: CommandId, state: CommandState, error: Option<String>) {
        self.set(command, state, error);
    }

    /// What to report: also those that were started earlier and whose outcome is no
    /// longer known.
    pub fn reports(&self, directory: &Directory) -> BTreeMap<CommandId, CommandReport> {
        let mut reports = self.outcomes.clone();
        for &command in directory.commands.keys() {
            if Some(command) <= self.started_up_to {
                reports.entry(command).or_insert_with(|| CommandReport {
                    command,
                    state: CommandState::Interrupted,
                    error: Some("the agent no longer knows how it ended".to_owned()),
                });
            }
        }
        reports
    }

    fn set(&mut self, command: CommandId, state: CommandState, error: Option<String>) {
        self.outcomes.insert(
            command,
            CommandReport {
                command,
                state,
                error,
            },
        );
        while self.outcomes.len() > OUTCOMES_MAX {
            self.outcomes.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use kontena_schema::agent::CommandKind;
    use kontena_schema::ids::PlacementId;

    use super::*;
    use crate::directory::tests::{directory, welcome};

    fn with_commands(ids: &[i64]) -> Directory {
        let mut directory = directory();
        for &id in ids {
            let id = CommandId(id);
            let command = Command {
                id,
                placement: PlacementId(11),
                kind: CommandKind::Restart,
            };
            directory.commands.insert(id, command);
        }
        directory
    }

    #[test]
    fn commands_start_in_order_and_once() {
        let directory = with_commands(&[5, 3]);
        let mut journal = Journal::default();
        journal.enter(&directory);
        for id in [3, 5] {
            assert_eq!(journal.next(&directory).unwrap().id, CommandId(id));
            journal.started(CommandId(id));
            journal.enter(&directory);
        }
        assert_eq!(journal.next(&directory), None);
        // A late one is not started out of order.
        let directory = with_commands(&[3, 4, 5]);
        assert_eq!(journal.next(&directory), None);
        assert_eq!(
            journal.reports(&directory)[&CommandId(4)].state,
            CommandState::Interrupted
        );
    }

    #[test]
    fn an_agent_that_ended_in_between_interrupted_it() {
        let directory = with_commands(&[3, 4]);
        let mut journal = Journal::default();
        journal.enter(&directory);
        journal.started(CommandId(3));
        journal.ended(CommandId(3), CommandState::Done, None);
        journal.started(CommandId(4));
        let json = serde_json::to_vec(&journal).unwrap();
        let resumed = serde_json::from_slice::<Journal>(&json).unwrap().resumed();
        assert_eq!(resumed.next(&directory), None);
        let reports = resumed.reports(&directory);
        assert_eq!(reports[&CommandId(3)].state, CommandState::Done);
        assert_eq!(reports[&CommandId(4)].state, CommandState::Interrupted);
    }

    #[test]
    fn without_its_journal_no_known_command_is_repeated() {
        let mut directory = with_commands(&[3, 4]);
        let mut journal = Journal::lost(&directory);
        journal.enter(&directory);
        assert_eq!(journal.next(&directory), None);
        for id in [3, 4] {
            let report = &journal.reports(&directory)[&CommandId(id)];
            assert_eq!(report.state, CommandState::Interrupted);
        }
        directory = with_commands(&[3, 4, 5]);
        assert_eq!(journal.next(&directory).unwrap().id, CommandId(5));
    }

    #[test]
    fn ids_of_another_node_or_history_count_anew() {
        let directory = with_commands(&[3]);
        let mut journal = Journal::default();
        journal.enter(&directory);
        journal.started(CommandId(9));
        let mut other = directory.clone();
        other.me = Some((&welcome(2)).into());
        journal.enter(&other);
        assert_eq!(journal.next(&other).unwrap().id, CommandId(3));
    }
}
