//! Files that lie elsewhere, at URLs that clients gave.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::{input::Input, workflow::Kind};

/// Why a file was not fetched: words that name the host and never the URL, which may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum FetchError {
    /// It is the same each time: not there, not allowed, too large, another kind of file.
    #[error("{0}")]
    Refused(String),
    /// Its host is away, slow or not well: it may be there another time.
    #[error("{0}")]
    Failed(String),
    /// Its host has too much to do, and says how long to leave it alone.
    #[error("{why}")]
    Busy {
        /// In words.
        why: String,
        /// Not before this has passed.
        after: Duration,
    },
    /// It is our own storage, or our store, that cannot be used now.
    #[error("{0}")]
    Storage(String),
}

/// Fetches files.
#[async_trait]
pub trait Fetcher: Send + Sync + 'static {
    /// Fetches a file of this kind (`None` = of any) and stores it among the files clients gave, kept as long as those. Waits for its turn
    /// when many are on their way, ends within a set time from then on, and is safe to drop.
    ///
    /// # Errors
    /// [`FetchError`].
    async fn fetch(&self, url: &str, kind: Option<Kind>) -> Result<Input, FetchError>;
}
