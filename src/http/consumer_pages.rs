//! What a process serves that runs tasks and has no clients: its probes, its metrics and what it is doing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::IntoResponse,
    routing::get,
};
use comfyd_actors::{
    board::Board,
    kit::slot::Slot,
    metrics::{Metrics, Picture, text},
    ports::{clock::Clock, store::Hints},
    queue::QueueMsg,
};
use serde::Serialize;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    HttpConfig,
    backends::BackendView,
    cached::Cached,
    frame, health,
    problem::{FieldFault, Problem},
};

/// A check is repeated at most this often, however many probes ask.
const FRESH: Duration = Duration::from_secs(1);
/// What does not answer in this time is not there.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the pages show.
pub struct ConsumerPages {
    /// Phases and restarts.
    pub board: Board,
    /// What is counted and timed.
    pub metrics: Metrics,
    /// The way to the tasks.
    pub hints: Arc<dyn Hints>,
    /// The queue's address.
    pub queue: Slot<QueueMsg>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

struct Service {
    pages: ConsumerPages,
    stop: CancellationToken,
    source: Cached<Option<&'static str>>,
    started: Instant,
}

/// What the consumer is doing.
#[derive(Serialize)]
struct Status {
    /// `ok`, `degraded` or `draining`.
    status: &'static str,
    /// Always `consumer`.
    role: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    /// Whether tasks can be reached.
    source: health::Part,
    backends: Vec<BackendView>,
    restarts: BTreeMap<String, u64>,
}

/// The pages as a router.
pub fn router(pages: ConsumerPages, config: Arc<HttpConfig>, stop: CancellationToken) -> Router {
    let service = Service { pages, stop, source: Cached::new(FRESH), started: Instant::now() };
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/health", get(health::health))
        .route("/api/status", get(status))
        .with_state(Arc::new(service))
        .layer(middleware::from_fn(frame::patience))
        .layer(middleware::from_fn_with_state(config, frame::frame))
}

impl Service {
    fn is_leaving(&self) -> bool {
        self.stop.is_cancelled() || self.pages.board.is_leaving()
    }

    /// What is wrong with the way to the tasks.
    async fn source(&self) -> Option<&'static str> {
        let check = async {
            match timeout(PATIENCE, self.pages.hints.pauses()).await {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the tasks cannot be reached");
                    Some("the tasks cannot be reached now; the log says why")
                }
                Err(_) => Some("whoever has the tasks does not answer"),
            }
        };
        self.source.get(check).await
    }

    fn backends(&self) -> Vec<BackendView> {
        let pauses = self.pages.board.pauses();
        self.pages.board.backends().into_iter().map(|(id, status)| BackendView::of(&id, status, &pauses)).collect()
    }
}

async fn livez(State(service): State<Arc<Service>>) -> Result<&'static str, Problem> {
    if service.pages.board.pulse().is_felt() {
        return Ok("ok");
    }
    let told = "the process does not get round to its work: start it again, nothing is lost";
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stuck", told))
}

/// Ready when it could run a task now.
async fn readyz(State(service): State<Arc<Service>>) -> Result<&'static str, Problem> {
    let source = service.source().await;
    let none = !service.pages.board.backends().values().any(comfyd_actors::board::BackendStatus::takes_work);
    let backends = none.then_some("no ComfyUI server takes work now; /api/status says why");
    let queue = service.pages.queue.get().is_none().then_some("the queue is being restarted");
    let draining = service.is_leaving().then_some("the consumer is about to stop");
    let faults: Vec<FieldFault> =
        [("/source", source), ("/backends", backends), ("/queue", queue), ("/draining", draining)]
            .into_iter()
            .filter_map(|(part, problem)| Some(FieldFault::at(part, problem?)))
            .collect();
    if faults.is_empty() {
        return Ok("ready");
    }
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "no tasks can be run now")
        .with_errors(faults)
        .retry_after(FRESH))
}

async fn metrics(State(service): State<Arc<Service>>) -> Result<impl IntoResponse, Problem> {
    let pages = &service.pages;
    let families = pages.metrics.gather(&Picture {
        now: pages.clock.now(),
        backends: pages.board.backends(),
        pauses: pages.board.pauses(),
        webhooks: pages.board.webhooks(),
        memory: Vec::new(),
        demand: None,
    });
    let text = text(&families).map_err(|error| {
        tracing::error!(%error, "the metrics cannot be written");
        Problem::internal()
    })?;
    Ok(([(header::CONTENT_TYPE, super::metrics::TEXT)], text))
}

async fn status(State(service): State<Arc<Service>>) -> Json<Status> {
    let (problem, backends) = (service.source().await, service.backends());
    let well = problem.is_none() && backends.iter().all(BackendView::takes_work);
    let status = match (service.is_leaving(), well) {
        (true, _) => "draining",
        (false, true) => "ok",
        (false, false) => "degraded",
    };
    Json(Status {
        status,
        role: "consumer",
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: service.started.elapsed().as_secs(),
        source: health::Part { ok: problem.is_none(), problem },
        backends,
        restarts: service.pages.board.restarts(),
    })
}
