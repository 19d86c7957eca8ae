//! Taking files in: from a stream of bytes to a stored input.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use comfyd_actors::{
    domain::{
        artifact::{extension, media_of},
        input::{About, Input, InputId, plain_name},
        workflow::Kind,
    },
    ports::{
        ByteStream,
        input_store::InputStore,
        object_store::{ObjectError, ObjectStore},
        store::StoreError,
    },
};
use futures_util::{StreamExt, stream};
use uuid::Uuid;

/// An object that is not whole after this long never will be. No sender is that slow: each of its silences is limited.
const PATIENCE: Duration = Duration::from_secs(24 * 3_600);
/// More than any file needs to say what it is.
const HEAD: usize = 4_096;
/// What a file is of which nothing is known.
const UNKNOWN: &str = "application/octet-stream";

/// Why a file was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// It has no bytes.
    #[error("the file is empty")]
    Empty,
    /// Its bytes stopped coming.
    #[error("the file could not be read: {0}")]
    Body(String),
    /// The storage does not take it now.
    #[error("the storage cannot be used now: {0}")]
    Storage(ObjectError),
    /// The store does not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where files are kept, and for how long at least.
#[derive(Clone, Copy)]
pub struct Shelves<'a> {
    /// What is known of them.
    pub inputs: &'a dyn InputStore,
    /// Their bytes.
    pub objects: &'a dyn ObjectStore,
    /// From their last use on.
    pub keep: Duration,
}

/// Stores a file. The same bytes are stored once. Whatever ends this early leaves nothing that is not
/// tidied up.
///
/// # Errors
/// [`IntakeError`].
pub async fn take_in(shelves: Shelves<'_>, name: &str, body: ByteStream) -> Result<Input, IntakeError> {
    let Shelves { inputs, objects, keep } = shelves;
    let (head, body) = peek(body).await.map_err(|error| IntakeError::Body(error.to_string()))?;
    if head.is_empty() {
        return Err(IntakeError::Empty);
    }
    let name = plain_name(name);
    let (content_type, extension) = sniff(&head, &name);
    let key = fresh_key();
    inputs.reserve(&key, PATIENCE).await?;
    let stored = objects.put(&key, &content_type, None, body).await.map_err(|error| match error {
        ObjectError::Source(why) => IntakeError::Body(why),
        other => IntakeError::Storage(other),
    })?;
    let id =
        InputId::parse(&stored.sha256).ok_or_else(|| StoreError::Corrupt("the storage's hash is not one".into()))?;
    let about = About { name, content_type, extension, bytes: stored.bytes };
    Ok(inputs.keep(&key, &id, &about, keep).await?)
}

/// Never the same twice, spread over as many folders as there are pairs of hexadecimal digits.
fn fresh_key() -> String {
    let name = Uuid::new_v4().simple().to_string();
    format!("inputs/{}/{name}", &name[..2])
}

/// The first bytes, and all of them.
///
/// # Errors
/// The bytes stopped coming.
pub async fn peek(body: ByteStream) -> io::Result<(Bytes, ByteStream)> {
    // A short one ends here and is read on there.
    let mut body = body.fuse();
    let mut head = BytesMut::new();
    while head.len() < HEAD {
        match body.next().await {
            Some(chunk) => head.extend_from_slice(&chunk?),
            None => break,
        }
    }
    let head = head.freeze();
    let whole = stream::once(std::future::ready(Ok(head.clone()))).chain(body).boxed();
    Ok((head, whole))
}

/// What a file is: by its first bytes, whatever anybody says of it; else, for those that have no such mark, by its name.
#[must_use]
pub fn sniff(head: &[u8], name: &str) -> (String, Option<String>) {
    if let Some(kind) = infer::get(head) {
        return (kind.mime_type().to_owned(), Some(kind.extension().to_owned()));
    }
    (media_of(name).1.to_owned(), extension(name))
}

/// What a file is by its first bytes and nothing else.
#[must_use]
pub fn recognise(head: &[u8]) -> Option<&'static str> {
    infer::get(head).map(|kind| kind.mime_type())
}

/// What is wrong with a file of this type for an input of that kind. Of what is not recognised nothing is said: the nodes know better.
///
/// # Errors
/// What was expected, and what was found.
pub fn suits(kind: Kind, content_type: &str) -> Result<(), String> {
    let is = |families: &[&str]| families.iter().any(|family| content_type.starts_with(family));
    let (wanted, suits) = match kind {
        Kind::Image | Kind::Mask => ("an image", is(&["image/"])),
        // Sound is taken from videos too, and moving pictures are videos to some.
        Kind::Audio => ("a sound file", is(&["audio/", "video/"])),
        Kind::Video => ("a video", is(&["video/", "image/gif", "image/webp", "image/apng", "image/png"])),
        _ => return Ok(()),
    };
    if suits || content_type == UNKNOWN {
        Ok(())
    } else {
        Err(format!("expected {wanted}; the file is {content_type}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_its_bytes_say() {
        for (head, name, content_type, extension) in [
            (b"\x89PNG\r\n\x1a\n".as_slice(), "a.mp3", "image/png", Some("png")),
            (b"\xff\xd8\xff\xe0", "", "image/jpeg", Some("jpg")),
            (b"RIFF\x24\x00\x00\x00WAVEfmt ", "x", "audio/x-wav", Some("wav")),
            (b"hello", "a.TXT", "text/plain; charset=utf-8", Some("txt")),
            (b"hello", "a.weird", UNKNOWN, Some("weird")),
            (b"hello", "no-name", UNKNOWN, None),
        ] {
            assert_eq!(sniff(head, name), (content_type.to_owned(), extension.map(str::to_owned)), "{name}");
        }
    }

    #[test]
    fn what_is_recognised_must_suit() {
        assert!(suits(Kind::Image, "image/png").is_ok() && suits(Kind::Mask, UNKNOWN).is_ok());
        assert!(suits(Kind::Audio, "video/mp4").is_ok() && suits(Kind::File, "image/png").is_ok());
        assert_eq!(suits(Kind::Image, "audio/flac").unwrap_err(), "expected an image; the file is audio/flac");
        assert!(suits(Kind::Video, "audio/flac").is_err());
    }
}
