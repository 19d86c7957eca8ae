//! The instruments by name, and what each means. Durations are in seconds, sizes in bytes, as is the custom of Prometheus.

use prometheus::{
    Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
    core::Collector,
};

/// From a cached result to a long video.
const STAGES: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
/// From one tick of the runtime to a backend that was forgotten.
const GAPS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// From a small picture on a local disk to a film over a slow line.
const UPLOADS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];
/// From a commit that waits for no disk to one that waits for another process.
const COMMITS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0];
/// Up to the store's largest batch.
const BATCHES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// All of them.
pub(super) struct Instruments {
    pub(super) registry: Registry,
    pub(super) created: IntCounter,
    pub(super) ended: IntCounterVec,
    pub(super) attempts_failed: IntCounterVec,
    pub(super) stage: HistogramVec,
    pub(super) tasks: GaugeVec,
    pub(super) depth: GaugeVec,
    pub(super) oldest: GaugeVec,
    pub(super) queue_paused: Gauge,
    pub(super) consumers_wanted: GaugeVec,
    pub(super) tenant_waiting: GaugeVec,
    pub(super) gap: HistogramVec,
    pub(super) phase: GaugeVec,
    pub(super) breaker: GaugeVec,
    pub(super) breaker_openings: IntCounterVec,
    pub(super) canaries: IntCounterVec,
    pub(super) quiet: IntCounterVec,
    pub(super) stuck: IntCounterVec,
    pub(super) in_flight: GaugeVec,
    pub(super) remote_queue: GaugeVec,
    pub(super) backend_paused: GaugeVec,
    pub(super) memory_total: GaugeVec,
    pub(super) memory_free: GaugeVec,
    pub(super) connected: IntCounterVec,
    pub(super) lost: IntCounterVec,
    pub(super) silences: IntCounterVec,
    pub(super) upload: Histogram,
    pub(super) upload_bytes: IntCounter,
    pub(super) uploads_failed: IntCounterVec,
    pub(super) leftovers: IntCounter,
    pub(super) fetches: IntCounterVec,
    pub(super) fetch: Histogram,
    pub(super) hooks: IntCounterVec,
    pub(super) hook_age: Histogram,
    pub(super) hooks_pending: Gauge,
    pub(super) hooks_oldest: Gauge,
    pub(super) hooks_disabled: Gauge,
    pub(super) restarts: IntCounterVec,
    pub(super) commit: Histogram,
    pub(super) batch: Histogram,
    pub(super) write: Histogram,
}

impl Instruments {
    #[rustfmt::skip]
    pub(super) fn new() -> Result<Self, Error> {
        let make = Maker(Registry::new());
        Ok(Self {
            created: make.counter("comfyd_tasks_created_total", "Tasks created.")?,
            ended: make.counters("comfyd_tasks_ended_total",
                "Tasks that ended here, by how, by the code of what they failed of, and by the workflow they were made from.", &["status", "code", "workflow"])?,
            attempts_failed: make.counters("comfyd_task_attempts_failed_total",
                "Attempts that failed and are followed by another, by code.", &["code"])?,
            stage: make.histograms("comfyd_task_stage_seconds",
                "What tasks that ended here spent in each stage of their last attempt; total is from creation to end.", &["stage"], STAGES)?,
            tasks: make.gauges("comfyd_tasks", "Tasks that are not over, by status.", &["status"])?,
            depth: make.gauges("comfyd_queue_depth", "Tasks that wait for their turn, by priority.", &["priority"])?,
            oldest: make.gauges("comfyd_queue_oldest_seconds",
                "How long the oldest waiting task of a priority has been waiting; exact every 30 seconds, an upper bound in between.", &["priority"])?,
            consumers_wanted: make.gauges("comfyd_consumers_wanted",
                "Consumers there should be for every waiting task to begin within queue.target_wait: the whole service's, the same on every API; a few seconds old. Missing while the task store does not answer.", &[])?,
            tenant_waiting: make.gauges("comfyd_tenant_waiting",
                "Tasks of a tenant that wait for their turn; a few seconds old. Beyond a hundred tenants, those for whom fewest wait are (other).", &["tenant"])?,
            queue_paused: make.gauge("comfyd_queue_paused", "1 while somebody paused the queue.")?,
            gap: make.histograms("comfyd_dispatch_gap_seconds",
                "How long a backend had nothing to do while a task waited, for each task it was given while it had nothing to do.", &["backend"], GAPS)?,
            phase: make.gauges("comfyd_backend_phase", "1 for the phase a backend's session is in.", &["backend", "phase"])?,
            breaker: make.gauges("comfyd_backend_breaker",
                "1 for the state of a backend's circuit breaker: closed = it is given tasks, open = it is not, half_open = it is being tested.", &["backend", "state"])?,
            breaker_openings: make.counters("comfyd_backend_breaker_openings_total",
                "How often a backend was found unfit for tasks, by cause.", &["backend", "cause"])?,
            canaries: make.counters("comfyd_backend_tests_total",
                "Test prompts of our own that a backend in doubt had to execute, by what came of them.", &["backend", "result"])?,
            quiet: make.counters("comfyd_runs_quiet_total",
                "Runs that showed no progress for health.quiet_after, each silence once.", &["backend"])?,
            stuck: make.counters("comfyd_runs_stuck_total",
                "Runs that were stopped because they showed no progress for their no_progress_timeout.", &["backend"])?,
            in_flight: make.gauges("comfyd_backend_in_flight", "Tasks of ours on a backend.", &["backend"])?,
            remote_queue: make.gauges("comfyd_backend_queue",
                "Prompts that run or wait on a backend, those of others included, as it told last.", &["backend"])?,
            backend_paused: make.gauges("comfyd_backend_paused", "1 while somebody paused a backend.", &["backend"])?,
            memory_total: make.gauges("comfyd_backend_vram_total_bytes", "Memory of a backend's device.", &["backend", "device"])?,
            memory_free: make.gauges("comfyd_backend_vram_free_bytes", "Free memory of a backend's device.", &["backend", "device"])?,
            connected: make.counters("comfyd_websocket_connections_total",
                "Connections made to a backend; all but the first are reconnects.", &["backend"])?,
            lost: make.counters("comfyd_websocket_losses_total",
                "Connections to a backend that were lost or could not be made, by how.", &["backend", "reason"])?,
            silences: make.counters("comfyd_websocket_silences_total",
                "Questions about a prompt of which the socket said nothing for a while.", &["backend"])?,
            upload: make.histogram("comfyd_upload_seconds", "Time from a backend's first byte of an output to its being stored.", UPLOADS)?,
            upload_bytes: make.counter("comfyd_upload_bytes_total", "Bytes of outputs stored.")?,
            uploads_failed: make.counters("comfyd_upload_failures_total", "Transfers of outputs that failed, by reason; most are tried again.", &["reason"])?,
            leftovers: make.counter("comfyd_leftovers_deleted_total", "Objects deleted that runs which were given up left in storage.")?,
            fetches: make.counters("comfyd_input_fetches_total",
                "Files that were fetched from URLs of clients, by what came of it: stored, refused, failed, busy, storage.", &["result"])?,
            fetch: make.histogram("comfyd_input_fetch_seconds", "Time from the turn of a file that was fetched to its being stored.", UPLOADS)?,
            hooks: make.counters("comfyd_webhook_tries_total",
                "Messages sent to webhooks, by what came of it: delivered, failed (it is sent again), given_up.", &["result"])?,
            hook_age: make.histogram("comfyd_webhook_delivery_seconds", "Time from what a delivered message tells of to its delivery.", STAGES)?,
            hooks_pending: make.gauge("comfyd_webhook_pending", "Messages to webhooks that are not delivered yet; counted every 10 seconds, as the next two.")?,
            hooks_oldest: make.gauge("comfyd_webhook_oldest_seconds", "How long the oldest of them has been waiting.")?,
            hooks_disabled: make.gauge("comfyd_webhook_endpoints_disabled", "Receivers that answered 410, and get nothing until somebody enables them.")?,
            restarts: make.counters("comfyd_actor_restarts_total", "Actors that died and were started again.", &["actor"])?,
            commit: make.histogram("comfyd_store_commit_seconds", "Time of a commit of the task store, its operations included.", COMMITS)?,
            batch: make.histogram("comfyd_store_batch_operations", "Operations in one commit of the task store.", BATCHES)?,
            write: make.histogram("comfyd_store_write_seconds", "Time until a write to the task store was answered, its wait for its turn included.", COMMITS)?,
            registry: make.0,
        })
    }
}

/// Makes instruments that the registry knows.
struct Maker(Registry);

impl Maker {
    fn keep<C: Collector + Clone + 'static>(&self, made: Result<C, Error>) -> Result<C, Error> {
        let instrument = made?;
        self.0.register(Box::new(instrument.clone()))?;
        Ok(instrument)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.keep(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge, Error> {
        self.keep(Gauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, Error> {
        self.keep(GaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, Error> {
        self.keep(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> Result<HistogramVec, Error> {
        self.keep(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}
