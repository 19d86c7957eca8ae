//! Files in and outputs out. Files come through the API. Outputs go where the API says: straight there when this consumer has a target of
//! that name, else through the API.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use comfyd_actors::{
    domain::{
        artifact::{Facts, StoredObject},
        id::TaskId,
        input::{Input, InputId},
        options::StorageChoice,
        workflow::Kind,
    },
    ports::{
        ByteStream,
        fetcher::FetchError,
        input_files::InputFiles,
        object_store::{ObjectError, Reading, Written},
        outputs::{Output, Outputs},
        store::StoreError,
    },
};
use futures_util::{StreamExt, TryStreamExt};
use reqwest::{Body, StatusCode, header};
use sha2::{Digest, Sha256};

use super::{
    ApiClient,
    client::Away,
    protocol::{Fetch, Fetched, Find, Kept, Place, Placed},
};
use crate::describe::describe;

/// The API has a limit of its own for what lies elsewhere (inputs.fetch_timeout), and a queue before it.
const FETCH: Duration = Duration::from_secs(600);

#[async_trait]
impl InputFiles for ApiClient {
    async fn find(&self, id: &InputId) -> Result<Input, StoreError> {
        self.call("find", &Find { id: id.clone() }).await
    }

    async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError> {
        self.call("fetched", &Fetched { task }).await
    }

    async fn fetch(&self, task: TaskId, url: &str, kind: Option<Kind>) -> Result<Input, FetchError> {
        self.call_slowly("fetch", &Fetch { task, url: url.to_owned(), kind }, FETCH).await
    }

    async fn open(&self, file: &Input) -> Result<Reading, ObjectError> {
        let answer = self.send(self.get(&format!("files/{}", file.id))).await?;
        if answer.status() == StatusCode::NO_CONTENT {
            return Err(ObjectError::NotFound);
        }
        let body = answer.bytes_stream().map_err(|error| std::io::Error::other(describe(error))).boxed();
        Ok(Reading { bytes: file.about.bytes, body })
    }
}

#[async_trait]
impl Outputs for ApiClient {
    fn wanted(&self, choice: &StorageChoice) -> String {
        choice.target.clone().unwrap_or_else(|| self.lock_usual().clone())
    }

    async fn keep(&self, output: Output) -> Result<StoredObject, ObjectError> {
        let Output { name, content_type, bytes, body, choice, away } = output;
        let place = Place { name, content_type, bytes, choice: (*choice).clone(), away };
        // Who reaches no target need not ask which it is.
        let placed =
            if self.own.is_empty() { None } else { Some(self.call::<Placed, ObjectError>("place", &place).await?) };
        let own = placed.as_ref().and_then(|placed| self.own.get(&placed.target));
        let Kept { placed, written } = match (own, placed) {
            (Some(own), Some(placed)) => {
                let written = own.store.put(&placed.key, &place.content_type, bytes, body).await?;
                Kept { placed, written }
            }
            _ => self.bring(&place, body).await?,
        };
        let (Placed { target, key, usual }, Written { bytes, sha256 }) = (placed, written);
        *self.lock_usual() = usual;
        let content_type = place.content_type;
        Ok(StoredObject { target, key, content_type, bytes, sha256, facts: Facts::default() })
    }
}

impl ApiClient {
    /// Sends an output through the API, and makes sure that what arrived is what was sent.
    async fn bring(&self, place: &Place, body: ByteStream) -> Result<Kept, ObjectError> {
        let described = serde_json::to_string(place).map_err(|error| Away(error.to_string()))?;
        let sent = Arc::new(Mutex::new((Sha256::new(), 0_u64)));
        let (seen, failed) = (sent.clone(), Arc::new(Mutex::new(None)));
        let noted = failed.clone();
        let body = body.map(move |chunk| {
            match &chunk {
                Ok(chunk) => {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.0.update(chunk);
                    seen.1 += chunk.len() as u64;
                }
                Err(error) => *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string()),
            }
            chunk
        });
        let mut request = self.put("outputs").query(&[("output", described)]);
        if let Some(bytes) = place.bytes {
            request = request.header(header::CONTENT_LENGTH, bytes);
        }
        let answer = self.answer::<Result<Kept, ObjectError>>(request.body(Body::wrap_stream(body))).await;
        // What the body failed of is known where it is read; behind it are only consequences.
        if let Some(why) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(ObjectError::Source(why));
        }
        let kept = answer??;
        let (hash, bytes) = std::mem::take(&mut *sent.lock().unwrap_or_else(PoisonError::into_inner));
        let sha256 = format!("{:x}", hash.finalize());
        if kept.written == (Written { bytes, sha256 }) {
            Ok(kept)
        } else {
            // Another key is tried: what lies there is not touched again.
            Err(ObjectError::Taken)
        }
    }

    fn lock_usual(&self) -> std::sync::MutexGuard<'_, String> {
        self.usual.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
