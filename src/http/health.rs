//! Whether the service is up, ready, and what it is doing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State, http::StatusCode};
use comfyd_actors::{
    bridge::Bridge,
    domain::{lane::Lane, scaling::consumers_wanted},
    metrics::Demand,
    ports::{object_store::ObjectStore, store::Counts},
    targets::Targets,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Service,
    backends::{self, BackendView},
    cached::Cached,
    control::QueueState,
    problem::{FieldFault, Problem, ProblemBody},
    view::NeedsView,
    webhooks::WebhooksView,
};

/// A check is repeated at most this often, however many probes ask.
const FRESH: Duration = Duration::from_secs(1);
/// Counting walks over all waiting tasks.
const COUNTS_FRESH: Duration = Duration::from_secs(5);
/// What does not answer in this time is not ready: three seconds after something broke, nobody is told any more that all is well.
const PATIENCE: Duration = Duration::from_secs(2);

/// The last results of the checks.
pub struct Checks {
    store: Cached<Option<&'static str>>,
    storage: Cached<Option<&'static str>>,
    counts: Cached<Option<Counts>>,
    lanes: Cached<Option<Vec<(Lane, u64)>>>,
    demand: Cached<Option<Demand>>,
}

/// The storage that tasks wait for.
fn usual(targets: &Targets) -> &dyn ObjectStore {
    targets.get(targets.usual()).map_or(targets.inputs(), |target| &target.store).as_ref()
}

impl Checks {
    /// None yet.
    pub fn new(targets: &Targets) -> Self {
        Self {
            store: Cached::new(FRESH),
            storage: Cached::new(usual(targets).check_every()),
            counts: Cached::new(COUNTS_FRESH),
            lanes: Cached::new(COUNTS_FRESH),
            demand: Cached::new(FRESH),
        }
    }
}

impl Checks {
    /// What is wrong with the task store.
    async fn store(&self, bridge: &Bridge) -> Option<&'static str> {
        let check = async {
            match tokio::time::timeout(PATIENCE, bridge.store().check()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the task store failed its check");
                    Some("the task store takes no writes now; the log says why")
                }
                Err(_) => Some("the task store does not answer"),
            }
        };
        self.store.get(check).await
    }

    /// What is wrong with the storage.
    async fn storage(&self, bridge: &Bridge) -> Option<&'static str> {
        let check = async {
            match tokio::time::timeout(PATIENCE, usual(bridge.targets()).check()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the storage failed its check");
                    Some("the storage takes no outputs now; the log says why")
                }
                Err(_) => Some("the storage does not answer"),
            }
        };
        self.storage.get(check).await
    }

    async fn counts(&self, bridge: &Bridge) -> Option<Counts> {
        let count = async { tokio::time::timeout(PATIENCE, bridge.store().counts()).await.ok()?.ok() };
        self.counts.get(count).await
    }

    /// How many tasks wait in each lane.
    async fn lanes(&self, bridge: &Bridge) -> Option<Vec<(Lane, u64)>> {
        let read = async { tokio::time::timeout(PATIENCE, bridge.store().waiting()).await.ok()?.ok() };
        self.lanes.get(read).await
    }

    async fn waiting(&self, bridge: &Bridge) -> Vec<WaitingView> {
        let lanes = self.lanes(bridge).await.unwrap_or_default();
        let unserved = lanes.into_iter().filter(|(lane, _)| !bridge.is_served(&lane.needs));
        unserved.filter_map(|(lane, tasks)| Some(WaitingView { needs: NeedsView::of(&lane.needs)?, tasks })).collect()
    }

    /// What is asked of the whole service; `None` when the store does not tell.
    pub async fn demand(&self, service: &Service) -> Option<Demand> {
        let read = async {
            let (bridge, caps) = (&service.bridge, service.config.tenants.limits.caps());
            let (counts, lanes) = tokio::join!(self.counts(bridge), self.lanes(bridge));
            let (counts, lanes) = (counts?, lanes?);
            let load = bridge.load(counts, &lanes, &caps);
            let (load, tenants) = tokio::time::timeout(PATIENCE, load).await.ok()?.ok()?;
            Some(Demand { consumers_wanted: consumers_wanted(&load, service.config.scaling), tenants })
        };
        self.demand.get(read).await
    }
}

/// Basic health.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// Always `ok`: whoever can read it is served.
    #[schema(example = "ok")]
    pub status: &'static str,
    /// The version of comfyd.
    pub version: &'static str,
}

/// What the service is doing.
#[derive(Debug, Serialize, ToSchema)]
pub struct Status {
    /// `ok`, `degraded` (something below is wrong) or `draining` (about to stop).
    #[schema(example = "ok")]
    pub status: &'static str,
    /// The version of comfyd.
    pub version: &'static str,
    /// Seconds since the start of the HTTP server.
    pub uptime_seconds: u64,
    /// Nothing new is started: somebody paused the queue.
    pub paused: bool,
    /// Tasks that are not over; a few seconds old. Null when they could not be counted.
    pub queue: Option<QueueCounts>,
    /// Consumers there should be for every waiting task to begin within `queue.target_wait`, for autoscalers; the same on every API, a few
    /// seconds old. Null when it could not be worked out.
    pub consumers_wanted: Option<u64>,
    /// What tasks wait for that no ComfyUI server which is online has; a few seconds old.
    pub waiting_for: Vec<WaitingView>,
    /// Where tasks are kept.
    pub store: Part,
    /// Where outputs are kept.
    pub storage: Part,
    /// Each ComfyUI server.
    pub backends: Vec<BackendView>,
    /// What waits for webhooks; a few seconds old.
    pub webhooks: WebhooksView,
    /// Restarts of each actor since the start of the process.
    pub restarts: BTreeMap<String, u64>,
    /// The named workflows.
    pub workflows: Vec<String>,
}

/// Tasks that are not over.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct QueueCounts {
    /// Waiting for their time, or for another attempt.
    pub scheduled: u64,
    /// Waiting for their turn.
    pub pending: u64,
    /// Being worked on.
    pub processing: u64,
}

impl From<Counts> for QueueCounts {
    fn from(Counts { scheduled, pending, held }: Counts) -> Self {
        Self { scheduled, pending, processing: held }
    }
}

/// Tasks that no server can run now.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WaitingView {
    /// What they need.
    #[serde(flatten)]
    pub needs: NeedsView,
    /// How many wait for it.
    pub tasks: u64,
}

/// A part of the service.
#[derive(Debug, Serialize, ToSchema)]
pub struct Part {
    /// Whether it can be used.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<&'static str>,
}

/// Basic health
#[utoipa::path(get, path = "/api/health", tag = "service", responses((status = 200, description = "The process serves", body = Health)))]
pub async fn health() -> Json<Health> {
    Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// Liveness probe
///
/// Looks at nothing but the process itself: one that does not pass has to be started again, and no outage of anything else is mended by
/// that.
#[utoipa::path(
    get, path = "/livez", tag = "service",
    responses(
        (status = 200, description = "The process gets round to its work", body = String),
        (status = 503, description = "It is stuck: start it again, nothing is lost", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn livez(State(service): State<Arc<Service>>) -> Result<&'static str, Problem> {
    if service.bridge.is_alive() {
        return Ok("ok");
    }
    let told = "the process does not get round to its work: start it again, nothing is lost";
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stuck", told))
}

/// Readiness probe
///
/// Ready when new tasks can be stored, outputs too, and the process is not about to stop. A ComfyUI server that is away does not
/// count: tasks wait for it. From the moment the process is asked to stop it is not ready, and it says so until it has stopped.
#[utoipa::path(
    get, path = "/readyz", tag = "service",
    responses(
        (status = 200, description = "Takes tasks", body = String),
        (status = 503, description = "Takes no tasks now; `errors` says why", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn readyz(State(service): State<Arc<Service>>) -> Result<&'static str, Problem> {
    let (store, storage) = tokio::join!(service.checks.store(&service.bridge), service.checks.storage(&service.bridge));
    let queue = (!service.bridge.has_queue()).then_some("the queue is being restarted");
    let draining = service.is_leaving().then_some("the service is about to stop");
    let faults: Vec<FieldFault> =
        [("/store", store), ("/storage", storage), ("/queue", queue), ("/draining", draining)]
            .into_iter()
            .filter_map(|(part, problem)| Some(FieldFault::at(part, problem?)))
            .collect();
    if faults.is_empty() {
        return Ok("ready");
    }
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "no tasks are taken now")
        .with_errors(faults)
        .retry_after(FRESH))
}

/// Detailed status
#[utoipa::path(get, path = "/api/status", tag = "service", responses((status = 200, description = "Every part", body = Status)))]
pub async fn status(State(service): State<Arc<Service>>) -> Json<Status> {
    let (checks, bridge) = (&service.checks, &service.bridge);
    let (store, storage, queue, waiting_for, demand) = tokio::join!(
        checks.store(bridge),
        checks.storage(bridge),
        checks.counts(bridge),
        checks.waiting(bridge),
        checks.demand(&service)
    );
    let pauses = bridge.pauses();
    let backends = backends::views(bridge, &pauses);
    let all_online = backends.iter().all(BackendView::takes_work);
    let status = match (service.is_leaving(), store.is_none() && storage.is_none() && all_online) {
        (true, _) => "draining",
        (false, true) => "ok",
        (false, false) => "degraded",
    };
    let part = |problem: Option<&'static str>| Part { ok: problem.is_none(), problem };
    Json(Status {
        status,
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: service.started.elapsed().as_secs(),
        paused: QueueState::of(&pauses).paused,
        queue: queue.map(QueueCounts::from),
        consumers_wanted: demand.map(|demand| demand.consumers_wanted),
        waiting_for,
        store: part(store),
        storage: part(storage),
        backends,
        webhooks: WebhooksView::of(bridge.hook_levels()),
        restarts: bridge.restarts(),
        workflows: service.workflows.names(),
    })
}
