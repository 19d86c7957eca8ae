//! Hands the files a graph needs to a server, several at a time and straight from the storage, and writes the server's names into the
//! graph.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::flight::{Prepared, Trouble, Unprepared};
use crate::{
    domain::input::{self, Input, InputId, Place},
    ports::{
        comfy::{ComfyTransport, Upload, UploadError},
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
    /// The graph as the task has it.
    pub(super) graph: Arc<str>,
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
        let wanted: BTreeMap<&InputId, &Place> =
            places.iter().filter(|place| !self.known.contains_key(&place.input)).map(|p| (&p.input, p)).collect();
        let mut files = Vec::with_capacity(wanted.len());
        for (id, place) in wanted {
            let found = self.system.inputs.find(id).await.map_err(|error| trouble(place, unknown(error)))?;
            files.push((found, place.clone()));
        }
        let total = files.iter().map(|(file, _)| file.about.bytes).sum();
        (self.report)(0, total);
        let (report, sent) = (Arc::new(self.report), Arc::new(AtomicU64::new(0)));
        let progress = Arc::new(move |bytes: u64| report(sent.fetch_add(bytes, Ordering::Relaxed) + bytes, total));
        let (system, comfy) = (self.system, self.comfy);
        let uploads = files.into_iter().map(move |(file, place)| {
            let (system, comfy, progress) = (system.clone(), comfy.clone(), Arc::clone(&progress));
            async move {
                let name = hand_over(&system, comfy.as_ref(), &file, move |bytes| progress(bytes)).await;
                name.map(|name| (file.id, name)).map_err(|error| trouble(&place, error))
            }
            .boxed()
        });
        let names: BTreeMap<_, _> = stream::iter(uploads).buffer_unordered(AT_ONCE).try_collect().await?;
        let reusing: BTreeSet<_> = places
            .iter()
            .filter(|place| self.known.contains_key(&place.input))
            .map(|place| place.node.clone())
            .collect();
        let mut all = self.known;
        all.extend(names.clone());
        input::put_names(&mut graph, &all);
        Ok(Prepared { graph: graph.to_string().into(), names, reusing })
    }
}

async fn hand_over(
    system: &System,
    comfy: &dyn ComfyTransport,
    file: &Input,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<String, Trouble> {
    let reading = system.objects.open(&file.key, None).await.map_err(|error| match error {
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

fn trouble(place: &Place, trouble: Trouble) -> Unprepared {
    Unprepared { place: place.clone(), trouble }
}
