//! What is counted and timed: as text for Prometheus, and the same as JSON for people and dashboards.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State, http::header, response::IntoResponse};
use comfyd_actors::{
    board::PhaseName,
    bridge::Bridge,
    domain,
    metrics::{DeviceMemory, MetricFamily, MetricType, Sample as Measured, text},
    ports::comfy::ComfyTransport,
};
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Service, cached::Cached, problem::Problem};

/// The format of Prometheus' text, and its version.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Servers are asked for their memory at most this often, however many scrape.
const FRESH: Duration = Duration::from_secs(10);
/// A scrape does not wait longer for a server.
const PATIENCE: Duration = Duration::from_secs(2);
/// Devices of one server that are shown.
const MAX_DEVICES: usize = 16;

/// The memory of the servers, as of the last question.
pub struct Memory(Cached<Vec<DeviceMemory>>);

impl Default for Memory {
    fn default() -> Self {
        Self(Cached::new(FRESH))
    }
}

/// Everything that is counted and timed, by name.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stats {
    /// The same names, labels and values as `/metrics` has. An instrument that measured nothing yet may be missing.
    pub metrics: BTreeMap<String, MetricView>,
}

/// One instrument.
#[derive(Debug, Serialize, ToSchema)]
pub struct MetricView {
    /// `counter`, `gauge` or `histogram`.
    #[serde(rename = "type")]
    #[schema(example = "counter")]
    pub kind: &'static str,
    /// What it means.
    pub help: String,
    /// A value for each set of labels.
    pub samples: Vec<SampleView>,
}

/// What an instrument shows for one set of labels.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct SampleView {
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// Of a counter or gauge: the number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Of a histogram: how many were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Of a histogram: what they add up to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum: Option<f64>,
    /// Of a histogram: how many were at most so large.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<BucketView>,
}

/// A step of a histogram.
#[derive(Debug, Serialize, ToSchema)]
pub struct BucketView {
    /// Its upper bound.
    pub le: f64,
    /// How many were at most so large, the smaller ones included.
    pub count: u64,
}

/// Prometheus metrics
///
/// Depth and age of the queue by priority, time per stage, ends by code, the gap between runs, backends with their memory, reconnects,
/// uploads, restarts, commits of the task store, how many consumers an autoscaler should start, and what waits of each tenant. Each process of
/// a service counts what it does itself; the depths are the whole queue's.
#[utoipa::path(
    get, path = "/metrics", tag = "service",
    responses((status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain"))
)]
pub async fn metrics(State(service): State<Arc<Service>>) -> Result<impl IntoResponse, Problem> {
    let families = gather(&service).await;
    let text = text(&families).map_err(|error| {
        tracing::error!(%error, "the metrics cannot be written");
        Problem::internal()
    })?;
    Ok(([(header::CONTENT_TYPE, TEXT)], text))
}

/// Statistics
///
/// The same as `/metrics`, as JSON.
#[utoipa::path(
    get, path = "/api/stats", tag = "service",
    responses((status = 200, description = "Every instrument", body = Stats))
)]
pub async fn stats(State(service): State<Arc<Service>>) -> Json<Stats> {
    let families = gather(&service).await;
    Json(Stats { metrics: families.iter().map(|family| (family.name().to_owned(), MetricView::of(family))).collect() })
}

async fn gather(service: &Service) -> Vec<MetricFamily> {
    let memory = service.memory.0.get(ask_memory(&service.bridge)).await;
    let demand = service.checks.demand(service).await;
    service.bridge.metrics(memory, demand)
}

/// Asks the servers that are there, all at the same time. One that does not answer soon is left out.
async fn ask_memory(bridge: &Bridge) -> Vec<DeviceMemory> {
    let known = bridge.backend_status();
    let is_online = |backend: &&Arc<dyn ComfyTransport>| {
        known.get(backend.id()).is_some_and(|status| status.phase == PhaseName::Online)
    };
    let asked = bridge.backends().iter().filter(is_online).map(|backend| async move {
        match tokio::time::timeout(PATIENCE, backend.system_stats()).await {
            Ok(Ok(stats)) => read_memory(&**backend, &stats),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

fn read_memory(backend: &dyn ComfyTransport, stats: &Value) -> Vec<DeviceMemory> {
    let of_device = |(device, told): (usize, Option<domain::memory::Memory>)| {
        let domain::memory::Memory { total, free } = told?;
        Some(DeviceMemory { backend: backend.id().clone(), device, total, free })
    };
    domain::memory::of_devices(stats).take(MAX_DEVICES).enumerate().filter_map(of_device).collect()
}

impl MetricView {
    fn of(family: &MetricFamily) -> Self {
        let kind = family.get_field_type();
        Self {
            kind: match kind {
                MetricType::COUNTER => "counter",
                MetricType::HISTOGRAM => "histogram",
                _ => "gauge",
            },
            help: family.help().to_owned(),
            samples: family.get_metric().iter().map(|sample| SampleView::of(kind, sample)).collect(),
        }
    }
}

impl SampleView {
    fn of(kind: MetricType, sample: &Measured) -> Self {
        let labels =
            sample.get_label().iter().map(|label| (label.name().to_owned(), label.value().to_owned())).collect();
        match kind {
            MetricType::COUNTER => Self { labels, value: Some(sample.get_counter().get_value()), ..Self::default() },
            MetricType::HISTOGRAM => {
                let measured = sample.get_histogram();
                // The last step, which has no bound, is the count.
                let steps = measured.get_bucket().iter().filter(|step| step.upper_bound().is_finite());
                Self {
                    labels,
                    count: Some(measured.get_sample_count()),
                    sum: Some(measured.get_sample_sum()),
                    buckets: steps
                        .map(|step| BucketView { le: step.upper_bound(), count: step.cumulative_count() })
                        .collect(),
                    ..Self::default()
                }
            }
            _ => Self { labels, value: Some(sample.get_gauge().get_value()), ..Self::default() },
        }
    }
}
