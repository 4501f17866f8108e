//! What can go wrong between a replica and Postgres.

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

/// A failure of the database layer.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// No connection became free, or none could be made, in time.
    #[error("no database connection: {0}")]
    Unavailable(#[source] PoolError),
    /// A statement failed.
    #[error("database: {0}")]
    Statement(#[from] tokio_postgres::Error),
    /// COMMIT was sent and its outcome is not known.
    #[error("the outcome of a commit is not known: {0}")]
    Commit(#[source] tokio_postgres::Error),
    /// A statement that always answers a row did not.
    #[error("{0} answered no row")]
    NoRow(&'static str),
    /// A statement changed another number of rows than it must.
    #[error("{query} changed {changed} rows instead of {expected}")]
    RowCount {
        /// The statement.
        query: &'static str,
        /// How many rows it changed.
        changed: u64,
        /// How many it must change.
        expected: usize,
    },
    /// The schema could not be brought up to date.
    #[error("migration: {0}")]
    Migration(#[from] refinery::Error),
}

impl From<PoolError> for DbError {
    fn from(error: PoolError) -> Self {
        Self::Unavailable(error)
    }
}

impl DbError {
    /// A failed COMMIT: one that the server answered was rolled back, any other
    /// is unclear.
    pub(super) fn commit(error: tokio_postgres::Error) -> Self {
        if error.code().is_some() {
            Self::Statement(error)
        } else {
            Self::Commit(error)
        }
    }

    /// The name of the constraint that a statement violated.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Statement(error) => error.as_db_error()?.constraint(),
            _ => None,
        }
    }

    /// Whether the transaction certainly did not happen and may well succeed when
    /// run again.
    pub(super) fn is_retryable(&self) -> bool {
        let Self::Statement(error) = self else {
            return false;
        };
        match error.code() {
            Some(code) => {
                *code == SqlState::T_R_SERIALIZATION_FAILURE
                    || *code == SqlState::T_R_DEADLOCK_DETECTED
            }
            // Not answered by the server: the connection broke before COMMIT.
            None => error.is_closed(),
        }
    }

    /// Whether a text of the request holds what Postgres cannot store.
    pub fn is_bad_text(&self) -> bool {
        let Self::Statement(error) = self else {
            return false;
        };
        error.code().is_some_and(|code| {
            [
                SqlState::CHARACTER_NOT_IN_REPERTOIRE,
                SqlState::UNTRANSLATABLE_CHARACTER,
            ]
            .contains(code)
        })
    }

    /// Whether the database, not the request, is at fault for now.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Commit(_) => true,
            Self::Statement(error) => match error.code() {
                None => error.is_closed(),
                Some(code) => [
                    SqlState::LOCK_NOT_AVAILABLE,
                    SqlState::QUERY_CANCELED,
                    SqlState::ADMIN_SHUTDOWN,
                    SqlState::CRASH_SHUTDOWN,
                    SqlState::CANNOT_CONNECT_NOW,
                    SqlState::TOO_MANY_CONNECTIONS,
                    SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                    SqlState::READ_ONLY_SQL_TRANSACTION,
                    SqlState::T_R_SERIALIZATION_FAILURE,
                    SqlState::T_R_DEADLOCK_DETECTED,
                ]
                .contains(code),
            },
            Self::NoRow(_) | Self::RowCount { .. } | Self::Migration(_) => false,
        }
    }
}
