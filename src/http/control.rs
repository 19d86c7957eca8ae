//! What clients change: a task that is there, and whether the queue takes new work.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use comfyd_actors::{
    bridge::Wish,
    domain::{id::TaskId, order::Priority, time::Timestamp},
    ports::store::{Hold, Pausable, Pause},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Service, base_url,
    body::{self, Fields},
    create,
    problem::{FieldFault, Problem, ProblemBody},
    storage,
    tasks::parse_id,
    view::TaskView,
};

/// These bodies hold a word or two.
const MAX_BODY: u64 = 4 << 10;

/// What to do again.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct RetryTask {
    /// Only this part: `uploads`. Without it the whole task runs again.
    only: Option<RetryPart>,
}

/// A part of a task.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub enum RetryPart {
    /// Storing the files that its run left on the ComfyUI server.
    Uploads,
}

/// What to change about a task.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct ChangeTask {
    /// From -100 (last) to 100 (first), or `low` (-10), `normal` (0), `high` (10).
    #[schema(value_type = create::PriorityOrWord)]
    priority: serde_json::Value,
}

/// Whether the queue takes new work.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueState {
    /// It does not: what waits stays where it is, what runs goes on.
    pub paused: bool,
    /// Since when.
    #[schema(format = DateTime)]
    pub paused_since: Option<String>,
}

/// Retry a task
///
/// Runs a failed or cancelled task again, from the beginning and with all its attempts (`generation` counts up). With
/// `{"only": "uploads"}` nothing runs: the files that the run left on its ComfyUI server and that are not stored yet are stored; when
/// they are gone too, the task fails as before. May be repeated: a task that waits, runs or has completed is returned as it is.
#[utoipa::path(
    post, path = "/api/tasks/{task_id}/retry", tag = "tasks",
    params(("task_id" = String, Path, description = "As the creation answered it")),
    request_body(content = Option<RetryTask>, example = json!({"only": "uploads"})),
    responses(
        (status = 200, description = "The task is over", body = TaskView),
        (status = 202, description = "It is under way", body = TaskView),
        (status = 400, description = "Not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such task", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It is being cancelled (`task_cancelling`), or left no files to store (`no_files`)", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not sent as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty fields, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full, or the task's tenant has as many tasks waiting as it may (`tenant_full`); nothing was changed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn retry(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<TaskView>), Problem> {
    let id = parse_id(&id)?;
    let bytes = body::read_optional(&headers, body, service.config.body().at_most(MAX_BODY)).await?;
    let mut wish = Wish::Again;
    if !bytes.is_empty() {
        Fields::parse(&bytes)?.each(&["only"], |_, value| {
            let is_uploads = value.as_str() == Some("uploads");
            wish = Wish::UploadsAgain;
            is_uploads.then_some(()).ok_or_else(|| "expected \"uploads\", or no such field at all".to_owned())
        })?;
    }
    tracing::info!(?wish, "another try asked for");
    let view = amend(&service, id, wish, &headers).await?;
    let over = matches!(view.summary.status, "completed" | "failed" | "cancelled");
    Ok((if over { StatusCode::OK } else { StatusCode::ACCEPTED }, Json(view)))
}

/// Change a task
///
/// Gives a task another priority, and with it another place in the queue, counted from when it began to wait. A task that runs goes on
/// as it is; the change counts when it comes back to the queue, for another attempt for example.
#[utoipa::path(
    patch, path = "/api/tasks/{task_id}", tag = "tasks",
    params(("task_id" = String, Path, description = "As the creation answered it")),
    request_body(content = ChangeTask, example = json!({"priority": "high"})),
    responses(
        (status = 200, description = "The task as it is now", body = TaskView),
        (status = 400, description = "Not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such task", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The task is over (`task_over`)", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not sent as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty fields, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn change(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TaskView>, Problem> {
    let id = parse_id(&id)?;
    let bytes = body::read(&headers, body, service.config.body().at_most(MAX_BODY)).await?;
    let mut wanted: Option<Priority> = None;
    Fields::parse(&bytes)?.each(&["priority"], |_, value| {
        wanted = Some(create::priority(&value)?);
        Ok(())
    })?;
    let Some(priority) = wanted else {
        let detail = "required: there is nothing else to change";
        return Err(Problem::invalid(vec![FieldFault::at("/priority", detail)]));
    };
    tracing::info!(%priority, "another priority asked for");
    amend(&service, id, Wish::Prioritize(priority), &headers).await.map(Json)
}

async fn amend(service: &Service, id: TaskId, wish: Wish, headers: &HeaderMap) -> Result<TaskView, Problem> {
    service.bridge.amend(id, wish).await?;
    let (record, progress) = service.bridge.get(id).await?;
    Ok(storage::view(service, record, progress, &base_url(&service.config, headers)).await)
}

/// Pause the queue
///
/// Nothing new is started on any server until it is resumed, over restarts of the service too. What runs goes on, and new tasks are
/// accepted: they wait. May be repeated.
#[utoipa::path(
    post, path = "/api/queue/pause", tag = "service",
    responses(
        (status = 200, description = "It is paused", body = QueueState),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn pause_queue(State(service): State<Arc<Service>>) -> Result<Json<QueueState>, Problem> {
    set_queue_paused(&service, Hold::Pause).await
}

/// Resume the queue
///
/// What waits is started again, but for backends that are paused themselves. May be repeated.
#[utoipa::path(
    post, path = "/api/queue/resume", tag = "service",
    responses(
        (status = 200, description = "It is not paused", body = QueueState),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn resume_queue(State(service): State<Arc<Service>>) -> Result<Json<QueueState>, Problem> {
    set_queue_paused(&service, Hold::Resume).await
}

async fn set_queue_paused(service: &Service, hold: Hold) -> Result<Json<QueueState>, Problem> {
    let pauses = service.bridge.set_paused(Pausable::Queue, hold).await?;
    Ok(Json(QueueState::of(&pauses)))
}

impl QueueState {
    /// What it is by all that is paused.
    pub fn of(pauses: &[Pause]) -> Self {
        let paused_since = paused_since(pauses, &Pausable::Queue);
        Self { paused: paused_since.is_some(), paused_since }
    }
}

/// Since when this is paused, if it is.
pub fn paused_since(pauses: &[Pause], what: &Pausable) -> Option<String> {
    pauses.iter().find(|pause| pause.what == *what).map(|pause| Timestamp::rfc3339(pause.since))
}
