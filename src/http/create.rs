//! `POST /api/tasks/create`: reads the request by hand, so that a client is told everything that is wrong with it at once.

mod reading;

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comfyd_actors::{
    domain::{
        task::Task,
        workflow::{Reference, Workflow},
    },
    ports::store::Created,
};
use serde_json::Value;
use utoipa::ToSchema;

pub use self::reading::{at_most, parse, priority};
use super::{
    Service, base_url,
    body::{self, Fields},
    inline,
    output_options::OutputOptionsBody,
    problem::{Problem, ProblemBody},
    storage::{self, StorageBody},
    tasks::{self, patience},
    tenant,
    validate::validate,
    view::TaskSummary,
    webhook_url::{self, WebhookUrl},
    workflows::not_found,
};
use crate::{crash_point, workflows::Found};

// Documents the body only: it is read field by field, see `reading`.
/// A task to be created.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct CreateTask {
    /// The name of a workflow (`name@3` is exactly that version), or a graph in ComfyUI's API format.
    #[schema(value_type = WorkflowOrGraph)]
    workflow: Value,
    /// Of a named workflow: its inputs by name. Of a graph: values by `"<node id>.<field>"`. A file is a `ref` of `POST /api/inputs`, a URL, a
    /// data URI or `{"base64": "..."}`; the same stands in a graph's own fields. A URL is fetched when the task is about to run, from public
    /// addresses only. In a field of which no server says that it loads a file, write `comfyd://url/<URL>`.
    #[schema(value_type = Option<Object>)]
    inputs: Option<Value>,
    /// From -100 (last) to 100 (first), or `low` (-10), `normal` (0), `high` (10).
    #[schema(value_type = Option<PriorityOrWord>)]
    priority: Option<Value>,
    /// Not before this moment (RFC 3339); one that has passed is now. Not together with `delay`.
    #[schema(example = "2030-01-01T08:00:00+01:00", format = DateTime)]
    run_at: Option<String>,
    /// Not before this long from now: "90s", "5m", "1h 30m", at most 366 days. Not together with `run_at`.
    #[schema(example = "10m")]
    delay: Option<String>,
    /// How often a failing task is tried.
    #[schema(minimum = 1, maximum = 100)]
    max_attempts: Option<i32>,
    /// Longest time one attempt may execute: "90s", "5m", "1h 30m".
    #[schema(example = "10m")]
    timeout: Option<String>,
    /// Longest time a run may show no sign of progress, before it is interrupted and tried again, elsewhere if that can be. Without it what the
    /// workflow says, else the service (15 minutes, unless its operator chose otherwise). Loading a large model is silent.
    #[schema(example = "5m")]
    no_progress_timeout: Option<String>,
    /// Run what the server takes of a graph it does not take whole, instead of failing.
    allow_partial: Option<bool>,
    /// Have samplers make pictures of unfinished work, for who watches the task with `previews=true`. Costs the server a little per step.
    previews: Option<bool>,
    /// Which outputs are kept, and as what.
    output_options: Option<OutputOptionsBody>,
    /// Who is told when it is over, or of what happens to it.
    webhook_url: Option<WebhookUrl>,
    /// Where they are kept.
    storage: Option<StorageBody>,
    /// What the consumer that runs it must be labelled with (`consumer.labels`), all of them: at most 16. It waits until there is one.
    #[schema(max_items = 16, example = json!(["a100"]))]
    labels: Option<Vec<String>>,
    /// Your own data, at most 64 KiB; comes back with the task.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
}

/// The name of a workflow, or a graph.
#[derive(ToSchema)]
#[schema(as = WorkflowOrGraph)]
#[serde(untagged)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub enum WorkflowOrGraph {
    /// A name.
    Name(String),
    /// A graph in API format.
    #[schema(value_type = Object)]
    Graph(Value),
}

/// A number or a word.
#[derive(ToSchema)]
#[schema(as = PriorityOrWord)]
#[serde(untagged)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub enum PriorityOrWord {
    /// From -100 to 100.
    Number(i32),
    /// `low`, `normal` or `high`.
    Word(String),
}

/// Create a task
///
/// Stored durably when this answers. Send an `Idempotency-Key` to repeat a request safely; send `Prefer: wait=60` to get the
/// finished task at once when it ends in time.
#[utoipa::path(
    post, path = "/api/tasks/create", tag = "tasks",
    request_body(content = CreateTask, examples(
        ("a named workflow" = (value = json!({"workflow": "text-to-image", "inputs": {"prompt": "a lighthouse at dawn", "seed": 42}}))),
        ("a graph" = (value = json!({"workflow": {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "comfyd"}}
        }, "inputs": {"1.color": 65280}, "priority": "high", "timeout": "5m", "metadata": {"order": 7}})))
    )),
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; the same key and body find the first task"),
        ("Prefer" = Option<String>, Header, description = "wait=N: answer with the finished task if it ends within N seconds (at most 60)")
    ),
    responses(
        (status = 202, description = "Accepted and stored", body = TaskSummary, headers(("Location" = String, description = "The task"))),
        (status = 200, description = "The task an earlier request with this key made (`Idempotent-Replayed: true`), or the finished task (`Prefer`)", body = TaskSummary),
        (status = 400, description = "Not JSON, or the tenant is missing or badly named (`tenants.header`)", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No workflow of this name, or no such version", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not sent as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty fields, or a graph that no ComfyUI server can run (`invalid_graph`), all faults listed; or the key was used for another body", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full, or its tenant has as many tasks waiting as it may (`tenant_full`); nothing was stored", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Shutting down, the task store is away, or the workflow is broken", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn create(State(service): State<Arc<Service>>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let body = body::read(&headers, body, service.config.body()).await?;
    let subject = match aside(&body, workflow_name).await? {
        Some(name) => {
            let reference = Reference::parse(&name);
            let found = service.workflows.find(&reference).await;
            Subject::Named(found.map_err(|error| not_found(error, &reference, Some("/workflow"))))
        }
        None => Subject::Body,
    };
    submit(&service, &headers, body, subject).await
}

/// Stores the task a body asks for and answers as its client prefers.
///
/// # Errors
/// As [`parse`], and whatever the queue says.
pub async fn submit(
    service: &Service,
    headers: &HeaderMap,
    body: Bytes,
    subject: Subject,
) -> Result<Response, Problem> {
    crash_point::reach("create/received");
    let tenant = tenant::read(&service.config.tenants, headers)?;
    let key = headers.get("idempotency-key").cloned();
    let (workflow, terms) = (subject.workflow(), service.file_terms());
    let (request, files) = aside(&body, move |body| parse(body, key.as_ref(), subject, terms)).await?;
    storage::admit(service.bridge.targets(), &request.payload)?;
    let request = webhook_url::or_default(&service.config, request);
    let request = tenant::mark(request, tenant);
    let request = validate(service, request, workflow.as_deref()).await?;
    files.settle(service).await?;
    let (task, replayed) = match service.bridge.submit(request).await? {
        Created::New(task) => (task, false),
        Created::Replayed(task) => (task, true),
        Created::KeyReused => return Err(key_reused()),
    };
    crash_point::reach("create/answering");
    tasks::note(task.id);
    let place = location(&task.id.to_string());
    let mut response = match patience(headers) {
        Some(wait) => finished_or_accepted(service, headers, (task, replayed), wait).await,
        _ => accepted(task, replayed),
    };
    response.headers_mut().extend(place);
    if replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn accepted(task: Task, replayed: bool) -> Response {
    let status = if replayed { StatusCode::OK } else { StatusCode::ACCEPTED };
    (status, Json(TaskSummary::of(task))).into_response()
}

/// Waits for the end. The task is stored already, so a store that is away now must not make the client send it again.
async fn finished_or_accepted(
    service: &Service,
    headers: &HeaderMap,
    (task, replayed): (Task, bool),
    wait: Duration,
) -> Response {
    match tasks::wait_for(service, task.id, wait).await {
        Ok((record, progress)) if record.task.state.is_final() => {
            let view = inline::full_view(service, record, progress, &base_url(&service.config, headers)).await;
            ([("preference-applied", "wait")], Json(view)).into_response()
        }
        Ok((record, _)) => accepted(record.task, replayed),
        Err(_) => accepted(task, replayed),
    }
}

fn location(id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("/api/tasks/{id}")) {
        headers.insert(header::LOCATION, value);
    }
    headers
}

fn key_reused() -> Problem {
    let detail = "this Idempotency-Key was used for a request with another body; nothing was stored";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", detail)
}

/// Reads a large body on a thread of its own, so that it does not keep the small ones waiting.
async fn aside<T: Send + 'static>(
    body: &Bytes,
    read: impl FnOnce(&[u8]) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    /// About a millisecond of parsing.
    const SMALL: usize = 256 << 10;
    if body.len() <= SMALL {
        return read(body);
    }
    let body = body.clone();
    tokio::task::spawn_blocking(move || read(&body)).await.unwrap_or_else(|_| Err(Problem::internal()))
}

/// What a request is about.
pub enum Subject {
    /// Its body says so: a graph.
    Body,
    /// Its body names a workflow, and this is what was found.
    Named(Result<Found, Problem>),
    /// Its path does.
    Path(Found),
}

impl Subject {
    fn workflow(&self) -> Option<Arc<Workflow>> {
        match self {
            Self::Named(Ok(found)) | Self::Path(found) => Some(found.workflow.clone()),
            Self::Named(Err(_)) | Self::Body => None,
        }
    }
}

/// The workflow a body names, if it does.
fn workflow_name(body: &[u8]) -> Result<Option<String>, Problem> {
    let fields = Fields::parse(body)?.0;
    let raw = fields.iter().find(|(field, _)| field == "workflow").map(|(_, raw)| raw.get());
    Ok(raw.and_then(|raw| serde_json::from_str(raw).ok()))
}
