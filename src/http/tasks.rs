//! Tasks after their creation: one, many, cancelled.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use comfyd_actors::{
    bridge::{Bridge, Standing},
    domain::{id::TaskId, task::Task, time::Timestamp},
    ports::store::{self, StoreError, TaskRecord},
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Service, backends, base_url, inline,
    problem::{FieldFault, Problem, ProblemBody, each_parameter},
    storage,
    view::{self, TaskSummary, TaskView},
};
use crate::{config::nearest, crash_point};

/// Longest wait a client can ask for: below the patience of most proxies.
const MAX_WAIT: u64 = 60;
const MAX_PAGE: u32 = 200;
/// Tasks on a page of which nobody says how long it shall be.
pub const PAGE: u32 = 50;
const PARAMETERS: [&str; 7] = ["status", "workflow", "created_after", "created_before", "backend", "limit", "cursor"];
pub const STATUSES: [&str; 5] = ["pending", "processing", "completed", "failed", "cancelled"];

/// Get a task
///
/// Its status and, once it is over, its results. An id that cannot be one of ours is answered like one that is not there.
#[utoipa::path(
    get, path = "/api/tasks/{task_id}", tag = "tasks",
    params(
        ("task_id" = String, Path, description = "As the creation answered it"),
        ("Prefer" = Option<String>, Header, description = "wait=N: answer when the task is over, or after N seconds (at most 60)")
    ),
    responses(
        (status = 200, description = "The task", body = TaskView),
        (status = 404, description = "No such task", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let wait = patience(&headers);
    let (record, progress) = match wait {
        Some(wait) => wait_for(&service, id, wait).await?,
        None => service.bridge.get(id).await?,
    };
    let applied = wait.map(|_| [("preference-applied", "wait")]);
    let view = inline::full_view(&service, record, progress, &base_url(&service.config, &headers)).await;
    Ok((applied, Json(view)).into_response())
}

/// One page of tasks.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskPage {
    /// Newest first.
    pub tasks: Vec<TaskSummary>,
    /// Send it as `cursor` to get the next page; null on the last one.
    pub next_cursor: Option<String>,
}

impl TaskPage {
    /// Of tasks of which there is one more than `limit` when there is a next page; `at` is what they are ordered by.
    pub fn of(mut tasks: Vec<Task>, limit: usize, at: impl Fn(&Task) -> Option<Timestamp>) -> Self {
        let more = tasks.len() > limit;
        tasks.truncate(limit);
        let last = tasks.last().filter(|_| more);
        let next_cursor = last.and_then(|task| Some(write_cursor(at(task)?, task.id)));
        Self { tasks: tasks.into_iter().map(TaskSummary::of).collect(), next_cursor }
    }
}

/// List tasks
///
/// Newest first. Tasks that are created while you turn the pages do not shift them.
#[utoipa::path(
    get, path = "/api/tasks", tag = "tasks",
    params(
        ("status" = Option<String>, Query, description = "Only these, comma-separated: pending, processing, completed, failed, cancelled", example = "pending,processing"),
        ("workflow" = Option<String>, Query, description = "Only tasks of this named workflow", example = "text-to-image"),
        ("created_after" = Option<String>, Query, description = "Only tasks created at this moment (RFC 3339) or later", example = "2030-01-01T08:00:00Z"),
        ("created_before" = Option<String>, Query, description = "Only tasks created before this moment (RFC 3339)"),
        ("backend" = Option<String>, Query, description = "Only tasks that are on this ComfyUI server now, or whose files are fetched from it: `name` or address as `/api/backends` has it", example = "gpu-1:8188"),
        ("limit" = Option<u32>, Query, description = "Tasks per page", minimum = 1, maximum = 200, example = 50),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")
    ),
    responses(
        (status = 200, description = "A page", body = TaskPage),
        (status = 400, description = "Not a query", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty parameters, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(service): State<Arc<Service>>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Json<TaskPage>, Problem> {
    let mut query = parse_query(&parameters, &service.bridge)?;
    let limit = query.limit as usize;
    // One more than asked for tells whether there is a next page.
    query.limit += 1;
    let tasks = service.bridge.list(query).await?;
    Ok(Json(TaskPage::of(tasks, limit, |task| Some(task.created_at))))
}

/// Cancel a task
///
/// A task that waits is cancelled at once; one that runs is interrupted, which takes a moment. May be repeated. A task that is
/// over is returned as it is.
#[utoipa::path(
    post, path = "/api/tasks/{task_id}/cancel", tag = "tasks",
    params(("task_id" = String, Path, description = "As the creation answered it")),
    responses(
        (status = 200, description = "The task is over", body = TaskView),
        (status = 202, description = "It is being cancelled (stage `cancelling`)", body = TaskView),
        (status = 404, description = "No such task", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The task cannot be changed now", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn cancel(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<TaskView>), Problem> {
    let id = parse_id(&id)?;
    service.bridge.cancel(id).await?;
    crash_point::reach("cancel/answering");
    tracing::info!("cancellation asked for");
    let (record, progress) = service.bridge.get(id).await?;
    let status = if record.task.state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let view = storage::view(&service, record, progress, &base_url(&service.config, &headers)).await;
    Ok((status, Json(view)))
}

/// A task's id from a path; what cannot be one is not there.
///
/// # Errors
/// 404.
pub fn parse_id(text: &str) -> Result<TaskId, Problem> {
    let id = text.parse().map_err(|_| Problem::no_task())?;
    note(id);
    Ok(id)
}

/// Puts the task's id on every log line of this request.
pub fn note(id: TaskId) {
    tracing::Span::current().record("task.id", tracing::field::display(id));
}

/// How long the client would wait (`Prefer: wait=N`, RFC 7240). What we cannot read we may ignore.
#[must_use]
pub fn patience(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split([',', ';'])).map(str::trim);
    let seconds: u64 =
        preferences.find_map(|preference| preference.strip_prefix("wait=")?.trim_matches('"').parse().ok())?;
    Some(Duration::from_secs(seconds.min(MAX_WAIT)))
}

/// The task once it is over, or as it is when the patience or the service ends.
///
/// # Errors
/// As [`Bridge::get`](comfyd_actors::bridge::Bridge::get).
pub async fn wait_for(
    service: &Service,
    id: TaskId,
    patience: Duration,
) -> Result<(TaskRecord, Option<Standing>), StoreError> {
    tokio::select! {
        found = service.bridge.get_finished(id, patience) => found,
        () = service.stop.cancelled() => service.bridge.get(id).await,
    }
}

fn parse_query(parameters: &[(String, String)], bridge: &Bridge) -> Result<store::Query, Problem> {
    let mut query = store::Query { limit: PAGE, ..store::Query::default() };
    let faults = each_parameter(parameters, &PARAMETERS, |name, value| {
        match name {
            "status" => add_statuses(&mut query, value)?,
            "workflow" => query.workflow = Some(value.to_owned()),
            "created_after" => query.created_from = Some(parse_moment(value)?),
            "created_before" => query.created_until = Some(parse_moment(value)?),
            "backend" => {
                let unknown = |unknown: Problem| FieldFault::parameter(name, unknown.detail());
                query.backend = Some(backends::find(bridge, value).map_err(unknown)?);
            }
            "limit" => query.limit = parse_limit(value)?,
            _ => query.before = Some(read_cursor(value)?),
        }
        Ok(())
    });
    if faults.is_empty() { Ok(query) } else { Err(Problem::invalid(faults)) }
}

fn add_statuses(query: &mut store::Query, words: &str) -> Result<(), FieldFault> {
    for word in words.split(',').map(str::trim) {
        let states = view::states(word);
        if states.is_empty() {
            let detail = format!("`{word}` is no status; there are {}", STATUSES.join(", "));
            return Err(FieldFault::parameter("status", detail).suggesting(nearest(word, STATUSES)));
        }
        query.states.extend(states);
    }
    Ok(())
}

/// Reads a moment.
///
/// # Errors
/// It is none.
pub fn parse_moment(text: &str) -> Result<Timestamp, FieldFault> {
    Timestamp::parse(text).ok_or_else(|| {
        let detail = "expected a moment in RFC 3339, such as 2030-01-01T08:00:00Z (a `+` in a query is written `%2B`)";
        FieldFault::parameter("", detail)
    })
}

/// Reads the length of a page.
///
/// # Errors
/// It is none.
pub fn parse_limit(text: &str) -> Result<u32, FieldFault> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
    limit.ok_or_else(|| FieldFault::parameter("limit", format!("expected a whole number from 1 to {MAX_PAGE}")))
}

/// The last task of a page as an opaque word, with the moment that pages are in the order of.
#[must_use]
fn write_cursor(at: Timestamp, id: TaskId) -> String {
    format!("{:x}-{}", at.0, id.0.simple())
}

/// Reads it back.
///
/// # Errors
/// It is none of ours.
pub fn read_cursor(text: &str) -> Result<(Timestamp, TaskId), FieldFault> {
    let parts = text.split_once('-').and_then(|(created, id)| {
        let created = i64::from_str_radix(created, 16).ok()?;
        Some((Timestamp(created), TaskId(Uuid::try_parse(id).ok()?)))
    });
    parts.ok_or_else(|| {
        FieldFault::parameter("cursor", "not a cursor of ours: send `next_cursor` of the page before, as it is")
    })
}
