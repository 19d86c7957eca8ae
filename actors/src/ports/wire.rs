//! What processes that share a store tell each other about themselves: short-lived notices.
//!
//! A hint, never the truth: a notice may come late or not at all, and is gone after its time. Whatever must not be lost is a row of the
//! [store](super::store). Nothing is ever decided from a notice that a wrong or missing one could break.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast;

use super::store::StoreError;

/// Longest body of a notice, in bytes: the catalogue of a server with thousands of node classes has a few million.
pub const LONGEST: usize = 16 << 20;

/// What a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A consumer and its servers.
    Consumer,
    /// What a server has, under the hash of it.
    Catalogue,
    /// Tasks that clients of a process watch.
    Watched,
    /// How far a watched task is.
    Glimpse,
    /// Something was paused or goes on: read it again.
    Pause,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Consumer, Self::Catalogue, Self::Watched, Self::Glimpse, Self::Pause];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Catalogue => "catalogue",
            Self::Watched => "watched",
            Self::Glimpse => "glimpse",
            Self::Pause => "pause",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What it is about.
    pub kind: Kind,
    /// Tells it from others of its kind: who posts it, or whom it is about.
    pub name: String,
    /// What it says, at most [`LONGEST`] bytes.
    pub body: Bytes,
}

/// Where notices are left.
#[async_trait]
pub trait Wire: Send + Sync + 'static {
    /// Leaves a notice there for so long by the store's clock, in the place of an older one of its name.
    ///
    /// # Errors
    /// `Unavailable`: nobody may have it.
    async fn post(&self, notice: Notice, keep: Duration) -> Result<(), StoreError>;

    /// Takes a notice back, if it is there.
    ///
    /// # Errors
    /// `Unavailable`: it may still be there, until its time is over.
    async fn withdraw(&self, kind: Kind, name: &str) -> Result<(), StoreError>;

    /// The notices of a kind whose time is not over, by name.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn notices(&self, kind: Kind) -> Result<Vec<Notice>, StoreError>;

    /// The notice of this name, if its time is not over.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn notice(&self, kind: Kind, name: &str) -> Result<Option<Notice>, StoreError>;

    /// Notices posted from now on, by this process and, as far as the store hears of them, by others. Some may be missing, so whoever
    /// needs them looks at [`Self::notices`] now and then. A glimpse that is too long for the way it comes is heard without its body:
    /// most processes do not care, and who does asks for it ([`Self::notice`]).
    fn heard(&self) -> broadcast::Receiver<Arc<Notice>>;

    /// Whether what other processes post is heard here as a rule. Else it is found by looking alone.
    fn hears_others(&self) -> bool;
}
