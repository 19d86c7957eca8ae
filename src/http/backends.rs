//! The ComfyUI servers behind us: what they are doing, and whether they take new work.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use comfyd_actors::{
    board::{BackendStatus, PhaseName},
    bridge::Bridge,
    domain::id::BackendId,
    ports::store::{Pausable, Pause},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Service,
    control::paused_since,
    problem::{Problem, ProblemBody},
};
use crate::config::nearest;

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
    /// It is given nothing new; what runs on it goes on.
    pub paused: bool,
    /// Since when.
    #[schema(format = DateTime)]
    pub paused_since: Option<String>,
    /// Whether it has `/api/jobs`.
    pub jobs_api: bool,
    /// Tasks of ours on it.
    pub in_flight: usize,
    /// Connections opened since the start of the process.
    pub connections: u64,
    /// Node classes it has, see `/api/nodes`; null while it has not told, and graphs are not validated for it.
    pub nodes: Option<usize>,
}

impl BackendView {
    fn of(id: &BackendId, status: BackendStatus, pauses: &[Pause]) -> Self {
        let paused_since = paused_since(pauses, &Pausable::Backend(id.clone()));
        Self {
            backend: id.to_string(),
            name: short(id).to_owned(),
            phase: status.phase,
            problem: status.problem,
            paused: paused_since.is_some(),
            paused_since,
            jobs_api: status.jobs_api,
            in_flight: status.in_flight,
            connections: status.connections,
            nodes: status.nodes,
        }
    }
}

/// Every configured server.
pub fn views(bridge: &Bridge, pauses: &[Pause]) -> Vec<BackendView> {
    let mut known = bridge.backend_status();
    let ids: BTreeMap<_, _> = bridge.backends().iter().map(|backend| (backend.id(), ())).collect();
    let mut status = |id| known.remove(id).unwrap_or_else(BackendStatus::unknown);
    ids.into_keys().map(|id| (id, status(id))).map(|(id, status)| BackendView::of(id, status, pauses)).collect()
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
    set_paused(&service, &name, true).await
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
    set_paused(&service, &name, false).await
}

async fn set_paused(service: &Service, name: &str, paused: bool) -> Result<Json<BackendView>, Problem> {
    let id = find(&service.bridge, name)?;
    let pauses = service.bridge.set_paused(Pausable::Backend(id.clone()), paused).await?;
    let status = service.bridge.backend_status().remove(&id).unwrap_or_else(BackendStatus::unknown);
    Ok(Json(BackendView::of(&id, status, &pauses)))
}

/// The server of this name: its address, or that without the scheme when only one server is meant.
///
/// # Errors
/// 404 with the names there are.
pub fn find(bridge: &Bridge, name: &str) -> Result<BackendId, Problem> {
    let ids = || bridge.backends().iter().map(|backend| backend.id());
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
