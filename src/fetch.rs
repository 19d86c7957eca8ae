//! The `Fetcher` port: files that lie at URLs which clients gave.
//!
//! A file is what its bytes say, whatever its host says of it. Bytes, pixels and time are limited while it streams by: nothing is held,
//! and what is too much is not stored.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use comfyd_actors::{
    domain::{input::Input, time::Timestamp, workflow::Kind},
    metrics::Metrics,
    ports::{
        ByteStream,
        clock::Clock,
        fetcher::{FetchError, Fetcher},
        input_store::InputStore,
        object_store::ObjectStore,
    },
};
use futures_util::{StreamExt, TryStreamExt};
use reqwest::{Response, StatusCode};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tracing::debug;

use crate::{
    config,
    describe::describe,
    inputs::{IntakeError, Shelves, peek, recognise, suits, take_in},
    media::{Format, Probe},
    outbound::{DialError, Outbound, Target, retry_after},
};

/// Redirects that are followed. Most files have none, those behind short links and storage front ends one or two.
const REDIRECTS: usize = 3;
/// A host is left alone for as long as it asks, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);

/// Fetches files through the one way out.
pub struct UrlFetcher {
    outbound: Outbound,
    inputs: Arc<dyn InputStore>,
    objects: Arc<dyn ObjectStore>,
    settings: config::Inputs,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    places: Semaphore,
}

impl UrlFetcher {
    /// Puts what it fetches where the files of clients are.
    #[must_use]
    pub fn new(
        outbound: Outbound,
        inputs: Arc<dyn InputStore>,
        objects: Arc<dyn ObjectStore>,
        settings: config::Inputs,
        metrics: Metrics,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { outbound, inputs, objects, settings, metrics, clock, places: Semaphore::new(settings.fetch_parallel) }
    }

    async fn take(&self, target: &Target, kind: Option<Kind>) -> Result<Input, FetchError> {
        let host = target.host();
        let answer = self.outbound.get(target, REDIRECTS, self.settings.fetch_timeout).await;
        let answer = answer.map_err(|error| match error {
            DialError::Refused(why) => FetchError::Refused(why.to_string()),
            DialError::TooManyRedirects(_) => FetchError::Refused(format!("{host}: {error}")),
            DialError::Failed(why) => FetchError::Failed(format!("{host} cannot be asked: {why}")),
        })?;
        judge(host, &answer, self.clock.now())?;
        let limits =
            Limits { host: host.to_owned(), bytes: self.settings.max_size, pixels: self.settings.fetch_max_pixels };
        limits.length(answer.content_length().unwrap_or_default())?;
        let name = answer.url().path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default().to_owned();
        let broken = |why: &dyn std::fmt::Display| FetchError::Failed(format!("{host} broke off: {why}"));
        let body = answer.bytes_stream().map_err(|error| io::Error::other(describe(error))).boxed();
        let (head, body) = peek(body).await.map_err(|error| broken(&error))?;
        fits(host, kind, &head)?;
        let (body, excess) = limits.watch(&head, body);
        let shelves = Shelves { inputs: &*self.inputs, objects: &*self.objects, keep: self.settings.keep };
        let taken = take_in(shelves, &name, body).await.map_err(|error| match (excess.get(), error) {
            (Some(excess), _) => excess.clone(),
            (None, IntakeError::Empty) => FetchError::Refused(format!("what {host} sent is empty")),
            (None, IntakeError::Body(why)) => broken(&why),
            (None, error) => FetchError::Storage(error.to_string()),
        })?;
        debug!(host, bytes = taken.about.bytes, "fetched a file");
        Ok(taken)
    }
}

#[async_trait]
impl Fetcher for UrlFetcher {
    async fn fetch(&self, url: &str, kind: Option<Kind>) -> Result<Input, FetchError> {
        // It was read when the task was created, by the settings of then.
        let target = self.outbound.read(url).map_err(|why| FetchError::Refused(why.to_string()))?;
        // Never closed.
        let _place = self.places.acquire().await.map_err(|closed| FetchError::Failed(closed.to_string()))?;
        let limit = self.settings.fetch_timeout;
        let late = |_| {
            let limit = humantime::format_duration(limit);
            Err(FetchError::Failed(format!("{} did not send it within {limit} (inputs.fetch_timeout)", target.host())))
        };
        let began = Instant::now();
        let taken = timeout(limit, self.take(&target, kind)).await.unwrap_or_else(late);
        self.metrics.fetched(in_a_word(&taken), began.elapsed());
        taken
    }
}

fn in_a_word(result: &Result<Input, FetchError>) -> &'static str {
    match result {
        Ok(_) => "stored",
        Err(FetchError::Refused(_)) => "refused",
        Err(FetchError::Failed(_)) => "failed",
        Err(FetchError::Busy { .. }) => "busy",
        Err(FetchError::Storage(_)) => "storage",
    }
}

/// What an answer that is not 200 says about the next one.
fn judge(host: &str, answer: &Response, now: Timestamp) -> Result<(), FetchError> {
    let status = answer.status();
    let told = format!("{host} answered {status}");
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
        && let Some(after) = retry_after(answer.headers(), now)
    {
        let after = after.min(LONGEST_PAUSE);
        let pause = humantime::format_duration(Duration::from_secs(after.as_secs()));
        return Err(FetchError::Busy { why: format!("{told} and asks to be left alone for {pause}"), after });
    }
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Err(FetchError::Failed(told))
        }
        status if status.is_server_error() => Err(FetchError::Failed(told)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(FetchError::Refused(format!(
            "{told}: it wants a login, or the link has expired. The operator can have one sent to this host (outbound.headers)"
        ))),
        _ => Err(FetchError::Refused(told)),
    }
}

/// Whether the first bytes are those of such a file. A page that says "not found" comes with 200, too.
fn fits(host: &str, kind: Option<Kind>, head: &[u8]) -> Result<(), FetchError> {
    let Some(kind) = kind.filter(|kind| *kind != Kind::File) else { return Ok(()) };
    let known = recognise(head).ok_or_else(|| "nothing that is known by its first bytes".to_owned());
    known
        .and_then(|content_type| suits(kind, content_type))
        .map_err(|why| FetchError::Refused(format!("{host} sent something else: {why}")))
}

/// What is too much.
struct Limits {
    host: String,
    bytes: u64,
    pixels: u64,
}

impl Limits {
    fn length(&self, bytes: u64) -> Result<(), FetchError> {
        if bytes <= self.bytes {
            return Ok(());
        }
        Err(FetchError::Refused(format!(
            "what {} sends is larger than {} bytes (inputs.max_size)",
            self.host, self.bytes
        )))
    }

    fn size(&self, probe: &Probe) -> Result<(), FetchError> {
        let facts = probe.facts();
        let (width, height) = (facts.width.unwrap_or_default(), facts.height.unwrap_or_default());
        if u64::from(width) * u64::from(height) <= self.pixels {
            return Ok(());
        }
        Err(FetchError::Refused(format!(
            "what {} sends has {width} x {height} pixels, and {} are taken (inputs.fetch_max_pixels)",
            self.host, self.pixels
        )))
    }

    /// The same bytes, up to the first that is too much; then the cell says what is.
    fn watch(self, head: &[u8], body: ByteStream) -> (ByteStream, Arc<OnceLock<FetchError>>) {
        let excess = Arc::new(OnceLock::new());
        let (mut seen, mut probe, found) = (0, Probe::new(Format::of(head)), Arc::clone(&excess));
        let mut look = move |chunk: &Bytes| {
            seen += chunk.len() as u64;
            probe.feed(chunk);
            self.length(seen).and_then(|()| self.size(&probe))
        };
        let watched = body.map(move |chunk| {
            let chunk = chunk?;
            look(&chunk).map_err(|excess| {
                let words = excess.to_string();
                let _ = found.set(excess);
                io::Error::other(words)
            })?;
            Ok(chunk)
        });
        (watched.boxed(), excess)
    }
}
