//! `/api/consumer/*`: what consumers without a database speak (`remote::protocol`). Everything is handed to the same ports that a consumer
//! beside the store uses, so what a request means is decided in one place.
//!
//! Whoever gets in may take every task and read every file: the token is checked first, in constant time; without one only this machine
//! gets in, and only when it is not a proxy that speaks for others.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Extension, Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use comfyd_actors::{
    domain::{input::InputId, tenant::Caps},
    ports::{
        input_files::InputFiles,
        object_store::ObjectError,
        store::{Claim, Hints, StoreError, TaskStore, WorkSource},
        wire::{Kind, LONGEST, Notice, Wire},
    },
    targets::Targets,
};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    Service,
    body::{self, Limits},
    problem::{FieldFault, Problem, ProblemBody},
};
use crate::{
    config::values::Secret,
    remote::{
        Hearing,
        protocol::{
            Apply, Done, Fetch, Fetched, Find, Kept, Listen, Named, Own, Place, Placed, Post, Posted, Renewal, Run,
            VERSION, VERSION_HEADER,
        },
    },
    storage::check_key,
};

/// The longest body is a notice in base64, with room for what is around it.
const MAX_BODY: u64 = (LONGEST as u64) * 4 / 3 + (1 << 20);
/// Longest time a notice may be asked to stay: it is short-lived by nature.
const MAX_KEEP: Duration = Duration::from_secs(3_600);

/// Who is connected.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// What consumers reach through us.
pub struct Consumers {
    /// The API side of the store, for what an answer got lost of.
    pub store: Arc<dyn TaskStore>,
    /// The tasks.
    pub work: Arc<dyn WorkSource>,
    /// What is paused.
    pub hints: Arc<dyn Hints>,
    /// What happens.
    pub hearing: Arc<Hearing>,
    /// Files in.
    pub files: Arc<dyn InputFiles>,
    /// Outputs out.
    pub targets: Targets,
    /// Notices.
    pub wire: Arc<dyn Wire>,
    /// What consumers show; `None` = this machine only.
    pub token: Option<Secret>,
    /// How many tasks of a tenant may run.
    pub caps: Caps,
    /// Most bytes of one output.
    pub largest: u64,
}

impl Consumers {
    /// Whether somebody gets in, and speaks as we do.
    fn admit(&self, headers: &HeaderMap, peer: Option<Extension<Peer>>) -> Result<(), Problem> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        match &self.token {
            Some(token) => {
                let shown = text("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
                // Hashes, because how far they agree tells nothing about how far the tokens do.
                if Sha256::digest(shown) != Sha256::digest(token.expose()) {
                    let detail = "this needs the API's CONSUMER_TOKEN as a bearer token: set the same on both sides";
                    return Err(Problem::new(StatusCode::UNAUTHORIZED, "consumer_unauthorized", detail));
                }
            }
            None => {
                let near = peer.is_some_and(|Extension(Peer(address))| address.is_loopback());
                let for_others = ["forwarded", "x-forwarded-for", "x-real-ip"].iter().any(|name| text(name).is_some());
                if !near || for_others {
                    let detail = "this API has no CONSUMER_TOKEN, so it takes consumers on its own machine only: set the same token on both sides";
                    return Err(Problem::new(StatusCode::FORBIDDEN, "consumer_forbidden", detail));
                }
            }
        }
        match text(VERSION_HEADER) {
            Some(VERSION) => Ok(()),
            other => {
                let detail = format!(
                    "the consumer speaks version {} of the protocol and this API version {VERSION}: run the same version of comfyd on \
                     both sides",
                    other.unwrap_or("(none)"),
                );
                Err(Problem::new(StatusCode::CONFLICT, "protocol_mismatch", detail))
            }
        }
    }

    async fn apply(&self, Apply { id, fence, change }: Apply) -> Result<comfyd_actors::domain::task::Task, StoreError> {
        let refused = match self.work.apply(id, fence, change.clone()).await {
            Err(StoreError::Refused(refusal)) => refusal,
            answer => return answer,
        };
        // Perhaps it was done, and the answer got lost.
        let task = self.store.get(id).await?.task;
        if task.shows(fence, &change) { Ok(task) } else { Err(refused.into()) }
    }

    async fn notices(&self, Named { kind, .. }: Named) -> Result<Vec<Posted>, StoreError> {
        let Some(kind) = Kind::parse(&kind) else { return Ok(Vec::new()) };
        Ok(self.wire.notices(kind).await?.iter().map(Posted::of).collect())
    }

    async fn post(&self, Post { notice, keep }: Post) -> Done {
        // One of a kind that we do not know concerns nobody here.
        let Some(notice) = notice.read().filter(|notice: &Notice| notice.body.len() <= LONGEST) else { return Ok(()) };
        self.wire.post(notice, keep.min(MAX_KEEP)).await
    }

    fn place(&self, place: &Place) -> Result<Placed, ObjectError> {
        let Place { name, content_type, bytes, choice, away } = place;
        let (route, key) = self.targets.place_of(name, content_type, *bytes, choice, *away)?;
        check_key(&key)?;
        Ok(Placed { target: route.name.to_owned(), key, usual: self.targets.usual().to_owned() })
    }

    async fn keep(&self, place: &Place, body: comfyd_actors::ports::ByteStream) -> Result<Kept, ObjectError> {
        let placed = self.place(place)?;
        let target = self.targets.get(&placed.target).ok_or(ObjectError::NotFound)?;
        let written = target.store.put(&placed.key, &place.content_type, place.bytes, body).await?;
        Ok(Kept { placed, written })
    }
}

/// Serve a consumer
///
/// What consumers without a database ask: `claim`, `renew` (the heartbeat, whose answer tells what is to end), `apply` (fenced, and safe to
/// repeat), `note-run`, `held`, `take-over`, `adopt`, `lanes`, `pauses`, `listen` (waits up to 25 s for something to happen), `post`,
/// `withdraw`, `notices`, `find`, `fetched`, `fetch`, `place`. A protocol between parts of comfyd, which changes with them; the header
/// `comfyd-protocol` says which version of it is spoken.
#[utoipa::path(
    post, path = "/api/consumer/{verb}", operation_id = "serve_consumer", tag = "service",
    params(
        ("verb" = String, Path, description = "What is asked", example = "claim"),
        ("comfyd-protocol" = String, Header, description = "The version of the protocol", example = "1"),
        ("Authorization" = Option<String>, Header, description = "Bearer and the API's CONSUMER_TOKEN; on the API's own machine only if it has none")
    ),
    request_body(content = serde_json::Value, description = "What belongs to the verb"),
    responses(
        (status = 200, description = "`{\"Ok\": ...}` or `{\"Err\": ...}`", body = serde_json::Value),
        (status = 400, description = "Not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "No token, or another one", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "This API takes consumers on its own machine only", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such verb", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "Another version of the protocol", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not sent as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Not what belongs to the verb", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "This process serves no consumers", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn call(
    State(service): State<Arc<Service>>,
    Path(verb): Path<String>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let there = service.consumers()?;
    there.admit(&headers, peer)?;
    let limits = Limits { bytes: MAX_BODY, setting: None, ..service.config.body() };
    let body = body::read(&headers, body, limits).await?;
    let (body, work) = (body.as_ref(), &there.work);
    match verb.as_str() {
        "claim" => answer(work.claim(Claim { caps: there.caps.clone(), ..read(body)? }).await),
        "apply" => answer(there.apply(read(body)?).await),
        "note-run" => {
            let Run { id, dispatch, nodes } = read(body)?;
            answer(work.note_run(id, dispatch, nodes).await)
        }
        "renew" => {
            let Renewal { worker, lease, held } = read(body)?;
            answer(work.renew(&worker, lease, &held).await)
        }
        "held" => answer(work.held(&read::<Own>(body)?.worker).await),
        "take-over" => {
            let Own { worker, lease } = read(body)?;
            answer(work.take_over(&worker, lease).await)
        }
        "adopt" => answer(work.adopt_expired(&read(body)?).await),
        "lanes" => answer(work.lanes().await),
        "pauses" => answer(there.hints.pauses().await),
        "listen" => {
            let Listen { after } = read(body)?;
            tokio::select! {
                heard = there.hearing.after(after) => answer(Ok::<_, StoreError>(heard)),
                () = service.stop.cancelled() => Err(Problem::unavailable("draining", "this API is about to stop: ask again")),
            }
        }
        "post" => answer(there.post(read(body)?).await),
        "withdraw" => {
            let Named { kind, name } = read(body)?;
            match Kind::parse(&kind) {
                Some(kind) => answer(there.wire.withdraw(kind, &name).await),
                None => answer(Done::Ok(())),
            }
        }
        "notices" => answer(there.notices(read(body)?).await),
        "find" => answer(there.files.find(&read::<Find>(body)?.id).await),
        "fetched" => answer(there.files.fetched(read::<Fetched>(body)?.task).await),
        "fetch" => {
            let Fetch { task, url, kind } = read(body)?;
            answer(there.files.fetch(task, &url, kind).await)
        }
        "place" => answer(there.place(&read(body)?)),
        _ => Err(Problem::new(StatusCode::NOT_FOUND, "unknown_verb", "consumers ask nothing of that name")),
    }
}

/// Read a file for a consumer
#[utoipa::path(
    get, path = "/api/consumer/files/{sha256}", operation_id = "consumer_reads_file", tag = "service",
    params(("sha256" = String, Path, description = "The file's name")),
    responses(
        (status = 200, description = "The bytes", content_type = "application/octet-stream"),
        (status = 204, description = "It is not there any more"),
        (status = 401, description = "No token, or another one", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "This API takes consumers on its own machine only", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "Another version of the protocol", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be read now", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn read_file(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let there = service.consumers()?;
    there.admit(&headers, peer)?;
    // Not 404: that could be a proxy's, and a file that is gone fails its task.
    let gone = || StatusCode::NO_CONTENT.into_response();
    let Some(id) = InputId::parse(&id) else { return Ok(gone()) };
    let file = match there.files.find(&id).await {
        Err(StoreError::NotFound) => return Ok(gone()),
        found => found?,
    };
    match there.files.open(&file).await {
        Ok(reading) => {
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
                (header::CONTENT_LENGTH, reading.bytes.to_string()),
            ];
            Ok((headers, Body::from_stream(reading.body)).into_response())
        }
        Err(ObjectError::NotFound) => Ok(gone()),
        Err(error) => {
            tracing::warn!(%error, "a file could not be read for a consumer");
            Err(Problem::unavailable("storage_unavailable", "the storage cannot be read now"))
        }
    }
}

/// Store an output for a consumer
#[utoipa::path(
    put, path = "/api/consumer/outputs", operation_id = "consumer_stores_output", tag = "service",
    params(("output" = String, Query, description = "What it is and where its task wants it, as JSON")),
    request_body(content = super::serve::Binary, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "`{\"Ok\": ...}` with where it is and the hash of what was stored, or `{\"Err\": ...}`", body = serde_json::Value),
        (status = 401, description = "No token, or another one", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "This API takes consumers on its own machine only", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "Another version of the protocol", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "Larger than tasks.max_output", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Not described", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "This process serves no consumers", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn store_output(
    State(service): State<Arc<Service>>,
    Query(parameters): Query<Vec<(String, String)>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let there = service.consumers()?;
    there.admit(&headers, peer)?;
    let described = parameters.iter().find(|(name, _)| name == "output").map(|(_, text)| text.as_bytes());
    let place: Place = described.and_then(|text| serde_json::from_slice(text).ok()).ok_or_else(|| {
        Problem::invalid(vec![FieldFault::parameter("output", "expected what `place` is asked, as JSON")])
    })?;
    let limits = Limits { bytes: there.largest, setting: Some("tasks.max_output"), ..service.config.body() };
    let (body, trouble) = body::stream(&headers, body, limits)?;
    let stored = there.keep(&place, body).await;
    match trouble.get() {
        Some(problem) => Err(problem.clone()),
        None => answer(stored),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            Problem::invalid(vec![FieldFault::at("", error.to_string())])
        } else {
            Problem::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not JSON: {error}"))
        }
    })
}

fn answer<T: Serialize, E: Serialize>(result: Result<T, E>) -> Result<Response, Problem> {
    let text = serde_json::to_vec(&result).map_err(|error| {
        tracing::error!(%error, "an answer to a consumer cannot be written");
        Problem::internal()
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}
