//! An output on its way into a bucket: cut into parts that are held whole, so that each can be sent again, and hashed on the way.

use std::{num::NonZero, sync::LazyLock};

use bytes::{Bytes, BytesMut};
use comfyd_actors::ports::{
    ByteStream,
    object_store::{ObjectError, Written},
};
use futures_util::StreamExt;
use md5::{Digest, Md5};
use sha2::Sha256;
use tokio::sync::Semaphore;

/// What is sent in one request. A file of several is read on while one is sent: two of them are held, times the uploads at the same time
/// (four, so 40 MiB). S3 wants at least 5 MiB and at most 10,000 parts, R2 the same length of all but the last.
pub const PART: usize = 5 << 20;
/// So many parts there can be.
const MOST_PARTS: u64 = 10_000;

/// Digests that may be made at the same time.
static DIGESTS: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    Semaphore::new((processors / 2).max(1))
});

/// A file being read.
pub struct Intake {
    body: ByteStream,
    /// What came with the last part and belongs into the next.
    left: Bytes,
    expected: Option<u64>,
    seen: u64,
    hash: Sha256,
    part: usize,
    over: bool,
}

/// A piece of a file.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its bytes.
    pub bytes: Bytes,
    /// Their SHA-256 in hexadecimal digits: what a signature covers, and a bucket holds against what came over.
    pub sha256: String,
}

impl Part {
    /// These bytes.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self { sha256: hex(&Sha256::digest(&bytes)), bytes }
    }

    /// Their MD5: what buckets say of what they have. It takes longer than all else we do with a part, so it is made beside the sending,
    /// and on no more than half of the processors: the others bring the parts that come next.
    ///
    /// # Errors
    /// `Unavailable` when the process ends meanwhile.
    pub fn md5(&self) -> impl Future<Output = Result<[u8; 16], ObjectError>> + use<> {
        let bytes = self.bytes.clone();
        async move {
            let ends = || ObjectError::Unavailable("the process ends".to_owned());
            let _permit = DIGESTS.acquire().await.map_err(|_| ends())?;
            tokio::task::spawn_blocking(move || Md5::digest(&bytes).into()).await.map_err(|_| ends())
        }
    }
}

impl Intake {
    /// Begins to read. `expected` is its length, if that is known.
    #[must_use]
    pub fn new(body: ByteStream, expected: Option<u64>) -> Self {
        let needed = expected.unwrap_or_default().div_ceil(MOST_PARTS);
        // In whole MiB.
        let part = usize::try_from(needed.next_multiple_of(1 << 20)).unwrap_or(usize::MAX).max(PART);
        Self { body, left: Bytes::new(), expected, seen: 0, hash: Sha256::new(), part, over: false }
    }

    /// The next part: all as long as each other but for the last. `None` after that; an empty file is one empty part.
    ///
    /// # Errors
    /// `Source`.
    pub async fn next(&mut self) -> Result<Option<Part>, ObjectError> {
        if self.over {
            return Ok(None);
        }
        let first = self.seen == 0;
        let known = self.expected.map_or(self.part, |bytes| usize::try_from(bytes - self.seen).unwrap_or(usize::MAX));
        let mut whole = BytesMut::with_capacity(known.min(self.part));
        // The first part is all that was read, so its hash is the one of the whole.
        let mut hash = (!first).then(Sha256::new);
        while whole.len() < self.part {
            let mut chunk = match std::mem::take(&mut self.left) {
                left if !left.is_empty() => left,
                _ => match self.body.next().await {
                    Some(chunk) => chunk.map_err(|error| ObjectError::Source(error.to_string()))?,
                    None => {
                        self.end()?;
                        break;
                    }
                },
            };
            if chunk.len() > self.part - whole.len() {
                self.left = chunk.split_off(self.part - whole.len());
            }
            self.seen += chunk.len() as u64;
            if self.expected.is_some_and(|expected| self.seen > expected) {
                return Err(ObjectError::Source("it is longer than was said".to_owned()));
            }
            self.hash.update(&chunk);
            if let Some(hash) = &mut hash {
                hash.update(&chunk);
            }
            whole.extend_from_slice(&chunk);
        }
        if whole.is_empty() && !first {
            return Ok(None);
        }
        let sha256 = hex(&hash.unwrap_or_else(|| self.hash.clone()).finalize());
        Ok(Some(Part { bytes: whole.freeze(), sha256 }))
    }

    fn end(&mut self) -> Result<(), ObjectError> {
        self.over = true;
        match self.expected.filter(|expected| self.seen < *expected) {
            Some(expected) => Err(ObjectError::Source(format!("it ended after {} of {expected} bytes", self.seen))),
            None => Ok(()),
        }
    }

    /// What was read.
    #[must_use]
    pub fn written(self) -> Written {
        Written { bytes: self.seen, sha256: hex(&self.hash.finalize()) }
    }
}

/// Lowercase hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a stream has exactly these bytes.
///
/// # Errors
/// `Unavailable` when it cannot be read to its end.
pub async fn is_same(mut body: ByteStream, written: &Written) -> Result<bool, ObjectError> {
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| ObjectError::Unavailable(error.to_string()))?;
        hash.update(&chunk);
        bytes += chunk.len() as u64;
    }
    Ok(bytes == written.bytes && hex(&hash.finalize()) == written.sha256)
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::stream;

    use super::*;

    fn body(chunks: &[usize]) -> ByteStream {
        let chunks: Vec<_> = chunks.iter().map(|length| io::Result::Ok(Bytes::from(vec![7; *length]))).collect();
        stream::iter(chunks).boxed()
    }

    async fn parts(chunks: &[usize], expected: Option<u64>) -> Result<Vec<usize>, ObjectError> {
        let mut intake = Intake::new(body(chunks), expected);
        let mut lengths = Vec::new();
        while let Some(part) = intake.next().await? {
            assert_eq!(part.sha256, hex(&Sha256::digest(&part.bytes)));
            assert_eq!(part.md5().await.unwrap(), <[u8; 16]>::from(Md5::digest(&part.bytes)));
            lengths.push(part.bytes.len());
        }
        let total = chunks.iter().sum::<usize>();
        assert_eq!(intake.written(), Written { bytes: total as u64, sha256: hex(&Sha256::digest(vec![7; total])) });
        Ok(lengths)
    }

    #[tokio::test]
    async fn parts_are_as_long_as_each_other() {
        assert_eq!(parts(&[], None).await.unwrap(), [0]);
        assert_eq!(parts(&[3, 0, 4], Some(7)).await.unwrap(), [7]);
        assert_eq!(parts(&[PART], Some(PART as u64)).await.unwrap(), [PART]);
        assert_eq!(parts(&[PART - 1, 3, PART], None).await.unwrap(), [PART, PART, 2]);
        assert_eq!(parts(&[2 * PART + 1], None).await.unwrap(), [PART, PART, 1]);
        // The largest object of S3 fits into its most parts.
        assert!(Intake::new(body(&[]), Some(5 << 40)).part as u64 * MOST_PARTS >= 5 << 40);
    }

    #[tokio::test]
    async fn a_body_of_another_length_is_no_file() {
        for (chunks, expected) in [(&[5][..], 4), (&[5], 6), (&[], 1)] {
            assert!(
                matches!(parts(chunks, Some(expected)).await, Err(ObjectError::Source(_))),
                "{chunks:?} {expected}"
            );
        }
    }
}
