//! The one way of a file into a bucket, whatever the bucket speaks.
//!
//! A file of up to 5 MiB is one request; a longer one is sent in parts, each held until it is taken. Nothing touches the disk. A crash
//! leaves at most an upload without an end, which no key shows: give the bucket a rule that drops those after a day.
//!
//! A key is written once. When it is there already, by an earlier try whose answer was lost or by a process before this one, its bytes
//! are compared: the same ones are what was wanted, others stay untouched.

use async_trait::async_trait;
use bytes::Bytes;
use comfyd_actors::ports::{
    ByteStream,
    object_store::{ObjectError, ObjectStore, Written},
};
use md5::{Digest, Md5};

use super::intake::{Intake, Part, hex, is_same};

/// What a bucket can do. All of it may be tried again.
#[async_trait]
pub trait Bucket: ObjectStore + Clone {
    /// What lies under a key.
    async fn stat(&self, key: &str) -> Result<Option<Stat>, ObjectError>;

    /// Stores a whole file under a key that is free. Returns what the answer says of its bytes.
    ///
    /// # Errors
    /// `Taken`, and whatever else.
    async fn put_whole(&self, key: &str, content_type: &str, part: Part) -> Result<ETag, ObjectError>;

    /// Begins an upload in parts; returns its name.
    async fn begin(&self, key: &str, content_type: &str) -> Result<String, ObjectError>;

    /// Sends a part, counted from 0.
    async fn send(&self, upload: Upload<'_>, number: usize, part: Part) -> Result<ETag, ObjectError>;

    /// Ends an upload: from then on its key shows.
    ///
    /// # Errors
    /// `Taken`; `NotFound` when there is no such upload (any more).
    async fn finish(&self, upload: Upload<'_>, parts: Vec<String>) -> Result<(), ObjectError>;

    /// Gives an upload up. Nobody is told how that went.
    async fn abandon(&self, upload: Upload<'_>);
}

/// An upload in parts.
#[derive(Debug, Clone, Copy)]
pub struct Upload<'a> {
    /// Of what.
    pub key: &'a str,
    /// Its name.
    pub id: &'a str,
}

/// What is known of a stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Its size.
    pub bytes: u64,
    /// What the bucket says of its bytes.
    pub etag: ETag,
}

/// What a bucket says of bytes: their MD5 most times, of parts the MD5 of theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ETag {
    text: String,
    sealed: bool,
}

impl ETag {
    /// From a header, if it is there.
    #[must_use]
    pub fn new(header: Option<&str>) -> Self {
        Self { text: header.unwrap_or_default().to_owned(), sealed: false }
    }

    /// Encrypted by a key of one's own, it looks like an MD5 and is none.
    #[must_use]
    pub fn sealed(self, sealed: bool) -> Self {
        Self { sealed, ..self }
    }

    fn plain(&self) -> &str {
        self.text.trim_matches('"')
    }

    /// Whether it is an MD5, and of other bytes: those were damaged on their way, and nobody must find them.
    fn contradicts(&self, md5: &str) -> bool {
        let told = self.plain();
        !self.sealed && told.len() == md5.len() && told.bytes().all(|byte| byte.is_ascii_hexdigit()) && told != md5
    }
}

/// Stores a file.
///
/// # Errors
/// As [`ObjectStore::put`].
pub async fn put(
    bucket: &impl Bucket,
    key: &str,
    content_type: &str,
    bytes: Option<u64>,
    body: ByteStream,
) -> Result<Written, ObjectError> {
    let mut intake = Intake::new(body, bytes);
    let first = intake.next().await?.unwrap_or_else(|| Part::new(Bytes::new()));
    if let Some(second) = intake.next().await? {
        return put_parts(bucket, key, content_type, [first, second], intake).await;
    }
    let (written, md5) = (intake.written(), first.md5());
    let (put, md5) = tokio::join!(bucket.put_whole(key, content_type, first), md5);
    let md5 = hex(&md5?);
    match put {
        Ok(etag) if etag.contradicts(&md5) => {
            bucket.delete(key).await?;
            Err(damaged())
        }
        Ok(_) => Ok(written),
        Err(ObjectError::Taken) => compare(bucket, key, written, &md5).await,
        Err(error) => Err(error),
    }
}

/// Sends a file in parts, each while the next one is read.
async fn put_parts<B: Bucket>(
    bucket: &B,
    key: &str,
    content_type: &str,
    [first, second]: [Part; 2],
    mut intake: Intake,
) -> Result<Written, ObjectError> {
    // What an earlier process sent whole is not sent again: its bytes are held against those we read.
    let upload = match bucket.stat(key).await? {
        Some(_) => None,
        None => Some(Begun { bucket, key, id: Some(bucket.begin(key, content_type).await?) }),
    };
    let (mut digests, mut sent) = (Md5::new(), Vec::new());
    let (mut current, mut ahead) = (Some(first), Some(second));
    while let Some(part) = current {
        let digest = part.md5();
        let sending = send(bucket, upload.as_ref().and_then(Begun::upload), sent.len(), part);
        let reading = async {
            match ahead.take() {
                Some(part) => Ok(Some(part)),
                None => intake.next().await,
            }
        };
        let (etag, digest, next) = tokio::join!(sending, digest, reading);
        let (etag, digest) = (etag?, digest?);
        if etag.contradicts(&hex(&digest)) {
            return Err(damaged());
        }
        digests.update(digest);
        sent.push(etag.text);
        current = next?;
    }
    let etag = format!("{}-{}", hex(&digests.finalize()), sent.len());
    let written = intake.written();
    let Some(mut begun) = upload else { return compare(bucket, key, written, &etag).await };
    let Some(upload) = begun.upload() else { return Err(damaged()) };
    match bucket.finish(upload, sent).await {
        Ok(()) => {
            begun.id = None;
            Ok(written)
        }
        // An earlier request of ours ended it, and its answer was lost; or somebody else wrote the key.
        Err(ObjectError::Taken | ObjectError::NotFound) => compare(bucket, key, written, &etag).await,
        Err(error) => Err(error),
    }
}

/// Sends a part, if there is an upload to send it to; returns what the bucket wants to hear of it at the end.
async fn send(
    bucket: &impl Bucket,
    upload: Option<Upload<'_>>,
    number: usize,
    part: Part,
) -> Result<ETag, ObjectError> {
    let Some(upload) = upload else { return Ok(ETag::new(None)) };
    match bucket.send(upload, number, part).await {
        // As after any other failure, it is begun anew.
        Err(ObjectError::NotFound | ObjectError::Taken) => {
            Err(ObjectError::Unavailable("the upload was given up by somebody else".to_owned()))
        }
        answer => answer,
    }
}

/// Whether what lies under the key is what was to be written. An ETag that is the one of these bytes says so; else the bytes themselves.
async fn compare(bucket: &impl Bucket, key: &str, written: Written, etag: &str) -> Result<Written, ObjectError> {
    let Some(stat) = bucket.stat(key).await? else {
        return Err(ObjectError::Unavailable("an object vanished while it was looked at".to_owned()));
    };
    let same = stat.bytes == written.bytes
        && (stat.etag.plain() == etag || is_same(bucket.open(key, None).await?.body, &written).await?);
    if same { Ok(written) } else { Err(ObjectError::Taken) }
}

/// An upload that is given up when it is dropped before its end, so that nobody pays for what nobody sees.
struct Begun<'a, B: Bucket> {
    bucket: &'a B,
    key: &'a str,
    id: Option<String>,
}

impl<B: Bucket> Begun<'_, B> {
    fn upload(&self) -> Option<Upload<'_>> {
        self.id.as_ref().map(|id| Upload { key: self.key, id })
    }
}

impl<B: Bucket> Drop for Begun<'_, B> {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let (bucket, key) = (self.bucket.clone(), self.key.to_owned());
        // Nobody waits for it; what it does not reach, the bucket's own rule tidies up.
        tokio::spawn(async move { bucket.abandon(Upload { key: &key, id: &id }).await });
    }
}

fn damaged() -> ObjectError {
    ObjectError::Unavailable("the bytes were damaged on their way".to_owned())
}
