//! Where versions of named workflows are kept, shared by all processes on one store.
//!
//! A version is a content under a name, with a number that is never given twice: a task that says it was made from `poster@3` means the
//! same for ever, wherever that content came from (a file, the API). What a bare name means is decided by whoever asks; the store only
//! knows what was [published](WorkflowStore::publish) under it.
//!
//! Contents are opaque text. Two texts are the same content when they are equal, so callers bring them into one spelling first.

use std::sync::Arc;

use async_trait::async_trait;

use super::store::StoreError;
use crate::domain::time::Timestamp;

/// Versions of one name that are kept, the newest ones; what is published is kept whatever its age.
pub const VERSIONS_KEPT: u32 = 100;
/// Names the API may make: bounds what clients can fill the store with. Withdrawn ones count, because their numbers are remembered.
pub const MAX_NAMES: u64 = 10_000;

/// What is published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Grows with every publication and withdrawal: of two answers the one with the greater number is the newer.
    pub revision: u64,
    /// Name and version, in the order of the names.
    pub workflows: Vec<(String, u32)>,
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication {
    /// The name means this new version now.
    New(u32),
    /// The name meant this very content already.
    Same(u32),
    /// There are [`MAX_NAMES`] names; nothing was written.
    TooMany,
}

/// A version that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its number.
    pub version: u32,
    /// When it was first seen.
    pub created_at: Timestamp,
}

/// The versions of named workflows.
#[async_trait]
pub trait WorkflowStore: Send + Sync + 'static {
    /// The number of this content under this name: the newest one it has, or else the next. Durable when it returns.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn record(&self, name: &str, text: &str) -> Result<u32, StoreError>;

    /// Makes the name mean this content, under the next number. Repeating it changes nothing. Durable when it returns.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn publish(&self, name: &str, text: &str) -> Result<Publication, StoreError>;

    /// Takes back what was published under a name; its versions stay. False when there was nothing. Durable when it returns.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn withdraw(&self, name: &str) -> Result<bool, StoreError>;

    /// Everything that is published now.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn published(&self) -> Result<Published, StoreError>;

    /// The content of a version, while it is kept.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn version(&self, name: &str, version: u32) -> Result<Option<Arc<str>>, StoreError>;

    /// The versions of a name that are kept, newest first.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn versions(&self, name: &str) -> Result<Vec<Kept>, StoreError>;
}
