//! What becomes of an output's bytes between their server and the storage.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};

use super::ByteStream;
use crate::domain::{artifact::Facts, options::OutputOptions};

/// An output's bytes as they come from their server.
pub struct Incoming {
    /// What it is called: tells what its bytes may be, and is believed in nothing.
    pub filename: String,
    /// Length, when it is known.
    pub bytes: Option<u64>,
    /// The bytes. Fail when they end early.
    pub body: ByteStream,
}

impl Incoming {
    /// Bytes that are here already.
    #[must_use]
    pub fn whole(filename: String, bytes: Bytes) -> Self {
        let length = bytes.len() as u64;
        Self { filename, bytes: Some(length), body: stream::once(future::ready(Ok(bytes))).boxed() }
    }
}

/// The bytes as they are to be stored.
pub struct Prepared {
    /// What the end of their key shall be, without the dot.
    pub extension: Option<String>,
    /// What they are now.
    pub content_type: String,
    /// Length, when it is known.
    pub bytes: Option<u64>,
    /// The bytes.
    pub body: ByteStream,
    /// What they say about themselves: there once the body has ended.
    pub facts: Arc<OnceLock<Facts>>,
}

/// Why an output cannot be made into what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    /// The bytes ended early or failed on their way to us. Worth fetching again.
    #[error("the output could not be read to its end: {0}")]
    Source(String),
    /// It is too large, or not what its name says. The same again next time.
    #[error("{0}")]
    Unfit(String),
}

/// Looks into outputs, converts them and takes their metadata out.
#[async_trait]
pub trait Media: Send + Sync + 'static {
    /// Prepares an output for the storage. What can be done chunk by chunk is done while the body is read; a conversion holds the
    /// whole picture, within limits.
    ///
    /// What cannot be converted because it is no still picture (video, audio, animations, text) passes as it is.
    ///
    /// # Errors
    /// `Source` when the bytes fail before the body is handed on, `Unfit`.
    async fn prepare(&self, incoming: Incoming, options: &OutputOptions) -> Result<Prepared, MediaError>;
}
