//! Where outputs and inputs are kept.

use std::{collections::BTreeMap, future::ready, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ByteStream;
use crate::domain::storage::below;

/// Why storage could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ObjectError {
    /// Storage cannot be reached, is overloaded or full. Worth trying again.
    #[error("the storage is unavailable: {0}")]
    Unavailable(String),
    /// The place itself is not as the configuration says: no such bucket, credentials that are wrong or have run out. Nothing can be
    /// stored until somebody mends it, and then everything can: worth waiting for, and no reason to start like that. Says what to do.
    #[error("the storage is not set up: {0}")]
    Misconfigured(String),
    /// Other bytes lie under the key. Nothing was changed; another key is needed.
    #[error("other bytes lie under the key")]
    Taken,
    /// The bytes ended early or failed on their way to us. Worth fetching again.
    #[error("the output could not be read to its end: {0}")]
    Source(String),
    /// No such object.
    #[error("no such object")]
    NotFound,
    /// Storage does not take this object: a key, a type or a size it does not hold. Trying again does not help. Says what does.
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

/// What a put stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Size.
    pub bytes: u64,
    /// SHA-256 of the bytes, lowercase hex.
    pub sha256: String,
}

/// Where anybody who has it can get an object without us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// The object itself, or what is usually shown of it.
    pub url: String,
    /// Other shapes of it, by name.
    pub variants: BTreeMap<String, String>,
}

/// Object storage. Keys are ours (`domain::artifact::object_stem`): ASCII letters, digits, `. _ - /`.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Whether it holds objects like this one at all, as far as can be told before the first byte.
    ///
    /// # Errors
    /// Why not, in words.
    fn takes(&self, content_type: &str, bytes: Option<u64>) -> Result<(), String> {
        let _ = (content_type, bytes);
        Ok(())
    }

    /// Whether it holds pictures only.
    fn only_pictures(&self) -> bool {
        false
    }

    /// Stores `body` under `key`, all of it or nothing, durably, hashing it on the way. Storing the same again is harmless. When `bytes`
    /// is known, a body of any other length is an error.
    ///
    /// # Errors
    /// `Source` when `body` fails or has the wrong length, `Taken`, `Unavailable`, `Misconfigured`, `Refused`. Nothing is visible under
    /// the key then that was not before.
    async fn put(
        &self,
        key: &str,
        content_type: &str,
        bytes: Option<u64>,
        body: ByteStream,
    ) -> Result<Written, ObjectError>;

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

    /// Keys that begin with `prefix`, in no order, at most `limit` of them. It is a whole key, or one that was cut off behind the first
    /// underscore of its last part: a target that cannot look for prefixes finds objects by what that part begins with.
    ///
    /// # Errors
    /// `Unavailable`, `Misconfigured`, `Refused`.
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<String>, ObjectError>;

    /// Where clients get an object without us, made anew for who asks: it may end after a while. `None` = from us only.
    ///
    /// # Errors
    /// `Misconfigured`.
    async fn link(&self, key: &str) -> Result<Option<Link>, ObjectError> {
        let _ = key;
        Ok(None)
    }

    /// How often it may be checked. Those who count requests, and charge for them or limit them, say less often.
    fn check_every(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Whether it is there, as cheaply as can be told: asked again and again while a probe looks.
    ///
    /// # Errors
    /// `Unavailable`, `Misconfigured`.
    async fn check(&self) -> Result<(), ObjectError>;
}

/// Stores a picture of one pixel below a prefix, to see whether that works; returns its key.
///
/// # Errors
/// As [`ObjectStore::put`].
pub async fn put_picture(store: &dyn ObjectStore, prefix: &str) -> Result<String, ObjectError> {
    let key = below(&[prefix], &format!("comfyd-check/{}.png", Uuid::new_v4().simple()));
    let body = stream::once(ready(Ok(Bytes::from_static(PIXEL)))).boxed();
    store.put(&key, "image/png", Some(PIXEL.len() as u64), body).await?;
    Ok(key)
}

/// Stores a picture of one pixel below a prefix, looks for it and deletes it: proof that everything a target is for works, for the start of
/// the process. Who may not list or delete leaves things behind, which is no reason not to start: the second value says so.
///
/// # Errors
/// As the three say.
pub async fn round_trip(store: &dyn ObjectStore, prefix: &str) -> Result<Option<ObjectError>, ObjectError> {
    let key = put_picture(store, prefix).await?;
    let size = store.size(&key).await?;
    if size == 0 {
        return Err(ObjectError::Misconfigured("what was just stored there cannot be read back".to_owned()));
    }
    let listed = store.list(&key, 1).await.err();
    Ok(store.delete(&key).await.err().or(listed))
}

/// A PNG of one grey pixel, whole: some targets look into what they are given.
const PIXEL: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0\x3a\x7e\x9b\x55\0\0\0\x0aIDAT\x78\xda\x63\x68\0\0\0\x82\0\x81\xda\x45\x08\x3b\0\0\0\0IEND\xae\x42\x60\x82";
