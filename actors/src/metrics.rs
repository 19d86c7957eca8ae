//! What is counted and timed, for Prometheus and for people. All instruments are here.
//!
//! Each system has its own registry, so two systems in one process count apart. Counting is an atomic addition behind a short look-up:
//! any actor may do it in a handler. What is a level rather than an event (phases, depths) is written down when somebody asks for it.
//!
//! Labels are bounded: states, codes, priorities, backends, and the names of workflows and tenants up to a number. Never a task's id.

mod instruments;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::TextEncoder;
pub use prometheus::{
    Error as MetricsError,
    proto::{Metric as Sample, MetricFamily, MetricType},
};

use self::instruments::Instruments;
use crate::{
    board::{BackendStatus, PhaseName},
    domain::{
        error::TaskError,
        health::{Cause, State},
        id::BackendId,
        order::Priority,
        task::{Task, TaskState},
        tenant::Tenant,
        time::Timestamp,
    },
    ports::{
        hook_store::HookLevels,
        store::{Changed, Counts, Depth, Pausable, Pause},
    },
};

/// Workflows counted by their names; those that come after them share one.
const MAX_WORKFLOWS: usize = 100;
/// Tenants shown by their names; the others share one.
const MAX_TENANTS: usize = 100;

/// The instruments of one system. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    instruments: Instruments,
    levels: Mutex<Levels>,
    /// One writes levels down and reads everything at a time.
    reading: Mutex<()>,
}

/// What is kept up between two exact counts.
#[derive(Debug, Default)]
struct Levels {
    waiting: BTreeMap<Priority, Depth>,
    scheduled: u64,
    held: u64,
    workflows: HashSet<String>,
}

/// How a connection to a server was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It could not be made.
    Unreachable,
    /// It ended.
    Closed,
    /// It stood and brought nothing any more.
    Deaf,
    /// A prompt could not be sent.
    Unsent,
}

/// The memory of one device of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMemory {
    /// The server.
    pub backend: BackendId,
    /// The device's place in the server's list.
    pub device: usize,
    /// Bytes it has.
    pub total: u64,
    /// Bytes that are free.
    pub free: u64,
}

/// What is written down when somebody asks.
#[derive(Debug, Default)]
pub struct Picture {
    /// Now.
    pub now: Timestamp,
    /// Each backend's session.
    pub backends: BTreeMap<BackendId, BackendStatus>,
    /// What takes nothing new.
    pub pauses: Vec<Pause>,
    /// What waits for webhooks.
    pub webhooks: HookLevels,
    /// The memory of the servers that told it.
    pub memory: Vec<DeviceMemory>,
    /// What is asked of the whole service; `None` = this process cannot tell.
    pub demand: Option<Demand>,
}

/// What is asked of the whole service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// How many consumers there should be.
    pub consumers_wanted: u64,
    /// Tasks of each tenant that wait for their turn.
    pub tenants: BTreeMap<Tenant, u64>,
}

/// What was gathered, in the text format that Prometheus reads.
///
/// # Errors
/// A name or label that the format does not allow: a fault of ours.
pub fn text(families: &[MetricFamily]) -> Result<String, MetricsError> {
    TextEncoder::new().encode_to_string(families)
}

impl Metrics {
    /// A fresh set, all at zero.
    ///
    /// # Errors
    /// Two instruments have one name: a fault of this file.
    pub fn new() -> Result<Self, MetricsError> {
        let instruments = Instruments::new()?;
        Ok(Self(Arc::new(Inner { instruments, levels: Mutex::default(), reading: Mutex::default() })))
    }

    /// A change was committed, here or by whoever shares the store's process.
    pub fn changed(&self, changed: &Changed, now: Timestamp) {
        if changed.was.is_none() && changed.here {
            self.0.instruments.created.inc();
        }
        let (was, is) = (changed.was.map(Group::of), Group::of(changed.state));
        if was == Some(is) {
            return;
        }
        if changed.here
            && changed.state == TaskState::Cancelled
            && matches!(was, Some(Group::Scheduled | Group::Waiting))
        {
            // Nobody held it, so nobody settles it.
            count(&self.0.instruments.ended, &[changed.state.as_str(), "none", "(not running)"]);
        }
        let mut levels = self.levels();
        match was {
            Some(Group::Scheduled) => levels.scheduled = levels.scheduled.saturating_sub(1),
            Some(Group::Held) => levels.held = levels.held.saturating_sub(1),
            Some(Group::Waiting) => levels.left(changed.priority),
            Some(Group::Over) | None => {}
        }
        match is {
            Group::Scheduled => levels.scheduled += 1,
            Group::Held => levels.held += 1,
            Group::Waiting => levels.entered(changed.priority, now),
            Group::Over => {}
        }
    }

    /// An exact count arrived.
    pub fn counted(&self, counts: Counts, depths: &[Depth]) {
        let mut levels = self.levels();
        levels.waiting = depths.iter().map(|depth| (depth.priority, *depth)).collect();
        levels.scheduled = counts.scheduled;
        levels.held = counts.held;
    }

    /// A task is over.
    pub fn ended(&self, task: &Task) {
        let code = task.error.as_ref().filter(|_| task.state == TaskState::Failed).map_or("none", code);
        let workflow = self.levels().name_of(task.workflow.as_deref());
        count(&self.0.instruments.ended, &[task.state.as_str(), code, &workflow]);
        let stages = task.stages();
        let observe = |stage, took: Option<Duration>| {
            if let Some(took) = took {
                time(&self.0.instruments.stage, &[stage], took);
            }
        };
        // How long it lay about before somebody asked for its files again is no stage.
        if !task.uploads_only {
            observe("queued", stages.queued);
            observe("prepare", stages.prepare);
            observe("execute", stages.execute);
            observe("upload", stages.upload);
            observe("total", stages.total);
        }
    }

    /// An attempt failed, and there will be another.
    pub fn attempt_failed(&self, error: Option<&TaskError>) {
        count(&self.0.instruments.attempts_failed, &[error.map_or("none", code)]);
    }

    /// A backend was given a task, having had nothing to do for so long while one waited.
    pub fn dispatched(&self, backend: &BackendId, gap: Duration) {
        time(&self.0.instruments.gap, &[backend.as_str()], gap);
    }

    /// A connection stands.
    pub fn connected(&self, backend: &BackendId) {
        count(&self.0.instruments.connected, &[backend.as_str()]);
    }

    /// A connection was lost, or could not be made.
    pub fn lost(&self, backend: &BackendId, loss: Loss) {
        count(&self.0.instruments.lost, &[backend.as_str(), loss.as_str()]);
    }

    /// A backend is given no more tasks, for this cause.
    pub fn breaker_opened(&self, backend: &BackendId, cause: Cause) {
        count(&self.0.instruments.breaker_openings, &[backend.as_str(), cause.as_str()]);
    }

    /// A backend was tested with a prompt of its own.
    pub fn tested(&self, backend: &BackendId, passed: bool) {
        count(&self.0.instruments.canaries, &[backend.as_str(), if passed { "passed" } else { "failed" }]);
    }

    /// A running prompt has shown no progress for a while.
    pub fn quiet(&self, backend: &BackendId) {
        count(&self.0.instruments.quiet, &[backend.as_str()]);
    }

    /// A running prompt was stopped because it showed no progress for too long.
    pub fn stuck(&self, backend: &BackendId) {
        count(&self.0.instruments.stuck, &[backend.as_str()]);
    }

    /// A running prompt was asked about, because the socket said nothing of it.
    pub fn silent(&self, backend: &BackendId) {
        count(&self.0.instruments.silences, &[backend.as_str()]);
    }

    /// An output is stored.
    pub fn uploaded(&self, bytes: u64, took: Duration) {
        self.0.instruments.upload_bytes.inc_by(bytes);
        self.0.instruments.upload.observe(took.as_secs_f64());
    }

    /// A transfer failed, in a word.
    pub fn upload_failed(&self, reason: &str) {
        count(&self.0.instruments.uploads_failed, &[reason]);
    }

    /// Objects were deleted that runs which were given up left in storage.
    pub fn leftovers_deleted(&self, objects: u32) {
        self.0.instruments.leftovers.inc_by(objects.into());
    }

    /// A file was asked for at a URL of a client's; `result` in a word.
    pub fn fetched(&self, result: &str, took: Duration) {
        count(&self.0.instruments.fetches, &[result]);
        if result == "stored" {
            self.0.instruments.fetch.observe(took.as_secs_f64());
        }
    }

    /// A message to a webhook was sent, so long after what it tells of; `result` in a word.
    pub fn hook_tried(&self, result: &str, since: Duration) {
        count(&self.0.instruments.hooks, &[result]);
        if result == "delivered" {
            self.0.instruments.hook_age.observe(since.as_secs_f64());
        }
    }

    /// An actor died and is started again.
    pub fn restarted(&self, actor: &str) {
        count(&self.0.instruments.restarts, &[actor]);
    }

    /// The store committed a batch of so many operations.
    pub fn committed(&self, operations: usize, took: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "a batch is a few hundred")]
        self.0.instruments.batch.observe(operations as f64);
        self.0.instruments.commit.observe(took.as_secs_f64());
    }

    /// A write to the store was answered, having waited for its turn.
    pub fn written(&self, took: Duration) {
        self.0.instruments.write.observe(took.as_secs_f64());
    }

    /// Everything, as of now.
    #[must_use]
    pub fn gather(&self, picture: &Picture) -> Vec<MetricFamily> {
        let _one = self.0.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_levels(picture.now);
        self.write_backends(picture);
        self.write_webhooks(picture);
        self.write_demand(picture.demand.as_ref());
        self.0.instruments.registry.gather()
    }

    fn write_levels(&self, now: Timestamp) {
        let (instruments, levels) = (&self.0.instruments, self.levels());
        instruments.depth.reset();
        instruments.oldest.reset();
        for depth in levels.waiting.values() {
            let priority = depth.priority.to_string();
            set(&instruments.depth, &[&priority], whole(depth.waiting));
            set(&instruments.oldest, &[&priority], now.since(depth.oldest).as_secs_f64());
        }
        let waiting = levels.waiting.values().map(|depth| depth.waiting).sum();
        for (state, tasks) in [("scheduled", levels.scheduled), ("pending", waiting), ("processing", levels.held)] {
            set(&instruments.tasks, &[state], whole(tasks));
        }
    }

    fn write_backends(&self, picture: &Picture) {
        let instruments = &self.0.instruments;
        let is_paused = |what| picture.pauses.iter().any(|pause| pause.what == what);
        instruments.queue_paused.set(truth(is_paused(Pausable::Queue)));
        for (backend, status) in &picture.backends {
            let name = backend.as_str();
            for (phase, word) in PHASES {
                set(&instruments.phase, &[name, word], truth(status.phase == phase));
            }
            for state in State::ALL {
                set(&instruments.breaker, &[name, state.as_str()], truth(status.health.state == state));
            }
            set(&instruments.in_flight, &[name], whole(status.in_flight as u64));
            set(&instruments.remote_queue, &[name], whole(status.queue_remaining));
            set(&instruments.backend_paused, &[name], truth(is_paused(Pausable::Backend(backend.clone()))));
        }
        // A server that does not answer any more has no memory we know of.
        instruments.memory_total.reset();
        instruments.memory_free.reset();
        for DeviceMemory { backend, device, total, free } in &picture.memory {
            let device = device.to_string();
            set(&instruments.memory_total, &[backend.as_str(), &device], whole(*total));
            set(&instruments.memory_free, &[backend.as_str(), &device], whole(*free));
        }
    }

    /// A number that is not known is left out: an autoscaler changes nothing then, and 0 would stop everybody.
    fn write_demand(&self, demand: Option<&Demand>) {
        let instruments = &self.0.instruments;
        instruments.consumers_wanted.reset();
        instruments.tenant_waiting.reset();
        let Some(demand) = demand else { return };
        set(&instruments.consumers_wanted, &[], whole(demand.consumers_wanted));
        // Those that wait for most; the others together.
        let mut tenants: Vec<(&Tenant, u64)> = demand.tenants.iter().map(|(tenant, tasks)| (tenant, *tasks)).collect();
        tenants.sort_by_key(|(_, tasks)| Reverse(*tasks));
        let (shown, others) = tenants.split_at(tenants.len().min(MAX_TENANTS));
        for (tenant, tasks) in shown {
            set(&instruments.tenant_waiting, &[tenant.as_str()], whole(*tasks));
        }
        if !others.is_empty() {
            set(&instruments.tenant_waiting, &["(other)"], whole(others.iter().map(|(_, tasks)| tasks).sum()));
        }
    }

    fn write_webhooks(&self, picture: &Picture) {
        let (instruments, levels) = (&self.0.instruments, picture.webhooks);
        instruments.hooks_pending.set(whole(levels.pending));
        instruments.hooks_oldest.set(levels.oldest.map_or(0.0, |oldest| picture.now.since(oldest).as_secs_f64()));
        instruments.hooks_disabled.set(whole(levels.disabled));
    }

    fn levels(&self) -> MutexGuard<'_, Levels> {
        self.0.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const PHASES: [(PhaseName, &str); 4] = [
    (PhaseName::Disconnected, "disconnected"),
    (PhaseName::Connecting, "connecting"),
    (PhaseName::Online, "online"),
    (PhaseName::Quarantined, "quarantined"),
];

/// What a state means for the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Scheduled,
    Waiting,
    Held,
    Over,
}

impl Group {
    fn of(state: TaskState) -> Self {
        match state {
            TaskState::Scheduled => Self::Scheduled,
            TaskState::Pending => Self::Waiting,
            TaskState::Dispatching | TaskState::Executing | TaskState::Uploading => Self::Held,
            TaskState::Completed | TaskState::Failed | TaskState::Cancelled => Self::Over,
        }
    }
}

impl Levels {
    fn entered(&mut self, priority: Priority, now: Timestamp) {
        self.waiting.entry(priority).or_insert(Depth { priority, waiting: 0, oldest: now }).waiting += 1;
    }

    /// Which of them it was is not known: the oldest of the others shows with the next exact count.
    fn left(&mut self, priority: Priority) {
        if let Some(depth) = self.waiting.get_mut(&priority) {
            depth.waiting = depth.waiting.saturating_sub(1);
        }
        self.waiting.retain(|_, depth| depth.waiting > 0);
    }

    fn name_of(&mut self, workflow: Option<&str>) -> String {
        let Some(name) = workflow else { return "(graph)".to_owned() };
        if self.workflows.contains(name) || self.workflows.len() < MAX_WORKFLOWS {
            self.workflows.insert(name.to_owned());
            return name.to_owned();
        }
        "(other)".to_owned()
    }
}

impl Loss {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Closed => "closed",
            Self::Deaf => "deaf",
            Self::Unsent => "unsent",
        }
    }
}

fn code(error: &TaskError) -> &'static str {
    error.code.as_str()
}

fn truth(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

/// Prometheus knows doubles only.
#[expect(clippy::cast_precision_loss, reason = "beyond 2^53 nobody minds a rounded number")]
fn whole(number: u64) -> f64 {
    number as f64
}

// The number of labels is fixed beside each instrument, so these find what they look for.

fn count(counters: &prometheus::IntCounterVec, labels: &[&str]) {
    if let Ok(counter) = counters.get_metric_with_label_values(labels) {
        counter.inc();
    }
}

fn time(histograms: &prometheus::HistogramVec, labels: &[&str], took: Duration) {
    if let Ok(histogram) = histograms.get_metric_with_label_values(labels) {
        histogram.observe(took.as_secs_f64());
    }
}

fn set(gauges: &prometheus::GaugeVec, labels: &[&str], value: f64) {
    if let Ok(gauge) = gauges.get_metric_with_label_values(labels) {
        gauge.set(value);
    }
}

#[cfg(test)]
mod tests;
