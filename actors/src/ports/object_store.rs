//! Where outputs and inputs are kept.

use async_trait::async_trait;

use super::ByteStream;
use crate::domain::artifact::StoredObject;

/// Why storage could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Storage cannot be reached or is full. Worth trying again.
    #[error("the storage is unavailable: {0}")]
    Unavailable(String),
    /// The bytes ended early or failed on their way to us. Worth fetching again.
    #[error("the output could not be read to its end: {0}")]
    Source(String),
    /// No such object.
    #[error("no such object")]
    NotFound,
    /// Storage says no: wrong credentials, a key it does not take. Trying again does not help.
    #[error("the storage refused: {0}")]
    Refused(String),
}

/// A part of an object, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub first: u64,
    /// Last byte.
    pub last: u64,
}

/// An object being read.
pub struct Reading {
    /// Size of the whole object.
    pub bytes: u64,
    /// The bytes asked for.
    pub body: ByteStream,
}

/// Object storage. Keys are ours (`domain::artifact::object_stem`): ASCII letters, digits, `. _ - /`.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Stores `body` under `key` (what the bytes say about themselves is not its business: `facts` are empty), all of it or nothing, durably, hashing it on the way. Storing the same again is harmless.
    /// When `bytes` is known, a body of any other length is an error.
    ///
    /// # Errors
    /// `Source` when `body` fails or has the wrong length, `Unavailable`, `Refused`. Nothing is visible under the key then.
    async fn put(
        &self,
        key: &str,
        content_type: &str,
        bytes: Option<u64>,
        body: ByteStream,
    ) -> Result<StoredObject, ObjectError>;

    /// Size of an object.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn size(&self, key: &str) -> Result<u64, ObjectError>;

    /// Reads an object or a part of it. `range` lies within the object.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn open(&self, key: &str, range: Option<ByteRange>) -> Result<Reading, ObjectError>;

    /// Deletes an object. One that is not there is as good as deleted.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    async fn delete(&self, key: &str) -> Result<(), ObjectError>;

    /// Whether a put would be taken now.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    async fn check(&self) -> Result<(), ObjectError>;
}
