//! Hands the files a graph needs to a server, several at a time and straight from the storage, and writes the server's names into the
//! graph. Those that lie elsewhere are fetched before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::flight::{Prepared, Trouble, Unprepared};
use crate::{
    domain::{
        id::TaskId,
        input::{self, Input, InputId, Place, Source},
        options::{TaskOptions, UrlInput},
    },
    ports::{
        comfy::{ComfyTransport, Upload, UploadError},
        fetcher::FetchError,
        object_store::ObjectError,
        store::StoreError,
    },
    system::System,
};

/// Files of one task on their way at the same time: enough to hide the waits of a far server, few enough to leave it to others.
const AT_ONCE: usize = 4;

/// What is to be done.
pub(super) struct Preparation<R> {
    pub(super) system: System,
    pub(super) comfy: Arc<dyn ComfyTransport>,
    pub(super) task: TaskId,
    /// The graph as the task has it.
    pub(super) graph: Arc<str>,
    pub(super) options: Arc<TaskOptions>,
    /// Names of files the server has already.
    pub(super) known: BTreeMap<InputId, String>,
    /// Told how many bytes are sent, of how many.
    pub(super) report: R,
}

impl<R: Fn(u64, u64) + Send + Sync + 'static> Preparation<R> {
    /// Does it. Safe to drop at any moment, and to do again.
    pub(super) async fn run(self) -> Result<Prepared, Unprepared> {
        // What is no JSON is the server's to refuse.
        let mut graph: Value = serde_json::from_str(&self.graph).unwrap_or_default();
        let places = input::places(&graph);
        let fetched = self.fetch(&places).await?;
        let mut files = BTreeMap::new();
        let mut reusing = BTreeSet::new();
        for place in &places {
            let Some(id) = content(&place.source, &fetched) else { continue };
            if self.known.contains_key(id) {
                reusing.insert(place.node.clone());
            } else if !files.contains_key(id) {
                let file = match &place.source {
                    Source::Url(url) => fetched.get(url).cloned().ok_or(StoreError::NotFound),
                    Source::Stored(id) => self.system.files.find(id).await,
                };
                let file = file.map_err(|error| trouble(place, unknown(error)))?;
                files.insert(id.clone(), (file, place.clone()));
            }
        }
        let total = files.values().map(|(file, _)| file.about.bytes).sum();
        (self.report)(0, total);
        let (report, sent) = (Arc::new(self.report), Arc::new(AtomicU64::new(0)));
        let progress = Arc::new(move |bytes: u64| report(sent.fetch_add(bytes, Ordering::Relaxed) + bytes, total));
        let (system, comfy) = (self.system, self.comfy);
        let uploads = files.into_values().map(move |(file, place)| {
            let (system, comfy, progress) = (system.clone(), comfy.clone(), Arc::clone(&progress));
            async move {
                let name = hand_over(&system, comfy.as_ref(), &file, move |bytes| progress(bytes)).await;
                name.map(|name| (file.id, name)).map_err(|error| trouble(&place, error))
            }
            .boxed()
        });
        let names: BTreeMap<_, _> = stream::iter(uploads).buffer_unordered(AT_ONCE).try_collect().await?;
        let mut all = self.known;
        all.extend(names.clone());
        input::put_names(&mut graph, |source| all.get(content(source, &fetched)?).map(String::as_str));
        Ok(Prepared { graph: graph.to_string().into(), names, reusing })
    }

    /// What lies at the URLs of the graph, by URL. What an earlier attempt fetched is not fetched again.
    async fn fetch(&self, places: &[Place]) -> Result<BTreeMap<String, Input>, Unprepared> {
        let mut missing = BTreeMap::new();
        for place in places {
            if let Source::Url(url) = &place.source {
                missing.entry(url.clone()).or_insert_with(|| place.clone());
            }
        }
        let Some(first) = missing.values().next() else { return Ok(BTreeMap::new()) };
        let there = self.system.files.fetched(self.task).await.map_err(|error| trouble(first, unknown(error)))?;
        missing.retain(|url, _| !there.contains_key(url));
        let fetches = missing.into_iter().map(|(url, place)| {
            let (system, task, wanted) = (self.system.clone(), self.task, self.options.urls.get(&url).cloned());
            async move {
                let fetched = fetch_one(&system, task, &url, wanted, &place).await;
                fetched.map(|file| (url, file)).map_err(|error| trouble(&place, error))
            }
            .boxed()
        });
        let fetches: Vec<_> = fetches.collect();
        let fetched: Vec<_> = stream::iter(fetches).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(there.into_iter().chain(fetched).collect())
    }
}

/// The name of a file's content, known once it is fetched.
fn content<'a>(source: &'a Source, fetched: &'a BTreeMap<String, Input>) -> Option<&'a InputId> {
    match source {
        Source::Stored(id) => Some(id),
        Source::Url(url) => fetched.get(url).map(|file| &file.id),
    }
}

async fn fetch_one(
    system: &System,
    task: TaskId,
    url: &str,
    wanted: Option<UrlInput>,
    place: &Place,
) -> Result<Input, Trouble> {
    let (name, kind) = match wanted {
        Some(UrlInput { name, kind }) => (name, kind),
        None => (format!("{}.{}", place.node, place.field), None),
    };
    system.files.fetch(task, url, kind).await.map_err(|error| not_fetched(&name, error))
}

async fn hand_over(
    system: &System,
    comfy: &dyn ComfyTransport,
    file: &Input,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<String, Trouble> {
    let reading = system.files.open(file).await.map_err(|error| match error {
        ObjectError::NotFound => Trouble::Missing,
        other => Trouble::Storage(other.to_string()),
    })?;
    let body = reading.body.inspect_ok(move |chunk| progress(chunk.len() as u64)).boxed();
    let upload =
        Upload { name: file.server_name(), content_type: file.about.content_type.clone(), bytes: reading.bytes, body };
    comfy.upload(upload).await.map_err(|error| match error {
        UploadError::Refused(why) => Trouble::Refused(why),
        UploadError::Unavailable(why) => Trouble::Server(why),
    })
}

fn unknown(error: StoreError) -> Trouble {
    match error {
        StoreError::NotFound => Trouble::Missing,
        other => Trouble::Storage(other.to_string()),
    }
}

fn not_fetched(name: &str, error: FetchError) -> Trouble {
    let words = |why| format!("the file for {name} could not be fetched: {why}");
    match error {
        FetchError::Refused(why) => Trouble::NotThere(words(why)),
        FetchError::Failed(why) => Trouble::NotNow { why: words(why), pause: Duration::ZERO },
        FetchError::Busy { why, after } => Trouble::NotNow { why: words(why), pause: after },
        FetchError::Storage(why) => Trouble::Storage(why),
    }
}

fn trouble(place: &Place, trouble: Trouble) -> Unprepared {
    Unprepared { place: place.clone(), trouble }
}
