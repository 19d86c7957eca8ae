//! The files of tasks' inputs, as whoever prepares a prompt needs them: the consumer's part of what is known of files, wherever they are.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{
    fetcher::FetchError,
    object_store::{ObjectError, Reading},
    store::StoreError,
};
use crate::domain::{
    id::TaskId,
    input::{Input, InputId},
    workflow::Kind,
};

/// Finds files, brings them from elsewhere, and reads them.
#[async_trait]
pub trait InputFiles: Send + Sync + 'static {
    /// One that a client gave.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn find(&self, id: &InputId) -> Result<Input, StoreError>;

    /// What was fetched for a task and is still there, by URL.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError>;

    /// Fetches a file of this kind (`None` = of any) for a task, which needs it until it is over. Safe to drop, and to repeat.
    ///
    /// # Errors
    /// [`FetchError`].
    async fn fetch(&self, task: TaskId, url: &str, kind: Option<Kind>) -> Result<Input, FetchError>;

    /// Reads one to its end.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn open(&self, file: &Input) -> Result<Reading, ObjectError>;
}
