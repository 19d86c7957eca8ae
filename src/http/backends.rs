//! The ComfyUI servers behind us: what they are doing, and whether they take new work.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use comfyd_actors::{
    board::{BackendStatus, PhaseName},
    bridge::Bridge,
    domain::{
        health::{Cause, Health, State as Breaker},
        id::BackendId,
        time::Timestamp,
    },
    ports::store::{Hold, Pausable, Pause},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Service,
    body::{self, Fields},
    create,
    problem::{Problem, ProblemBody},
    tasks::patience,
};
use crate::config::nearest;

/// The body holds a word.
const MAX_BODY: u64 = 4 << 10;
/// Who waits longer than this for a server to be drained forgot about it.
const MAX_WITHIN: Duration = Duration::from_secs(30 * 24 * 3_600);

/// All servers.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackendList {
    /// In the order of their addresses.
    pub backends: Vec<BackendView>,
}

/// A ComfyUI server as our session sees it.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackendView {
    /// Its address.
    #[schema(example = "http://gpu-1:8188")]
    pub backend: String,
    /// How it is named in paths: its address without the scheme.
    #[schema(example = "gpu-1:8188")]
    pub name: String,
    /// `disconnected`, `connecting`, `online` or `quarantined`.
    #[schema(value_type = String, example = "online")]
    pub phase: PhaseName,
    /// Why it is not online.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether it proved fit for tasks.
    pub health: HealthView,
    /// It is given nothing new; what runs on it goes on.
    pub paused: bool,
    /// Since when.
    #[schema(format = DateTime)]
    pub paused_since: Option<String>,
    /// When what still runs on it is moved elsewhere, if it is being drained with a deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub move_at: Option<String>,
    /// Whether it has `/api/jobs`.
    pub jobs_api: bool,
    /// Tasks of ours on it.
    pub in_flight: usize,
    /// Connections opened since the start of the process.
    pub connections: u64,
    /// Node classes it has, see `/api/nodes`; null while it has not told, and graphs are not validated for it.
    pub nodes: Option<usize>,
}

/// Whether a server proved fit for tasks.
#[derive(Debug, Serialize, ToSchema)]
pub struct HealthView {
    /// `closed`: it is given tasks. `open`: it looks broken and is not. `half_open`: it is being tested.
    #[schema(value_type = String, example = "closed")]
    pub breaker: Breaker,
    /// What was wrong with it: `unreachable`, `failing`, `fatal`, `zombie` or `stuck`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "zombie")]
    pub cause: Option<Cause>,
    /// The same in words, or why its last test failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when it has been given nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub since: Option<String>,
    /// When it is tested next; missing while it cannot be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub test_at: Option<String>,
}

impl HealthView {
    fn of(health: Health) -> Self {
        Self {
            breaker: health.state,
            cause: health.cause,
            reason: health.reason,
            since: health.since.map(Timestamp::rfc3339),
            test_at: health.test_at.map(Timestamp::rfc3339),
        }
    }
}

impl BackendView {
    /// Whether it is given tasks, unless somebody paused it.
    pub fn takes_work(&self) -> bool {
        self.phase == PhaseName::Online && self.health.breaker == Breaker::Closed
    }

    /// A server as it is known.
    pub fn of(id: &BackendId, status: BackendStatus, pauses: &[Pause]) -> Self {
        let what = Pausable::Backend(id.clone());
        let pause = pauses.iter().find(|pause| pause.what == what);
        Self {
            backend: id.to_string(),
            name: short(id).to_owned(),
            phase: status.phase,
            problem: status.problem,
            health: HealthView::of(status.health),
            paused: pause.is_some(),
            paused_since: pause.map(|pause| pause.since.rfc3339()),
            move_at: pause.and_then(|pause| pause.move_at).map(Timestamp::rfc3339),
            jobs_api: status.jobs_api,
            in_flight: status.in_flight,
            connections: status.connections,
            nodes: status.nodes,
        }
    }
}

/// How to drain a server.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct DrainBackend {
    /// What runs there may take so long, at most 30 days: "10m", "1h 30m"; "0s" moves it at once. Without it, as long as it takes.
    #[schema(example = "10m")]
    within: Option<String>,
}

/// A server that is being drained.
#[derive(Debug, Serialize, ToSchema)]
pub struct DrainView {
    /// No task needs it any more: it can be switched off.
    pub drained: bool,
    /// Tasks that still run there, or whose files are being fetched from it.
    pub tasks_left: usize,
    /// The server.
    #[serde(flatten)]
    pub backend: BackendView,
}

/// Every server there is: those of this process, and those that consumers told of.
pub fn views(bridge: &Bridge, pauses: &[Pause]) -> Vec<BackendView> {
    bridge.all_backends().into_iter().map(|(id, status)| BackendView::of(&id, status, pauses)).collect()
}

/// List the ComfyUI servers
#[utoipa::path(
    get, path = "/api/backends", operation_id = "list_backends", tag = "comfyui",
    responses((status = 200, description = "Each as this service sees it", body = BackendList))
)]
pub async fn list(State(service): State<Arc<Service>>) -> Json<BackendList> {
    Json(BackendList { backends: views(&service.bridge, &service.bridge.pauses()) })
}

/// Pause a ComfyUI server
///
/// It is given nothing new until it is resumed, over restarts of the service too. What runs on it goes on, what only waits on it runs
/// elsewhere. May be repeated.
#[utoipa::path(
    post, path = "/api/backends/{backend}/pause", operation_id = "pause_backend", tag = "comfyui",
    params(("backend" = String, Path, description = "`name` in the list, or the address, percent-encoded", example = "gpu-1:8188")),
    responses(
        (status = 200, description = "It is paused", body = BackendView),
        (status = 404, description = "No such server", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn pause(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Json<BackendView>, Problem> {
    set_paused(&service, &name, Hold::Pause).await
}

/// Resume a ComfyUI server
///
/// It is given tasks again, unless the queue itself is paused. May be repeated.
#[utoipa::path(
    post, path = "/api/backends/{backend}/resume", operation_id = "resume_backend", tag = "comfyui",
    params(("backend" = String, Path, description = "`name` in the list, or the address, percent-encoded", example = "gpu-1:8188")),
    responses(
        (status = 200, description = "It is not paused", body = BackendView),
        (status = 404, description = "No such server", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn resume(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Json<BackendView>, Problem> {
    set_paused(&service, &name, Hold::Resume).await
}

/// Drain a ComfyUI server
///
/// For whoever is about to restart it or switch it off. It is given nothing new, what only waits on it runs elsewhere, and what runs there may
/// take as long as it takes, or, with `within`, so long: then it is interrupted and runs elsewhere, with none of its attempts spent. Send
/// `Prefer: wait=60` to be answered when nothing needs the server any more. Lasts until it is resumed, over restarts of the service too;
/// may be repeated, with another `within` or none.
#[utoipa::path(
    post, path = "/api/backends/{backend}/drain", operation_id = "drain_backend", tag = "comfyui",
    params(
        ("backend" = String, Path, description = "`name` in the list, or the address, percent-encoded", example = "gpu-1:8188"),
        ("Prefer" = Option<String>, Header, description = "wait=N: answer when no task needs the server any more, or after N seconds (at most 60)")
    ),
    request_body(content = Option<DrainBackend>, example = json!({"within": "10m"})),
    responses(
        (status = 200, description = "It is given nothing new; `drained` says whether anything of ours still needs it", body = DrainView),
        (status = 400, description = "Not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such server", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not sent as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty fields, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn drain(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DrainView>, Problem> {
    let id = find(&service.bridge, &name)?;
    let bytes = body::read_optional(&headers, body, service.config.body().at_most(MAX_BODY)).await?;
    let mut within = None;
    if !bytes.is_empty() {
        Fields::parse(&bytes)?.each(&["within"], |_, value| {
            within = Some(create::at_most(&value, MAX_WITHIN)?);
            Ok(())
        })?;
    }
    tracing::info!(backend = %id, ?within, "drain asked for");
    let move_at = within.map(|within| service.bridge.now().after(within));
    let pauses = service.bridge.set_paused(Pausable::Backend(id.clone()), Hold::Drain { move_at }).await?;
    let tasks_left = match patience(&headers) {
        Some(wait) => tokio::select! {
            left = service.bridge.tasks_left_on(&id, wait) => left?,
            () = service.stop.cancelled() => service.bridge.tasks_on(&id).await?,
        },
        None => service.bridge.tasks_on(&id).await?,
    };
    Ok(Json(DrainView { drained: tasks_left == 0, tasks_left, backend: view(&service, &id, &pauses) }))
}

async fn set_paused(service: &Service, name: &str, hold: Hold) -> Result<Json<BackendView>, Problem> {
    let id = find(&service.bridge, name)?;
    let pauses = service.bridge.set_paused(Pausable::Backend(id.clone()), hold).await?;
    Ok(Json(view(service, &id, &pauses)))
}

fn view(service: &Service, id: &BackendId, pauses: &[Pause]) -> BackendView {
    let status = service.bridge.all_backends().remove(id).unwrap_or_else(BackendStatus::unknown);
    BackendView::of(id, status, pauses)
}

/// The server of this name: its address, or that without the scheme when only one server is meant.
///
/// # Errors
/// 404 with the names there are.
pub fn find(bridge: &Bridge, name: &str) -> Result<BackendId, Problem> {
    let all = bridge.all_backends();
    let ids = || all.keys();
    let exact = ids().find(|id| id.as_str() == name);
    let mut by_name = ids().filter(|id| short(id) == name);
    let found = exact.or_else(|| by_name.next().filter(|_| by_name.next().is_none()));
    found.cloned().ok_or_else(|| {
        let names: Vec<_> = ids().map(short).collect();
        let near = nearest(name, names.iter().copied());
        let guess = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        let detail = format!("there is no such ComfyUI server; there are: {}{guess}", names.join(", "));
        Problem::new(StatusCode::NOT_FOUND, "unknown_backend", detail)
    })
}

fn short(id: &BackendId) -> &str {
    id.as_str().split_once("://").map_or(id.as_str(), |(_, rest)| rest)
}
