//! What is known about the files clients give. Their bytes are in the [object store](super::object_store).
//!
//! An object has a row before its first byte and loses it after its last, so that whatever crashes in between, nothing lies in storage
//! that nobody knows of. A key is never used twice, so deleting what is given up cannot hit the same file given again meanwhile.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;

use super::store::StoreError;
use crate::domain::{
    id::TaskId,
    input::{About, Input, InputId},
};

/// The files clients gave.
#[async_trait]
pub trait InputStore: Send + Sync + 'static {
    /// An object is about to be written under `key`, a fresh one. Given up unless it is kept within `patience`.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn reserve(&self, key: &str, patience: Duration) -> Result<(), StoreError>;

    /// The object under a reserved key is whole: it is an input from now on, kept at least for `keep`. When the same bytes are there already,
    /// those are kept for so long instead, and the new object is given up. Durable against a power cut. Harmless to repeat.
    ///
    /// # Errors
    /// `NotFound`: the reservation was given up meanwhile. `Unavailable`.
    async fn keep(&self, key: &str, id: &InputId, about: &About, keep: Duration) -> Result<Input, StoreError>;

    /// Those of `ids` that are there, in order, kept at least for `keep` from now on.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn refresh(&self, ids: &[InputId], keep: Duration) -> Result<Vec<Input>, StoreError>;

    /// One.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn find(&self, id: &InputId) -> Result<Input, StoreError>;

    /// A file was fetched for a task from this URL. The task needs it until it is over, and finds it again with [`Self::fetched`]. Harmless to
    /// repeat; a later one for the same URL counts.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn note_fetched(&self, task: TaskId, url: &str, id: &InputId) -> Result<(), StoreError>;

    /// What was fetched for a task and is still there, by URL.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError>;

    /// Gives up those past their time that no unfinished task needs: nobody finds them any more. Returns the keys of objects to be deleted,
    /// at most `limit`, those longest past their time first; the same ones again until they are [forgotten](Self::forget).
    ///
    /// # Errors
    /// `Unavailable`.
    async fn give_up(&self, limit: u32) -> Result<Vec<String>, StoreError>;

    /// The objects under these keys are deleted.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn forget(&self, keys: &[String]) -> Result<(), StoreError>;
}
