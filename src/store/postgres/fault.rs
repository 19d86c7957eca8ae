//! What a failed statement means: for its operation, for the whole batch, for the connection.

use std::{borrow::Cow, io, time::Duration};

use comfyd_actors::{domain::task::Refusal, ports::store::StoreError};

use tokio::time::timeout;

use crate::store::columns::corrupt;

/// Why an operation did not do what was asked.
#[derive(Debug)]
pub(super) enum Fault {
    /// The operation is at fault; nothing was sent of it.
    Refused(StoreError),
    /// It sent something that is no good, and the transaction with it.
    Spoiled(StoreError),
    /// Somebody was in the way, or the connection broke: nothing is done, and the same again may work.
    Again(StoreError),
    /// The database cannot do it now.
    Broken(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        let told = store_error(&error);
        match code(&error).as_deref() {
            // Lost to a deadlock or to a concurrent change.
            Some("40001" | "40P01") => Self::Again(told),
            // The server is being stopped, or somebody ended this connection.
            Some(code) if code.starts_with("57P0") || code.starts_with("08") => Self::Again(told),
            // Blames the values: data exceptions, constraints, limits of a row or an index.
            Some(code) if ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => {
                Self::Spoiled(corrupt(error))
            }
            Some(_) => Self::Broken(told),
            None if is_lost(&error) => Self::Again(told),
            None => Self::Spoiled(told),
        }
    }
}

impl Fault {
    /// The error as the port tells it.
    pub(super) fn into_inner(self) -> StoreError {
        match self {
            Self::Refused(error) | Self::Spoiled(error) | Self::Again(error) | Self::Broken(error) => error,
        }
    }
}

/// Waits so long for an answer. A line can go silent without an end: its host is lost in a fail-over, or a firewall forgets it. Whoever gave up
/// must drop the connection: an answer may still come.
pub(super) async fn answered<T>(
    within: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let silent = |_| Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database does not answer")));
    timeout(within, answer).await.unwrap_or_else(silent)
}

/// The error as the port tells it, where no batch is involved. Never with the address in it: that has a password.
pub(super) fn store_error(error: &sqlx::Error) -> StoreError {
    match code(error).as_deref() {
        // Damaged files.
        Some("XX001" | "XX002") => corrupt(error),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

/// Whether it cannot be known what the server made of the last thing it was sent.
pub(super) fn is_doubtful(error: &sqlx::Error) -> bool {
    match code(error) {
        Some(code) => code.starts_with("57P0") || code.starts_with("08"),
        None => true,
    }
}

fn is_lost(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
    )
}

/// The SQLSTATE, when it is the server that complains.
pub(super) fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error()?.code()
}
