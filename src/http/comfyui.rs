//! What clients may ask of the ComfyUI servers behind us: their queues, their machines, an end to what runs.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{Json, body::Body, extract::State, http::HeaderMap};
use comfyd_actors::{
    board::Elsewhere,
    domain::id::TaskId,
    ports::comfy::{ComfyError, ComfyTransport},
};
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Service,
    body::{self, Fields},
    problem::{Problem, ProblemBody},
};

/// A person looks at these: a server that needs longer is shown as away.
const PATIENCE: Duration = Duration::from_secs(5);
/// An interrupt's body holds one id.
const MAX_BODY: u64 = 4 << 10;

/// The queues of all servers.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueStatus {
    /// Always true; failures are problems.
    pub success: bool,
    /// All servers together.
    pub data: QueueData,
    /// Each server by itself.
    pub backends: Vec<BackendQueue>,
}

/// Prompts on ComfyUI servers, ours and those of others.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct QueueData {
    /// Number of prompts that run.
    pub running: usize,
    /// Number of prompts that wait on the servers.
    pub pending: usize,
    /// Both.
    pub total: usize,
    /// ComfyUI's own list of what runs: number, id, graph, extra data, output nodes.
    #[schema(value_type = Vec<Vec<Value>>)]
    pub queue_running: Vec<Value>,
    /// ComfyUI's own list of what waits, likewise.
    #[schema(value_type = Vec<Vec<Value>>)]
    pub queue_pending: Vec<Value>,
}

/// One server's queue.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackendQueue {
    /// The server.
    pub backend: String,
    /// Number of prompts that run.
    pub running: Option<usize>,
    /// Number of prompts that wait.
    pub pending: Option<usize>,
    /// Why it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The machines of all servers.
#[derive(Debug, Serialize, ToSchema)]
pub struct SystemStats {
    /// Always true; failures are problems.
    pub success: bool,
    /// ComfyUI's own `/system_stats`, of the first server that answered.
    #[schema(value_type = Object)]
    pub data: Value,
    /// Each server by itself.
    pub backends: Vec<BackendStats>,
}

/// One server's machine.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackendStats {
    /// The server.
    pub backend: String,
    /// ComfyUI's own `/system_stats`.
    #[schema(value_type = Option<Object>)]
    pub data: Option<Value>,
    /// Why it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What was interrupted.
#[derive(Debug, Serialize, ToSchema)]
pub struct Interrupted {
    /// Always true; failures are problems.
    pub success: bool,
    /// What is being cancelled.
    pub data: InterruptedTasks,
}

/// Tasks that are being cancelled.
#[derive(Debug, Serialize, ToSchema)]
pub struct InterruptedTasks {
    /// Their ids; empty when nothing ran.
    pub task_ids: Vec<String>,
}

/// Which task to interrupt.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct Interrupt {
    /// Only this one; without it, all of ours that run.
    task_id: Option<String>,
}

/// See ComfyUI's queues
#[utoipa::path(
    get, path = "/api/comfyui-queue-status", tag = "comfyui",
    responses(
        (status = 200, description = "All servers together, and each by itself", body = QueueStatus),
        (status = 503, description = "No server answered", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn queue_status(State(service): State<Arc<Service>>) -> Result<Json<QueueStatus>, Problem> {
    let answers = ask_all(&service, |backend| async move { backend.queue().await }).await?;
    let mut data = QueueData::default();
    let mut backends = Vec::with_capacity(answers.len());
    for (backend, answer) in answers {
        let (running, pending, error) = match answer {
            Ok(mut queue) => {
                let (running, pending) =
                    (take_list(&mut queue, "queue_running"), take_list(&mut queue, "queue_pending"));
                let counts = (Some(running.len()), Some(pending.len()), None);
                data.queue_running.extend(running);
                data.queue_pending.extend(pending);
                counts
            }
            Err(error) => (None, None, Some(error)),
        };
        backends.push(BackendQueue { backend, running, pending, error });
    }
    data.running = data.queue_running.len();
    data.pending = data.queue_pending.len();
    // Consumers tell how much there is, and not what.
    for (backend, Elsewhere { status, .. }) in service.bridge.elsewhere() {
        let remaining = usize::try_from(status.queue_remaining).unwrap_or(usize::MAX);
        let (running, pending) = (remaining.min(1), remaining.saturating_sub(1));
        data.running += running;
        data.pending += pending;
        let (running, pending) = (Some(running), Some(pending));
        backends.push(BackendQueue { backend: backend.to_string(), running, pending, error: status.problem });
    }
    data.total = data.running + data.pending;
    Ok(Json(QueueStatus { success: true, data, backends }))
}

fn take_list(queue: &mut Value, name: &str) -> Vec<Value> {
    match queue.get_mut(name).map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// See ComfyUI's machines
#[utoipa::path(
    get, path = "/api/comfyui-system-stats", tag = "comfyui",
    responses(
        (status = 200, description = "The first server that answered, and each by itself", body = SystemStats),
        (status = 503, description = "No server answered", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn system_stats(State(service): State<Arc<Service>>) -> Result<Json<SystemStats>, Problem> {
    let answers = ask_all(&service, |backend| async move { backend.system_stats().await }).await?;
    let own = answers.into_iter().map(|(backend, answer)| match answer {
        Ok(data) => BackendStats { backend, data: Some(data), error: None },
        Err(error) => BackendStats { backend, data: None, error: Some(error) },
    });
    let others = service.bridge.elsewhere().into_iter().map(|(backend, Elsewhere { status, stats, .. })| {
        let error = if stats.is_some() {
            None
        } else {
            status.problem.or_else(|| Some("its consumer has not told yet".into()))
        };
        BackendStats { backend: backend.to_string(), data: stats, error }
    });
    let backends: Vec<BackendStats> = own.chain(others).collect();
    let data = backends.iter().find_map(|backend| backend.data.clone()).unwrap_or_default();
    Ok(Json(SystemStats { success: true, data, backends }))
}

/// A server's name and its answer, or why there is none.
type Answer = (String, Result<Value, String>);

/// Asks all servers at the same time.
async fn ask_all<F, Asked>(service: &Service, ask: F) -> Result<Vec<Answer>, Problem>
where
    F: Fn(Arc<dyn ComfyTransport>) -> Asked,
    Asked: Future<Output = Result<Value, ComfyError>>,
{
    let answers: Vec<Answer> = join_all(service.bridge.backends().iter().map(|backend| {
        let asked = tokio::time::timeout(PATIENCE, ask(backend.clone()));
        let name = backend.id().to_string();
        async move {
            let answer = match asked.await {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err("the ComfyUI server did not answer in time".to_owned()),
            };
            (name, answer)
        }
    }))
    .await;
    if answers.iter().any(|(_, answer)| answer.is_ok()) || !service.bridge.elsewhere().is_empty() {
        return Ok(answers);
    }
    if answers.is_empty() {
        let detail = "no consumer with a ComfyUI server is there: start `comfyd consumer`; tasks wait for it";
        return Err(Problem::unavailable("comfyui_unavailable", detail));
    }
    let reasons = answers.into_iter().filter_map(|(name, answer)| Some(format!("{name}: {}", answer.err()?)));
    let detail = format!("no ComfyUI server answered: {}", reasons.collect::<Vec<_>>().join("; "));
    Err(Problem::unavailable("comfyui_unavailable", detail))
}

/// Interrupt what runs
///
/// Cancels the tasks of this service that run now, or exactly the one named. Prompts that others sent to the same ComfyUI server
/// are never touched.
#[utoipa::path(
    post, path = "/api/comfyui-interrupt", tag = "comfyui",
    request_body(content = Option<Interrupt>, example = json!({"task_id": "01982d2c-7a4e-7bb0-9d1b-6a0f2f5f9c11"})),
    responses(
        (status = 200, description = "What is being cancelled", body = Interrupted),
        (status = 400, description = "Not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such task", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The task cannot be changed now", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not sent as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty fields, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn interrupt(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Interrupted>, Problem> {
    let task_ids: Vec<TaskId> = match wanted_task(&service, &headers, body).await? {
        Some(id) => {
            let task = service.bridge.cancel(id).await?;
            if task.cancel_requested_at.is_some() { vec![id] } else { Vec::new() }
        }
        None => service.bridge.interrupt_running().await?,
    };
    tracing::info!(tasks = task_ids.len(), "interruption asked for");
    let task_ids = task_ids.iter().map(ToString::to_string).collect();
    Ok(Json(Interrupted { success: true, data: InterruptedTasks { task_ids } }))
}

/// The task named in the body, if there is one.
async fn wanted_task(service: &Service, headers: &HeaderMap, body: Body) -> Result<Option<TaskId>, Problem> {
    let bytes = body::read_optional(headers, body, service.config.body().at_most(MAX_BODY)).await?;
    let mut wanted = None;
    if !bytes.is_empty() {
        Fields::parse(&bytes)?.each(&["task_id"], |_, value| {
            wanted = Some(value.as_str().ok_or("expected a task's id as text")?.to_owned());
            Ok(())
        })?;
    }
    wanted.map(|id| super::tasks::parse_id(&id)).transpose()
}
