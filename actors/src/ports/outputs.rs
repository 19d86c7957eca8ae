//! The place for outputs, as whoever runs a task sees it: which of the targets an output goes to is decided there.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{ByteStream, object_store::ObjectError};
use crate::domain::{artifact::StoredObject, options::StorageChoice};

/// An output that is to be kept.
pub struct Output {
    /// Its key without what a target puts before it, and with its extension.
    pub name: String,
    /// Of the bytes.
    pub content_type: String,
    /// Length, when it is known.
    pub bytes: Option<u64>,
    /// The bytes.
    pub body: ByteStream,
    /// Where its task wants it.
    pub choice: Arc<StorageChoice>,
    /// For how long the target it would go to has been away: another may stand in.
    pub away: Duration,
}

/// Keeps outputs.
#[async_trait]
pub trait Outputs: Send + Sync + 'static {
    /// The name of the target that a task wants, as far as it is known here.
    fn wanted(&self, choice: &StorageChoice) -> String;

    /// Stores an output, all of it or nothing, as [`ObjectStore::put`](super::object_store::ObjectStore::put) does, and says where it is.
    ///
    /// # Errors
    /// As there. `Misconfigured` also when no such target is configured, `Refused` when none takes it.
    async fn keep(&self, output: Output) -> Result<StoredObject, ObjectError>;
}
