//! What failed for good: looked through, and asked for again.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
};
use comfyd_actors::{
    bridge::{Replay, Replayed, Wish},
    domain::{failure::Class, id::TaskId, time::Timestamp},
    ports::store::FailedQuery,
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Service,
    body::{self, Fields},
    problem::{FieldFault, Problem, ProblemBody, each_parameter},
    tasks::{PAGE, TaskPage, parse_limit, parse_moment, read_cursor},
};
use crate::config::nearest;

const PARAMETERS: [&str; 6] = ["class", "workflow", "failed_after", "failed_before", "limit", "cursor"];
const FIELDS: [&str; 8] = ["task_ids", "class", "workflow", "failed_after", "failed_before", "all", "limit", "only"];
/// Room for as many ids as may be named, and then some.
const MAX_BODY: u64 = 64 << 10;
/// Most tasks that are asked for again at once.
const MAX_REPLAY: usize = 1_000;
const REPLAY: u32 = 100;

/// List failed tasks
///
/// Every task that failed and is not tried again by itself, the newest failures first, whatever age the tasks have. They are kept for
/// `retention.failed`.
#[utoipa::path(
    get, path = "/api/dead-letters", tag = "tasks", operation_id = "dead_letters",
    params(
        ("class" = Option<String>, Query, description = "Only failures that are treated like one of these, comma-separated: validation, permanent, transient, out_of_memory, backend_fault, poison, timeout, storage", example = "out_of_memory,poison"),
        ("workflow" = Option<String>, Query, description = "Only tasks of this named workflow", example = "text-to-image"),
        ("failed_after" = Option<String>, Query, description = "Only tasks that failed at this moment (RFC 3339) or later", example = "2030-01-01T08:00:00Z"),
        ("failed_before" = Option<String>, Query, description = "Only tasks that failed before this moment (RFC 3339)"),
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
    let mut query = parse_query(&parameters)?;
    let limit = query.limit as usize;
    // One more than asked for tells whether there is a next page.
    query.limit += 1;
    let tasks = service.bridge.failed(query).await?;
    Ok(Json(TaskPage::of(tasks, limit, |task| task.finished_at)))
}

/// Which failed tasks to run again. One of `task_ids`, a filter, or `"all": true`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct ReplayTasks {
    /// These, failed or cancelled; at most 1,000.
    task_ids: Option<Vec<String>>,
    /// Failures that are treated like one of these.
    class: Option<Vec<String>>,
    /// Tasks of this named workflow.
    workflow: Option<String>,
    /// Tasks that failed at this moment or later.
    #[schema(format = DateTime)]
    failed_after: Option<String>,
    /// Tasks that failed before this moment.
    #[schema(format = DateTime)]
    failed_before: Option<String>,
    /// Whatever failed.
    all: Option<bool>,
    /// Most tasks to run again: 1 to 1,000, without it 100.
    limit: Option<u32>,
    /// Only this part: `uploads`, the files that their runs left on the servers.
    only: Option<super::control::RetryPart>,
}

/// What was asked for again.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayReport {
    /// How many are under way again.
    pub replayed: usize,
    /// Which, the oldest failures first.
    pub task_ids: Vec<String>,
    /// Those that could not be.
    pub not_replayed: Vec<NotReplayed>,
    /// There are more like that: repeat the request.
    pub more: bool,
    /// Why it ended early, in words.
    pub stopped: Option<String>,
}

/// A task that cannot run again.
#[derive(Debug, Serialize, ToSchema)]
pub struct NotReplayed {
    /// Which.
    pub task_id: String,
    /// Why.
    pub reason: String,
}

/// Run failed tasks again
///
/// The tasks named, or those among the failed that fit the filter, run again from the beginning with all their attempts, as
/// `POST /api/tasks/{task_id}/retry` does for one. What fails again comes back to the list as a newer failure. With
/// `{"only": "uploads"}` nothing runs: the files that their runs left are stored. When the queue is full it ends early and says so; tasks of a
/// tenant that has as many waiting as it may stay as they are.
#[utoipa::path(
    post, path = "/api/dead-letters/replay", tag = "tasks", operation_id = "replay_dead_letters",
    request_body(content = ReplayTasks, example = json!({"class": ["out_of_memory"], "failed_after": "2030-01-01T08:00:00Z"})),
    responses(
        (status = 200, description = "What was done", body = ReplayReport),
        (status = 400, description = "Not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not sent as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty fields, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full; nothing was changed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn replay(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<ReplayReport>), Problem> {
    let bytes = body::read(&headers, body, service.config.body().at_most(MAX_BODY)).await?;
    let Wanted { what, wish } = Wanted::parse(&bytes)?;
    let outcome = service.bridge.replay(what, wish).await?;
    tracing::info!(?wish, replayed = outcome.tasks.len(), more = outcome.more, "failed tasks asked for again");
    Ok((StatusCode::OK, Json(ReplayReport::of(outcome))))
}

struct Wanted {
    what: Replay,
    wish: Wish,
}

impl Wanted {
    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let mut ids: Option<Vec<TaskId>> = None;
        let mut query = FailedQuery { limit: REPLAY, ..FailedQuery::default() };
        let (mut filtered, mut wish) = (false, Wish::Again);
        Fields::parse(bytes)?.each(&FIELDS, |name, value| {
            filtered |= !matches!(name, "task_ids" | "limit" | "only" | "all");
            match name {
                "task_ids" => ids = Some(read_ids(&value)?),
                "class" => query.classes = read_classes(&value)?,
                "workflow" => query.workflow = Some(text(&value)?.to_owned()),
                "failed_after" => query.failed_from = Some(moment(&value)?),
                "failed_before" => query.failed_until = Some(moment(&value)?),
                "all" => filtered |= value.as_bool().ok_or("expected true or false")?,
                "limit" => query.limit = read_limit(&value)?,
                _ => {
                    wish = Wish::UploadsAgain;
                    (value.as_str() == Some("uploads")).then_some(()).ok_or("expected \"uploads\"")?;
                }
            }
            Ok(())
        })?;
        match (ids, filtered) {
            (Some(_), true) => Err(refuse("/task_ids", "either the tasks are named or there is a filter, not both")),
            (Some(ids), false) => Ok(Self { what: Replay::Tasks(ids), wish }),
            (None, true) => Ok(Self { what: Replay::Failed(query), wish }),
            (None, false) => Err(refuse(
                "",
                "say which: `task_ids`, a filter (`class`, `workflow`, `failed_after`, `failed_before`), or `\"all\": true`",
            )),
        }
    }
}

fn refuse(pointer: &str, detail: &str) -> Problem {
    Problem::invalid(vec![FieldFault::at(pointer, detail)])
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "expected a text".to_owned())
}

fn moment(value: &Value) -> Result<Timestamp, String> {
    parse_moment(text(value)?).map_err(|fault| fault.detail)
}

fn read_limit(value: &Value) -> Result<u32, String> {
    let limit = value.as_u64().and_then(|limit| u32::try_from(limit).ok());
    let fits = |limit: &u32| (1..=MAX_REPLAY).contains(&(*limit as usize));
    limit.filter(fits).ok_or_else(|| format!("expected a whole number from 1 to {MAX_REPLAY}"))
}

fn read_ids(value: &Value) -> Result<Vec<TaskId>, String> {
    let list = value.as_array().filter(|list| (1..=MAX_REPLAY).contains(&list.len()));
    let list = list.ok_or_else(|| format!("expected a list of 1 to {MAX_REPLAY} task ids"))?;
    let read = |id: &Value| id.as_str().and_then(|id| id.parse().ok()).ok_or_else(|| format!("{id} is no task id"));
    let mut ids = list.iter().map(read).collect::<Result<Vec<TaskId>, String>>()?;
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

fn read_classes(value: &Value) -> Result<Vec<Class>, String> {
    let words = match value {
        Value::Array(words) if !words.is_empty() => words.iter().map(text).collect::<Result<Vec<_>, _>>()?,
        Value::String(words) => words.split(',').collect(),
        _ => return Err("expected a class or a list of classes".to_owned()),
    };
    words.into_iter().map(|word| parse_class(word.trim()).map_err(|fault| fault.detail)).collect()
}

fn parse_class(word: &str) -> Result<Class, FieldFault> {
    let known = Class::ALL.map(Class::as_str);
    Class::parse(word).ok_or_else(|| {
        let detail = format!("`{word}` is no class of failures; there are {}", known.join(", "));
        FieldFault::parameter("class", detail).suggesting(nearest(word, known))
    })
}

fn parse_query(parameters: &[(String, String)]) -> Result<FailedQuery, Problem> {
    let mut query = FailedQuery { limit: PAGE, ..FailedQuery::default() };
    let faults = each_parameter(parameters, &PARAMETERS, |name, value| {
        match name {
            "class" => {
                let classes = value.split(',').map(|word| parse_class(word.trim()));
                query.classes.extend(classes.collect::<Result<Vec<_>, _>>()?);
            }
            "workflow" => query.workflow = Some(value.to_owned()),
            "failed_after" => query.failed_from = Some(parse_moment(value)?),
            "failed_before" => query.failed_until = Some(parse_moment(value)?),
            "limit" => query.limit = parse_limit(value)?,
            _ => query.before = Some(read_cursor(value)?),
        }
        Ok(())
    });
    if faults.is_empty() { Ok(query) } else { Err(Problem::invalid(faults)) }
}

impl ReplayReport {
    fn of(outcome: Replayed) -> Self {
        let Replayed { tasks, refused, more, stopped } = outcome;
        let refused =
            refused.into_iter().map(|(id, why)| NotReplayed { task_id: id.to_string(), reason: why.to_string() });
        Self {
            replayed: tasks.len(),
            task_ids: tasks.iter().map(ToString::to_string).collect(),
            not_replayed: refused.collect(),
            more,
            stopped: stopped.map(|error| error.to_string()),
        }
    }
}
