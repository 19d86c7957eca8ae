//! A task as clients see it.

use std::collections::BTreeMap;

use comfyd_actors::domain::{
    artifact::{Artifact, Facts},
    error::TaskError,
    event::Stage,
    failure::Next,
    lane::{ListValue, Needs},
    progress::{NodeTiming, Progress},
    task::{Stages, Task, TaskState},
    time::{Timestamp, millis},
    webhook::{Webhook, event_type},
};
use comfyd_actors::{
    bridge::Standing,
    ports::store::TaskRecord,
    watch::{FAR, Place},
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use utoipa::ToSchema;

/// A task without its inputs and results: in lists, and as the answer to its creation.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskSummary {
    /// Its name, a `UUIDv7`.
    #[schema(example = "01982d2c-7a4e-7bb0-9d1b-6a0f2f5f9c11")]
    pub task_id: String,
    /// `pending`, `processing`, `completed`, `failed` or `cancelled`.
    #[schema(example = "pending")]
    pub status: &'static str,
    /// Finer: `scheduled`, `queued`, `preparing`, `executing`, `uploading`, `cancelling`, or as the status.
    #[schema(example = "queued")]
    pub stage: &'static str,
    /// The named workflow it was made from; null for a graph of its own.
    pub workflow: Option<String>,
    /// From -100 (last) to 100 (first).
    pub priority: i64,
    /// Which life this is, from 1: one more each time a failed or cancelled task is asked for again.
    pub generation: i32,
    /// Which attempt this is, from 1.
    pub attempt: i32,
    /// Attempts allowed.
    pub max_attempts: i32,
    /// When it was accepted.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it will wait for its turn, while it is `scheduled`.
    #[schema(format = DateTime)]
    pub run_at: Option<String>,
    /// When its newest attempt began.
    #[schema(format = DateTime)]
    pub started_at: Option<String>,
    /// When it ended.
    #[schema(format = DateTime)]
    pub finished_at: Option<String>,
    /// Where the time went, as far as it is known.
    pub timings: Timings,
    /// Why it failed, or why its newest attempt did.
    pub error: Option<ErrorView>,
}

/// A task with everything.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskView {
    /// What lists show.
    #[serde(flatten)]
    pub summary: TaskSummary,
    /// The version of the named workflow it was made from: `workflow@workflow_version` runs the same again.
    pub workflow_version: Option<u32>,
    /// As given, and with the seed that was drawn.
    #[schema(value_type = Object)]
    pub inputs: Box<RawValue>,
    /// The client's own data.
    #[schema(value_type = Object)]
    pub metadata: Box<RawValue>,
    /// How far it is; null when it did not complete.
    pub progress: Option<ProgressView>,
    /// Who is told of it. Null: nobody.
    pub webhook: Option<WebhookView>,
    /// Whose it is, as the gateway said (`tenants.header`). Null: nobody's in particular.
    pub tenant: Option<String>,
    /// What no ComfyUI server that is online has: it waits until one does. Null when it waits for nothing but its turn.
    pub waiting_for: Option<NeedsView>,
    /// What is stored, in the order of node and index.
    pub outputs: Vec<OutputView>,
    /// What its newest run spent on each node, in the order in which they ran, once that run is over. As far as the server told: empty
    /// when the connection was away.
    pub nodes: Vec<NodeView>,
}

/// Who is told of a task.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookView {
    /// Where messages are sent, without what is behind the `?`.
    pub url: String,
    /// What they tell.
    #[schema(value_type = Vec<String>, example = json!(["task.completed", "task.failed"]))]
    pub events: Vec<&'static str>,
}

/// What a task needs of a ComfyUI server.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct NeedsView {
    /// In words.
    pub detail: String,
    /// Node classes.
    pub classes: Vec<String>,
    /// Models and other values in lists.
    pub values: Vec<ListValueView>,
    /// One of these servers itself; empty = any.
    pub backends: Vec<String>,
    /// Labels of a consumer.
    pub labels: Vec<String>,
    /// A consumer that takes this workflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
}

/// A value that must be in the list of a node's input.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ListValueView {
    /// The class of the node.
    #[schema(example = "CheckpointLoaderSimple")]
    pub class_type: String,
    /// Its input.
    #[schema(example = "ckpt_name")]
    pub input: String,
    /// The value.
    pub value: String,
}

/// What a node took.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeView {
    /// The node, by its id in the graph.
    #[schema(example = "3")]
    pub node_id: String,
    /// Its class; null for a node that is not in the graph itself.
    #[schema(example = "KSampler")]
    pub class_type: Option<String>,
    /// Milliseconds, of all its turns together.
    pub ms: i64,
    /// It did not run: the server had its result already.
    pub cached: bool,
}

/// How far a task is.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ProgressView {
    /// 0 to 100; 100 only when every output is stored.
    pub percent: u8,
    /// The node that runs now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// Of how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Its place among those that wait: 1 is next. Counted to 1001.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u32>,
    /// True when its place is that one or any after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_position_at_least: Option<bool>,
    /// Milliseconds until it is expected to be done, learned from how long others took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<i64>,
    /// While it is prepared: bytes of its files that the server has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// Bytes of its files that the server gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

/// Milliseconds per stage of the newest attempt; null for what has not ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct Timings {
    /// Waiting for its turn, since it was created, due, or asked for again.
    pub queued_ms: Option<i64>,
    /// Until a server took it.
    pub prepare_ms: Option<i64>,
    /// On the server.
    pub execute_ms: Option<i64>,
    /// Storing its outputs.
    pub upload_ms: Option<i64>,
    /// From acceptance to end.
    pub total_ms: Option<i64>,
}

/// One stored output.
#[derive(Debug, Serialize, ToSchema)]
pub struct OutputView {
    /// Its number within the task.
    pub index: u32,
    /// The node that made it.
    pub node_id: String,
    /// `image`, `video`, `audio`, `text` or `file`.
    pub kind: &'static str,
    /// Its media type.
    pub content_type: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// Pixels from left to right; this and the next three are null where the file's header does not tell.
    pub width: Option<u32>,
    /// Pixels from top to bottom.
    pub height: Option<u32>,
    /// How long it plays.
    pub duration_ms: Option<u64>,
    /// Pictures in a video or an animation, 1 for a still.
    pub frames: Option<u64>,
    /// The whole text, when it is text of at most 16 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Whether the embedded prompt and workflow were taken out; only when `output_options.strip_metadata` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata_stripped: Option<bool>,
    /// Its bytes in base64, when `output_options.inline` asked for them and they are small enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = Byte)]
    pub data: Option<String>,
    /// What ComfyUI called it; with the extension of what it was converted to.
    pub filename: String,
    /// Where to get it: in a bucket with a public domain there, in another by a link that ends after a while (each look at the task makes a
    /// new one), else from this service.
    pub url: String,
    /// Other shapes of it by name, where the storage makes them (Cloudflare Images).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub variants: BTreeMap<String, String>,
}

/// Why a task failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorView {
    /// A stable word.
    #[schema(value_type = String, example = "node_failed")]
    pub code: comfyd_actors::domain::error::ErrorCode,
    /// How it is treated: `validation`, `permanent`, `transient`, `out_of_memory`, `backend_fault`, `poison`, `timeout` or `storage`.
    #[schema(example = "transient")]
    pub class: &'static str,
    /// What happened.
    pub message: String,
    /// What follows by itself: `nothing`, `retry` (after a pause), `retry_alone` (on a server whose memory was freed), `retry_elsewhere`
    /// (the same, on a larger server), or `elsewhere` (on another server, at no cost to its attempts).
    #[schema(example = "retry")]
    pub next: &'static str,
    /// The same in words or, when nothing follows, what to do.
    #[schema(example = "It is tried again after a pause")]
    pub advice: &'static str,
    /// The node at fault.
    pub node_id: Option<String>,
    /// Its class.
    pub class_type: Option<String>,
    /// Whether another attempt may end differently.
    pub retryable: bool,
    /// ComfyUI's own list, for a graph it refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub node_errors: Option<Value>,
}

/// The word for clients.
#[must_use]
pub fn status(state: TaskState) -> &'static str {
    match state {
        TaskState::Scheduled | TaskState::Pending => "pending",
        TaskState::Dispatching | TaskState::Executing | TaskState::Uploading => "processing",
        TaskState::Completed => "completed",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
    }
}

/// The word for clients, of a task at a stage.
#[must_use]
pub fn stage_status(stage: Stage) -> &'static str {
    match stage {
        Stage::Scheduled | Stage::Queued => "pending",
        Stage::Preparing | Stage::Executing | Stage::Uploading | Stage::Cancelling => "processing",
        Stage::Completed => "completed",
        Stage::Failed => "failed",
        Stage::Cancelled => "cancelled",
    }
}

/// The states a client's word means; empty when it is none.
#[must_use]
pub fn states(status_word: &str) -> Vec<TaskState> {
    TaskState::ALL.into_iter().filter(|state| status(*state) == status_word).collect()
}

impl TaskSummary {
    /// Of a task.
    #[must_use]
    pub fn of(task: Task) -> Self {
        Self {
            task_id: task.id.to_string(),
            status: status(task.state),
            stage: Stage::of(&task).as_str(),
            priority: task.priority.level(),
            generation: task.generation,
            attempt: task.attempt,
            max_attempts: task.max_attempts,
            created_at: task.created_at.rfc3339(),
            run_at: task.run_at.map(Timestamp::rfc3339),
            started_at: task.started_at.map(Timestamp::rfc3339),
            finished_at: task.finished_at.map(Timestamp::rfc3339),
            timings: Timings::of(&task),
            error: task.error.map(ErrorView::of),
            workflow: task.workflow,
        }
    }
}

impl TaskView {
    /// Of a task; `base` is what the URLs of outputs begin with.
    #[must_use]
    pub fn of(record: TaskRecord, standing: Option<Standing>, base: &str) -> Self {
        let TaskRecord { task, inputs, metadata, artifacts, nodes, options, needs, .. } = record;
        let url = format!("{base}/api/tasks/{}/outputs", task.id);
        Self {
            progress: ProgressView::of(task.state, standing),
            webhook: options.webhook.as_ref().map(WebhookView::of),
            tenant: needs.tenant.as_ref().map(ToString::to_string),
            waiting_for: NeedsView::of(&needs),
            outputs: artifacts.into_iter().filter_map(|artifact| OutputView::of(artifact, &url)).collect(),
            nodes: nodes.into_iter().map(NodeView::of).collect(),
            workflow_version: options.workflow_version,
            inputs: raw(&inputs),
            metadata: raw(&metadata),
            summary: TaskSummary::of(task),
        }
    }
}

impl WebhookView {
    fn of(webhook: &Webhook) -> Self {
        let events = Vec::from(webhook.events).into_iter().map(event_type);
        Self { url: webhook.endpoint_url().to_owned(), events: events.collect() }
    }
}

impl NeedsView {
    /// `None` without any.
    #[must_use]
    pub fn of(needs: &Needs) -> Option<Self> {
        let value = |need: &ListValue| ListValueView {
            class_type: need.class.clone(),
            input: need.input.clone(),
            value: need.value.clone(),
        };
        (!needs.is_empty()).then(|| Self {
            detail: format!("no ComfyUI server that is online has what this needs: {needs}"),
            classes: needs.classes.iter().cloned().collect(),
            values: needs.values.iter().map(value).collect(),
            backends: needs.backends.iter().map(ToString::to_string).collect(),
            labels: needs.labels.iter().cloned().collect(),
            workflow: needs.workflow.clone(),
        })
    }
}

impl TaskView {
    /// Adds an output's bytes.
    pub fn set_data(&mut self, index: u32, data: String) {
        if let Some(output) = self.outputs.iter_mut().find(|output| output.index == index) {
            output.data = Some(data);
        }
    }
}

/// JSON text as it is; what a store damaged is shown as null, so that the rest can still be seen.
#[must_use]
pub fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

impl ProgressView {
    fn of(state: TaskState, standing: Option<Standing>) -> Option<Self> {
        let at = |percent| Some(Self { percent, ..Self::default() });
        match (state, standing) {
            (TaskState::Pending, Some(Standing::Waits(place))) => Some(Self::waiting(place)),
            (TaskState::Executing, Some(Standing::Runs(progress))) => Some(Self::running(progress)),
            // Nothing runs yet: its files are on their way to the server.
            (TaskState::Dispatching, Some(Standing::Runs(Progress { sent_bytes, total_bytes, .. }))) => {
                Some(Self { sent_bytes, total_bytes, ..Self::default() })
            }
            (state, _) => match state {
                TaskState::Scheduled | TaskState::Pending | TaskState::Dispatching | TaskState::Executing => at(0),
                // All nodes are done and not everything is stored.
                TaskState::Uploading => at(99),
                TaskState::Completed => at(100),
                TaskState::Failed | TaskState::Cancelled => None,
            },
        }
    }

    /// Of a task on a server.
    #[must_use]
    pub fn running(progress: Progress) -> Self {
        let Progress { percent, node, step, steps, eta, .. } = progress;
        Self { percent, node, step, steps, eta_ms: eta.map(millis), ..Self::default() }
    }

    /// Of a task before its turn.
    #[must_use]
    pub fn waiting(Place { ahead, eta }: Place) -> Self {
        let at_least = ahead >= FAR;
        Self {
            queue_position: Some(ahead.saturating_add(1)),
            queue_position_at_least: at_least.then_some(true),
            eta_ms: eta.map(millis),
            ..Self::default()
        }
    }
}

impl Timings {
    /// Of a task.
    #[must_use]
    pub fn of(task: &Task) -> Self {
        let Stages { queued, prepare, execute, upload, total } = task.stages();
        Self {
            queued_ms: queued.map(millis),
            prepare_ms: prepare.map(millis),
            execute_ms: execute.map(millis),
            upload_ms: upload.map(millis),
            total_ms: total.map(millis),
        }
    }
}

impl NodeView {
    fn of(NodeTiming { node_id, class_type, ms, cached }: NodeTiming) -> Self {
        Self { node_id, class_type, ms, cached }
    }
}

impl OutputView {
    /// Of an output that is stored; `url` is what those of its task begin with.
    #[must_use]
    pub fn of(artifact: Artifact, url: &str) -> Option<Self> {
        let filename = artifact.filename();
        let object = artifact.object?;
        let Facts { width, height, duration_ms, frames, text, stripped } = object.facts;
        Some(Self {
            index: artifact.index,
            node_id: artifact.node_id,
            kind: artifact.kind.as_str(),
            content_type: object.content_type,
            bytes: object.bytes,
            sha256: object.sha256,
            width,
            height,
            duration_ms,
            frames,
            text,
            metadata_stripped: stripped,
            data: None,
            filename,
            url: format!("{url}/{}", artifact.index),
            variants: BTreeMap::new(),
        })
    }
}

impl ErrorView {
    /// Of a task's error.
    #[must_use]
    pub fn of(error: TaskError) -> Self {
        let TaskError { code, class, next, message, node_id, class_type, node_errors, pause_ms: _ } = error;
        Self {
            code,
            class: class.as_str(),
            message,
            next: next.as_str(),
            advice: if next == Next::Nothing { class.advice() } else { next.promise() },
            node_id,
            class_type,
            retryable: class.is_retryable(),
            node_errors,
        }
    }
}
