//! The `Media` port: what is done to an output's bytes on their way into the storage.
//!
//! Every output is looked into while it streams by (`probe`); metadata goes the same way (`strip`). Only a conversion (`convert`)
//! and the metadata of WebP need a whole picture at once: a few are held at a time, of limited size, and their pixels are
//! counted before they are unpacked.

mod convert;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod probe;
mod strip;

use std::{
    io,
    num::NonZero,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use comfyd_actors::{
    domain::{
        artifact::{Facts, Kind, extension, media_of},
        options::{ImageFormat, OutputOptions},
    },
    ports::{
        ByteStream,
        media::{Incoming, Media, MediaError, Prepared},
    },
};
use futures_util::{StreamExt, future, stream};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::spawn_blocking,
};

pub(crate) use self::probe::{Format, Probe};
use self::{probe::MAGIC, strip::Strip};

/// Pictures held whole at a time.
const WHOLE: usize = 4;
/// Megapixels unpacked at a time: one picture of the largest size, or several that share it.
const MEGAPIXELS: u32 = 100;
/// Longest text that comes with the task itself.
const SHORT_TEXT: usize = 16 << 10;

/// Treats outputs.
pub struct Studio {
    whole: Semaphore,
    megapixels: Semaphore,
    /// The least a conversion counts for, so that no more run at once than there are processors.
    least: u32,
}

impl Default for Studio {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let least = MEGAPIXELS / u32::try_from(processors).unwrap_or(MEGAPIXELS).max(1);
        Self { whole: Semaphore::new(WHOLE), megapixels: Semaphore::new(MEGAPIXELS as usize), least: least.max(1) }
    }
}

#[async_trait]
impl Media for Studio {
    async fn prepare(&self, incoming: Incoming, options: &OutputOptions) -> Result<Prepared, MediaError> {
        let (mut incoming, head) = peek(incoming).await?;
        let format = Format::of(&head);
        let source = convert::readable(format);
        if let (Some(target), Some(_)) = (options.format.filter(|target| source != Some(*target)), source) {
            let _held = permit(&self.whole, 1).await?;
            let whole = read(incoming.body, incoming.bytes).await?;
            // A conversion would keep one picture of many.
            if probe::look(&whole).frames.unwrap_or(1) <= 1 {
                return self.converted(incoming.filename, whole, target, options).await;
            }
            incoming = Incoming::whole(incoming.filename, whole);
        }
        if options.strip_metadata && format == Format::Webp {
            let _held = permit(&self.whole, 1).await?;
            let whole = read(incoming.body, incoming.bytes).await?;
            let incoming = Incoming::whole(incoming.filename, strip::webp(&whole).into());
            return Ok(prepared(incoming, format, None, Some(true)));
        }
        let strip = if options.strip_metadata { Strip::new(format) } else { None };
        let stripped = options.strip_metadata.then_some(strip.is_some());
        Ok(prepared(incoming, format, strip, stripped))
    }
}

impl Studio {
    async fn converted(
        &self,
        filename: String,
        picture: Bytes,
        target: ImageFormat,
        options: &OutputOptions,
    ) -> Result<Prepared, MediaError> {
        let size = probe::look(&picture);
        let cost = convert::megapixels(size.width.unwrap_or(0), size.height.unwrap_or(0)).map_err(MediaError::Unfit)?;
        let _share = permit(&self.megapixels, cost.clamp(self.least, MEGAPIXELS)).await?;
        let wanted = options.clone();
        let work = spawn_blocking(move || convert::convert(&picture, target, &wanted));
        let made = work.await.map_err(|_| MediaError::Unfit("its conversion crashed".to_owned()))?;
        let made = made.map_err(MediaError::Unfit)?;
        let format = Format::of(&made);
        // What was unpacked and packed anew has nothing embedded.
        let stripped = options.strip_metadata.then_some(true);
        let prepared = prepared(Incoming::whole(filename, made), format, None, stripped);
        let extension = Some(target.extension().to_owned());
        Ok(Prepared { extension, content_type: target.media_type().to_owned(), ..prepared })
    }
}

async fn permit(of: &Semaphore, count: u32) -> Result<SemaphorePermit<'_>, MediaError> {
    // It is never closed.
    of.acquire_many(count).await.map_err(|error| MediaError::Unfit(error.to_string()))
}

/// Reads as much as is needed to know what it is, and puts it back.
async fn peek(incoming: Incoming) -> Result<(Incoming, Bytes), MediaError> {
    // It may be over already, and is asked again below.
    let mut body = incoming.body.fuse();
    let mut head = BytesMut::new();
    while head.len() < MAGIC {
        match body.next().await {
            Some(chunk) => head.extend_from_slice(&chunk.map_err(|error| MediaError::Source(error.to_string()))?),
            None => break,
        }
    }
    let head = head.freeze();
    let body = stream::once(future::ready(Ok(head.clone()))).chain(body).boxed();
    Ok((Incoming { body, ..incoming }, head))
}

async fn read(mut body: ByteStream, told: Option<u64>) -> Result<Bytes, MediaError> {
    let too_large = || {
        let limit = convert::MAX_BYTES >> 20;
        MediaError::Unfit(format!(
            "it is larger than {limit} MiB; leave `format` and `strip_metadata` out for such pictures"
        ))
    };
    if told.is_some_and(|bytes| bytes > convert::MAX_BYTES) {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.next().await {
        whole.extend_from_slice(&chunk.map_err(|error| MediaError::Source(error.to_string()))?);
        if whole.len() as u64 > convert::MAX_BYTES {
            return Err(too_large());
        }
    }
    Ok(whole.freeze())
}

fn prepared(incoming: Incoming, format: Format, strip: Option<Strip>, stripped: Option<bool>) -> Prepared {
    let Incoming { filename, bytes, body } = incoming;
    let (kind, content_type) = media_of(&filename);
    let facts = Arc::new(OnceLock::new());
    let bytes = bytes.filter(|_| strip.is_none());
    let text = (kind == Kind::Text).then(Vec::new);
    let tap = Tap { body, strip, probe: Probe::new(format), text, stripped, facts: facts.clone() };
    Prepared {
        extension: extension(&filename),
        content_type: content_type.to_owned(),
        bytes,
        body: tap.stream(),
        facts,
    }
}

/// A body being looked into.
struct Tap {
    body: ByteStream,
    strip: Option<Strip>,
    probe: Probe,
    /// What of a text is there yet; none once it is too long.
    text: Option<Vec<u8>>,
    stripped: Option<bool>,
    facts: Arc<OnceLock<Facts>>,
}

impl Tap {
    fn stream(self) -> ByteStream {
        stream::unfold(Some(self), |tap| async {
            let mut tap = tap?;
            match tap.next().await {
                // Nothing comes after a failure, and nothing is known of a file that broke off.
                Some(failed @ Err(_)) => Some((failed, None)),
                Some(item) => Some((item, Some(tap))),
                None => {
                    let last = tap.finish();
                    (!last.is_empty()).then_some((Ok(last), None))
                }
            }
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            let chunk = match self.body.next().await? {
                Ok(chunk) => chunk,
                Err(error) => return Some(Err(error)),
            };
            let left = match &mut self.strip {
                Some(strip) => strip.feed(chunk),
                None => chunk,
            };
            if !left.is_empty() {
                self.see(&left);
                return Some(Ok(left));
            }
        }
    }

    fn see(&mut self, bytes: &[u8]) {
        self.probe.feed(bytes);
        match &mut self.text {
            Some(text) if text.len() + bytes.len() <= SHORT_TEXT => text.extend_from_slice(bytes),
            text => *text = None,
        }
    }

    fn finish(mut self) -> Bytes {
        let last = self.strip.take().map(Strip::finish).unwrap_or_default();
        if !last.is_empty() {
            self.see(&last);
        }
        let text = self.text.and_then(|text| String::from_utf8(text).ok());
        // Set once: this is the only place.
        let _ = self.facts.set(Facts { text, stripped: self.stripped, ..self.probe.facts() });
        last
    }
}

#[cfg(test)]
#[path = "media/tests.rs"]
mod tests;
