//! What a failed statement means: for its operation alone, or for the whole batch.

use comfyd_actors::{domain::task::Refusal, ports::store::StoreError};

use super::rows::corrupt;

/// Why an operation did not do what was asked.
#[derive(Debug)]
pub(super) enum Fault {
    /// The operation is at fault; the others in its batch are not touched by that.
    Refused(StoreError),
    /// The file is: nothing of the batch can be trusted to be written.
    Broken(StoreError),
}

/// Primary result codes of `SQLite` (the low byte of the extended one) that blame the statement's own values.
const TOO_BIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
/// Those that blame the contents of the file.
const CORRUPT: i32 = 11;
const NOT_A_DATABASE: i32 = 26;

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
        match primary_code(&error) {
            Some(CONSTRAINT | MISMATCH | TOO_BIG) => Self::Refused(corrupt(error)),
            _ => Self::Broken(store_error(&error)),
        }
    }
}

impl Fault {
    /// The same for statements of several operations.
    pub(super) fn of_batch(self) -> Self {
        Self::Broken(self.into_inner())
    }

    /// The error as the port tells it.
    pub(super) fn into_inner(self) -> StoreError {
        match self {
            Self::Refused(error) | Self::Broken(error) => error,
        }
    }
}

/// The error as the port tells it, where no batch is involved.
pub(super) fn store_error(error: &sqlx::Error) -> StoreError {
    match primary_code(error) {
        Some(CORRUPT | NOT_A_DATABASE) => corrupt(error),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}
