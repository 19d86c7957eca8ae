//! What a receiver reads.

use comfyd_actors::{
    domain::{
        event::Stage,
        webhook::{Delivery, event_type},
    },
    ports::store::TaskRecord,
};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::http::view::{self, ErrorView, OutputView, Timings, raw};

/// A message to a webhook.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookMessage)]
pub struct Message {
    /// What it tells: `task.` and the stage that began.
    #[serde(rename = "type")]
    #[schema(example = "task.completed")]
    pub kind: &'static str,
    /// When that was. A message that is sent again has the same.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// The task.
    pub data: TaskNews,
}

/// A task as a message tells of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskNews {
    /// Its id.
    pub task_id: String,
    /// `pending`, `processing`, `completed`, `failed` or `cancelled`: then, not now.
    #[schema(example = "completed")]
    pub status: &'static str,
    /// The stage that began.
    #[schema(example = "completed")]
    pub stage: &'static str,
    /// Which life this is, from 1: one more each time a failed or cancelled task is asked for again.
    pub generation: i32,
    /// Which attempt this is, from 1.
    pub attempt: i32,
    /// Attempts allowed.
    pub max_attempts: i32,
    /// The named workflow it was made from.
    pub workflow: Option<String>,
    /// And its version.
    pub workflow_version: Option<u32>,
    /// When it was accepted.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// Where the time went; null when the task has gone on since.
    pub timings: Option<Timings>,
    /// Why it failed, or why its last attempt did.
    pub error: Option<ErrorView>,
    /// What is stored, when it is over. The URLs are made for this message.
    pub outputs: Vec<OutputView>,
    /// The client's own data.
    #[schema(value_type = Object)]
    pub metadata: Box<RawValue>,
}

impl Message {
    /// About a task; `base` is what the URLs of its outputs begin with.
    pub(super) fn of(delivery: &Delivery, record: &TaskRecord, base: &str) -> Self {
        let task = &record.task;
        // What is known of the task is of now. It belongs into the message only if nothing has happened since.
        let is_now = task.generation == delivery.generation && Stage::of(task) == delivery.stage;
        let url = format!("{base}/api/tasks/{}/outputs", task.id);
        let artifacts = record.artifacts.iter().filter(|_| is_now && delivery.stage.is_final());
        Self {
            kind: event_type(delivery.stage),
            timestamp: delivery.at.rfc3339(),
            data: TaskNews {
                task_id: task.id.to_string(),
                status: view::stage_status(delivery.stage),
                stage: delivery.stage.as_str(),
                generation: delivery.generation,
                attempt: delivery.attempt,
                max_attempts: task.max_attempts,
                workflow: task.workflow.clone(),
                workflow_version: record.options.workflow_version,
                created_at: task.created_at.rfc3339(),
                timings: is_now.then(|| Timings::of(task)),
                error: delivery.error.clone().map(ErrorView::of),
                outputs: artifacts.filter_map(|artifact| OutputView::of(artifact.clone(), &url)).map(short).collect(),
                metadata: raw(&record.metadata),
            },
        }
    }

    /// As it is sent.
    pub(super) fn write(&self) -> String {
        // Nothing in it can fail to be JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Texts lie where the other outputs do: a message is no place for files.
fn short(output: OutputView) -> OutputView {
    OutputView { text: None, ..output }
}
